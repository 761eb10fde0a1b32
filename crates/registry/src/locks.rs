//! Waiting for a file's lock (flock) with a deadline, which the system call does not have.

use std::fs::File;
use std::io;
use std::sync::mpsc;
use std::time::Duration;

use rustix::fs::FlockOperation;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Shared,
    Exclusive,
}

/// The lock, if nobody has it now.
pub(crate) fn try_lock(file: &File, mode: Mode) -> io::Result<bool> {
    let operation = match mode {
        Mode::Shared => FlockOperation::NonBlockingLockShared,
        Mode::Exclusive => FlockOperation::NonBlockingLockExclusive,
    };
    match rustix::fs::flock(file, operation) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// The lock, when whoever has it lets it go within `deadline`; else an error of kind `TimedOut`.
///
/// The wait is a thread's, which outlives the deadline: it has the same open file, so that the lock is free again once
/// both have closed it.
pub(crate) fn lock_within(file: &File, mode: Mode, deadline: Duration) -> io::Result<()> {
    if try_lock(file, mode)? {
        return Ok(());
    }
    let same = file.try_clone()?;
    let (sender, receiver) = mpsc::channel();
    std::thread::Builder::new().name("lock".into()).spawn(move || {
        let operation = match mode {
            Mode::Shared => FlockOperation::LockShared,
            Mode::Exclusive => FlockOperation::LockExclusive,
        };
        let locked = loop {
            match rustix::fs::flock(&same, operation) {
                Err(rustix::io::Errno::INTR) => {}
                locked => break locked,
            }
        };
        // After the deadline nobody listens any more.
        sender.send(locked).unwrap_or_default();
    })?;
    match receiver.recv_timeout(deadline) {
        Ok(locked) => Ok(locked?),
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_waited_for_and_given_up_at_the_deadline() {
        let folder = tempfile::tempdir().unwrap();
        let open = || File::create(folder.path().join("lock")).unwrap();
        let (first, second, third) = (open(), open(), open());
        assert!(try_lock(&first, Mode::Exclusive).unwrap());
        let short = Duration::from_millis(20);
        let error = lock_within(&second, Mode::Shared, short).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(second);
        let waiting = std::thread::spawn(move || {
            lock_within(&third, Mode::Exclusive, Duration::from_secs(10)).map(|()| third)
        });
        drop(first);
        waiting.join().unwrap().unwrap();
        assert!(try_lock(&open(), Mode::Exclusive).unwrap(), "given up is not held");
    }
}
