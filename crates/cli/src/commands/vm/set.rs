//! `banger vm set`

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
  banger vm set web db --nat off")]
pub(crate) struct Args {
    /// Names or ids, or the beginnings of some
    #[arg(value_name = "VM", required = true, add = completion::vm_names())]
    targets: Vec<String>,
    /// Whether it reaches what the host reaches, under the host's address
    #[arg(long, required = true)]
    nat: OnOff,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum OnOff {
    On,
    Off,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let request = SetVm { nat: Some(matches!(args.nat, OnOff::On)) };
    let client = context.client().await?;
    targets::each(context, &args.targets, async |target, subject| {
        let path = vm_path(target)?;
        let vm: Vm =
            operation::follow(context, &client, subject, Method::PATCH, &path, Some(&request))
                .await?;
        render::outcome(context, &vm, if vm.nat { "nat on" } else { "nat off" })
    })
    .await
}
