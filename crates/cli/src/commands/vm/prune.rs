//! `banger vm prune`

use banger_api::Size;
use banger_api::client::Client;
use banger_api::vm::{PruneVms, Pruned, State, Vm};
use banger_api::workspace::Work;
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
    /// Ask no question, also where work in a VM was not exported
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
    // Whoever agreed was told in which there is work; -f says that it may go.
    let all = PruneVms { force: true };
    let pruning = async {
        let pruned: Pruned =
            operation::follow(context, &client, None, Method::POST, "/v1/vms/prune", Some(&all))
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
    let names: Vec<String> = vms
        .iter()
        .filter(|vm| matches!(vm.state, State::Stopped | State::Error))
        .map(|vm| match vm.workspace.as_ref().map(|workspace| workspace.work) {
            None | Some(Work::None) => vm.name.to_string(),
            Some(Work::Unknown) => format!("{} (may have work that is not exported)", vm.name),
            Some(work) => format!("{} (not exported: {work})", vm.name),
        })
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
