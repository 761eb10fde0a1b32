//! Opening what is in folders that belong to somebody else: once, beneath the folder, through no link (openat2(2)), and
//! used by its fd afterwards, since a path can lead elsewhere a moment later.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, open, openat, openat2};

use super::RootPlaces;
use crate::error::HostError;
use crate::state_file::StateFile;

/// What opening must not do on its way.
const WITHIN: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// A folder that the configuration names, and whose path nobody but root can change.
pub(super) fn folder(path: &Path) -> io::Result<OwnedFd> {
    Ok(open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// A folder in a folder, to be listed and changed. Not one that another filesystem is mounted on.
pub(super) fn subfolder(parent: impl AsFd, name: impl rustix::path::Arg) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat2(parent, name, flags, Mode::empty(), WITHIN | ResolveFlags::NO_XDEV)?)
}

/// Whatever has this name, only to look at it.
pub(super) fn path(parent: impl AsFd, name: impl rustix::path::Arg) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat2(parent, name, flags, Mode::empty(), WITHIN)?)
}

/// The name by which this process reaches an open file again, whatever happens to its path.
pub(super) fn by_fd(fd: impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

/// A regular file of the state that is its owner's. It is opened for good only after it was looked at: opening a pipe
/// would block, opening a device may do things.
pub(super) fn state_file(
    places: &RootPlaces,
    file: &StateFile,
    writable: bool,
) -> Result<File, HostError> {
    let act = || format!("use the file {}", file.below(&places.state).display());
    let open = || {
        // Nor through a filesystem that the owner has mounted there: it could say anything of its files, or nothing.
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = WITHIN | ResolveFlags::NO_XDEV;
        let found = openat2(folder(&places.state)?, file.as_str(), flags, Mode::empty(), resolve)?;
        let data = fstat(&found)?;
        if FileType::from_raw_mode(data.st_mode) != FileType::RegularFile {
            return Err(io::Error::other("it is no regular file"));
        }
        if data.st_uid != places.owner {
            return Err(io::Error::other(format!(
                "it belongs to user {} instead of user {}",
                data.st_uid, places.owner
            )));
        }
        let mode = if writable { OFlags::RDWR } else { OFlags::RDONLY };
        Ok(openat(CWD, by_fd(&found), mode | OFlags::CLOEXEC, Mode::empty())?)
    };
    open().map(File::from).map_err(|e| HostError::new(act(), e))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::root::test_places;

    #[test]
    fn only_regular_files_of_the_owner_are_opened_and_no_link_is_followed() {
        let root = tempfile::tempdir().unwrap();
        let places = test_places(root.path());
        let images = places.state.join("images");
        fs::create_dir_all(&images).unwrap();
        let open = |name: &str| state_file(&places, &StateFile::parse(name).unwrap(), false);

        fs::write(images.join("good"), b"good").unwrap();
        open("images/good").unwrap();

        symlink(images.join("good"), images.join("link")).unwrap();
        symlink(&images, places.state.join("folder-link")).unwrap();
        fs::create_dir(images.join("folder")).unwrap();
        rustix::fs::mknodat(CWD, images.join("pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        fs::write(images.join("foreign"), b"").unwrap();
        std::os::unix::fs::chown(images.join("foreign"), Some(12345), None).unwrap();
        for name in [
            "images/link",
            "folder-link/good",
            "images/folder",
            "images/pipe",
            "images/foreign",
            "images/absent",
        ] {
            assert!(open(name).is_err(), "{name}");
        }
    }
}
