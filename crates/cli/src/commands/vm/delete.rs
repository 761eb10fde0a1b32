//! `banger vm delete`

use http::Method;
use serde_json::{Value, json};

use super::chosen::Chosen;
use crate::commands::targets::{self, vm_path};
use crate::context::Context;
use crate::failure::Failure;
use crate::operation;

/// Delete VMs with their disks, running or not
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  banger vm delete web
  banger vm delete --label ci=1              all that have this label
  banger vm delete $(banger vm list -q)      all of them")]
pub(crate) struct Args {
    #[command(flatten)]
    chosen: Chosen,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let client = context.client().await?;
    let chosen = args.chosen.names(context, &client).await?;
    targets::each(context, &chosen, async |target, subject| {
        let path = vm_path(target)?;
        operation::follow::<Value>(context, &client, subject, Method::DELETE, &path, None::<&()>)
            .await?;
        context.print(&json!({ "deleted": target }), || match context.quiet {
            true => format!("{target}\n"),
            false => format!("{target}: deleted\n"),
        })
    })
    .await
}
