//! What goes into the guest: which commit on which branch, the index, and each file's content. Looks, and touches nothing.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use banger_api::{Code, Problem};

use crate::repo::Repo;

/// What the user chose.
#[derive(Debug, Clone, Default)]
pub struct Choice {
    /// A new branch for the guest, which begins at `from`.
    pub branch: Option<String>,
    /// The commit that the guest gets, clean; the working tree as it is when absent.
    pub from: Option<String>,
    /// Files that git does not know and does not ignore, too.
    pub untracked: bool,
}

/// A file that goes along.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Below the repository, as git has it.
    pub path: Vec<u8>,
    pub(crate) content: Content,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    /// As it is in the working tree.
    Working,
    /// As git keeps it.
    Object { oid: String, mode: u32 },
}

/// One repository's part, and its submodules'.
#[derive(Debug)]
pub struct Plan {
    /// Below the workspace: empty, or a submodule's path.
    pub path: Vec<u8>,
    pub repo: Repo,
    pub branch: Option<String>,
    /// The commit that the guest begins at.
    pub base: String,
    pub files: Vec<File>,
    pub submodules: Vec<Plan>,
    /// Untracked files that stay here.
    pub left_out: usize,
    /// The index, as `git update-index --index-info` takes it.
    pub(crate) index: Vec<u8>,
    /// Paths of it that a sparse checkout leaves out.
    pub(crate) skipped: Vec<u8>,
    /// Objects that the index names.
    pub(crate) staged: Vec<String>,
}

impl Plan {
    /// # Errors
    /// What was chosen does not exist or does not go together; the repository cannot be read.
    pub fn of(repo: &Repo, choice: &Choice) -> Result<Self, Problem> {
        if choice.from.is_some() && choice.untracked {
            let message = "--from gives a clean commit, to which untracked files do not belong";
            return Err(
                Problem::new(Code::Invalid, message).remedy("leave --include-untracked away")
            );
        }
        if let Some(branch) = &choice.branch {
            repo.branch_name(branch)?;
        }
        let branch = choice.branch.clone().or_else(|| repo.branch().map(str::to_owned));
        match &choice.from {
            Some(from) => {
                let base = repo.commit(from)?;
                let branch = choice.branch.clone();
                let words = ["ls-tree", "-r", "-z", "--full-tree", &base];
                let listed = Listed::of_tree(&repo.git.ask(&words)?)?;
                Self::committed(repo, branch, base, listed)
            }
            None => Self::working(repo.clone(), Vec::new(), branch, choice.untracked),
        }
    }

    /// It and the plans of all submodules.
    #[must_use]
    pub fn all(&self) -> Vec<&Plan> {
        let inner = self.submodules.iter().flat_map(Plan::all);
        std::iter::once(self).chain(inner).collect()
    }

    fn committed(
        repo: &Repo,
        branch: Option<String>,
        base: String,
        listed: Listed,
    ) -> Result<Self, Problem> {
        let files = listed.entries.iter().filter(|entry| !entry.is_submodule());
        let files = files.map(|entry| File {
            path: entry.path.clone(),
            content: Content::Object { oid: entry.oid.clone(), mode: entry.mode },
        });
        let files = files.collect();
        Ok(Self::made(repo.clone(), Vec::new(), branch, base, files, &listed))
    }

    fn made(
        repo: Repo,
        path: Vec<u8>,
        branch: Option<String>,
        base: String,
        files: Vec<File>,
        listed: &Listed,
    ) -> Self {
        let (mut index, mut skipped, mut staged) = (Vec::new(), Vec::new(), Vec::new());
        for entry in &listed.entries {
            index.extend(format!("{:o} {} {}\t", entry.mode, entry.oid, entry.stage).bytes());
            index.extend(&entry.path);
            index.push(0);
            if entry.is_skipped {
                skipped.extend(&entry.path);
                skipped.push(0);
            }
            if !entry.is_submodule() {
                staged.push(entry.oid.clone());
            }
        }
        staged.sort_unstable();
        staged.dedup();
        Self {
            path,
            repo,
            branch,
            base,
            files,
            submodules: Vec::new(),
            left_out: 0,
            index,
            skipped,
            staged,
        }
    }

