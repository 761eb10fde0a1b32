//! A writable block device over an image that is only read, by device-mapper's snapshot target
//! (Documentation/admin-guide/device-mapper/snapshot.rst).
//!
//! ```text
//! MARK         snapshot ─┬─ MARK-origin ─┬─ linear: the loop of the image
//!                        │               └─ zero: up to the size that the VM's disk is to have
//!                        └─ the loop of the VM's disk: what was written (persistent, chunks of 8 sectors)
//! ```
//! Both loops are claims of their own, acquired before.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde::{Deserialize, Serialize};

use super::device_mapper::{Control, Device, Target};
use super::loop_device::{self, BlockDevice};
use super::uevents::Uevents;
use super::{LoopRole, SECTOR};
use crate::Held;
use crate::error::HostError;
use crate::mark::{Installation, Mark};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DmSnapshot {
    pub mark: Mark,
    /// The device's size: not less than the image's.
    pub size_bytes: u64,
}

impl DmSnapshot {
    /// How large the file of what was written must be, so that it cannot overflow: all chunks, their exceptions (16 bytes
    /// each), and the header.
    #[must_use]
    pub fn cow_bytes(size_bytes: u64) -> u64 {
        const CHUNK: u64 = 4096;
        let chunks = size_bytes.div_ceil(CHUNK);
        // One metadata chunk per 256 exceptions, one for the header, one more for the last one that is begun.
        (chunks + chunks.div_ceil(CHUNK / 16) + 2) * CHUNK
    }
}

/// How long somebody who has the device open, as udev may for a moment, has to close it.
const DEADLINE: Duration = Duration::from_secs(10);

pub(super) fn acquire(claim: &DmSnapshot) -> Result<(), HostError> {
    let mark = &claim.mark;
    let make = || {
        let image = loop_device::device(mark, LoopRole::Image)?;
        let disk = loop_device::device(mark, LoopRole::Disk)?;
        let control = Control::open()?;
        let table = origin_table(claim.size_bytes, image)?;
        let origin = control.ensure(&origin(mark), &table, true)?;
        let table = snapshot_table(claim.size_bytes, origin, disk);
        let number = control.ensure(&snapshot(mark), &table, false)?;
        check(&control.status(&snapshot(mark))?)?;
        put_node(mark, number)
    };
    make().map_err(|e| HostError::new(format!("make the snapshot device of VM {mark}"), e))
}

pub(super) fn release(mark: &Mark) -> Result<(), HostError> {
    let remove = || {
        let Some(control) = Control::open_if_there()? else { return Ok(()) };
        // First the node, which is found by the device.
        if let Some(number) = control.number(&snapshot(mark))? {
            remove_node(mark, number)?;
        }
        let uevents = Uevents::listen()?;
        for device in [snapshot(mark), origin(mark)] {
            let removed = uevents.retry(DEADLINE, || control.remove(&device))?;
            removed.ok_or_else(|| {
                io::Error::new(io::ErrorKind::ResourceBusy, format!("{} is in use", device.name))
            })?;
        }
        Ok(())
    };
    remove().map_err(|e: io::Error| {
        HostError::new(format!("remove the snapshot device of VM {mark}"), e)
    })
}

pub(super) fn list(installation: &Installation) -> Result<Vec<Held>, HostError> {
    let find = || {
        let Some(control) = Control::open_if_there()? else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        for name in control.names()? {
            let whose = name.strip_suffix(ORIGIN).unwrap_or(&name);
            let Some(mark) = Mark::parse(whose).filter(|mark| mark.installation() == installation)
            else {
                continue;
            };
            let device = if whose == name { snapshot(&mark) } else { origin(&mark) };
            if control.is_there(&device)? {
                found.push(Held::DmSnapshot { mark });
            }
        }
        Ok(found)
    };
    find().map_err(|e: io::Error| HostError::new("look for snapshot devices", e))
}

/// The device of this mark.
pub(super) fn device(mark: &Mark) -> io::Result<u64> {
    let found = match Control::open_if_there()? {
        Some(control) => control.number(&snapshot(mark))?,
        None => None,
    };
    found.ok_or_else(|| {
        let said = format!("the snapshot device of VM {mark} is not there");
        io::Error::new(io::ErrorKind::NotFound, said)
    })
}

const ORIGIN: &str = "-origin";

/// Its uuid is what it is known by: a name can be changed, and anybody may have chosen it.
fn snapshot(mark: &Mark) -> Device {
    Device { name: mark.to_string(), uuid: format!("banger-{mark}") }
}

