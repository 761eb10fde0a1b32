//! Finds the disks that the VMM gave us, by the serial it gave them: `/dev/vdX` depends on probing order, a serial does not.

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
    #[error("cannot look for the disk {serial}")]
    Look {
        serial: &'static str,
        #[source]
        cause: io::Error,
    },
    #[error(
        "no disk has the serial {serial} after {} s (disks that are there: {})",
        DEADLINE.as_secs(),
        if present.is_empty() { "none" } else { present }
    )]
    Absent { serial: &'static str, present: String },
}

pub(crate) fn wait_for(serial: &'static str, uevents: &Uevents) -> Result<Disk, DiskError> {
    let look = || find(Path::new("/sys/block"), serial);
    match uevents.wait_for(Some(Instant::now() + DEADLINE), look) {
        Ok(Some(disk)) => Ok(disk),
        Ok(None) => Err(DiskError::Absent { serial, present: present().unwrap_or_default() }),
        Err(cause) => Err(DiskError::Look { serial, cause }),
    }
}

fn find(blocks: &Path, serial: &str) -> io::Result<Option<Disk>> {
    for block in fs::read_dir(blocks)? {
        let block = block?;
        let theirs = fs::read_to_string(block.path().join("serial")).unwrap_or_default();
        if theirs.trim_end() == serial {
            // In units of 512 bytes whatever the device's own block size (Documentation/ABI/stable/sysfs-block).
            let sectors = fs::read_to_string(block.path().join("size"))?;
            let sectors: u64 = sectors.trim_end().parse().map_err(io::Error::other)?;
            return Ok(Some(Disk {
                device: Path::new("/dev").join(block.file_name()),
                size_bytes: sectors * 512,
            }));
        }
    }
    Ok(None)
}

fn present() -> io::Result<String> {
    let names = fs::read_dir("/sys/block")?.filter_map(Result::ok).map(|block| {
        let serial = fs::read_to_string(block.path().join("serial")).unwrap_or_default();
        format!("{} {:?}", block.file_name().to_string_lossy(), serial.trim_end())
    });
    Ok(names.collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_found_by_its_serial_whatever_its_name() {
        let sys = tempfile::tempdir().unwrap();
        for (name, serial, size) in
            [("vda", "banger-disk", "16"), ("vdb", "banger-root", "8"), ("loop0", "", "0")]
        {
            fs::create_dir(sys.path().join(name)).unwrap();
            fs::write(sys.path().join(name).join("size"), format!("{size}\n")).unwrap();
            if !serial.is_empty() {
                fs::write(sys.path().join(name).join("serial"), format!("{serial}\n")).unwrap();
            }
        }
        let disk = find(sys.path(), "banger-root").unwrap();
        assert_eq!(disk, Some(Disk { device: "/dev/vdb".into(), size_bytes: 4096 }));
        assert_eq!(find(sys.path(), "banger").unwrap(), None);
    }
}
