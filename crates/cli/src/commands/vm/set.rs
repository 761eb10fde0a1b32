//! `banger vm set`

use banger_api::Egress;
use banger_api::ports::{HostPort, PublishedPort};
use banger_api::vm::{SetVm, Vm};
use clap::{ArgGroup, ValueEnum};
use http::Method;

use crate::commands::targets::{self, vm_path};
use crate::context::Context;
use crate::failure::Failure;
use crate::{completion, operation, render};

/// Change VMs, at once if they run
#[derive(Debug, clap::Args)]
#[command(group = ArgGroup::new("what").required(true).multiple(true).args(["nat", "egress", "publish", "unpublish"]))]
#[command(after_help = "Examples:
  banger vm set web --nat on            it reaches the internet from now on
  banger vm set web db --nat off
  banger vm set web --egress allow:github.com,203.0.113.0/24   only that
  banger vm set web --publish 8080:80   127.0.0.1:8080 leads to its port 80 from now on
  banger vm set web --unpublish 8080")]
pub(crate) struct Args {
    /// Names or ids, or the beginnings of some
    #[arg(value_name = "VM", required = true, add = completion::vm_names())]
    targets: Vec<String>,
    /// Whether it reaches what the host reaches, under the host's address
    #[arg(long)]
    nat: Option<OnOff>,
    /// What it may reach beyond the host: none, all, or allow: and domains, addresses and subnets. Connections that it does not
    /// allow end
    #[arg(long, value_name = "POLICY", value_parser = Egress::parse)]
    egress: Option<Egress>,
    /// Lead a port of this host to one of its own: [ADDRESS:]HOST:GUEST[/udp]
    #[arg(short, long, value_name = "PORT")]
    publish: Vec<PublishedPort>,
    /// A port of this host, PORT[/udp], that is to lead to it no longer
    #[arg(long, value_name = "PORT")]
    unpublish: Vec<HostPort>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum OnOff {
    On,
    Off,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let Args { targets, nat, egress, publish, unpublish } = args;
    let nat = nat.map(|nat| matches!(nat, OnOff::On));
    let with_egress = egress.is_some();
    let ports = !publish.is_empty() || !unpublish.is_empty();
    let request = SetVm { nat, egress, publish, unpublish };
    let client = context.client().await?;
    targets::each(context, &targets, async |target, subject| {
        let path = vm_path(target)?;
        let vm: Vm =
            operation::follow(context, &client, subject, Method::PATCH, &path, Some(&request))
                .await?;
        let way_out = match (with_egress, nat) {
            (true, _) => Some(format!("egress {}", vm.egress)),
            (false, Some(_)) => Some(if vm.nat { "nat on" } else { "nat off" }.to_owned()),
            (false, None) => None,
        };
        let ports = ports.then(|| match render::ports(&vm) {
            Some(ports) => format!("publishes {ports}"),
            None => "publishes nothing".to_owned(),
        });
        let changed: Vec<String> = way_out.into_iter().chain(ports).collect();
        render::outcome(context, &vm, changed.join(", "))
    })
    .await
}
