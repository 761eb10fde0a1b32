//! Removing folders whose content somebody else has made, whatever it is: no link is followed, no mount is entered, and
//! neither depth nor number takes more memory or fds. What is below a folder that is not empty is moved up, then removed.

use std::ffi::CString;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Dir, RenameFlags, renameat_with, unlinkat};
use rustix::io::Errno;

use super::beneath;

/// Somebody who adds faster than we remove does not hold us for longer than this.
const DEADLINE: Duration = Duration::from_secs(60);

/// How many names are read at a time.
const BATCH: usize = 512;

/// Removes the folder `name`, or whatever has this name. What is not there is no error.
pub(super) fn tree(parent: impl AsFd, name: &str) -> io::Result<()> {
    let end = Instant::now() + DEADLINE;
    match beneath::subfolder(&parent, name) {
        Ok(top) => empty(&top, end)?,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        // A link or a file: only its name is removed.
        Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::NOTDIR | Errno::LOOP)) => {
            return Ok(unlinkat(parent, name, AtFlags::empty())?);
        }
        Err(error) => return Err(error),
    }
    Ok(unlinkat(parent, name, AtFlags::REMOVEDIR)?)
}

fn empty(top: &OwnedFd, end: Instant) -> io::Result<()> {
    let mut moved = 0_u64;
    loop {
        let names = names(top)?;
        if names.is_empty() {
            return Ok(());
        }
        for name in names {
            if !remove(top, &name)? {
                flatten(top, &name, &mut moved, end)?;
            }
        }
        in_time(end)?;
    }
}

/// Removes the folder `name` of `top`: the folders in it that are not empty are moved to `top` first.
fn flatten(top: &OwnedFd, name: &CString, moved: &mut u64, end: Instant) -> io::Result<()> {
    let folder = beneath::subfolder(top, name)?;
    loop {
        let names = names(&folder)?;
        if names.is_empty() {
            break;
        }
        for below in names {
            while !remove(&folder, &below)? {
                *moved += 1;
                let up = format!("moved-{moved}");
                match renameat_with(&folder, &below, top, &up, RenameFlags::NOREPLACE) {
                    Ok(()) => break,
                    Err(Errno::EXIST) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        in_time(end)?;
    }
    Ok(unlinkat(top, name, AtFlags::REMOVEDIR)?)
}

/// `false` for a folder that is not empty.
fn remove(folder: &OwnedFd, name: &CString) -> io::Result<bool> {
    match unlinkat(folder, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(true),
        Err(Errno::ISDIR) => {}
        Err(error) => return Err(error.into()),
    }
    match unlinkat(folder, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::NOTEMPTY) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Some of the names in a folder; none when it is empty.
fn names(folder: &OwnedFd) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let name = entry?.file_name().to_owned();
        if name.as_bytes() != b"." && name.as_bytes() != b".." {
            names.push(name);
        }
        if names.len() == BATCH {
            break;
        }
    }
    Ok(names)
}

fn in_time(end: Instant) -> io::Result<()> {
    if Instant::now() < end {
        return Ok(());
    }
    Err(io::Error::new(ErrorKind::TimedOut, "somebody still writes to it"))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use rustix::fs::{CWD, FileType, Mode, mkdirat, mknodat};
    use rustix::mount::{UnmountFlags, mount_bind, unmount};

    use super::*;
    use crate::root::in_own_network;

    fn open(path: &std::path::Path) -> OwnedFd {
        beneath::folder(path).unwrap()
    }

    #[test]
    fn links_devices_pipes_and_files_go_and_what_links_point_to_stays() {
        let root = tempfile::tempdir().unwrap();
        let jail = root.path().join("jail");
        let outside = root.path().join("outside");
        fs::create_dir_all(jail.join("a/b")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("precious"), b"precious").unwrap();
        symlink(&outside, jail.join("link")).unwrap();
        symlink(&outside, jail.join("a/link")).unwrap();
        symlink("/", jail.join("a/b/root")).unwrap();
        fs::hard_link(outside.join("precious"), jail.join("a/hard")).unwrap();
        mknodat(CWD, jail.join("a/pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        fs::write(jail.join("moved-1"), b"the name that a moved folder would get").unwrap();
        tree(open(root.path()), "jail").unwrap();
        assert!(!jail.exists());
        assert_eq!(fs::read(outside.join("precious")).unwrap(), b"precious");
    }

    #[test]
    fn a_link_in_the_folders_place_goes_alone() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("kept")).unwrap();
        symlink(root.path().join("kept"), root.path().join("jail")).unwrap();
        tree(open(root.path()), "jail").unwrap();
        tree(open(root.path()), "jail").unwrap();
        assert!(root.path().join("kept").is_dir());
        assert!(root.path().join("jail").symlink_metadata().is_err());
    }

    #[test]
    fn folders_deeper_than_the_limit_of_open_files_and_of_paths_are_removed() {
        let root = tempfile::tempdir_in("/dev/shm").unwrap();
        let mut at = open(root.path());
        for depth in 0..3000 {
            let name = if depth == 0 { "jail" } else { "d" };
            mkdirat(&at, name, Mode::RWXU).unwrap();
            mkdirat(&at, "beside", Mode::RWXU).unwrap();
            at = beneath::subfolder(&at, name).unwrap();
        }
        tree(open(root.path()), "jail").unwrap();
        assert!(!root.path().join("jail").exists());
    }

    #[test]
    fn more_files_than_are_read_at_a_time_are_removed() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("jail/a")).unwrap();
        for number in 0..2 * BATCH + 1 {
            fs::write(root.path().join(format!("jail/a/{number}")), b"").unwrap();
        }
        tree(open(root.path()), "jail").unwrap();
        assert!(!root.path().join("jail").exists());
    }

    #[test]
    fn a_mount_is_not_entered() {
        let root = tempfile::tempdir().unwrap();
        let (jail, kept) = (root.path().join("jail"), root.path().join("kept"));
        fs::create_dir_all(jail.join("a/b")).unwrap();
        fs::create_dir(&kept).unwrap();
        fs::write(kept.join("precious"), b"precious").unwrap();
        let within = jail.join("a/b");
        // In a mount namespace of its own, which ends with its thread.
        in_own_network({
            let (root, kept) = (root.path().to_owned(), kept.clone());
            move || {
                mount_bind(&kept, &within).unwrap();
                assert!(tree(open(&root), "jail").is_err());
                assert!(kept.join("precious").exists());
                // It has been moved up with the folder that it is on.
                for entry in fs::read_dir(root.join("jail")).unwrap() {
                    let path = entry.unwrap().path();
                    for place in [path.clone(), path.join("b")] {
                        let _not_there = unmount(place, UnmountFlags::empty());
                    }
                }
                tree(open(&root), "jail").unwrap();
            }
        });
        assert!(kept.join("precious").exists());
    }
}