fn origin(mark: &Mark) -> Device {
    Device { name: format!("{mark}{ORIGIN}"), uuid: format!("banger-{mark}{ORIGIN}") }
}

/// Where programs that are not jailed find it.
fn node(mark: &Mark) -> PathBuf {
    Path::new("/dev/mapper").join(mark.to_string())
}

/// udev makes none for devices of ours: it is told not to look at them, and nobody waits for it.
fn put_node(mark: &Mark, number: u64) -> io::Result<()> {
    let path = node(mark);
    if leads_to(&path, number) {
        return Ok(());
    }
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    Ok(mknodat(CWD, &path, FileType::BlockDevice, Mode::RUSR | Mode::WUSR, number)?)
}

fn remove_node(mark: &Mark, number: u64) -> io::Result<()> {
    let path = node(mark);
    if leads_to(&path, number) { fs::remove_file(&path) } else { Ok(()) }
}

fn leads_to(path: &Path, number: u64) -> bool {
    fs::metadata(path).is_ok_and(|data| data.file_type().is_block_device() && data.rdev() == number)
}

/// The image, and zeroes up to the wanted size.
fn origin_table(size_bytes: u64, image: BlockDevice) -> io::Result<Vec<Target>> {
    let sectors = size_bytes / SECTOR;
    if !size_bytes.is_multiple_of(SECTOR) || sectors == 0 {
        return Err(io::Error::other(format!("{size_bytes} bytes are no whole sectors")));
    }
    if sectors < image.sectors {
        let image_bytes = image.sectors * SECTOR;
        return Err(io::Error::other(format!(
            "it is to have {size_bytes} bytes and the image has {image_bytes}"
        )));
    }
    let mut table = vec![Target {
        start: 0,
        sectors: image.sectors,
        kind: "linear",
        parameters: format!("{} 0", numbered(image.number)),
    }];
    if sectors > image.sectors {
        let (start, sectors) = (image.sectors, sectors - image.sectors);
        table.push(Target { start, sectors, kind: "zero", parameters: String::new() });
    }
    Ok(table)
}

fn snapshot_table(size_bytes: u64, origin: u64, disk: BlockDevice) -> Vec<Target> {
    let parameters = format!("{} {} P 8", numbered(origin), numbered(disk.number));
    vec![Target { start: 0, sectors: size_bytes / SECTOR, kind: "snapshot", parameters }]
}

/// As device-mapper writes a device in its tables.
fn numbered(device: u64) -> String {
    format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device))
}

/// `SECTORS-USED/ALL METADATA`, or one word of what has gone wrong.
fn check(status: &str) -> io::Result<()> {
    if status.starts_with(|first: char| first.is_ascii_digit()) {
        return Ok(());
    }
    Err(io::Error::other(format!("what was written cannot be read: the kernel says {status:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(sectors: u64) -> BlockDevice {
        BlockDevice { number: rustix::fs::makedev(7, 300), sectors }
    }

    fn lines(table: &[Target]) -> Vec<String> {
        table
            .iter()
            .map(|line| {
                format!("{} {} {} {}", line.start, line.sectors, line.kind, line.parameters)
            })
            .collect()
    }

    #[test]
    fn the_origin_is_the_image_and_zeroes_up_to_the_size() {
        let table = origin_table(4096 * 512, image(1000)).unwrap();
        assert_eq!(lines(&table), ["0 1000 linear 7:300 0", "1000 3096 zero "]);
    }

    #[test]
    fn an_image_of_the_wanted_size_has_no_zeroes_behind_it() {
        let table = origin_table(1000 * 512, image(1000)).unwrap();
        assert_eq!(lines(&table), ["0 1000 linear 7:300 0"]);
    }

    #[test]
    fn a_device_smaller_than_its_image_or_of_no_whole_sectors_is_an_error() {
        for size in [0, 999 * 512, 1000 * 512 + 1] {
            assert!(origin_table(size, image(1000)).is_err(), "{size}");
        }
    }

    #[test]
    fn what_was_written_has_room_for_every_chunk_and_its_description() {
        // One chunk: the header, one chunk of metadata, the chunk, and one to spare.
        assert_eq!(DmSnapshot::cow_bytes(1), 4 * 4096);
        assert_eq!(DmSnapshot::cow_bytes(256 * 4096), (256 + 1 + 2) * 4096);
        assert_eq!(DmSnapshot::cow_bytes(257 * 4096), (257 + 2 + 2) * 4096);
    }

    #[test]
    fn only_a_count_of_sectors_is_a_good_status() {
        check("16/4096 16").unwrap();
        for bad in ["Invalid", "Overflow", "Merge failed", "Unknown", ""] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }
}
