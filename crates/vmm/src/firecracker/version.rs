//! Which Firecracker it is, and what that means: its API and its snapshots are those of one minor version.

use std::fmt;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    major: u32,
    minor: u32,
    patch: u32,
}

/// What is known of a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Support {
    /// It lacks what is asked of it.
    TooOld,
    Supported,
    /// It came after the last one that this program knows.
    Untested,
}

/// The oldest and the newest, by major and minor version.
pub const OLDEST: (u32, u32) = (1, 12);
pub const NEWEST: (u32, u32) = (1, 16);

impl Version {
    /// From `1.12.1`, as the API says it, or what `firecracker --version` says: `Firecracker v1.12.1`, then more lines.
    /// `None` for anything else; a build between two versions (`1.13.0-dev`) is no version.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let first = text.lines().next()?.trim();
        let number = match first.strip_prefix("Firecracker v") {
            Some(number) => number,
            None => first,
        };
        let part = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            digits.then(|| text.parse().ok()).flatten()
        };
        let mut parts = number.split('.').map(part);
        let version = Self { major: parts.next()??, minor: parts.next()??, patch: parts.next()?? };
        parts.next().is_none().then_some(version)
    }

    #[must_use]
    pub fn support(self) -> Support {
        let minor = (self.major, self.minor);
        match minor {
            _ if minor < OLDEST => Support::TooOld,
            _ if minor > NEWEST => Support::Untested,
            _ => Support::Supported,
        }
    }

    /// The major version of the snapshots that it writes, which are the only ones that it reads (`SNAPSHOT_VERSION` in
    /// Firecracker's src/vmm/src/persist.rs). `None` where that is not known.
    #[must_use]
    pub fn snapshot_format(self) -> Option<u32> {
        match (self.major, self.minor) {
            (1, 12) => Some(6),
            (1, 13 | 14) => Some(8),
            (1, 15) => Some(9),
            (1, 16) => Some(10),
            _ => None,
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}.{}.{}", self.major, self.minor, self.patch))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_read_from_what_the_program_and_its_api_say() {
        let said = "Firecracker v1.12.1\n\n2026-11-24T08:36:22 [main] Firecracker exiting\n";
        assert_eq!(Version::parse(said).unwrap().to_string(), "1.12.1");
        assert_eq!(Version::parse("1.16.0"), Version::parse("Firecracker v1.16.0\n"));
    }

    #[test]
    fn what_is_no_version_is_not_one() {
        for text in [
            "",
            "Firecracker",
            "Firecracker v",
            "Jailer v1.12.1",
            "1.12",
            "1.12.1.1",
            "1.12.x",
            "1.13.0-dev",
            "v1.12.1",
            "1.+2.1",
            "1..1",
            "99999999999.0.0",
        ] {
            assert_eq!(Version::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn old_ones_are_refused_and_later_ones_are_untested() {
        let support = |text| Version::parse(text).unwrap().support();
        assert_eq!(support("0.25.2"), Support::TooOld);
        assert_eq!(support("1.11.9"), Support::TooOld);
        assert_eq!(support("1.12.0"), Support::Supported);
        assert_eq!(support("1.16.3"), Support::Supported);
        assert_eq!(support("1.17.0"), Support::Untested);
        assert_eq!(support("2.0.0"), Support::Untested);
    }

    #[test]
    fn the_format_of_snapshots_is_known_of_every_supported_version() {
        for minor in OLDEST.1..=NEWEST.1 {
            let version = Version { major: 1, minor, patch: 0 };
            assert!(version.snapshot_format().is_some(), "{version}");
        }
        assert_eq!(Version::parse("1.17.0").unwrap().snapshot_format(), None);
    }
}
