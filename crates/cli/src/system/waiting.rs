//! Waits for the daemon of an installation: for its socket's file by inotify(7), for its process by a pidfd, with a
//! deadline. Blocks, since there is nothing else to do.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;

/// What came first.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Came {
    /// Somebody listens at the socket.
    Listening,
    /// The process has ended.
    Ended,
    Deadline,
}

/// Until somebody listens at the socket. Its folder must be there.
///
/// # Errors
/// When the socket may not be connected to, or its folder not be watched.
pub(crate) fn for_socket(
    socket: &Path,
    process: Option<&OwnedFd>,
    deadline: Duration,
) -> io::Result<Came> {
    let deadline = Instant::now() + deadline;
    let folder = socket.parent().ok_or(ErrorKind::InvalidFilename)?;
    let changes = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    // A socket's file is there before it is listened on; the change of its mode follows.
    let flags =
        WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::ATTRIB | WatchFlags::ONLYDIR;
    inotify::add_watch(&changes, folder, flags)?;
    loop {
        match UnixStream::connect(socket) {
            Ok(_) => return Ok(Came::Listening),
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {}
            Err(error) => return Err(error),
        }
        let mut waited = vec![PollFd::new(&changes, PollFlags::IN)];
        waited.extend(process.map(|process| PollFd::new(process, PollFlags::IN)));
        if !ready_before(&mut waited, deadline)? {
            return Ok(Came::Deadline);
        }
        if waited.get(1).is_some_and(|process| !process.revents().is_empty()) {
            return Ok(Came::Ended);
        }
        drain(&changes)?;
    }
}

/// Until no process is left in the control group; gives whether that was before the deadline.
///
/// # Errors
/// When the group cannot be watched.
pub(crate) fn for_empty_group(group: &Path, deadline: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + deadline;
    let events = group.join("cgroup.events");
    loop {
        // Opened anew: a change since the last reading of an opening is what poll tells (cgroup-v2.rst, "cgroup.events").
        let file = match File::open(&events) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(true),
            Err(error) => return Err(error),
        };
        match io::read_to_string(&file) {
            Ok(text) if text.lines().any(|line| line == "populated 0") => return Ok(true),
            Ok(_) => {}
            // The group was removed after it was opened.
            Err(error) if error.raw_os_error() == Some(Errno::NODEV.raw_os_error()) => {
                return Ok(true);
            }
            Err(error) => return Err(error),
        }
        if !ready_before(&mut [PollFd::new(&file, PollFlags::PRI)], deadline)? {
            return Ok(false);
        }
    }
}

/// Whether one of them became ready before the deadline.
fn ready_before(waited: &mut [PollFd<'_>], deadline: Instant) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(waited, Some(&timeout)) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Takes what inotify has to say: that something changed is all we need.
fn drain(changes: &OwnedFd) -> io::Result<()> {
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut reader = inotify::Reader::new(changes, &mut buffer);
    loop {
        match reader.next() {
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::WOULDBLOCK) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixListener;
    use std::process::{Command, Stdio};

    use rustix::process::{Pid, PidfdFlags, pidfd_open};

    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn a_socket_that_is_listened_on_later_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("banger.sock");
        let waiting = std::thread::spawn({
            let path = path.clone();
            move || for_socket(&path, None, LONG)
        });
        let listener = UnixListener::bind(&path).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        assert_eq!(waiting.join().unwrap().unwrap(), Came::Listening);
        // Its file alone, from before, is nobody who listens.
        drop(listener);
        let short = Duration::from_millis(20);
        assert_eq!(for_socket(&path, None, short).unwrap(), Came::Deadline);
    }

    #[test]
    fn a_daemon_that_ends_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        #[expect(clippy::disallowed_methods, reason = "the test needs a process that ends")]
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let pid = Pid::from_child(&child);
        let process = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        drop(child.stdin.take());
        let came = for_socket(&folder.path().join("banger.sock"), Some(&process), LONG).unwrap();
        assert_eq!(came, Came::Ended);
        child.wait().unwrap();
    }

    #[test]
    fn a_group_that_is_gone_is_empty() {
        let folder = tempfile::tempdir().unwrap();
        assert!(for_empty_group(&folder.path().join("none"), LONG).unwrap());
    }
}
