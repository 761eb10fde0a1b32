//! What the helper goes by: whom it works for, and what that one's daemon may ask for. Written by root at the installation,
//! or measured from this machine; nothing of it comes from the daemon.

use std::path::PathBuf;

use banger_api::install::{FIRECRACKER, Install, JAILS, STATE};
use banger_host::Installation;
use banger_host::root::{Firecracker, RootPlaces};

/// Whom the helper works for, and within which limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Whose daemon may ask, beside root.
    pub owner_uid: u32,
    /// Whose things may be touched.
    pub installation: Installation,
    pub uids: Uids,
    pub machine: Machine,
}

/// The users that VMMs run as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Uids {
    pub first: u32,
    pub count: u32,
}

impl Uids {
    #[must_use]
    pub fn contains(self, uid: u32) -> bool {
        uid.checked_sub(self.first).is_some_and(|slot| slot < self.count)
    }
}

/// What an installation says: whom to obey, and where things are. What is wrong with an installation by itself is refused
/// where it is read.
///
/// # Errors
/// What does not fit.
pub fn of(install: &Install) -> Result<(Policy, RootPlaces), String> {
    let installation = Installation::parse(&install.installation)
        .ok_or_else(|| format!("{:?} is no installation id", install.installation))?;
    // The jailer calls a jail by the name of the program in it, and so does whoever looks for jails.
    if install.firecracker.file_name() != Some(FIRECRACKER.as_ref()) {
        return Err(format!("{} is not called {FIRECRACKER}", install.firecracker.display()));
    }
    let policy = Policy {
        owner_uid: install.owner_uid,
        installation: installation.clone(),
        uids: Uids { first: install.uid_base, count: install.uid_count },
        machine: Machine::here(),
    };
    let places = RootPlaces {
        installation,
        state: PathBuf::from(STATE),
        owner: install.owner_uid,
        jails: PathBuf::from(JAILS),
        firecracker: Firecracker {
            firecracker: install.firecracker.clone(),
            jailer: install.jailer.clone(),
        },
    };
    Ok((policy, places))
}

/// What a limit can be at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    pub memory_bytes: u64,
    pub cpus: u32,
}

impl Machine {
    #[must_use]
    pub fn here() -> Self {
        let cpus = std::thread::available_parallelism()
            .map_or(1, |count| u32::try_from(count.get()).unwrap_or(u32::MAX));
        let info = rustix::system::sysinfo();
        Self { memory_bytes: info.totalram.saturating_mul(u64::from(info.mem_unit)), cpus }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INSTALL: &str = r#"
        version = "0.1.0"
        owner_name = "alice"
        owner_uid = 1000
        installation = "0a1b"
        uid_base = 1900000000
        uid_count = 10000
        programs = "/usr/local/lib/banger"
        firecracker = "/usr/local/lib/banger/firecracker"
        jailer = "/usr/local/lib/banger/jailer"
    "#;

    #[test]
    fn an_installation_says_whom_to_obey() {
        let (policy, places) = of(&Install::parse(INSTALL).unwrap()).unwrap();
        assert_eq!(policy.owner_uid, 1000);
        assert_eq!(places.owner, 1000);
        assert_eq!(policy.installation, places.installation);
        assert!(policy.uids.contains(1_900_009_999));
    }

    #[test]
    fn a_firecracker_of_another_name_is_refused_since_its_jails_would_not_be_found() {
        let text = INSTALL.replace("banger/firecracker", "banger/firecracker-1.12");
        let error = of(&Install::parse(&text).unwrap()).unwrap_err();
        assert!(error.contains("firecracker-1.12"), "{error}");
    }

    #[test]
    fn the_ends_of_the_range_are_in_it_and_their_neighbours_are_not() {
        let uids = Uids { first: 100_000, count: 10 };
        for (uid, inside) in [(99_999, false), (100_000, true), (100_009, true), (100_010, false)] {
            assert_eq!(uids.contains(uid), inside, "{uid}");
        }
        assert!(!uids.contains(0));
        assert!(!uids.contains(u32::MAX));
    }
}
