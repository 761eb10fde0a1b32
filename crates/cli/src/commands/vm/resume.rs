//! `banger vm resume`

use banger_api::vm::Vm;
use http::Method;

use super::chosen::Chosen;
use crate::commands::targets::{self, vm_path};
use crate::context::Context;
use crate::failure::Failure;
use crate::{operation, render};

/// Let paused VMs go on where they stood still
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Its clock is set to the time of now.

Examples:
  banger vm resume web")]
pub(crate) struct Args {
    #[command(flatten)]
    chosen: Chosen,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let client = context.client().await?;
    let chosen = args.chosen.names(context, &client).await?;
    targets::each(context, &chosen, async |target, subject| {
        let path = format!("{}/resume", vm_path(target)?);
        let vm: Vm =
            operation::follow(context, &client, subject, Method::POST, &path, None::<&()>).await?;
        render::outcome(context, &vm, vm.state)
    })
    .await
}
