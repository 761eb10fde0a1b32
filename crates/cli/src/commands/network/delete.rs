//! `banger network delete`

use http::Method;
use serde_json::{Value, json};

use crate::commands::targets::{self, network_path};
use crate::completion;
use crate::context::Context;
use crate::failure::Failure;

/// Delete networks; refused while a VM is in one, running or not
#[derive(Debug, clap::Args)]
#[command(after_help = "The network `default` stays.

Examples:
  banger network delete team")]
pub(crate) struct Args {
    #[arg(value_name = "NAME", required = true, add = completion::network_names())]
    targets: Vec<String>,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let client = context.client().await?;
    targets::each(context, &args.targets, async |target, _| {
        let path = network_path(target)?;
        client.json::<Value>(Method::DELETE, &path, None::<&()>).await?;
        context.print(&json!({ "deleted": target }), || match context.quiet {
            true => format!("{target}\n"),
            false => format!("{target}: deleted\n"),
        })
    })
    .await
}
