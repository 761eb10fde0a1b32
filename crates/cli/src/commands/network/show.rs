//! `banger network show`

use banger_api::network::Network;

use crate::commands::DONE;
use crate::commands::targets::network_path;
use crate::completion;
use crate::context::Context;
use crate::failure::Failure;
use crate::render;

/// Show everything there is to know of a network
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  banger network show default
  banger network show default --format json")]
pub(crate) struct Args {
    /// Its name
    #[arg(add = completion::network_names())]
    network: String,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let path = network_path(&args.network)?;
    let network: Network = context.client().await?.get(&path).await?;
    render::show(context, &network)?;
    Ok(DONE)
}
