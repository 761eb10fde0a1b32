//! A terminal for a program under test: what a person at a keyboard is to it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

/// A program on a terminal of its own.
#[derive(Debug)]
pub struct Terminal {
    screen: File,
    child: Child,
    seen: String,
}

impl Terminal {
    pub(crate) fn open(mut command: Command, rows: u16, columns: u16) -> Self {
        let controller =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&controller).unwrap();
        unlockpt(&controller).unwrap();
        let name = ptsname(&controller, Vec::new()).unwrap();
        let user: OwnedFd =
            File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap().into();
        let screen = File::from(controller);
        resize(&screen, rows, columns);
        // setsid(1) makes it the terminal's session leader, so that it is told of resizes as in any shell.
        command.stdin(user.try_clone().unwrap()).stdout(user.try_clone().unwrap()).stderr(user);
        let child = command.spawn().unwrap();
        Self { screen, child, seen: String::new() }
    }

    /// Types these characters.
    pub fn types(&mut self, text: &str) {
        self.screen.write_all(text.as_bytes()).unwrap();
    }

    pub fn resize(&mut self, rows: u16, columns: u16) {
        resize(&self.screen, rows, columns);
    }

    /// Reads on until the screen has shown this, and forgets what it has shown.
    #[track_caller]
    pub fn shows(&mut self, text: &str) {
        let end = Instant::now() + Duration::from_secs(60);
        while !self.seen.contains(text) {
            assert!(self.read_until(end), "{text:?} was not shown; this was:\n{}", self.seen);
        }
        let after = self.seen.find(text).unwrap() + text.len();
        self.seen.drain(..after);
    }

    /// Waits for the program's end and gives its exit status.
    #[must_use]
    pub fn ends(mut self) -> Option<i32> {
        let end = Instant::now() + Duration::from_secs(60);
        while self.read_until(end) {}
        self.child.wait().unwrap().code()
    }

    /// False at the end, and when the time is up.
    fn read_until(&mut self, end: Instant) -> bool {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).unwrap();
        if poll(&mut [PollFd::new(&self.screen.as_fd(), PollFlags::IN)], Some(&timeout)).unwrap()
            == 0
        {
            return false;
        }
        let mut piece = [0; 4096];
        // EIO: the last user of the terminal has closed it (pty(7)).
        let got = self.screen.read(&mut piece).unwrap_or(0);
        self.seen.push_str(&String::from_utf8_lossy(&piece[..got]));
        got > 0
    }
}

fn resize(screen: &File, rows: u16, columns: u16) {
    tcsetwinsize(screen, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 })
        .unwrap();
}
