//! The mark that everything of ours on the host carries: whose it is and for which VM.
//!
//! `bg` + installation (4) + `-` + VM id (8) = 15 characters, the longest name of a network device (IFNAMSIZ is 16 with
//! its NUL, netdevice(7)), so that every kind of claim can be named by its mark alone.

use std::fmt;

use banger_api::VmId;
use banger_api::ids::{ID_ALPHABET, random_text};
use serde::{Deserialize, Serialize};

/// The random id of an installation, kept in its database: strays of another installation are not ours to touch.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Installation(String);

const INSTALLATION_LENGTH: usize = 4;

impl Installation {
    /// # Errors
    /// When the kernel gives no randomness.
    pub fn random() -> std::io::Result<Self> {
        random_text(INSTALLATION_LENGTH).map(Self)
    }

    /// 4 characters of the id alphabet; `None` for anything else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let fits =
            text.len() == INSTALLATION_LENGTH && text.bytes().all(|b| ID_ALPHABET.contains(&b));
        fits.then(|| Self(text.to_owned()))
    }
}

impl fmt::Display for Installation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl TryFrom<String> for Installation {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text).ok_or_else(|| format!("{text:?} is no installation id"))
    }
}

impl From<Installation> for String {
    fn from(installation: Installation) -> String {
        installation.0
    }
}

/// Whose, and for which VM.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mark {
    installation: Installation,
    vm: VmId,
}

impl Mark {
    #[must_use]
    pub fn new(installation: Installation, vm: VmId) -> Self {
        Self { installation, vm }
    }

    #[must_use]
    pub fn installation(&self) -> &Installation {
        &self.installation
    }

    #[must_use]
    pub fn vm(&self) -> &VmId {
        &self.vm
    }

    /// `None` for a name that is not a whole mark.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (installation, vm) = text.strip_prefix("bg")?.split_once('-')?;
        Some(Self { installation: Installation::parse(installation)?, vm: VmId::parse(vm).ok()? })
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("bg{}-{}", self.installation, self.vm))
    }
}

impl TryFrom<String> for Mark {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text).ok_or_else(|| format!("{text:?} is no mark"))
    }
}

impl From<Mark> for String {
    fn from(mark: Mark) -> String {
        mark.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_fits_a_network_device_and_comes_back_from_its_name() {
        let mark = Mark::new(Installation::random().unwrap(), VmId::random().unwrap());
        assert_eq!(mark.to_string().len(), 15);
        assert_eq!(Mark::parse(&mark.to_string()), Some(mark));
    }

    #[test]
    fn names_that_are_not_marks_are_nobodys() {
        for name in [
            "",
            "bg",
            "bg0000-",
            "bg0000-0000000",
            "bg0000-000000000",
            "br0000-00000000",
            "bg000l-00000000",
            "bg0000_00000000",
        ] {
            assert_eq!(Mark::parse(name), None, "{name}");
        }
    }
}
