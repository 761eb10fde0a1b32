//! `banger network create`

use banger_api::NetworkName;
use banger_api::network::{CreateNetwork, Network};
use http::Method;

use crate::commands::DONE;
use crate::context::Context;
use crate::failure::Failure;
use crate::render;

/// Make a network for VMs, apart from those of other networks
#[derive(Debug, clap::Args)]
#[command(after_help = "\
VMs are put in it by `banger vm run --network NAME`. Its bridge is on the host while one of them runs.

Examples:
  banger network create lab
  banger network create team --allow-peers                its VMs reach each other
  banger network create vpn --subnet 192.168.77.0/24 --mtu 1400")]
pub(crate) struct Args {
    /// Its name
    #[arg(value_parser = NetworkName::parse)]
    name: NetworkName,
    /// A private subnet of 16 to 29 bits, such as 192.168.77.0/24; one that the host does not use if not given
    #[arg(long, value_name = "CIDR")]
    subnet: Option<String>,
    /// The longest packet in bytes, 576 to 65521; as config.toml has it if not given
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(576..=65521), allow_hyphen_values = true)]
    mtu: Option<u16>,
    /// Let its VMs reach each other, on every port
    #[arg(long)]
    allow_peers: bool,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let Args { name, subnet, mtu, allow_peers } = args;
    let request = CreateNetwork { name, subnet, mtu, peers: allow_peers };
    let client = context.client().await?;
    let network: Network = client.json(Method::POST, "/v1/networks", Some(&request)).await?;
    render::outcome(context, &network, format!("created, {}", network.subnet))?;
    Ok(DONE)
}
