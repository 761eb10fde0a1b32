//! Workspaces: git repositories that were carried into guests, and what of the work there has come back.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A repository in a guest. PUT /v1/vms/VM/workspace records it, after it was brought there and after each export.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workspace {
    /// Where it came from: the folder of its working tree on the host, absolute.
    pub host_path: String,
    /// The commit that was checked out there when it was brought.
    pub host_head: String,
    /// Where it is in the guest, absolute.
    pub guest_path: String,
    /// When it was brought there last.
    pub prepared_at: Timestamp,
    /// The repository, then its submodules that came along.
    pub repos: Vec<Repo>,
    /// Whether work of the guest's would go with the VM, as it was when the guest was stopped. `Unknown` while it runs:
    /// then the guest is asked.
    #[serde(default)]
    pub work: Work,
}

/// One repository of a workspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Repo {
    /// Below the workspace: empty for the repository itself, else a submodule's path.
    pub path: String,
    /// The commit that it began at.
    pub base: String,
    /// The branch that was checked out, if one was.
    pub branch: Option<String>,
    /// Commits that the host has: the base, and what was exported.
    pub known_commits: Vec<String>,
    /// Contents of the working tree, as git names trees, that the host has: what was brought, what was exported. Empty when
    /// the guest has no git to tell.
    pub known_trees: Vec<String>,
}

/// Work of a guest's that nobody has exported.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum Work {
    None,
    Some {
        /// On any branch, or stashed.
        commits: u64,
        /// The working tree holds what no known commit does.
        changed: bool,
    },
    #[default]
    Unknown,
}

impl Work {
    /// All of it, of several repositories.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::None, other) | (other, Self::None) => other,
            (Self::Unknown, some) | (some, Self::Unknown) => some,
            (Self::Some { commits: a, changed: c }, Self::Some { commits: b, changed: d }) => {
                Self::Some { commits: a + b, changed: c || d }
            }
        }
    }
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::None => f.write_str("none"),
            Self::Unknown => f.write_str("nobody knows"),
            Self::Some { commits, changed } => {
                let count = match commits {
                    0 => None,
                    1 => Some("1 commit".to_owned()),
                    more => Some(format!("{more} commits")),
                };
                let changes = changed.then(|| "changes that are not committed".to_owned());
                let all: Vec<String> = count.into_iter().chain(changes).collect();
                f.write_str(&all.join(" and "))
            }
        }
    }
}
