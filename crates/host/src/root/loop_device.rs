//! Loop devices (loop(4)) over files of the state. The kernel chooses the number; ours is found by the name that we give
//! it in its status (`lo_file_name`): `MARK:ROLE`.
//!
//! File and name are given in one call (LOOP_CONFIGURE, Linux 5.8), so there is no half-made one without its name.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;
use std::time::Duration;

use rustix::io::Errno;
use rustix::ioctl::Opcode;
use serde::{Deserialize, Serialize};

use super::uevents::Uevents;
use super::{RootPlaces, beneath};
use crate::Held;
use crate::error::HostError;
use crate::mark::{Installation, Mark};
use crate::state_file::StateFile;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Loop {
    pub mark: Mark,
    pub role: LoopRole,
    pub file: StateFile,
}

/// What a loop device is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoopRole {
    /// The image: read-only.
    Image,
    /// The VM's own disk.
    Disk,
}

impl fmt::Display for LoopRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            LoopRole::Image => "image",
            LoopRole::Disk => "disk",
        })
    }
}

/// A block device by its number, as in `st_rdev` (stat(3type)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BlockDevice {
    pub(super) number: u64,
    pub(super) sectors: u64,
}

/// How long a device that somebody still looks at has to be let go.
const DEADLINE: Duration = Duration::from_secs(10);

const CONTROL: &str = "/dev/loop-control";

pub(super) fn acquire(claim: &Loop, places: &RootPlaces) -> Result<(), HostError> {
    let file = beneath::state_file(places, &claim.file, claim.role == LoopRole::Disk)?;
    let name = name(&claim.mark, claim.role);
    make(&name, claim.role, &file)
        .map_err(|e| HostError::new(format!("make {} ({name})", held(&claim.mark, claim.role)), e))
}

pub(super) fn release(mark: &Mark, role: LoopRole) -> Result<(), HostError> {
    detach(&name(mark, role)).map_err(|e| HostError::new(format!("remove {}", held(mark, role)), e))
}

pub(super) fn list(installation: &Installation) -> Result<Vec<Held>, HostError> {
    let bound = bound(|_| true).map_err(|e| HostError::new("look for loop devices", e))?;
    let ours = bound.iter().filter_map(|found| parse(&found.status.name()));
    let ours = ours.filter(|(mark, _)| mark.installation() == installation);
    Ok(ours.map(|(mark, role)| Held::Loop { mark, role }).collect())
}

/// The device of this mark and role.
pub(super) fn device(mark: &Mark, role: LoopRole) -> io::Result<BlockDevice> {
    let wanted = name(mark, role);
    let found = bound(|name| name == wanted)?;
    let found = found.first().ok_or_else(|| {
        io::Error::new(ErrorKind::NotFound, format!("{} is not there", held(mark, role)))
    })?;
    let size = fs::read_to_string(format!("/sys/block/loop{}/size", found.number))?;
    let sectors = size.trim().parse().map_err(io::Error::other)?;
    Ok(BlockDevice { number: found.device.metadata()?.rdev(), sectors })
}

/// Whether devices can be made here.
pub(super) fn ability() -> Result<(), String> {
    match fs::metadata(CONTROL) {
        Ok(found) if found.file_type().is_char_device() => Ok(()),
        Ok(_) => Err(format!("{CONTROL} is no device")),
        Err(error) => Err(no_module(&error).to_string()),
    }
}

fn held(mark: &Mark, role: LoopRole) -> Held {
    Held::Loop { mark: mark.clone(), role }
}

fn name(mark: &Mark, role: LoopRole) -> String {
    format!("{mark}:{role}")
}

fn parse(name: &str) -> Option<(Mark, LoopRole)> {
    let (mark, role) = name.split_once(':')?;
    let role =
        [LoopRole::Image, LoopRole::Disk].into_iter().find(|known| known.to_string() == role)?;
    Some((Mark::parse(mark)?, role))
}

