//! A patch out of a guest: what `diff` shows and `export` writes.

use banger_api::Problem;
use banger_api::workspace::{Repo, Workspace};
use banger_workspace::guest::{self, State};
use serde_json::{Value, json};

use crate::workspace::Guest;

/// All that has changed since the commit that the guest began at, committed or not.
pub(super) async fn read(
    guest: &Guest<'_>,
    workspace: &Workspace,
    repo: &Repo,
    state: &State,
    output: impl FnMut(&[u8]) -> Result<(), Problem>,
) -> Result<(), Problem> {
    let folder = guest::folder(&workspace.guest_path, repo);
    guest.run(&guest::patch(&folder, &repo.base, &state.tree), None, output).await
}

/// A letter and a path for each file that has changed.
pub(super) async fn changes(
    guest: &Guest<'_>,
    workspace: &Workspace,
    repo: &Repo,
    state: &State,
) -> Result<Vec<(char, String)>, Problem> {
    let folder = guest::folder(&workspace.guest_path, repo);
    let told = guest.answer(&guest::changes(&folder, &repo.base, &state.tree)).await?;
    Ok(guest::read_changes(&told))
}

/// For programs: the patch as text, or byte by byte where it is none.
pub(super) fn as_json(patch: &[u8]) -> Value {
    match std::str::from_utf8(patch) {
        Ok(text) => json!(text),
        Err(_) => json!({ "bytes": patch }),
    }
}

/// The repository of a workspace that a user named by its path below it; the workspace's own when nobody named one.
pub(super) fn repo_at<'a>(
    workspace: &'a Workspace,
    submodule: Option<&str>,
) -> Result<&'a Repo, Problem> {
    let path = submodule.unwrap_or_default();
    workspace.repos.iter().find(|repo| repo.path == path).ok_or_else(|| {
        let known: Vec<&str> = workspace
            .repos
            .iter()
            .map(|repo| repo.path.as_str())
            .filter(|p| !p.is_empty())
            .collect();
        let known = if known.is_empty() { "it has none".to_owned() } else { known.join(", ") };
        let message = format!("the workspace has no submodule {path:?}");
        Problem::new(banger_api::Code::NotFound, message).because(known)
    })
}
