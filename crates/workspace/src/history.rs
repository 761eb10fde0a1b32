//! Which commits go along: the last [`DEPTH`] generations, real ids, the rest cut off as a shallow clone does.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use banger_api::Problem;

use crate::repo::Repo;

/// Generations of commits that a guest gets.
const DEPTH: usize = 10;

/// The commits that go along.
#[derive(Debug)]
pub(crate) struct History {
    /// Those whose parents stay behind.
    pub(crate) shallow: Vec<String>,
    /// Tags of those commits: their objects and names.
    pub(crate) tags: Vec<(String, String)>,
}

impl History {
    pub(crate) fn of(repo: &Repo, tip: &str) -> Result<Self, Problem> {
        let cut_before = repo.shared_file("shallow");
        let cut_before: HashSet<&str> =
            std::str::from_utf8(&cut_before).unwrap_or_default().lines().collect();
        let mut commits = HashSet::new();
        let mut parents_of = Vec::new();
        let mut generation = vec![tip.to_owned()];
        for _ in 0..DEPTH {
            if generation.is_empty() {
                break;
            }
            let asked: String = generation.iter().map(|oid| format!("{oid}\n")).collect();
            let words = ["rev-list", "--no-walk=unsorted", "--parents", "--stdin"];
            let told = repo.git.run(&words.map(OsStr::new), asked.as_bytes())?;
            commits.extend(generation);
            let mut next = Vec::new();
            for line in String::from_utf8_lossy(&told).lines() {
                let mut words = line.split(' ').map(str::to_owned);
                let Some(commit) = words.next() else { continue };
                let parents: Vec<String> = words.collect();
                next.extend(parents.iter().filter(|parent| !commits.contains(*parent)).cloned());
                parents_of.push((commit, parents));
            }
            next.sort_unstable();
            next.dedup();
            generation = next;
        }
        let is_cut = |(commit, parents): &(String, Vec<String>)| {
            cut_before.contains(commit.as_str())
                || parents.iter().any(|parent| !commits.contains(parent))
        };
        let mut shallow: Vec<String> =
            parents_of.into_iter().filter(is_cut).map(|(commit, _)| commit).collect();
        shallow.sort_unstable();
        let tags = tags(repo, &commits)?;
        Ok(Self { shallow, tags })
    }

    /// Writes what goes along into a pack in the folder of objects `into`, with the objects that only the index has.
    pub(crate) fn pack(
        &self,
        repo: &Repo,
        tip: &str,
        staged: &[&str],
        into: &Path,
    ) -> Result<(), Problem> {
        let mut wanted: String =
            self.shallow.iter().map(|commit| format!("--shallow {commit}\n")).collect();
        let tagged = self.tags.iter().map(|(oid, _)| oid.as_str());
        for oid in std::iter::once(tip).chain(tagged).chain(staged.iter().copied()) {
            wanted += oid;
            wanted.push('\n');
        }
        // No search for new deltas: what is sent grows a little, and the host works for a fraction of the time.
        let mut words: Vec<&OsStr> =
            // The host's own cuts are among ours.
            ["--shallow-file", "", "pack-objects", "--revs", "--quiet", "--delta-base-offset", "--window=0"]
                .map(OsStr::new)
                .to_vec();
        let prefix = into.join("pack/pack");
        words.push(prefix.as_os_str());
        // What it writes on the way is to be there too, not among the host's objects.
        let git = repo.git.clone().with("GIT_OBJECT_DIRECTORY", into);
        let git = git.with("GIT_ALTERNATE_OBJECT_DIRECTORIES", listed(&repo.objects()?));
        let packed = git.run(&words, wanted.as_bytes());
        packed.map(drop).map_err(|problem| {
            problem.remedy("`git fsck` names what is missing; a partial clone gets it by `git fetch --refetch`")
        })
    }
}

fn tags(repo: &Repo, commits: &HashSet<String>) -> Result<Vec<(String, String)>, Problem> {
    let format = "--format=%(objectname) %(*objectname) %(refname)";
    let told = repo.git.ask(&["for-each-ref", format, "refs/tags"])?;
    let mut tags = Vec::new();
    for line in String::from_utf8_lossy(&told).lines() {
        let mut words = line.splitn(3, ' ');
        if let (Some(oid), Some(peeled), Some(name)) = (words.next(), words.next(), words.next())
            && (commits.contains(oid) || commits.contains(peeled))
        {
            tags.push((oid.to_owned(), name.to_owned()));
        }
    }
    Ok(tags)
}

/// A path as git takes it in a list with colons.
fn listed(path: &Path) -> OsString {
    let mut text = vec![b'"'];
    for &byte in path.as_os_str().as_bytes() {
        if matches!(byte, b'"' | b'\\') {
            text.push(b'\\');
        }
        text.push(byte);
    }
    text.push(b'"');
    OsString::from_vec(text)
}