    fn working(
        repo: Repo,
        path: Vec<u8>,
        branch: Option<String>,
        untracked: bool,
    ) -> Result<Self, Problem> {
        let listed = Listed::of_index(&repo.git.ask(&["ls-files", "-z", "-s", "-t"])?)?;
        let as_kept = kept_by_git(&repo, &listed)?;
        let mut files = Vec::new();
        let mut submodules = Vec::new();
        let mut seen = HashSet::new();
        for entry in &listed.entries {
            if !seen.insert(entry.path.as_slice()) || entry.is_skipped || !is_safe(&entry.path) {
                continue;
            }
            if entry.is_submodule() {
                submodules.extend(submodule(&repo, &path, entry, untracked)?);
                continue;
            }
            let content = match as_kept.contains(entry.path.as_slice()) {
                true => Content::Object { oid: entry.oid.clone(), mode: entry.mode },
                false => Content::Working,
            };
            files.push(File { path: entry.path.clone(), content });
        }
        let others = repo.git.ask(&["ls-files", "-z", "--others", "--exclude-standard"])?;
        let others = words(&others).filter(|path| is_safe(path) && !path.ends_with(b"/"));
        let others: Vec<File> =
            others.map(|path| File { path: path.to_vec(), content: Content::Working }).collect();
        let left_out = if untracked { 0 } else { others.len() };
        if untracked {
            files.extend(others);
        }
        let base = repo.head().to_owned();
        let plan = Self::made(repo, path, branch, base, files, &listed);
        Ok(Self { submodules, left_out, ..plan })
    }
}

/// The plan of a submodule that is checked out.
fn submodule(
    repo: &Repo,
    above: &[u8],
    entry: &Entry,
    untracked: bool,
) -> Result<Option<Plan>, Problem> {
    let folder = repo.top.join(OsStr::from_bytes(&entry.path));
    // A link in its place would lead elsewhere.
    let is_there = folder.canonicalize().is_ok_and(|found| found == folder)
        && folder.join(".git").symlink_metadata().is_ok_and(|data| !data.is_symlink());
    if !is_there {
        return Ok(None);
    }
    let inner = Repo::open(&folder)?;
    if inner.top != folder {
        return Ok(None);
    }
    let separator: &[u8] = if above.is_empty() { b"" } else { b"/" };
    let path = [above, separator, &entry.path].concat();
    let branch = inner.branch().map(str::to_owned);
    Plan::working(inner, path, branch, untracked).map(Some)
}

/// Files that a filter (Git LFS) keeps as something else than they are in the working tree, and that are unchanged: these go as git
/// keeps them, as pointers. A changed one goes as it is.
fn kept_by_git<'a>(repo: &Repo, listed: &'a Listed) -> Result<HashSet<&'a [u8]>, Problem> {
    let mut paths = Vec::new();
    for entry in listed.entries.iter().filter(|entry| !entry.is_submodule()) {
        paths.extend(&entry.path);
        paths.push(0);
    }
    let asked = ["check-attr", "-z", "--stdin", "filter"].map(OsStr::new);
    let told = repo.git.run(&asked, &paths)?;
    let told: Vec<&[u8]> = words(&told).collect();
    let filtered: Vec<(&[u8], &[u8])> = told
        .chunks_exact(3)
        .filter(|triple| !matches!(triple[2], b"unspecified" | b"unset" | b"set" | b""))
        .map(|triple| (triple[0], triple[2]))
        .collect();
    if filtered.is_empty() {
        return Ok(HashSet::new());
    }
    let mut names: Vec<String> =
        filtered.iter().map(|(_, name)| String::from_utf8_lossy(name).into_owned()).collect();
    names.sort_unstable();
    names.dedup();
    let git = repo.git.clone().without_filters(&names);
    let changed = git.ask(&["diff-files", "-z", "--name-only", "--ignore-submodules=all"])?;
    let changed: HashSet<&[u8]> = words(&changed).collect();
    let filtered: HashSet<&[u8]> =
        filtered.iter().map(|(path, _)| *path).filter(|path| !changed.contains(path)).collect();
    let kept = listed.entries.iter().filter(|entry| entry.stage == 0);
    let kept = kept.map(|entry| entry.path.as_slice()).filter(|path| filtered.contains(path));
    Ok(kept.collect())
}

