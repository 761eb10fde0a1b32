//! A file that is not whole yet: under a name of its own beside its place, until it is renamed. The name follows from the
//! file's, so that a copy that broke leaves one such file at the most, which the next copy goes on with or replaces.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, fstat, openat, unlinkat};
use rustix::io::Errno;

/// linux/limits.h: NAME_MAX.
const LONGEST_PART: usize = 255;

const SUFFIX: &[u8] = b".banger-part";

/// The name of what will be called `name` when it is whole.
#[must_use]
pub fn part_of(name: &[u8]) -> Vec<u8> {
    let most = LONGEST_PART - SUFFIX.len() - 1;
    [b".", &name[..name.len().min(most)], SUFFIX].concat()
}

/// Makes the file, new and for nobody else yet. What a broken copy left there is removed.
pub(crate) fn create(folder: BorrowedFd<'_>, part: &[u8]) -> io::Result<File> {
    remove_left(folder, part)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(folder, OsStr::from_bytes(part), flags, Mode::from_raw_mode(0o600))?;
    lock(File::from(file))
}

/// What a broken copy left, if it is a file of ours.
pub(crate) fn reopen(folder: BorrowedFd<'_>, part: &[u8], write: bool) -> io::Result<File> {
    let access = if write { OFlags::RDWR } else { OFlags::RDONLY };
    let flags = access | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = openat(folder, OsStr::from_bytes(part), flags, Mode::empty())?;
    let stat = fstat(&file)?;
    let ours = rustix::process::geteuid().as_raw();
    // Another name of it would be another file that we write to.
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile
        || stat.st_nlink != 1
        || stat.st_uid != ours
    {
        return Err(io::Error::other("what a broken copy left is no file of its own"));
    }
    lock(File::from(file))
}

/// Makes room for an entry of that name.
pub(crate) fn remove_left(folder: BorrowedFd<'_>, part: &[u8]) -> io::Result<()> {
    match reopen(folder, part, false) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(error),
        // It is not there, or is what we do not open and only remove.
        Err(_) | Ok(_) => {}
    }
    match unlinkat(folder, OsStr::from_bytes(part), AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Held while the file is written: two copies to one place would mix.
fn lock(file: File) -> io::Result<File> {
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(Errno::WOULDBLOCK) => Err(io::Error::new(
            io::ErrorKind::WouldBlock,
            "another copy to the same place is under way",
        )),
        Err(error) => Err(error.into()),
    }
}
