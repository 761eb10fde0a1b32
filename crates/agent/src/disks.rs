//! Finds the disks that the VMM gave us. `/dev/vdX` depends on probing order, so it is asked for neither: a disk is known
//! by the serial that the VMM gave it or, where a VMM gives serials of its own, by its place in the order of the virtio
//! devices, which are numbered as the VMM made them.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fs, io};

use crate::uevents::Uevents;

/// A disk that the VMM has is seen in milliseconds; a busy emulated machine may need seconds.
const DEADLINE: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Disk {
    pub(crate) device: PathBuf,
    pub(crate) size_bytes: u64,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum DiskError {
    #[error("cannot look for the disk {name}")]
    Look {
        name: &'static str,
        #[source]
        cause: io::Error,
    },
    #[error("the disk {name} is none of banger.drives={drives}")]
    NoPlace { name: &'static str, drives: String },
    #[error(
        "there is no disk {name} after {} s (disks that are there: {})",
        DEADLINE.as_secs(),
        if present.is_empty() { "none" } else { present }
    )]
    Absent { name: &'static str, present: String },
}

/// The disk of that name. `drives` are the names of all disks in the order of their devices; `None` where the name is the
/// disk's serial.
pub(crate) fn wait_for(
    name: &'static str,
    drives: Option<&[String]>,
    uevents: &Uevents,
) -> Result<Disk, DiskError> {
    let blocks = Path::new("/sys/block");
    let place = match drives {
        None => None,
        Some(drives) => {
            let place = drives.iter().position(|drive| drive == name);
            let place =
                place.ok_or_else(|| DiskError::NoPlace { name, drives: drives.join(",") })?;
            Some((place, drives.len()))
        }
    };
    let look = || match place {
        None => by_serial(blocks, name),
        Some((place, count)) => by_place(blocks, place, count),
    };
    match uevents.wait_for(Some(Instant::now() + DEADLINE), look) {
        Ok(Some(disk)) => Ok(disk),
        Ok(None) => Err(DiskError::Absent { name, present: present(blocks).unwrap_or_default() }),
        Err(cause) => Err(DiskError::Look { name, cause }),
    }
}

fn by_serial(blocks: &Path, serial: &str) -> io::Result<Option<Disk>> {
    for block in fs::read_dir(blocks)? {
        let block = block?.path();
        let theirs = fs::read_to_string(block.join("serial")).unwrap_or_default();
        if theirs.trim_end() == serial {
            return disk(&block).map(Some);
        }
    }
    Ok(None)
}

/// Only when all `count` virtio disks are there does each have its place.
fn by_place(blocks: &Path, place: usize, count: usize) -> io::Result<Option<Disk>> {
    let mut disks = Vec::new();
    for block in fs::read_dir(blocks)? {
        let block = block?.path();
        if let Some(number) = virtio_number(&block) {
            disks.push((number, block));
        }
    }
    disks.sort();
    match disks.get(place) {
        Some((_, block)) if disks.len() == count => disk(block).map(Some),
        _ => Ok(None),
    }
}

/// The N of the device `virtioN` behind a block or network device of sysfs (`register_virtio_device` in drivers/virtio/virtio.c).
pub(crate) fn virtio_number(device: &Path) -> Option<u32> {
    let device = fs::read_link(device.join("device")).ok()?;
    device.file_name()?.to_str()?.strip_prefix("virtio")?.parse().ok()
}

fn disk(block: &Path) -> io::Result<Disk> {
    // In units of 512 bytes whatever the device's own block size (Documentation/ABI/stable/sysfs-block).
    let sectors = fs::read_to_string(block.join("size"))?;
    let sectors: u64 = sectors.trim_end().parse().map_err(io::Error::other)?;
    Ok(Disk {
        device: Path::new("/dev").join(block.file_name().unwrap_or_default()),
        size_bytes: sectors * 512,
    })
}

fn present(blocks: &Path) -> io::Result<String> {
    let names = fs::read_dir(blocks)?.filter_map(Result::ok).map(|block| {
        let serial = fs::read_to_string(block.path().join("serial")).unwrap_or_default();
        format!("{} {:?}", block.file_name().to_string_lossy(), serial.trim_end())
    });
    Ok(names.collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn block(sys: &Path, name: &str, serial: &str, device: &str, sectors: u64) {
        let block = sys.join(name);
        fs::create_dir(&block).unwrap();
        fs::write(block.join("size"), format!("{sectors}\n")).unwrap();
        if !serial.is_empty() {
            fs::write(block.join("serial"), format!("{serial}\n")).unwrap();
        }
        if !device.is_empty() {
            symlink(format!("../../../{device}"), block.join("device")).unwrap();
        }
    }

    #[test]
    fn a_disk_is_found_by_its_serial_whatever_its_name() {
        let sys = tempfile::tempdir().unwrap();
        block(sys.path(), "vda", "banger-disk", "virtio0", 16);
        block(sys.path(), "vdb", "banger-root", "virtio1", 8);
        block(sys.path(), "loop0", "", "", 0);
        let disk = by_serial(sys.path(), "banger-root").unwrap();
        assert_eq!(disk, Some(Disk { device: "/dev/vdb".into(), size_bytes: 4096 }));
        assert_eq!(by_serial(sys.path(), "banger").unwrap(), None);
    }

    #[test]
    fn a_disk_is_found_by_the_number_of_its_device_whatever_its_name() {
        let sys = tempfile::tempdir().unwrap();
        block(sys.path(), "vda", "x", "virtio10", 16);
        block(sys.path(), "vdb", "y", "virtio9", 8);
        block(sys.path(), "loop0", "", "", 0);
        block(sys.path(), "sda", "", "0:0:0:0", 0);
        let found = |place| by_place(sys.path(), place, 2).unwrap().unwrap().device;
        assert_eq!(found(0), Path::new("/dev/vdb"));
        assert_eq!(found(1), Path::new("/dev/vda"));
    }

    #[test]
    fn no_disk_has_a_place_before_all_are_there() {
        let sys = tempfile::tempdir().unwrap();
        block(sys.path(), "vda", "", "virtio3", 8);
        assert_eq!(by_place(sys.path(), 0, 2).unwrap(), None);
        block(sys.path(), "vdb", "", "virtio2", 16);
        let disk = by_place(sys.path(), 0, 2).unwrap();
        assert_eq!(disk, Some(Disk { device: "/dev/vdb".into(), size_bytes: 8192 }));
    }
}
