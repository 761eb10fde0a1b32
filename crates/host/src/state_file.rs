//! Files of the state by their place in it. What root opens for the daemon is named so, and opened beneath the state's
//! folder without following a link (openat2(2)): no name leads out of it.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::mark::Mark;

/// `a/b/c` below the state's folder: 1 to 8 names of letters, digits, `.`, `_` and `-`, none of which begins with a dot.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct StateFile(String);

const MOST_NAMES: usize = 8;
const LONGEST: usize = 512;

impl StateFile {
    /// `None` for what is not such a path.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let fits = |name: &str| {
            !name.is_empty()
                && !name.starts_with('.')
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        let names = text.split('/');
        (text.len() <= LONGEST && names.clone().count() <= MOST_NAMES && names.clone().all(fits))
            .then(|| Self(text.to_owned()))
    }

    /// The part of `path` below `state`; `None` when it is not below, or not of such names.
    #[must_use]
    pub fn of(state: &Path, path: &Path) -> Option<Self> {
        Self::parse(path.strip_prefix(state).ok()?.to_str()?)
    }

    /// The disk of a VM.
    #[must_use]
    pub fn disk(mark: &Mark) -> Self {
        Self(format!("vms/{mark}/{}", crate::DISK))
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its first name: which kind of file it is (`images`, `kernels`, `initramfs`, `vms`).
    #[must_use]
    pub fn folder(&self) -> &str {
        self.0.split('/').next().unwrap_or_default()
    }

    #[must_use]
    pub fn below(&self, state: &Path) -> PathBuf {
        state.join(&self.0)
    }
}

impl fmt::Display for StateFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl TryFrom<String> for StateFile {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text).ok_or_else(|| format!("{text:?} is no file of the state"))
    }
}

impl From<StateFile> for String {
    fn from(file: StateFile) -> String {
        file.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_leads_out_of_the_state() {
        for text in [
            "",
            "/",
            "/etc/passwd",
            "..",
            "../x",
            "images/../../x",
            "images//x",
            "images/./x",
            "a b",
            "a\n",
            ".hidden",
            "a/b/c/d/e/f/g/h/i",
            "é",
            "a/",
            "a\0b",
        ] {
            assert_eq!(StateFile::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn what_the_daemon_names_comes_back() {
        let state = Path::new("/var/lib/banger/state");
        let file = StateFile::of(state, &state.join("images/0a1b.ext4")).unwrap();
        assert_eq!(file.folder(), "images");
        assert_eq!(file.below(state), state.join("images/0a1b.ext4"));
        assert_eq!(StateFile::of(state, Path::new("/var/lib/other/x")), None);
    }
}
