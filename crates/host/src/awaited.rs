//! A socket that a started program makes itself: waited for until it accepts connections.
//!
//! That the file appears is an event (inotify(7)). That the program then listens is none, and follows within
//! microseconds: so from there on it is tried every millisecond.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;

use crate::process::Watched;
use crate::socket;

/// How long a program has to make its socket.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);

/// A folder that is watched from before the program is started.
#[derive(Debug)]
pub(crate) struct Awaited {
    folder: OwnedFd,
    inotify: OwnedFd,
}

impl Awaited {
    pub(crate) fn in_folder(folder: OwnedFd) -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let path = format!("/proc/self/fd/{}", folder.as_raw_fd());
        inotify::add_watch(&inotify, path, WatchFlags::CREATE | WatchFlags::MOVED_TO)?;
        Ok(Self { folder, inotify })
    }

    /// Returns when the socket `name` accepts connections.
    ///
    /// # Errors
    /// `UnexpectedEof` when the process has ended, `TimedOut` when it took longer than `most`.
    pub(crate) fn wait(&self, name: &str, process: &Watched, most: Duration) -> io::Result<()> {
        let end = Instant::now() + most;
        loop {
            let pause = match socket::connect_in(&self.folder, name) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == ErrorKind::NotFound => most,
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                    Duration::from_millis(1)
                }
                Err(error) => return Err(error),
            };
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let said = format!("it has not made its socket {name} within {} s", most.as_secs());
                return Err(io::Error::new(ErrorKind::TimedOut, said));
            }
            let timeout = Timespec::try_from(left.min(pause)).map_err(io::Error::other)?;
            let mut fds = [
                PollFd::new(&self.inotify, PollFlags::IN),
                PollFd::from_borrowed_fd(process.as_fd(), PollFlags::IN),
            ];
            match poll(&mut fds, Some(&timeout)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            if !fds[1].revents().is_empty() {
                let said = format!("it has ended before it made its socket {name}");
                return Err(io::Error::new(ErrorKind::UnexpectedEof, said));
            }
            self.drain();
        }
    }

    /// What the events say does not matter, only that there was one.
    fn drain(&self) {
        let mut events = [0_u8; 4096];
        while rustix::io::read(&self.inotify, &mut events[..]).is_ok_and(|length| length > 0) {}
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::process::{Child, Stdio};

    use super::*;
    use crate::command::tests::shell;
    use crate::socket::tests::bind_only;

    fn awaited(folder: &std::path::Path) -> Awaited {
        Awaited::in_folder(std::fs::File::open(folder).unwrap().into()).unwrap()
    }

    fn watched(child: &Child) -> Watched {
        let pid = rustix::process::Pid::from_child(child);
        Watched::open(pid).unwrap().unwrap()
    }

    #[test]
    fn a_socket_that_appears_late_and_listens_later_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let (awaited, other) = (awaited(folder.path()), awaited(folder.path()));
        // It ends when its stdin does.
        let mut child = shell("read x", Stdio::piped());
        let process = watched(&child);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| awaited.wait("a.sock", &process, DEADLINE));
            let path = folder.path().join("a.sock");
            // Another file first, then a socket on which nobody listens yet.
            std::fs::write(folder.path().join("other"), b"").unwrap();
            let _deaf = bind_only(&path);
            assert!(other.wait("a.sock", &process, Duration::from_millis(20)).is_err());
            assert!(!waiting.is_finished());
            std::fs::remove_file(&path).unwrap();
            let _listener = UnixListener::bind(&path).unwrap();
            waiting.join().unwrap().unwrap();
        });
        drop(child.stdin.take());
        child.wait().unwrap();
    }

    #[test]
    fn a_program_that_ends_first_is_an_error_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let awaited = awaited(folder.path());
        let mut child = shell("exit 3", Stdio::null());
        let begin = Instant::now();
        let error = awaited.wait("a.sock", &watched(&child), DEADLINE).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
        assert!(begin.elapsed() < DEADLINE / 2);
        child.wait().unwrap();
    }

    #[test]
    fn a_program_that_makes_no_socket_is_not_waited_for_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        let awaited = awaited(folder.path());
        let mut child = shell("read x", Stdio::piped());
        let error =
            awaited.wait("a.sock", &watched(&child), Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        drop(child.stdin.take());
        child.wait().unwrap();
    }
}
