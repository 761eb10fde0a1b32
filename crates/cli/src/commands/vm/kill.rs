//! `banger vm kill`

use banger_api::vm::{KillVm, Vm};
use http::Method;

use super::chosen::Chosen;
use crate::commands::targets::{self, vm_path};
use crate::context::Context;
use crate::failure::Failure;
use crate::{operation, render};

const SIGNALS: [&str; 5] = ["KILL", "TERM", "INT", "HUP", "QUIT"];

/// End VMs at once, as pulling the plug would; writes that were not synced are lost
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  banger vm kill web
  banger vm kill --signal TERM web")]
pub(crate) struct Args {
    /// KILL, TERM, INT, HUP or QUIT, sent to the program that runs the VM
    #[arg(short, long, value_parser = SIGNALS, default_value = "KILL", ignore_case = true)]
    signal: String,
    #[command(flatten)]
    chosen: Chosen,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let request = KillVm { signal: Some(args.signal.to_ascii_uppercase()) };
    let client = context.client().await?;
    let chosen = args.chosen.names(context, &client).await?;
    targets::each(context, &chosen, async |target, subject| {
        let path = format!("{}/kill", vm_path(target)?);
        let vm: Vm =
            operation::follow(context, &client, subject, Method::POST, &path, Some(&request))
                .await?;
        render::outcome(context, &vm, vm.state)
    })
    .await
}
