//! `banger vm start`

use banger_api::vm::Vm;
use http::Method;

use crate::commands::targets::{self, vm_path};
use crate::context::Context;
use crate::failure::Failure;
use crate::{completion, operation, render};

/// Start VMs that do not run
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  banger vm start web
  banger vm start web db")]
pub(crate) struct Args {
    /// Names or ids, or the beginnings of some
    #[arg(value_name = "VM", required = true, add = completion::vm_names())]
    targets: Vec<String>,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let client = context.client().await?;
    targets::each(context, &args.targets, async |target, subject| {
        let path = format!("{}/start", vm_path(target)?);
        let vm: Vm =
            operation::follow(context, &client, subject, Method::POST, &path, None::<&()>).await?;
        render::outcome(context, &vm, vm.state)
    })
    .await
}
