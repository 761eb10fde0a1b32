//! `cargo xtask tidy`: the rules of this repository that no compiler checks. Each is one function from the tree (or from
//! what cargo knows) to findings; each has a test with an example of what it must find.

mod crates;
mod documents;
mod sources;

use std::collections::BTreeMap;
use std::fmt;
use std::fs;

use crate::failure::Failure;
use crate::log::Log;
use crate::programs::Call;
use crate::project;

/// Something that breaks a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Finding {
    path: String,
    /// Counted from 1.
    line: usize,
    what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.what)
    }
}

/// The files of the repository: what git tracks or would, by path from the root. A file that is no text is empty here.
#[derive(Debug, Default)]
struct Tree(BTreeMap<String, String>);

impl Tree {
    fn read() -> Result<Self, Failure> {
        // A checkout may belong to another user than the one that tests it, as in many a CI.
        let listed = Call::new("git")
            .args([
                "-c",
                "safe.directory=*",
                "ls-files",
                "-z",
                "--cached",
                "--others",
                "--exclude-standard",
            ])
            .in_folder(project::root())
            .output()?;
        let mut files = BTreeMap::new();
        for path in listed.split('\0').filter(|path| !path.is_empty()) {
            let full = project::root().join(path);
            // Tracked, but deleted or a link: nothing to read.
            if !full.symlink_metadata().is_ok_and(|data| data.is_file()) {
                continue;
            }
            let bytes = fs::read(&full).map_err(|error| {
                Failure::new(format!("cannot read {}", full.display())).cause(&error)
            })?;
            files.insert(path.to_owned(), String::from_utf8(bytes).unwrap_or_default());
        }
        Ok(Self(files))
    }

    /// The files whose names end so.
    fn ending<'a>(&'a self, end: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.all().filter(move |(path, _)| path.ends_with(end))
    }

    fn all(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(path, text)| (path.as_str(), text.as_str()))
    }

    fn text(&self, path: &str) -> Option<&str> {
        self.0.get(path).map(String::as_str)
    }
}

pub(crate) fn run() -> Result<(), Failure> {
    check(&mut Log::create(&project::target()?, "tidy")?)
}

/// Checks every rule and shows what breaks one.
pub(crate) fn check(log: &mut Log) -> Result<(), Failure> {
    let tree = Tree::read()?;
    let metadata = project::metadata()?;
    let rules: [(&str, Vec<Finding>); 12] = [
        ("every source says first what it is for", sources::heads(&tree)),
        ("programs are started in one file of each crate that must", sources::programs(&tree)),
        ("only the CLI, xtask and tests print", sources::prints(&tree)),
        ("no test is skipped, nothing sleeps", sources::skips_and_sleeps(&tree)),
        ("unsafe code is where it is expected", sources::unsafe_code(&tree)),
        ("crates depend on each other as drawn", crates::edges(&metadata)),
        ("every crate takes the workspace's lints", crates::lints(&tree)),
        ("every claim has its row in SECURITY.md", documents::claims(&tree)),
        ("links between documents lead somewhere", documents::links(&tree)),
        ("what is left to do says why", documents::todos(&tree)),
        ("no path of somebody's machine", documents::private_paths(&tree)),
        ("the code is formatted", unformatted()),
    ];
    let mut count = 0;
    for (rule, findings) in &rules {
        log.line(&format!("{}  {rule}", if findings.is_empty() { "ok  " } else { "FAIL" }));
        for finding in findings {
            log.line(&format!("      {finding}"));
        }
        count += findings.len();
    }
    if count == 0 {
        Ok(())
    } else {
        Err(Failure::new(format!("tidy found {count} of what should not be")))
    }
}

/// What `cargo fmt` would change. Its output is `Diff in PATH:LINE:` and then the change.
fn unformatted() -> Vec<Finding> {
    let check = Call::cargo()
        .args(["fmt", "--all", "--", "--check", "--files-with-diff"])
        .in_folder(project::root());
    match check.output() {
        Ok(_) => Vec::new(),
        Err(failure) => vec![Finding {
            path: ".".into(),
            line: 1,
            what: format!("`cargo fmt --all` would change something: {failure}"),
        }],
    }
}

#[cfg(test)]
fn tree(files: &[(&str, &str)]) -> Tree {
    Tree(files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect())
}

/// Where findings are, as `path:line`.
#[cfg(test)]
fn places(findings: &[Finding]) -> Vec<String> {
    findings.iter().map(|finding| format!("{}:{}", finding.path, finding.line)).collect()
}
