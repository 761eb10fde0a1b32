//! What this machine lets root do, for `doctor` and for choosing a storage driver. Looks only, and needs no privilege.

use super::{cgroup, device_mapper, loop_device, nft, tap};

/// Each is `Err` with the reason when the claims of that kind cannot work here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Abilities {
    /// Device-mapper's snapshots, and the zeroes behind an image.
    pub dm_snapshot: Result<(), String>,
    pub loop_devices: Result<(), String>,
    /// cgroup v2 with every controller that limits need.
    pub cgroup: Result<(), String>,
    pub taps: Result<(), String>,
    /// nft, and what of the kernel our rules need.
    pub network_rules: Result<(), String>,
}

/// Looks at this machine.
#[must_use]
pub fn abilities() -> Abilities {
    let snapshot = device_mapper::target_ability("snapshot", "dm-snapshot");
    let zero = || device_mapper::target_ability("zero", "dm-zero");
    Abilities {
        dm_snapshot: snapshot.and_then(|()| zero()),
        loop_devices: loop_device::ability(),
        cgroup: cgroup::ability(),
        taps: tap::ability(),
        network_rules: nft::ability(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_works_and_what_is_not_says_why() {
        let found = abilities();
        assert_eq!(found.loop_devices, Ok(()), "the tests of loop devices work here");
        assert_eq!(found.taps, Ok(()), "the tests of taps work here");
        assert_eq!(found.network_rules, Ok(()), "the tests of rules work here");
        for missing in [found.dm_snapshot, found.cgroup].into_iter().filter_map(Result::err) {
            assert!(missing.len() > 20, "{missing}");
        }
    }
}
