//! How a VM gets a writable root from an image that is never written: which disk it claims, which drives it sees.
//!
//! Drivers plan; they never touch the host. A VM keeps the driver it was created with, by name.

mod overlay;
mod reflink;

use std::path::{Path, PathBuf};

use banger_host::{Claim, Mark};

pub use overlay::Overlay;
pub use reflink::Reflink;

/// A block device of the guest, which the agent finds by its serial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drive {
    /// At most 20 bytes (VIRTIO 1.2, 5.2.6: `VIRTIO_BLK_ID_BYTES`).
    pub serial: &'static str,
    pub path: PathBuf,
    pub read_only: bool,
}

/// Serial of the drive that holds the image.
pub const ROOT_SERIAL: &str = "banger-root";
/// Serial of the drive that is laid over it.
pub const DISK_SERIAL: &str = "banger-disk";

pub trait Driver: Sync + std::fmt::Debug {
    /// As stored with the VM and shown by `doctor`.
    fn name(&self) -> &'static str;

    /// The claim of the VM's own disk.
    fn disk(&self, mark: &Mark, image: &Path, size_bytes: u64) -> Claim;

    /// What the guest sees, `disk` being where the claim's disk is.
    fn drives(&self, image: &Path, disk: &Path) -> Vec<Drive>;

    /// What the agent is to do with them: the value of `banger.root=` on the kernel's command line.
    fn root(&self) -> &'static str;
}

/// The driver of that name.
#[must_use]
pub fn named(name: &str) -> Option<&'static dyn Driver> {
    const ALL: [&dyn Driver; 2] = [&Overlay, &Reflink];
    ALL.into_iter().find(|driver| driver.name() == name)
}

/// The driver for new VMs: the first that works here.
#[must_use]
pub fn auto(reflink_works: bool) -> &'static dyn Driver {
    if reflink_works { &Reflink } else { &Overlay }
}

#[cfg(test)]
mod tests {
    use banger_api::VmId;
    use banger_host::{DiskSource, Installation, Life};

    use super::*;

    fn mark() -> Mark {
        Mark::new(Installation::random().unwrap(), VmId::random().unwrap())
    }

    #[test]
    fn every_driver_is_found_by_the_name_it_is_stored_under() {
        for driver in [auto(true), auto(false)] {
            assert_eq!(named(driver.name()).unwrap().root(), driver.root());
        }
        assert!(named("floppy").is_none());
    }

    #[test]
    fn no_driver_lets_a_guest_write_to_the_image() {
        let (image, disk) = (Path::new("/images/i.ext4"), Path::new("/vms/v/disk.ext4"));
        for driver in [auto(true), auto(false)] {
            for drive in driver.drives(image, disk) {
                assert!(drive.read_only || drive.path == disk, "{driver:?} {drive:?}");
                assert!(drive.serial.len() <= 20);
            }
        }
    }

    #[test]
    fn a_disk_is_held_until_its_vm_is_deleted() {
        for driver in [auto(true), auto(false)] {
            assert_eq!(driver.disk(&mark(), Path::new("/i"), 1 << 30).life(), Life::Record);
        }
    }

    #[test]
    fn reflink_shares_blocks_with_the_image_and_overlay_begins_empty() {
        let disk = |driver: &dyn Driver| match driver.disk(&mark(), Path::new("/i"), 1 << 30) {
            Claim::Disk(disk) => disk.source,
            other => panic!("{other:?}"),
        };
        assert_eq!(disk(&Reflink), DiskSource::Reflink { base: "/i".into() });
        assert_eq!(disk(&Overlay), DiskSource::Empty);
    }
}
