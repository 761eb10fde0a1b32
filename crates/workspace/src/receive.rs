//! Commits that come out of a guest become a branch of the host's repository, or nothing at all.
//!
//! The pack is the guest's, and so hostile: it is read into a repository of its own, which borrows the host's objects, with
//! every check that git has for foreign objects (fsck); then all that the branch leads to must be there; only then its objects
//! join the host's, and one ref is written. Working tree, index, HEAD and every other ref are not touched.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use banger_api::{Code, Problem};

use crate::git::Git;
use crate::repo::Repo;

/// A branch that is to be.
#[derive(Debug, Clone, Copy)]
pub struct Branch<'a> {
    pub name: &'a str,
    /// Where it is to point.
    pub tip: &'a str,
    /// One of that name that is there may be moved.
    pub replace: bool,
}

impl Branch<'_> {
    /// Whether it may be made, before anything is asked of the guest.
    ///
    /// # Errors
    /// When it is no name of a branch, is taken, or is checked out.
    pub fn judge(self, repo: &Repo) -> Result<(), Problem> {
        repo.branch_name(self.name)?;
        let reference = format!("refs/heads/{}", self.name);
        let place = repo.top.display();
        let worktrees = repo.git.ask(&["worktree", "list", "--porcelain"])?;
        let checked_out = format!("branch {reference}");
        if String::from_utf8_lossy(&worktrees).lines().any(|line| line == checked_out) {
            let message = format!("branch {} is checked out in {place}", self.name);
            return Err(Problem::new(Code::Conflict, message)
                .because("moving it would change what that working tree is compared with")
                .remedy("give the branch another name, and merge it"));
        }
        if !self.replace && existing(repo, &reference).is_some() {
            let message = format!("{place} has a branch {} already", self.name);
            return Err(Problem::new(Code::Conflict, message)
                .remedy("give another name, or --force to move that branch"));
        }
        Ok(())
    }
}

/// Brings what is in `pack` into the repository, and makes the branch.
///
/// # Errors
/// As [`Branch::judge`]; when the pack is not what it should be. Then nothing of the repository has changed.
pub fn receive(repo: &Repo, pack: &Path, branch: Branch<'_>) -> Result<(), Problem> {
    branch.judge(repo)?;
    let tip = branch.tip;
    if repo.git.ask(&["cat-file", "-e", &format!("{tip}^{{commit}}")]).is_err() {
        let checked = pack.with_extension("checked");
        let foreign = |problem: Problem| {
            let message = "the guest's commits are not taken";
            let mut refused = Problem::new(Code::Guest, message);
            refused.causes = [vec![problem.message], problem.causes].concat();
            refused
        };
        check(repo, pack, tip, &checked).map_err(foreign)?;
        for entry in packs(&checked)? {
            let content = File::open(&entry).map_err(|error| unreadable(&entry, &error))?;
            repo.git.run_on(&["index-pack", "--stdin"], content)?;
        }
    }
    let reference = format!("refs/heads/{}", branch.name);
    let before = existing(repo, &reference).unwrap_or_else(|| "0".repeat(tip.len()));
    let words = ["update-ref", "-m", "banger: from a VM", &reference, tip, &before];
    repo.git.ask(&words).map(drop)
}

/// Reads the pack into a repository at `folder`, where nothing has happened when it is refused.
fn check(repo: &Repo, pack: &Path, tip: &str, folder: &Path) -> Result<(), Problem> {
    let failed = |error: std::io::Error| unreadable(folder, &error);
    for inner in ["objects/pack", "objects/info", "refs/heads"] {
        fs::create_dir_all(folder.join(inner)).map_err(failed)?;
    }
    let version = if repo.sha256 {
        "repositoryformatversion = 1\n\tbare = true\n[extensions]\n\tobjectformat = sha256\n"
    } else {
        "repositoryformatversion = 0\n\tbare = true\n"
    };
    fs::write(folder.join("config"), format!("[core]\n\t{version}")).map_err(failed)?;
    fs::write(folder.join("HEAD"), "ref: refs/heads/none\n").map_err(failed)?;
    let objects = [repo.objects()?.into_os_string().into_vec(), b"\n".to_vec()].concat();
    fs::write(folder.join("objects/info/alternates"), objects).map_err(failed)?;
    let cut = repo.shared_file("shallow");
    if !cut.is_empty() {
        fs::write(folder.join("shallow"), cut).map_err(failed)?;
    }
    let git = Git::at(folder).with("GIT_DIR", folder);
    let content = File::open(pack).map_err(|error| unreadable(pack, &error))?;
    git.run_on(&["index-pack", "--stdin", "--strict"], content)?;
    let walk = ["rev-list", "--objects", "--quiet", tip, "--not", "--stdin"].map(OsStr::new);
    git.run(&walk, format!("{}\n", repo.head()).as_bytes()).map(drop)
}

fn packs(folder: &Path) -> Result<Vec<std::path::PathBuf>, Problem> {
    let folder = folder.join("objects/pack");
    let entries = fs::read_dir(&folder).map_err(|error| unreadable(&folder, &error))?;
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    Ok(paths.filter(|path| path.extension() == Some(OsStr::new("pack"))).collect())
}

fn existing(repo: &Repo, reference: &str) -> Option<String> {
    repo.git.line(&["rev-parse", "--quiet", "--verify", reference]).ok()
}

fn unreadable(path: &Path, error: &std::io::Error) -> Problem {
    Problem::new(Code::Internal, format!("cannot use {}", path.display())).cause(error)
}