fn make(name: &str, role: LoopRole, file: &File) -> io::Result<()> {
    let found = bound(|there| there == name)?;
    if found.iter().any(|there| there.status.flags & AUTOCLEAR != 0) {
        // It goes when the last who has it open closes it, whatever we do with it until then.
        detach(name)?;
    } else if let Some(there) = found.first() {
        return check(&there.status, role, file);
    }
    let control = OpenOptions::new().read(true).write(true).open(CONTROL);
    let control = control.map_err(|e| no_module(&e))?;
    let flags = if role == LoopRole::Image { READ_ONLY } else { 0 };
    let mut config = Config { file: file.as_raw_fd(), ..Config::default() };
    config.status.flags = flags;
    config.status.name[..name.len()].copy_from_slice(name.as_bytes());
    // Whoever else makes one may get the free device that we were told of.
    for _ in 0..64 {
        let device = open(kernel::free(&control)?, true)?;
        match kernel::configure(&device, &mut config) {
            Err(error) if error.kind() == ErrorKind::ResourceBusy => {}
            done => return done,
        }
    }
    Err(io::Error::new(ErrorKind::ResourceBusy, "others take every free device before us"))
}

/// That a device of this name is the one that was wanted.
fn check(status: &Status, role: LoopRole, file: &File) -> io::Result<()> {
    let data = file.metadata()?;
    if (status.backing_device, status.inode) != (data.dev(), data.ino()) {
        return Err(io::Error::other("it is there over another file"));
    }
    if (status.flags & READ_ONLY != 0) != (role == LoopRole::Image) {
        return Err(io::Error::other("it is there, and as read-only as it should not be"));
    }
    if (status.offset, status.size_limit) != (0, 0) {
        return Err(io::Error::other("it is there over a part of the file"));
    }
    Ok(())
}

/// Takes the file from every device of this name. One that somebody has open, as udev may for a moment, is let go when
/// it is closed: that is waited for.
fn detach(name: &str) -> io::Result<()> {
    let uevents = Uevents::listen()?;
    let gone = uevents.retry(DEADLINE, || {
        let found = bound(|there| there == name)?;
        for there in &found {
            match kernel::clear(&there.device) {
                // Another was quicker.
                Err(error) if is_unbound(&error) => {}
                done => done?,
            }
        }
        Ok(found.is_empty().then_some(()))
    })?;
    gone.ok_or_else(|| io::Error::new(ErrorKind::ResourceBusy, "somebody has it open"))
}

/// A device that has a file.
struct Bound {
    number: u32,
    device: File,
    status: Status,
}

/// The devices that have a file and a name that is wanted.
fn bound(wanted: impl Fn(&str) -> bool) -> io::Result<Vec<Bound>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/sys/block")? {
        let entry = entry?;
        let number =
            entry.file_name().to_str().and_then(|name| name.strip_prefix("loop")?.parse().ok());
        let Some(number) = number else { continue };
        if !entry.path().join("loop").exists() {
            continue;
        }
        let looked_at =
            open(number, false).and_then(|device| Ok((kernel::status(&device)?, device)));
        match looked_at {
            Ok((status, device)) if wanted(&status.name()) => {
                found.push(Bound { number, device, status })
            }
            Ok(_) => {}
            // It has been let go, or removed, since.
            Err(error) if is_unbound(&error) || error.kind() == ErrorKind::NotFound => {}
            Err(error) => {
                let said = format!("/dev/loop{number} cannot be looked at: {error}");
                return Err(io::Error::new(error.kind(), said));
            }
        }
    }
    Ok(found)
}

fn open(number: u32, writable: bool) -> io::Result<File> {
    let path = PathBuf::from(format!("/dev/loop{number}"));
    OpenOptions::new().read(true).write(writable).open(path)
}

fn is_unbound(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::NXIO)
}

fn no_module(error: &io::Error) -> io::Error {
    let said = format!("{CONTROL} cannot be used ({error}): is the kernel module loop there?");
    io::Error::new(error.kind(), said)
}

const READ_ONLY: u32 = 1;
const AUTOCLEAR: u32 = 4;

/// `struct loop_info64` (linux/loop.h).
#[repr(C)]
#[derive(Clone)]
struct Status {
    backing_device: u64,
    inode: u64,
    own_device: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encryption: u32,
    key_size: u32,
    flags: u32,
    name: [u8; 64],
    crypt_name: [u8; 64],
    key: [u8; 32],
    init: [u64; 2],
}