/// A row of an index or a tree.
#[derive(Debug)]
struct Entry {
    mode: u32,
    oid: String,
    stage: u8,
    path: Vec<u8>,
    is_skipped: bool,
}

impl Entry {
    fn is_submodule(&self) -> bool {
        self.mode == 0o160_000
    }
}

#[derive(Debug)]
struct Listed {
    entries: Vec<Entry>,
}

impl Listed {
    /// `TAG MODE OID STAGE<tab>PATH`
    fn of_index(told: &[u8]) -> Result<Self, Problem> {
        Self::parse(told, |fields| match fields {
            [tag, mode, oid, stage] => Some((mode, oid, stage.parse().ok()?, *tag == "S")),
            _ => None,
        })
    }

    /// `MODE KIND OID<tab>PATH`
    fn of_tree(told: &[u8]) -> Result<Self, Problem> {
        Self::parse(told, |fields| match fields {
            [mode, _, oid] => Some((mode, oid, 0, false)),
            _ => None,
        })
    }

    fn parse<'a>(
        told: &'a [u8],
        read: impl Fn(&[&'a str]) -> Option<(&'a str, &'a str, u8, bool)>,
    ) -> Result<Self, Problem> {
        let entry = |row: &'a [u8]| {
            let tab = row.iter().position(|&byte| byte == b'\t')?;
            let fields: Vec<&str> = std::str::from_utf8(&row[..tab]).ok()?.split(' ').collect();
            let (mode, oid, stage, is_skipped) = read(&fields)?;
            let mode = u32::from_str_radix(mode, 8).ok()?;
            let path = row[tab + 1..].to_vec();
            Some(Entry { mode, oid: oid.to_owned(), stage, path, is_skipped })
        };
        let entries = words(told).map(entry).collect::<Option<Vec<_>>>();
        let entries = entries.ok_or_else(|| {
            Problem::new(Code::Internal, "git lists what is in the index in an unknown way")
        })?;
        Ok(Self { entries })
    }
}

/// Not in a folder that git keeps for itself, and not above the repository: git refuses such paths, an index made by hand holds them.
fn is_safe(path: &[u8]) -> bool {
    !path.is_empty()
        && path
            .split(|&byte| byte == b'/')
            .all(|part| !part.eq_ignore_ascii_case(b".git") && part != b".." && part != b".")
        && !path.starts_with(b"/")
}

/// What NULs end.
fn words(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|&byte| byte == 0).filter(|word| !word.is_empty())
}

impl Plan {
    /// A folder of the host's, of which this is the working tree.
    pub(crate) fn top(&self) -> &Path {
        &self.repo.top
    }

    /// How large each file is, as far as the working tree tells.
    #[must_use]
    pub fn sizes(&self) -> Vec<(PathBuf, u64)> {
        let mut sizes = Vec::new();
        for plan in self.all() {
            for file in &plan.files {
                let path = Path::new(OsStr::from_bytes(&file.path));
                if let Ok(data) = plan.top().join(path).symlink_metadata() {
                    sizes.push((Path::new(OsStr::from_bytes(&plan.path)).join(path), data.len()));
                }
            }
        }
        sizes
    }
}
