//! `banger vm workspace export`

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use banger_api::vm::Vm;
use banger_api::workspace::{Repo, Workspace};
use banger_api::{Code, Problem};
use banger_workspace::guest::{self, State};
use banger_workspace::{Branch, receive, scratch};
use serde_json::{Value, json};

use super::patch;
use crate::commands::DONE;
use crate::commands::targets::vm_path;
use crate::context::{Context, Format};
use crate::failure::Failure;
use crate::workspace::{self, Guest, blocking};
use crate::{completion, operation, out};

/// Bring what was done in a VM's repository back: as a patch, or its commits as a branch
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The patch is against the commit that the guest began at. It holds commits, changes that are not committed, and files that git \
does not know and does not ignore; `git apply --index --binary` takes it. With --branch the commits become a branch of the \
repository that they came from, whose working tree, index and other refs stay as they are.

Examples:
  banger vm workspace export web -o web.patch
  banger vm workspace export web --branch from-web
  banger vm workspace export web | git apply --index --binary")]
pub(crate) struct Args {
    /// Its name or id, or the beginning of one
    #[arg(add = completion::vm_names())]
    vm: String,
    /// Write the patch into this file; to stdout if neither it nor a branch is given
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Make this branch of the commit that is checked out there
    #[arg(long, value_name = "NAME")]
    branch: Option<String>,
    /// The submodule that is meant, by its path
    #[arg(long, value_name = "PATH")]
    submodule: Option<String>,
    /// Move the branch if there is one of that name
    #[arg(short, long, requires = "branch")]
    force: bool,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let client = context.client().await?;
    let vm: Vm = client.get(&vm_path(&args.vm)?).await?;
    let exporting = export(&args, context, Guest::of(&client, &vm));
    operation::unless_interrupted(context, exporting).await
}

async fn export(args: &Args, context: &Context, guest: Guest<'_>) -> Result<u8, Failure> {
    let workspace = workspace::of(guest.vm)?;
    let repo = patch::repo_at(workspace, args.submodule.as_deref())?;
    if let Some(name) = &args.branch {
        judge(workspace, repo, name, args.force).await?;
    }
    let state = guest.state_by_git(&workspace.guest_path, repo).await?;
    let mut told = json!({
        "vm": guest.vm.name, "submodule": repo.path, "base": repo.base, "head": state.head,
        "tree": state.tree, "branch": args.branch, "file": args.output,
    });
    let as_patch = args.branch.is_none() || args.output.is_some();
    if as_patch {
        write_patch(args, context, &guest, workspace, repo, &state, &mut told).await?;
    }
    if let Some(name) = &args.branch {
        bring_branch(&guest, workspace, repo, &state, name, args.force).await?;
    }
    record(&guest, workspace, repo, &state, as_patch).await?;
    if context.format == Format::Json {
        context.print(&told, String::new)?;
    } else if let Some(name) = &args.branch {
        context.print(&told, || format!("{}: {name} is {:.12}\n", guest.vm.name, state.head))?;
    }
    if !as_patch && state.tree != state.head_tree {
        context.hint("changes that are not committed stay in the VM; a patch holds them too");
    }
    Ok(DONE)
}

/// Whether the branch may be made, before the guest is asked for anything.
async fn judge(
    workspace: &Workspace,
    repo: &Repo,
    name: &str,
    replace: bool,
) -> Result<(), Problem> {
    let (place, name) = (host_folder(workspace, repo), name.to_owned());
    blocking(move || {
        let repo = banger_workspace::Repo::open(&place)?;
        Branch { name: &name, tip: "", replace }.judge(&repo)
    })
    .await
}

fn host_folder(workspace: &Workspace, repo: &Repo) -> PathBuf {
    Path::new(&workspace.host_path).join(&repo.path)
}

async fn write_patch(
    args: &Args,
    context: &Context,
    guest: &Guest<'_>,
    workspace: &Workspace,
    repo: &Repo,
    state: &State,
    told: &mut Value,
) -> Result<(), Failure> {
    let Some(path) = &args.output else {
        let mut all = Vec::new();
        let keep = |bytes: &[u8]| {
            all.extend_from_slice(bytes);
            Ok(())
        };
        patch::read(guest, workspace, repo, state, keep).await?;
        told["patch"] = patch::as_json(&all);
        return if context.format == Format::Json { Ok(()) } else { out::stdout(&all) };
    };
    // It appears under its name when it is whole.
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.part", std::process::id()));
    let part = path.with_file_name(name);
    let failed = |error: std::io::Error| {
        Problem::new(Code::Internal, format!("cannot write {}", path.display())).cause(&error)
    };
    let written = async {
        let mut file = File::create_new(&part).map_err(failed)?;
        let keep = |bytes: &[u8]| file.write_all(bytes).map_err(failed);
        patch::read(guest, workspace, repo, state, keep).await?;
        file.sync_all().map_err(failed)?;
        fs::rename(&part, path).map_err(failed)
    };
    let written = written.await;
    if written.is_err() {
        // It may not be there at all.
        drop(fs::remove_file(&part));
    }
    Ok(written?)
}

async fn bring_branch(
    guest: &Guest<'_>,
    workspace: &Workspace,
    repo: &Repo,
    state: &State,
    name: &str,
    replace: bool,
) -> Result<(), Problem> {
    let folder = scratch()?;
    let pack = folder.path().join("guest.pack");
    let failed = |error: std::io::Error| {
        Problem::new(Code::Internal, format!("cannot write {}", pack.display())).cause(&error)
    };
    let brought = async {
        let mut file = File::create_new(&pack).map_err(failed)?;
        let words = guest::pack(&guest::folder(&workspace.guest_path, repo));
        let stdin = guest::pack_stdin(&state.head, std::slice::from_ref(&repo.base));
        guest.run(&words, Some(stdin), |bytes| file.write_all(bytes).map_err(failed)).await?;
        let place = host_folder(workspace, repo);
        let (name, tip, pack) = (name.to_owned(), state.head.clone(), pack.clone());
        blocking(move || {
            let repo = banger_workspace::Repo::open(&place)?;
            receive(&repo, &pack, Branch { name: &name, tip: &tip, replace })
        })
        .await
    };
    let brought = brought.await;
    folder.close().map_err(|error| {
        Problem::new(Code::Internal, "cannot clear the folder of the export").cause(&error)
    })?;
    brought
}

/// What was exported is known from now on: a patch has all of the working tree, a branch what is committed.
async fn record(
    guest: &Guest<'_>,
    workspace: &Workspace,
    repo: &Repo,
    state: &State,
    as_patch: bool,
) -> Result<(), Problem> {
    let mut known = workspace.clone();
    let exported = known.repos.iter_mut().find(|other| other.path == repo.path);
    let exported = exported.expect("it is one of them");
    if !exported.known_commits.contains(&state.head) {
        exported.known_commits.push(state.head.clone());
    }
    if as_patch && !exported.known_trees.contains(&state.tree) {
        exported.known_trees.push(state.tree.clone());
    }
    guest.record(&known).await.map(drop)
}
