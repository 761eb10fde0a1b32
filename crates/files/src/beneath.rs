//! A folder that nothing leaves: every path is resolved by the kernel below it (openat2(2)), links included. Links that
//! stay below are followed, as those that were there before must be (`/lib` of most guests is one).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

/// Where a stream is unpacked.
#[derive(Debug)]
pub struct Target {
    folder: OwnedFd,
    resolve: ResolveFlags,
}

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

impl Target {
    /// The folder of that path, whose own links are followed: whoever names it means where it leads.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn open(path: &Path) -> Result<Self, Errno> {
        let folder = rustix::fs::openat(CWD, path, FOLDER, Mode::empty())?;
        Self::of(folder)
    }

    /// # Errors
    /// Those of stat(2).
    pub fn of(folder: OwnedFd) -> Result<Self, Errno> {
        let (here, above) = (
            rustix::fs::fstat(&folder)?,
            rustix::fs::statat(&folder, "..", rustix::fs::AtFlags::empty())?,
        );
        // The root itself: what leads out of anything else leads into it.
        let is_root = (here.st_dev, here.st_ino) == (above.st_dev, above.st_ino);
        let within = if is_root { ResolveFlags::IN_ROOT } else { ResolveFlags::BENEATH };
        Ok(Self { folder, resolve: within | ResolveFlags::NO_MAGICLINKS })
    }

    /// The folder of this name below; the target itself when it is empty.
    pub(crate) fn folder(&self, name: &[u8]) -> Result<OwnedFd, Errno> {
        self.open_beneath(name, FOLDER, ResolveFlags::empty())
    }

    /// The same, if no part of the name is a link.
    pub(crate) fn folder_without_links(&self, name: &[u8]) -> Result<OwnedFd, Errno> {
        self.open_beneath(name, FOLDER, ResolveFlags::NO_SYMLINKS)
    }

    fn open_beneath(
        &self,
        name: &[u8],
        flags: OFlags,
        more: ResolveFlags,
    ) -> Result<OwnedFd, Errno> {
        let name = if name.is_empty() { b"." } else { name };
        let path = Path::new(std::ffi::OsStr::from_bytes(name));
        // EAGAIN: something was renamed just then, so the kernel could not tell (openat2(2), BUGS).
        for _ in 0..64 {
            match openat2(&self.folder, path, flags, Mode::empty(), self.resolve | more) {
                Err(Errno::AGAIN) => {}
                done => return done,
            }
        }
        Err(Errno::AGAIN)
    }
}

impl AsFd for Target {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }
}

/// The folder that an entry lies in, and its name there.
pub(crate) fn parted(name: &[u8]) -> (&[u8], &[u8]) {
    match name.iter().rposition(|&byte| byte == b'/') {
        Some(at) => (&name[..at], &name[at + 1..]),
        None => (b"", name),
    }
}
