//! Processes on the host, as a test sees them: by the mark in their names.

use std::fs;
use std::time::{Duration, Instant};

/// `argv[0]` of every process whose name holds this installation's mark.
#[must_use]
pub fn processes_marked(installation: &str) -> Vec<String> {
    let mark = format!(":bg{installation}-");
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let argv0 = String::from_utf8_lossy(line.split(|&b| b == 0).next().unwrap_or_default())
            .into_owned();
        if argv0.contains(&mark) {
            found.push(argv0);
        }
    }
    found
}

/// Waits until something that gives no event is so: for a test's view of another program's state only.
#[track_caller]
pub fn wait_until(what: &str, most: Duration, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + most;
    while !is_so() {
        assert!(Instant::now() < end, "{what}: not within {} s", most.as_secs());
        // A test has no event to wait for here; poll(2) without fds is the pause between two looks.
        let pause = rustix::event::Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
        let _paused = rustix::event::poll(&mut [], Some(&pause));
    }
}
