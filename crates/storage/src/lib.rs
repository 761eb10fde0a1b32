//! How a VM gets a writable root from an image that is never written: which disk it claims, which drives it sees.
//!
//! Drivers plan; they never touch the host. A VM keeps the driver it was created with, by name.

mod dm_snapshot;
mod overlay;
mod reflink;

use std::path::Path;

use banger_host::{Claim, Mark, StateFile};

pub use dm_snapshot::DmSnapshot;
pub use overlay::Overlay;
pub use reflink::Reflink;

/// A block device of the guest, which the agent finds by its serial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drive {
    /// At most 20 bytes (VIRTIO 1.2, 5.2.6: `VIRTIO_BLK_ID_BYTES`).
    pub serial: &'static str,
    pub source: DriveSource,
    pub read_only: bool,
}

/// What is behind a drive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DriveSource {
    File(StateFile),
    /// The snapshot device of the VM's mark.
    DmSnapshot,
}

/// Serial of the drive that holds the image.
pub const ROOT_SERIAL: &str = "banger-root";
/// Serial of the drive that is laid over it.
pub const DISK_SERIAL: &str = "banger-disk";

pub trait Driver: Sync + std::fmt::Debug {
    /// As stored with the VM and shown by `doctor`.
    fn name(&self) -> &'static str;

    /// The claim of the VM's own disk, held from create to delete. `state` is the folder that `image` is below.
    fn disk(&self, mark: &Mark, state: &Path, image: &StateFile, size_bytes: u64) -> Claim;

    /// What stands between that disk and the VMM, held from start to stop, in the order in which it is made.
    fn run_claims(&self, mark: &Mark, image: &StateFile, size_bytes: u64) -> Vec<Claim>;

    /// What the guest sees.
    fn drives(&self, mark: &Mark, image: &StateFile) -> Vec<Drive>;

    /// Whether the guest's disk is the image itself, grown: then it is no smaller than the image.
    fn begins_as_image(&self) -> bool;

    /// What the agent is to do with them: the value of `banger.root=` on the kernel's command line.
    fn root(&self) -> &'static str;
}

/// The driver of that name.
#[must_use]
pub fn named(name: &str) -> Option<&'static dyn Driver> {
    const ALL: [&dyn Driver; 3] = [&Overlay, &Reflink, &DmSnapshot];
    ALL.into_iter().find(|driver| driver.name() == name)
}

/// What the drivers need, and whether this host has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Able {
    /// Files of the state can share blocks.
    pub reflink: bool,
    /// The kernel has the snapshot target, and there is root, or root's helper, to use it.
    pub dm_snapshot: bool,
}

/// The driver for new VMs: the first that works here.
#[must_use]
pub fn auto(able: Able) -> &'static dyn Driver {
    match able {
        Able { reflink: true, .. } => &Reflink,
        Able { dm_snapshot: true, .. } => &DmSnapshot,
        _ => &Overlay,
    }
}

#[cfg(test)]
mod tests {
    use banger_api::VmId;
    use banger_host::{DiskSource, Installation, Life};

    use super::*;

    const ALL: [&dyn Driver; 3] = [&Overlay, &Reflink, &DmSnapshot];

    fn mark() -> Mark {
        Mark::new(Installation::random().unwrap(), VmId::random().unwrap())
    }

    fn image() -> StateFile {
        StateFile::parse("images/i.ext4").unwrap()
    }

    #[test]
    fn every_driver_is_found_by_the_name_it_is_stored_under() {
        for driver in ALL {
            assert_eq!(named(driver.name()).unwrap().root(), driver.root());
        }
        assert!(named("floppy").is_none());
    }

    #[test]
    fn new_vms_get_the_best_that_works_here() {
        let named = |reflink, dm_snapshot| auto(Able { reflink, dm_snapshot }).name();
        assert_eq!(named(true, true), "reflink");
        assert_eq!(named(false, true), "dm-snapshot");
        assert_eq!(named(false, false), "overlay");
    }

    #[test]
    fn no_driver_lets_a_guest_write_to_the_image() {
        for driver in ALL {
            for drive in driver.drives(&mark(), &image()) {
                let is_image = drive.source == DriveSource::File(image());
                assert!(drive.read_only || !is_image, "{driver:?} {drive:?}");
                assert!(drive.serial.len() <= 20);
            }
        }
    }

    #[test]
    fn a_disk_is_held_until_its_vm_is_deleted_and_what_stands_before_it_until_it_stops() {
        for driver in ALL {
            let disk = driver.disk(&mark(), Path::new("/s"), &image(), 1 << 30);
            assert_eq!(disk.life(), Life::Record);
            for claim in driver.run_claims(&mark(), &image(), 1 << 30) {
                assert_eq!(claim.life(), Life::Run);
            }
        }
    }

    #[test]
    fn each_disk_begins_as_its_driver_needs_it() {
        let disk =
            |driver: &dyn Driver| match driver.disk(&mark(), Path::new("/s"), &image(), 1 << 30) {
                Claim::Disk(disk) => (disk.source, disk.size_bytes),
                other => panic!("{other:?}"),
            };
        let base = "/s/images/i.ext4".into();
        assert_eq!(disk(&Reflink), (DiskSource::Reflink { base }, 1 << 30));
        assert_eq!(disk(&Overlay), (DiskSource::Empty, 1 << 30));
        let (source, size) = disk(&DmSnapshot);
        assert_eq!(source, DiskSource::Hole);
        assert!(size > 1 << 30, "all of it can be written, and is then described");
    }
}
