//! A repository on the host: found, judged, and asked where it stands. Never written to.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use banger_api::{Code, Problem};

use crate::git::Git;

/// A repository with a working tree and at least one commit.
#[derive(Debug, Clone)]
pub struct Repo {
    pub(crate) git: Git,
    /// Its working tree, absolute, without symbolic links.
    pub(crate) top: PathBuf,
    /// Where what all its working trees share is.
    pub(crate) common: PathBuf,
    /// Its commits are named by SHA-256.
    pub(crate) sha256: bool,
    head: String,
    branch: Option<String>,
}

impl Repo {
    /// The repository that `path` is in.
    ///
    /// # Errors
    /// `Invalid` or `NotFound` with the path, when it is in none, or in one that has no working tree or no commit, or
    /// whose working tree is elsewhere than its `.git`; `Missing` when there is no git on this host.
    pub fn open(path: &Path) -> Result<Self, Problem> {
        let shown = path.display();
        let refuse = |why: &str| {
            Problem::new(Code::Invalid, format!("{shown} is no git repository to work on"))
                .because(why)
        };
        let place = path.canonicalize().map_err(|error| {
            Problem::new(Code::NotFound, format!("cannot find the repository {shown}"))
                .cause(&error)
        })?;
        if !place.is_dir() {
            return Err(refuse("it is no folder")
                .remedy("name the repository's folder; an image is named by --image"));
        }
        let git = Git::at(&place);
        let asked = git.ask(&[
            "rev-parse",
            "--path-format=absolute",
            "--show-toplevel",
            "--git-dir",
            "--git-common-dir",
            "--show-object-format",
        ]);
        let answer = asked.map_err(|problem| {
            if problem.code == Code::Missing {
                return problem;
            }
            let is_none = problem.causes.iter().any(|cause| cause.contains("not a git repository"));
            let refused = Problem { causes: problem.causes, ..refuse("") };
            // Where it is one that git does not trust, git has said what to do.
            if is_none { refused.remedy("`git init` makes one") } else { refused }
        })?;
        let lines: Vec<&[u8]> = answer.split(|&byte| byte == b'\n').collect();
        let &[top, own, common, format, b""] = lines.as_slice() else {
            return Err(refuse("its path holds a newline"));
        };
        let paths = [top, own, common].map(|bytes| PathBuf::from(OsStr::from_bytes(bytes)));
        let [top, own, common] = paths;
        // A configuration that puts the working tree elsewhere would have us copy what is there.
        let dot_git = top.join(".git");
        let is_its_own = dot_git.is_file()
            || dot_git
                .canonicalize()
                .is_ok_and(|found| own.canonicalize().is_ok_and(|o| o == found));
        if !place.starts_with(&top) || !is_its_own {
            return Err(refuse(&format!(
                "its working tree is {}, where its .git is not",
                top.display()
            )));
        }
        if top.to_str().is_none() {
            return Err(refuse("its path is not UTF-8"));
        }
        let git = Git::at(&top);
        let head = git
            .line(&["rev-parse", "--quiet", "--verify", "HEAD^{commit}"])
            .map_err(|_| refuse("it has no commit yet").remedy("`git commit` makes one"))?;
        let branch = git.line(&["symbolic-ref", "--quiet", "--short", "HEAD"]).ok();
        Ok(Self { git, top, common, sha256: format == b"sha256", head, branch })
    }

    /// Its working tree, absolute.
    #[must_use]
    pub fn top(&self) -> &Path {
        &self.top
    }

    /// The commit that is checked out.
    #[must_use]
    pub fn head(&self) -> &str {
        &self.head
    }

    /// The branch that is checked out, unless the commit is by itself.
    #[must_use]
    pub fn branch(&self) -> Option<&str> {
        self.branch.as_deref()
    }

    /// The commit that `text` names.
    ///
    /// # Errors
    /// When it names none.
    pub(crate) fn commit(&self, text: &str) -> Result<String, Problem> {
        let found = if text.starts_with('-') {
            None
        } else {
            self.git.line(&["rev-parse", "--quiet", "--verify", &format!("{text}^{{commit}}")]).ok()
        };
        found.ok_or_else(|| {
            Problem::new(
                Code::NotFound,
                format!("{text:?} names no commit of {}", self.top.display()),
            )
        })
    }

    /// `text` as the name of a branch.
    ///
    /// # Errors
    /// When it is none.
    pub(crate) fn branch_name(&self, text: &str) -> Result<(), Problem> {
        let is_one = !text.starts_with('-')
            && self.git.ask(&["check-ref-format", &format!("refs/heads/{text}")]).is_ok();
        if is_one {
            return Ok(());
        }
        Err(Problem::new(Code::Invalid, format!("{text:?} is no name of a branch"))
            .remedy("`man git-check-ref-format` has the rules"))
    }

    /// A file below the folder that all its working trees share, if it is there and a plain one.
    pub(crate) fn shared_file(&self, name: &str) -> Vec<u8> {
        use rustix::fs::{Mode, OFlags, open};
        use std::io::Read;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let mut text = Vec::new();
        if let Ok(fd) = open(self.common.join(name), flags, Mode::empty())
            && std::fs::File::from(fd).take(1 << 20).read_to_end(&mut text).is_err()
        {
            text.clear();
        }
        text
    }

    /// Where its objects are.
    pub(crate) fn objects(&self) -> Result<PathBuf, Problem> {
        let words = ["rev-parse", "--path-format=absolute", "--git-path", "objects"];
        let mut told = self.git.ask(&words)?;
        told.pop();
        Ok(PathBuf::from(OsString::from_vec(told)))
    }

    /// A value of its configuration.
    pub(crate) fn setting(&self, key: &str) -> Option<String> {
        self.git.line(&["config", "--get", key]).ok().filter(|value| !value.is_empty())
    }
}
