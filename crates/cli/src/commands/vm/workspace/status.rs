//! `banger vm workspace status`

use std::fmt::Write;

use banger_api::vm::Vm;
use banger_api::workspace::Work;
use banger_workspace::guest;
use serde_json::json;

use super::patch;
use crate::commands::DONE;
use crate::commands::targets::vm_path;
use crate::completion;
use crate::context::Context;
use crate::failure::Failure;
use crate::printable::Printable;
use crate::workspace::{self, Guest};

/// Tell what has changed in a VM's repository, and what of it nobody has exported
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  banger vm workspace status web
  banger vm workspace status web --format json")]
pub(crate) struct Args {
    /// Its name or id, or the beginning of one
    #[arg(add = completion::vm_names())]
    vm: String,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let client = context.client().await?;
    let vm: Vm = client.get(&vm_path(&args.vm)?).await?;
    let workspace = workspace::of(&vm)?;
    let guest = Guest::of(&client, &vm);
    let moved = workspace::host_moved(workspace).await;
    let mut work = Work::None;
    let (mut repos, mut text) = (Vec::new(), String::new());
    for repo in &workspace.repos {
        let state = guest.state_by_git(&workspace.guest_path, repo).await?;
        let changes = patch::changes(&guest, workspace, repo, &state).await?;
        let here = guest::work(repo, &state);
        work = work.and(here);
        if !repo.path.is_empty() {
            let _infallible = writeln!(text, "submodule {}", repo.path);
        }
        let branch = state.branch.as_deref().unwrap_or("no branch");
        let _infallible =
            writeln!(text, "on {branch} at {:.12}, from {:.12}", state.head, repo.base);
        for (letter, path) in &changes {
            let _infallible = writeln!(text, "{letter} {path}");
        }
        let changes: Vec<_> = changes
            .into_iter()
            .map(|(letter, path)| json!({ "status": letter.to_string(), "path": path }))
            .collect();
        repos.push(json!({
            "path": repo.path, "base": repo.base, "head": state.head, "branch": state.branch,
            "tree": state.tree, "changes": changes, "unexported": here,
        }));
    }
    let _infallible = writeln!(text, "not exported: {work}");
    if let Some(head) = &moved {
        let _infallible = writeln!(
            text,
            "{} is at {head:.12} now, it was at {:.12}",
            workspace.host_path, workspace.host_head
        );
    }
    let value = json!({
        "vm": vm.name, "host_path": workspace.host_path, "guest_path": workspace.guest_path,
        "prepared_at": workspace.prepared_at, "host_moved_to": moved, "unexported": work, "repos": repos,
    });
    let shown = Printable::default().filter(text.as_bytes());
    context.print(&value, || String::from_utf8_lossy(&shown).into_owned())?;
    Ok(DONE)
}