impl Status {
    fn name(&self) -> String {
        let end = self.name.iter().position(|&byte| byte == 0).unwrap_or(self.name.len());
        String::from_utf8_lossy(&self.name[..end]).into_owned()
    }
}

impl Default for Status {
    fn default() -> Self {
        Self {
            backing_device: 0,
            inode: 0,
            own_device: 0,
            offset: 0,
            size_limit: 0,
            number: 0,
            encryption: 0,
            key_size: 0,
            flags: 0,
            name: [0; 64],
            crypt_name: [0; 64],
            key: [0; 32],
            init: [0; 2],
        }
    }
}

/// `struct loop_config` (linux/loop.h).
#[repr(C)]
#[derive(Default)]
struct Config {
    file: i32,
    /// 0: the kernel's own choice.
    block_size: u32,
    status: Status,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<Status>() == 232 && size_of::<Config>() == 304);

/// The calls of linux/loop.h.
mod kernel {
    #![expect(unsafe_code, reason = "ioctl(2) reads and writes what its argument points to")]

    use std::ptr::null_mut;

    use super::{Config, File, Opcode, Status, io};
    use crate::root::ioctl::ioctl;

    const CLR_FD: Opcode = 0x4c01;
    const GET_STATUS64: Opcode = 0x4c05;
    const CONFIGURE: Opcode = 0x4c0a;
    const CTL_GET_FREE: Opcode = 0x4c82;

    /// The number of a device that has no file; it is made if need be.
    pub(super) fn free(control: &File) -> io::Result<u32> {
        // SAFETY: takes no argument.
        unsafe { ioctl(control, CTL_GET_FREE, null_mut::<u8>()) }
    }

    pub(super) fn configure(device: &File, config: &mut Config) -> io::Result<()> {
        // SAFETY: reads a `struct loop_config`, which `Config` is.
        unsafe { ioctl(device, CONFIGURE, config) }.map(drop)
    }

    pub(super) fn status(device: &File) -> io::Result<Status> {
        let mut status = Status::default();
        // SAFETY: writes a `struct loop_info64`, which `Status` is; every byte pattern is one.
        unsafe { ioctl(device, GET_STATUS64, &raw mut status) }?;
        Ok(status)
    }

    pub(super) fn clear(device: &File) -> io::Result<()> {
        // SAFETY: takes no argument.
        unsafe { ioctl(device, CLR_FD, null_mut::<u8>()) }.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::root::{test_mark, test_places};

    /// Files for a loop of each role.
    fn files(places: &RootPlaces, mark: &Mark) -> (Loop, Loop) {
        fs::create_dir_all(places.state.join("images")).unwrap();
        fs::create_dir_all(places.state.join(format!("vms/{mark}"))).unwrap();
        let image = StateFile::parse("images/i.ext4").unwrap();
        let disk = StateFile::disk(mark);
        fs::write(image.below(&places.state), vec![b'i'; 1 << 20]).unwrap();
        fs::write(disk.below(&places.state), vec![b'd'; 1 << 20]).unwrap();
        let claim = |role, file| Loop { mark: mark.clone(), role, file };
        (claim(LoopRole::Image, image), claim(LoopRole::Disk, disk))
    }

    #[test]
    fn a_disk_can_be_written_an_image_only_read_and_both_are_gone_after_release() {
        let root = tempfile::tempdir().unwrap();
        let (places, mark) = (test_places(root.path()), test_mark());
        let (image, disk) = files(&places, &mark);
        for claim in [&image, &disk, &image, &disk] {
            acquire(claim, &places).unwrap();
        }
        let all = list(mark.installation()).unwrap();
        assert_eq!(all.len(), 2, "{all:?}");
        assert!(list(&Installation::parse("0000").unwrap()).unwrap().is_empty());
        for role in [LoopRole::Image, LoopRole::Disk] {
            let found = bound(|name| name == self::name(&mark, role)).unwrap();
            assert_eq!(device(&mark, role).unwrap().sectors, 2048);
            let device = open(found[0].number, role == LoopRole::Disk).unwrap();
            let mut byte = [0];
            (&device).read_exact(&mut byte).unwrap();
            assert_eq!(byte[0], role.to_string().as_bytes()[0]);
        }
        let number = bound(|name| name == self::name(&mark, LoopRole::Disk)).unwrap()[0].number;
        let writing = open(number, true).unwrap();
        writing.write_all_at(b"written", 4096).unwrap();
        writing.sync_all().unwrap();
        drop(writing);
        let number = bound(|name| name == self::name(&mark, LoopRole::Image)).unwrap()[0].number;
        assert!(open(number, true).and_then(|device| device.write_all_at(b"x", 0)).is_err());

        for _ in 0..2 {
            release(&mark, LoopRole::Image).unwrap();
            release(&mark, LoopRole::Disk).unwrap();
        }
        assert!(list(mark.installation()).unwrap().is_empty());
        assert!(device(&mark, LoopRole::Disk).is_err());
        let bytes = fs::read(disk.file.below(&places.state)).unwrap();
        assert_eq!(&bytes[4096..4103], b"written");
        let bytes = fs::read(image.file.below(&places.state)).unwrap();
        assert!(bytes.iter().all(|&byte| byte == b'i'));
    }

    #[test]
    fn a_device_of_our_name_over_another_file_is_an_error() {
        let root = tempfile::tempdir().unwrap();
        let (places, mark) = (test_places(root.path()), test_mark());
        let (image, disk) = files(&places, &mark);
        acquire(&image, &places).unwrap();
        let other = Loop { file: disk.file, ..image.clone() };
        let error = acquire(&other, &places).unwrap_err();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.contains("over another file"), "{cause}");
        release(&mark, LoopRole::Image).unwrap();
    }

