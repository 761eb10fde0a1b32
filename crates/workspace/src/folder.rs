//! The `.git` that a guest gets: made anew, so that nothing is in it that was not put there.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use banger_api::{Code, Problem};

use crate::git::Git;
use crate::history::History;
use crate::plan::Plan;
use crate::repo::Repo;

/// Settings that change what git sees in a working tree, and who commits.
const CARRIED: [&str; 8] = [
    "core.autocrlf",
    "core.eol",
    "core.filemode",
    "core.ignorecase",
    "core.precomposeunicode",
    "core.symlinks",
    "user.email",
    "user.name",
];

/// Writes it into `folder`, which is empty.
pub(crate) fn write(plan: &Plan, folder: &Path) -> Result<(), Problem> {
    let failed = |error: std::io::Error| {
        let message = format!("cannot write a repository at {}", folder.display());
        Problem::new(Code::Internal, message).cause(&error)
    };
    let repo = &plan.repo;
    for inner in ["objects/pack", "objects/info", "refs/heads", "refs/tags", "info"] {
        fs::create_dir_all(folder.join(inner)).map_err(failed)?;
    }
    let history = History::of(repo, &plan.base)?;
    let staged: Vec<&str> = plan.staged.iter().map(String::as_str).collect();
    history.pack(repo, &plan.base, &staged, &folder.join("objects"))?;
    let (head, mut refs) = match &plan.branch {
        Some(branch) => {
            (format!("ref: refs/heads/{branch}\n"), format!("{} refs/heads/{branch}\n", plan.base))
        }
        None => (format!("{}\n", plan.base), String::new()),
    };
    for (oid, name) in &history.tags {
        let _infallible = writeln!(refs, "{oid} {name}");
    }
    fs::write(folder.join("config"), config(repo)?).map_err(failed)?;
    fs::write(folder.join("packed-refs"), refs).map_err(failed)?;
    fs::write(folder.join("info/exclude"), repo.shared_file("info/exclude")).map_err(failed)?;
    if !history.shallow.is_empty() {
        fs::write(folder.join("shallow"), history.shallow.join("\n") + "\n").map_err(failed)?;
    }
    fs::write(folder.join("HEAD"), head).map_err(failed)?;
    let git = Git::at(folder).with("GIT_DIR", folder);
    git.run(&["update-index", "-z", "--index-info"].map(std::ffi::OsStr::new), &plan.index)?;
    if !plan.skipped.is_empty() {
        let words = ["update-index", "-z", "--skip-worktree", "--stdin"];
        git.run(&words.map(std::ffi::OsStr::new), &plan.skipped)?;
    }
    Ok(())
}

fn config(repo: &Repo) -> Result<String, Problem> {
    let mut text = String::from("[core]\n\tbare = false\n");
    text += if repo.sha256 {
        "\trepositoryformatversion = 1\n[extensions]\n\tobjectformat = sha256\n"
    } else {
        "\trepositoryformatversion = 0\n"
    };
    for key in CARRIED {
        if let (Some(value), Some((section, name))) = (repo.setting(key), key.split_once('.')) {
            let _infallible = write!(text, "[{section}]\n\t{name} = {}\n", quoted(&value));
        }
    }
    if let Some(url) = repo.setting("remote.origin.url") {
        let url = quoted(&without_secret(&url));
        let _infallible = write!(
            text,
            "[remote \"origin\"]\n\turl = {url}\n\tfetch = +refs/heads/*:refs/remotes/origin/*\n"
        );
    }
    let submodules =
        repo.git.ask(&["config", "-z", "--get-regexp", r"^submodule\..*\.(url|active)$"]);
    for entry in String::from_utf8_lossy(&submodules.unwrap_or_default()).split('\0') {
        let Some((key, value)) = entry.split_once('\n') else { continue };
        let name = key.strip_prefix("submodule.").and_then(|rest| rest.rsplit_once('.'));
        if let Some((name, what)) = name {
            let value = quoted(&without_secret(value));
            let _infallible = write!(text, "[submodule {}]\n\t{what} = {value}\n", quoted(name));
        }
    }
    Ok(text)
}

/// As git-config(1) reads it back.
fn quoted(text: &str) -> String {
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    format!("\"{escaped}\"")
}

/// A URL without what only its owner is to know: a password, and for the web a user, which may be a token.
fn without_secret(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let Some((who, host)) = authority.rsplit_once('@') else { return url.to_owned() };
    let user = who.split(':').next().unwrap_or_default();
    let is_web = !matches!(scheme, "ssh" | "git+ssh" | "ssh+git");
    if is_web || user.is_empty() {
        format!("{scheme}://{host}{path}")
    } else {
        format!("{scheme}://{user}@{host}{path}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_loses_its_password_and_keeps_its_way() {
        for (url, bare) in [
            ("https://me:token@example.com/a.git", "https://example.com/a.git"),
            ("https://token@example.com/a.git", "https://example.com/a.git"),
            ("https://example.com/a@b.git", "https://example.com/a@b.git"),
            ("ssh://git:pw@example.com:22/a", "ssh://git@example.com:22/a"),
            ("git@example.com:a.git", "git@example.com:a.git"),
            ("/srv/a.git", "/srv/a.git"),
        ] {
            assert_eq!(without_secret(url), bare);
        }
    }
}
