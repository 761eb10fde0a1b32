//! The flags that say what of a repository goes into a guest, for `run` and `workspace prepare`.

use std::path::Path;

use banger_api::{Code, Problem, Size};
use banger_workspace::{Choice, Plan};
use serde_json::json;

use crate::context::Context;
use crate::failure::Failure;
use crate::workspace;

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "The repository")]
pub(crate) struct Carry {
    /// Begin a new branch there
    #[arg(long, value_name = "NAME")]
    branch: Option<String>,
    /// Where the new branch begins; the guest gets this commit, without what is not committed here
    #[arg(long, value_name = "REF", requires = "branch")]
    from: Option<String>,
    /// Take files along that git does not know; ignored ones never go
    #[arg(long)]
    include_untracked: bool,
    /// Where it is in the guest; /root/repo if not given
    #[arg(long, value_name = "FOLDER", value_parser = folder)]
    pub(crate) at: Option<String>,
    /// Only list what would go along; makes nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

impl Carry {
    /// The first flag that was given, all of which need a repository.
    pub(crate) fn given(&self) -> Option<&'static str> {
        let all = [
            ("--branch", self.branch.is_some()),
            ("--include-untracked", self.include_untracked),
            ("--at", self.at.is_some()),
            ("--dry-run", self.dry_run),
        ];
        all.into_iter().find_map(|(flag, given)| given.then_some(flag))
    }

    pub(crate) fn choice(&self) -> Choice {
        Choice {
            branch: self.branch.clone(),
            from: self.from.clone(),
            untracked: self.include_untracked,
        }
    }

    pub(crate) fn place(&self) -> &str {
        self.at.as_deref().unwrap_or(workspace::USUAL_PLACE)
    }
}

fn folder(text: &str) -> Result<String, &'static str> {
    let is_plain = |part: &str| !part.is_empty() && part != "." && part != "..";
    match text.strip_prefix('/') {
        Some(rest) if rest.split('/').all(is_plain) && !text.contains(['\0', '\n']) => {
            Ok(text.to_owned())
        }
        _ => Err("it is an absolute path in the guest, not / itself, such as /srv/repo"),
    }
}

/// `--branch needs a PATH`
pub(crate) fn needs_a_path(flag: &str) -> Problem {
    Problem::new(Code::Invalid, format!("{flag} is about a repository, and none is named"))
        .remedy("`banger vm run PATH …`")
}

/// What would go along.
pub(crate) fn show(context: &Context, plan: &Plan) -> Result<(), Failure> {
    let sizes = plan.sizes();
    let bytes: u64 = sizes.iter().map(|(_, size)| size).sum();
    let left_out: usize = plan.all().iter().map(|plan| plan.left_out).sum();
    let files: Vec<_> = sizes
        .iter()
        .map(|(path, size)| json!({ "path": shown(path), "size_bytes": size }))
        .collect();
    let value = json!({
        "host_path": plan.repo.top().display().to_string(),
        "branch": plan.branch,
        "base": plan.base,
        "files": files,
        "bytes": bytes,
        "untracked_left_out": left_out,
        "submodules": plan.submodules.iter().map(|inner| String::from_utf8_lossy(&inner.path)).collect::<Vec<_>>(),
    });
    context
        .print(&value, || sizes.iter().map(|(path, _)| format!("{}\n", shown(path))).collect())?;
    let branch = plan.branch.as_deref().unwrap_or("no branch");
    context.hint(&format!(
        "{} files, {}, and the last commits up to {} on {branch}; {left_out} untracked files would stay here",
        sizes.len(),
        Size::bytes(bytes),
        &plan.base[..12]
    ));
    Ok(())
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}
