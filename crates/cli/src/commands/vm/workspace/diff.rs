//! `banger vm workspace diff`

use banger_api::vm::Vm;
use serde_json::json;

use super::patch;
use crate::commands::DONE;
use crate::commands::targets::vm_path;
use crate::context::{Context, Format};
use crate::failure::Failure;
use crate::printable::Printable;
use crate::workspace::{self, Guest};
use crate::{completion, out, terminal};

/// Show as a patch what has changed in a VM's repository since the commit that it began at
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Commits, changes that are not committed, and files that git does not know and does not ignore.

Examples:
  banger vm workspace diff web
  banger vm workspace diff web --submodule libs/inner")]
pub(crate) struct Args {
    /// Its name or id, or the beginning of one
    #[arg(add = completion::vm_names())]
    vm: String,
    /// The submodule that is meant, by its path
    #[arg(long, value_name = "PATH")]
    submodule: Option<String>,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let client = context.client().await?;
    let vm: Vm = client.get(&vm_path(&args.vm)?).await?;
    let workspace = workspace::of(&vm)?;
    let repo = patch::repo_at(workspace, args.submodule.as_deref())?;
    let guest = Guest::of(&client, &vm);
    let state = guest.state_by_git(&workspace.guest_path, repo).await?;
    let mut all = Vec::new();
    let keep = |bytes: &[u8]| {
        all.extend_from_slice(bytes);
        Ok(())
    };
    patch::read(&guest, workspace, repo, &state, keep).await?;
    if context.format == Format::Json {
        let value = json!({ "base": repo.base, "tree": state.tree, "patch": patch::as_json(&all) });
        context.print(&value, String::new)?;
    } else if terminal::stdout_is_terminal() {
        out::stdout(&Printable::default().filter(&all))?;
    } else {
        out::stdout(&all)?;
    }
    Ok(DONE)
}
