//! `banger vm workspace prepare`

use std::path::PathBuf;

use banger_api::client::Client;
use banger_api::vm::Vm;
use banger_api::workspace::{Work, Workspace};
use banger_api::{Code, Problem};
use banger_workspace::guest;

use crate::commands::DONE;
use crate::commands::targets::vm_path;
use crate::commands::vm::carry::{self, Carry};
use crate::context::Context;
use crate::failure::Failure;
use crate::workspace::{self, Guest};
use crate::{completion, operation};

/// Bring a git repository into a running VM, or bring the one that is there up to date
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The guest gets the last ten generations of commits with their real ids, the branch, the index, and the tracked files as they \
are in the working tree; nothing that git ignores. Where a repository was brought before, it takes its place, but for what \
git ignores there; work that nobody has exported is in the way.

Examples:
  banger vm workspace prepare web .                    the repository that this folder is in
  banger vm workspace prepare web                      again, from where it came
  banger vm workspace prepare web . --branch topic     on a new branch there")]
pub(crate) struct Args {
    /// Its name or id, or the beginning of one
    #[arg(add = completion::vm_names())]
    vm: String,
    /// The repository's folder; the one that was brought before if not given
    path: Option<PathBuf>,
    #[command(flatten)]
    carry: Carry,
    /// Drop what was done in the VM and not exported
    #[arg(short, long)]
    force: bool,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let Args { vm, path, carry, force } = args;
    let client = context.client().await?;
    let vm: Vm = client.get(&vm_path(&vm)?).await?;
    let path = match path {
        Some(path) => path,
        None => PathBuf::from(&workspace::of(&vm)?.host_path),
    };
    let plan = workspace::plan(&path, carry.choice()).await?;
    if carry.dry_run {
        carry::show(context, &plan)?;
        return Ok(DONE);
    }
    let recorded = vm.workspace.as_ref().map(|workspace| workspace.guest_path.as_str());
    let at = carry.at.as_deref().or(recorded).unwrap_or(workspace::USUAL_PLACE).to_owned();
    let preparing = async {
        let guest = Guest::of(&client, &vm);
        make_room(&guest, &at, force).await?;
        Ok(guest.bring(context, plan, &at).await?)
    };
    let workspace = operation::unless_interrupted(context, preparing).await?;
    context.print(&workspace, || format!("{}: {at}\n", vm.name))?;
    Ok(DONE)
}

/// Brings what was brought before again.
pub(crate) async fn again(
    context: &Context,
    client: &Client,
    vm: &Vm,
    workspace: &Workspace,
) -> Result<(), Problem> {
    let plan =
        workspace::plan(workspace.host_path.as_ref(), banger_workspace::Choice::default()).await?;
    let guest = Guest::of(client, vm);
    make_room(&guest, &workspace.guest_path, false).await?;
    guest.bring(context, plan, &workspace.guest_path).await.map(drop)
}

/// Takes away what was brought to `at` before.
async fn make_room(guest: &Guest<'_>, at: &str, force: bool) -> Result<(), Problem> {
    let name = &guest.vm.name;
    let there = !guest.answer(&guest::ask_whether_there(at)).await?.is_empty();
    let Some(workspace) = &guest.vm.workspace else {
        if there {
            let message =
                format!("there is something at {at} in VM {name}, which banger has not brought");
            return Err(Problem::new(Code::Conflict, message)
                .remedy("--at FOLDER names another place; or remove it there"));
        }
        return Ok(());
    };
    if !there && workspace.guest_path == at {
        return Ok(());
    }
    if !force {
        let work = guest.work(workspace).await?;
        if work != Work::None {
            let message = format!("VM {name} has work that nobody has exported: {work}");
            return Err(Problem::new(Code::Unexported, message).remedy(format!(
                "`banger vm workspace export {name} -o {name}.patch` saves it; --force drops it"
            )));
        }
    }
    if workspace.guest_path == at {
        let folders = workspace.repos.iter().map(|repo| guest::folder(at, repo)).collect();
        guest.run(&guest::clear(folders), None, |_| Ok(())).await?;
    } else if there {
        let message =
            format!("there is something at {at} in VM {name}, which banger has not brought");
        return Err(Problem::new(Code::Conflict, message).remedy("--at FOLDER names another place"));
    }
    Ok(())
}
