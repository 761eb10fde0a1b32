//! `banger vm set`

use banger_api::Egress;
use banger_api::vm::{SetVm, Vm};
use clap::ValueEnum;
use http::Method;

use crate::commands::targets::{self, vm_path};
use crate::context::Context;
use crate::failure::Failure;
use crate::{completion, operation, render};

/// Change VMs, at once if they run
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  banger vm set web --nat on            it reaches the internet from now on
  banger vm set web db --nat off
  banger vm set web --egress allow:github.com,203.0.113.0/24   only that")]
pub(crate) struct Args {
    /// Names or ids, or the beginnings of some
    #[arg(value_name = "VM", required = true, add = completion::vm_names())]
    targets: Vec<String>,
    /// Whether it reaches what the host reaches, under the host's address
    #[arg(long, required_unless_present = "egress")]
    nat: Option<OnOff>,
    /// What it may reach beyond the host: none, all, or allow: and domains, addresses and subnets. Connections that it does not
    /// allow end
    #[arg(long, value_name = "POLICY", value_parser = Egress::parse)]
    egress: Option<Egress>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum OnOff {
    On,
    Off,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let nat = args.nat.map(|nat| matches!(nat, OnOff::On));
    let with_egress = args.egress.is_some();
    let request = SetVm { nat, egress: args.egress };
    let client = context.client().await?;
    targets::each(context, &args.targets, async |target, subject| {
        let path = vm_path(target)?;
        let vm: Vm =
            operation::follow(context, &client, subject, Method::PATCH, &path, Some(&request))
                .await?;
        let outcome = match (with_egress, vm.nat) {
            (true, _) => format!("egress {}", vm.egress),
            (false, true) => "nat on".to_owned(),
            (false, false) => "nat off".to_owned(),
        };
        render::outcome(context, &vm, outcome)
    })
    .await
}
