//! `banger vm prune`

use banger_api::Size;
use banger_api::client::Client;
use banger_api::vm::{Pruned, State, Vm};
use http::Method;

use crate::commands::{DONE, FAILED, ask};
use crate::context::Context;
use crate::failure::Failure;
use crate::operation;

/// Delete every VM that does not run, after a question
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  banger vm prune
  banger vm prune -f       no question, for scripts")]
pub(crate) struct Args {
    /// Ask no question
    #[arg(short, long)]
    force: bool,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    if !args.force {
        ask::somebody_or("prune deletes disks", "banger vm prune -f")?;
    }
    let client = context.client().await?;
    if !args.force && !agreed(&client).await? {
        context.hint("nothing was deleted");
        return Ok(FAILED);
    }
    let pruning = async {
        let pruned: Pruned =
            operation::follow(context, &client, None, Method::POST, "/v1/vms/prune", None::<&()>)
                .await?;
        Ok(pruned)
    };
    let pruned = operation::unless_interrupted(context, pruning).await?;
    context.print(&pruned, || {
        let mut text: String = pruned
            .deleted
            .iter()
            .map(
                |name| {
                    if context.quiet { format!("{name}\n") } else { format!("{name}: deleted\n") }
                },
            )
            .collect();
        if !context.quiet {
            text += &format!("{} freed\n", Size::bytes(pruned.freed_bytes));
        }
        text
    })?;
    Ok(DONE)
}

async fn agreed(client: &Client) -> Result<bool, Failure> {
    let vms: Vec<Vm> = client.get("/v1/vms").await?;
    let names: Vec<&str> = vms
        .iter()
        .filter(|vm| matches!(vm.state, State::Stopped | State::Error))
        .map(|vm| vm.name.as_str())
        .collect();
    if names.is_empty() {
        return Ok(true);
    }
    ask::agreed(&format!(
        "this deletes {} with what is on their disks: {}",
        count(names.len()),
        names.join(" ")
    ))
}

fn count(vms: usize) -> String {
    if vms == 1 { "1 VM".to_owned() } else { format!("{vms} VMs") }
}