    #[test]
    fn two_devices_of_one_name_are_both_released() {
        let root = tempfile::tempdir().unwrap();
        let (places, mark) = (test_places(root.path()), test_mark());
        let (_, disk) = files(&places, &mark);
        let name = name(&mark, LoopRole::Disk);
        acquire(&disk, &places).unwrap();
        // As two racing processes would leave it.
        let control = OpenOptions::new().read(true).write(true).open(CONTROL).unwrap();
        let file = File::open(disk.file.below(&places.state)).unwrap();
        let mut config = Config { file: file.as_raw_fd(), ..Config::default() };
        config.status.name[..name.len()].copy_from_slice(name.as_bytes());
        let second = loop {
            let device = open(kernel::free(&control).unwrap(), true).unwrap();
            if kernel::configure(&device, &mut config).is_ok() {
                break device;
            }
        };
        drop(second);
        assert_eq!(bound(|there| there == name).unwrap().len(), 2);
        release(&mark, LoopRole::Disk).unwrap();
        assert!(bound(|there| there == name).unwrap().is_empty());
    }

    #[test]
    fn a_device_that_somebody_has_open_goes_when_it_is_closed() {
        let root = tempfile::tempdir().unwrap();
        let (places, mark) = (test_places(root.path()), test_mark());
        let (_, disk) = files(&places, &mark);
        acquire(&disk, &places).unwrap();
        let number = bound(|there| there == name(&mark, LoopRole::Disk)).unwrap()[0].number;
        let opened = open(number, false).unwrap();
        let releasing = {
            let mark = mark.clone();
            std::thread::spawn(move || release(&mark, LoopRole::Disk))
        };
        // Until the release has asked for it, nobody may close it.
        let mut status = kernel::status(&opened).unwrap();
        while status.flags & AUTOCLEAR == 0 {
            std::thread::yield_now();
            status = kernel::status(&opened).unwrap();
        }
        assert!(!releasing.is_finished(), "it is still there");
        drop(opened);
        releasing.join().unwrap().unwrap();
        assert!(list(mark.installation()).unwrap().is_empty());
    }

    #[test]
    fn only_whole_names_of_ours_are_read() {
        let mark = test_mark();
        assert_eq!(parse(&name(&mark, LoopRole::Disk)), Some((mark.clone(), LoopRole::Disk)));
        for other in ["", ":disk", "/var/x", &format!("{mark}"), &format!("{mark}:floppy")] {
            assert_eq!(parse(other), None, "{other}");
        }
    }
}
