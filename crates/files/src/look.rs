//! What is at a path before it is copied from or to.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use banger_api::files::{Found, FoundKind, Look, Looked, Part};
use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat, stat};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use crate::beneath::{Target, parted};
use crate::part;
use crate::unpack::SMALLEST_PART;

/// Answers `look`.
///
/// # Errors
/// When the path is there and cannot be looked at.
pub fn look(look: &Look) -> io::Result<Looked> {
    let path = Path::new(OsStr::from_bytes(look.path.as_bytes()));
    let mut looked = Looked::default();
    match stat(path) {
        Ok(stat) => {
            let kind = match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => FoundKind::Folder,
                FileType::RegularFile => FoundKind::File,
                _ => FoundKind::Other,
            };
            let size = u64::try_from(stat.st_size).unwrap_or_default();
            looked.found = Some(Found { kind, size });
            if let (FoundKind::File, Some(length)) = (kind, look.prefix)
                && length <= size
            {
                looked.prefix_sha256 = Some(prefix_sha256(&File::from(open(path)?), length)?);
            }
        }
        Err(Errno::NOENT | Errno::NOTDIR) => {}
        Err(error) => return Err(error.into()),
    }
    if look.part {
        looked.part = left(look.path.as_bytes());
    }
    Ok(looked)
}

/// What a copy to this path left when it broke, if it is worth going on with and nobody else does.
fn left(path: &[u8]) -> Option<Part> {
    let (folder, name) = parted(path);
    let folder = if folder.is_empty() { b"/" } else { folder };
    let folder = Target::open(Path::new(OsStr::from_bytes(folder))).ok()?;
    let part = part::part_of(name);
    let file = part::reopen(std::os::fd::AsFd::as_fd(&folder), &part, false).ok()?;
    let length = file.metadata().ok()?.len();
    let sha256 = (length >= SMALLEST_PART).then(|| prefix_sha256(&file, length))?.ok()?;
    Some(Part { length, sha256 })
}

/// Opens what is to be packed, through whatever links lead there.
///
/// # Errors
/// Those of open(2).
pub fn open(path: &Path) -> io::Result<OwnedFd> {
    // NONBLOCK: a fifo must not hold us up; it is refused later.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = openat(CWD, path, flags, Mode::empty())?;
    fstat(&file)?;
    Ok(file)
}

/// Of the file's first `length` bytes, in hexadecimal digits.
///
/// # Errors
/// When it cannot be read, or has become shorter.
pub fn prefix_sha256(mut file: &File, length: u64) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut left = length;
    let mut buffer = vec![0; 128 << 10];
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        match file.read(&mut buffer[..most])? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => {
                hash.update(&buffer[..count]);
                left -= count as u64;
            }
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
