//! One helper at a time: a lock on the folder of jails, which only root can open, held for the helper's life.
//!
//! flock(2) belongs to the open file, which a forked child shares until it executes its program. So whoever gets this lock
//! knows that no half-started jailer of a helper that was killed is left, which could still become a VMM after its VM was
//! released.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use rustix::io::Errno;

use crate::said;

/// Held until it is dropped or the process ends, however it ends.
#[derive(Debug)]
pub struct Alone {
    _folder: OwnedFd,
}

fn folder(jails: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    open(jails, flags, Mode::empty())
}

/// Waits until no other helper is there.
///
/// # Errors
/// When there is no such folder, or it cannot be locked.
pub fn wait(jails: &Path) -> io::Result<Alone> {
    let folder = folder(jails)?;
    match flock(&folder, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => {
            said::warning("another helper runs: this one waits until it has ended");
            flock(&folder, FlockOperation::LockExclusive)?;
        }
        locked => locked?,
    }
    Ok(Alone { _folder: folder })
}

/// `Ok(None)` when there is no such folder, and so no helper that serves.
///
/// # Errors
/// `WouldBlock` when another helper is there; or the folder cannot be locked.
pub fn now(jails: &Path) -> io::Result<Option<Alone>> {
    let folder = match folder(jails) {
        Err(Errno::NOENT) => return Ok(None),
        folder => folder?,
    };
    flock(&folder, FlockOperation::NonBlockingLockExclusive)?;
    Ok(Some(Alone { _folder: folder }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_helper_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let first = wait(folder.path()).unwrap();
        assert_eq!(now(folder.path()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(first);
        assert!(now(folder.path()).unwrap().is_some());
    }

    #[test]
    fn where_nothing_is_installed_nobody_serves() {
        let folder = tempfile::tempdir().unwrap();
        assert!(now(&folder.path().join("jails")).unwrap().is_none());
        assert!(wait(&folder.path().join("jails")).is_err());
    }
}
