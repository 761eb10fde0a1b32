//! Processes of ours, found by the name that we gave them (`argv[0]`), never by a number that was remembered.
//!
//! A pidfd is opened first and the name read after, so that the process that is signalled is the one that was looked at
//! (pidfd_open(2)). Only processes of this user count.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::process::Child;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};

/// A process that can be signalled and whose end can be waited for, whoever its parent is.
#[derive(Debug)]
pub struct Watched {
    pidfd: OwnedFd,
    pid: Pid,
    argv0: String,
}

impl Watched {
    /// The process of that number now; `None` when there is none. Whether it is the one that was meant is to be looked at
    /// after this.
    pub(crate) fn open(pid: Pid) -> io::Result<Option<Self>> {
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Some(Self { pidfd, pid, argv0: String::new() })),
            Err(Errno::SRCH) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The number, for people to read.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// # Errors
    /// When the process may not be signalled; one that has ended is no error.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(&self.pidfd, signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until it has ended (its pidfd is readable then) and reaps it if it is our child.
    ///
    /// # Errors
    /// `TimedOut` when it has not ended by then.
    pub fn wait(&self, most: Duration) -> io::Result<()> {
        let end = Instant::now() + most;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
            match poll(&mut [PollFd::new(&self.pidfd, PollFlags::IN)], Some(&timeout)) {
                Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
                Ok(_) => {
                    self.reap();
                    return Ok(());
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Reaps it if it has ended and is our child; anything else is no matter.
    pub fn reap(&self) {
        let _reaped = waitid(
            WaitId::PidFd(self.pidfd.as_fd()),
            WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
        );
    }
}

impl AsFd for Watched {
    /// Readable when the process has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl AsRawFd for Watched {
    /// As [`AsFd`]; what waits for readiness wants the number.
    fn as_raw_fd(&self) -> RawFd {
        self.pidfd.as_raw_fd()
    }
}

/// The processes of this user whose `argv[0]` is `wanted`.
pub(crate) fn find(wanted: &str) -> io::Result<Vec<Watched>> {
    scan(|argv0| argv0 == wanted)
}

/// The `argv[0]` of every process of this user that begins with `prefix`.
pub(crate) fn names(prefix: &str) -> io::Result<Vec<String>> {
    Ok(scan(|argv0| argv0.starts_with(prefix))?.into_iter().map(|process| process.argv0).collect())
}

/// Ends every process of this user that has this in its environment, and waits until it is gone: what a killed daemon's
/// helpers left running. First by SIGTERM, at which they remove what they were making; who is still there after `most`
/// is killed. Processes whose environment cannot be read are not ours.
pub(crate) fn end_by_environment(variable: &str, value: &str, most: Duration) -> io::Result<()> {
    let wanted = format!("{variable}={value}");
    for signal in [Signal::TERM, Signal::KILL] {
        let found = with_environment(wanted.as_bytes())?;
        for process in &found {
            process.signal(signal)?;
        }
        let end = Instant::now() + most;
        for process in &found {
            // Who is not gone by then is met again in the next round; after the last one the caller finds its traces.
            drop(process.wait(end.saturating_duration_since(Instant::now())));
        }
    }
    Ok(())
}

fn with_environment(wanted: &[u8]) -> io::Result<Vec<Watched>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) =
            entry?.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw)
        else {
            continue;
        };
        let has_it = || {
            let environment = fs::read(format!("/proc/{}/environ", pid.as_raw_nonzero()));
            environment.unwrap_or_default().split(|&byte| byte == 0).any(|word| word == wanted)
        };
        // As in `scan`: the pidfd first, then once more what it is.
        if has_it()
            && let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty())
            && has_it()
        {
            found.push(Watched { pidfd, pid, argv0: String::new() });
        }
    }
    Ok(found)
}

fn scan(wanted: impl Fn(&str) -> bool) -> io::Result<Vec<Watched>> {
    let own_uid = rustix::process::geteuid().as_raw();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) =
            entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw)
        else {
            continue;
        };
        let Some(argv0) = argv0(pid).filter(|argv0| wanted(argv0)) else { continue };
        // It may end at any of these steps: then it is not there.
        let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
        let same_user = entry.metadata().is_ok_and(|data| data.uid() == own_uid);
        if same_user && self::argv0(pid).as_deref() == Some(argv0.as_str()) {
            found.push(Watched { pidfd, pid, argv0 });
        }
    }
    Ok(found)
}

/// Empty for a zombie and for a kernel thread, so `None` is both "gone" and "no longer running".
fn argv0(pid: Pid) -> Option<String> {
    let line = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).ok()?;
    let word = line.split(|&byte| byte == 0).next()?;
    if word.is_empty() { None } else { String::from_utf8(word.to_vec()).ok() }
}

/// Children that outlive the call that started them: kept only so that they can be reaped when they have ended.
#[derive(Debug, Default)]
pub(crate) struct Children(Mutex<Vec<OwnedFd>>);

impl Children {
    pub(crate) fn add(&self, child: &Child) -> io::Result<()> {
        let pid = i32::try_from(child.id())
            .ok()
            .and_then(Pid::from_raw)
            .ok_or(io::ErrorKind::InvalidData)?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        self.locked().push(pidfd);
        Ok(())
    }

    /// Forgets and reaps those that have ended.
    pub(crate) fn reap(&self) {
        self.locked().retain(|pidfd| {
            let ended =
                waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
            // `Ok(None)`: it still runs. An error: somebody else has reaped it.
            matches!(ended, Ok(None))
        });
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, Vec<OwnedFd>> {
        self.0.lock().expect("nothing that holds this lock can panic")
    }
}
