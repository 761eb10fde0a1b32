//! `banger vm stop`

use banger_api::vm::{StopVm, Vm};
use http::Method;

use crate::commands::duration::{self, Milliseconds};
use crate::commands::targets::{self, vm_path};
use crate::context::Context;
use crate::failure::Failure;
use crate::{completion, operation, render};

/// Shut VMs down; their disks stay
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The guest shuts itself down and loses no write; at the deadline it is killed.

Examples:
  banger vm stop web
  banger vm stop --deadline 30s web db"
)]
pub(crate) struct Args {
    /// How long the guest may take to shut down before it is killed, such as 30s
    #[arg(long, value_name = "TIME", value_parser = duration::parse, allow_hyphen_values = true)]
    deadline: Option<Milliseconds>,
    /// Names or ids, or the beginnings of some
    #[arg(value_name = "VM", required = true, add = completion::vm_names())]
    targets: Vec<String>,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let request = StopVm { deadline_ms: args.deadline.map(|time| time.0) };
    let client = context.client().await?;
    targets::each(context, &args.targets, async |target, subject| {
        let path = format!("{}/stop", vm_path(target)?);
        let vm: Vm =
            operation::follow(context, &client, subject, Method::POST, &path, Some(&request))
                .await?;
        render::outcome(context, &vm, vm.state)
    })
    .await
}
