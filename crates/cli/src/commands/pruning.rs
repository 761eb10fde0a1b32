//! What the verbs that prune artifacts have in common: what would go, the question, what went.

use banger_api::Size;
use banger_api::client::Client;
use banger_api::image::{Prune, Pruned};
use http::Method;

use crate::commands::{DONE, FAILED, ask};
use crate::context::Context;
use crate::failure::Failure;
use crate::operation;

#[derive(Debug, clap::Args)]
pub(crate) struct Pruning {
    /// Only say what would go
    #[arg(long)]
    dry_run: bool,
    /// Ask no question
    #[arg(short, long)]
    force: bool,
}

pub(crate) async fn run(
    pruning: Pruning,
    context: &Context,
    path: &str,
    lost: &str,
    flag: &str,
) -> Result<u8, Failure> {
    let Pruning { dry_run, force } = pruning;
    if !dry_run && !force {
        ask::somebody_or(lost, flag)?;
    }
    let client = context.client().await?;
    if !dry_run && !force {
        let would = prune(context, &client, path, true).await?;
        if !would.removed.is_empty() && !ask::agreed(text(&would, false).trim_end())? {
            context.hint("nothing was removed");
            return Ok(FAILED);
        }
    }
    let pruned =
        operation::unless_interrupted(context, prune(context, &client, path, dry_run)).await?;
    context.print(&pruned, || text(&pruned, context.quiet))?;
    Ok(DONE)
}

async fn prune(
    context: &Context,
    client: &Client,
    path: &str,
    dry_run: bool,
) -> Result<Pruned, Failure> {
    let request = Prune { dry_run };
    Ok(operation::follow(context, client, None, Method::POST, path, Some(&request)).await?)
}

fn text(pruned: &Pruned, quiet: bool) -> String {
    let verb = if pruned.dry_run { "would go" } else { "removed" };
    let mut text = String::new();
    for thing in &pruned.removed {
        text += &if quiet {
            format!("{}\n", thing.name)
        } else {
            format!("{} {}: {verb}, {}\n", thing.kind, thing.name, Size::bytes(thing.size_bytes))
        };
    }
    if !quiet {
        let freed = if pruned.dry_run { "would be freed" } else { "freed" };
        text += &format!("{} {freed}\n", Size::bytes(pruned.freed_bytes));
    }
    text
}
