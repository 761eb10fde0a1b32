//! What a VMM and its guest say, read with a deadline.

use std::io::{self, PipeReader, Read};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

pub(crate) struct Console {
    pipe: PipeReader,
    pub(crate) said: String,
}

const DEADLINE: Duration = Duration::from_secs(20);

impl Console {
    /// And the end that the VMM writes to.
    pub(crate) fn new() -> (Self, OwnedFd) {
        let (pipe, end) = io::pipe().unwrap();
        (Self { pipe, said: String::new() }, end.into())
    }

    pub(crate) fn wait_for(&mut self, text: &str) {
        self.wait_until(text, |said| said.contains(text));
    }

    pub(crate) fn wait_until(&mut self, what: &str, enough: impl Fn(&str) -> bool) {
        let end = Instant::now() + DEADLINE;
        while !enough(&self.said) {
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no {what:?} in time in {:?}", self.said);
            let got = self.read(left);
            assert_ne!(got, Some(0), "it has ended without {what:?}: {:?}", self.said);
        }
    }

    /// Everything until its end.
    pub(crate) fn rest(mut self) -> String {
        while self.read(DEADLINE).expect("it ends in time") > 0 {}
        self.said
    }

    /// What is said within this time.
    pub(crate) fn listen(&mut self, most: Duration) {
        let end = Instant::now() + most;
        while Instant::now() < end {
            self.read(end.saturating_duration_since(Instant::now()));
        }
    }

    fn read(&mut self, most: Duration) -> Option<usize> {
        let timeout = Timespec::try_from(most).unwrap();
        let ready = poll(&mut [PollFd::new(&self.pipe, PollFlags::IN)], Some(&timeout)).unwrap();
        if ready == 0 {
            return None;
        }
        let mut bytes = [0; 4096];
        let length = self.pipe.read(&mut bytes).unwrap();
        self.said.push_str(&String::from_utf8_lossy(&bytes[..length]));
        Some(length)
    }
}

/// Looks again and again until it is so: for what no event tells of, as that another process has written a file.
pub(crate) fn until(so: impl Fn() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !so() {
        assert!(Instant::now() < end, "it is not so in time");
        poll(&mut [], Some(&Timespec { tv_sec: 0, tv_nsec: 1_000_000 })).unwrap();
    }
}
