//! All processes of the guest but ourselves and the kernel's own: ended in order, each end waited for, none asked after twice.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, WaitStatus, getpid, pidfd_open, pidfd_send_signal,
    waitpid,
};

/// SIGTERM (and SIGHUP, which shells obey) to all that `spare` does not name, SIGKILL to those that live on after `grace`.
pub(crate) fn end_all(grace: Duration, spare: impl Fn(Pid) -> bool) -> io::Result<()> {
    for signal in [Signal::TERM, Signal::HUP, Signal::CONT] {
        for process in others(&spare)? {
            tell(&process, signal);
        }
    }
    wait_all(grace, &spare)?;
    kill_all(spare)
}

/// SIGKILL to all that `spare` does not name; returns when they are gone, or after the time that a dying process may need.
pub(crate) fn kill_all(spare: impl Fn(Pid) -> bool) -> io::Result<()> {
    for process in others(&spare)? {
        tell(&process, Signal::KILL);
    }
    wait_all(Duration::from_secs(5), spare)
}

/// One that is gone has no need of a signal.
fn tell(process: &OwnedFd, signal: Signal) {
    pidfd_send_signal(process, signal).ok();
}

fn wait_all(time: Duration, spare: impl Fn(Pid) -> bool) -> io::Result<()> {
    let deadline = Instant::now() + time;
    loop {
        reap(|_, _| {});
        let left = others(&spare)?;
        // A zombie whose parent is not us stays readable for ever: it is dead, and that is all that was asked.
        let alive: Vec<&OwnedFd> = left.iter().filter(|process| !is_dead(process)).collect();
        let Some(first) = alive.first() else { return Ok(()) };
        let Some(left) = deadline.checked_duration_since(Instant::now()) else { return Ok(()) };
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(first, PollFlags::IN)], Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn is_dead(process: &OwnedFd) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    matches!(poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&now)), Ok(1))
}

/// Takes the end of every child that has one to give.
pub(crate) fn reap(mut ended: impl FnMut(Pid, WaitStatus)) {
    while let Ok(Some((pid, status))) = waitpid(None, WaitOptions::NOHANG) {
        ended(pid, status);
    }
}

fn others(spare: impl Fn(Pid) -> bool) -> io::Result<Vec<OwnedFd>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw)
        else {
            continue;
        };
        // One that vanishes while we look is one less.
        if pid != getpid()
            && !spare(pid)
            && !is_kernel_thread(pid)
            && let Ok(process) = pidfd_open(pid, PidfdFlags::empty())
        {
            found.push(process);
        }
    }
    Ok(found)
}

/// A kernel thread is a child of kthreadd (pid 2), or kthreadd itself.
fn is_kernel_thread(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The program's name, in parentheses, may hold anything: the parent is the second field behind the last ")".
    let parent = stat.rsplit(')').next().and_then(|rest| rest.split_ascii_whitespace().nth(1));
    parent == Some("2") || (parent == Some("0") && pid.as_raw_nonzero().get() == 2)
}
