//! Processes on the host, as a test sees them: by the mark in their names.

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::Pid;

/// The command line of every process that carries this installation's mark: in its name, or as a jailed Firecracker's id.
#[must_use]
pub fn processes_marked(installation: &str) -> Vec<String> {
    let (in_name, as_id) = (format!(":bg{installation}-"), format!("bg{installation}-"));
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let words: Vec<_> = line.split(|&b| b == 0).map(String::from_utf8_lossy).collect();
        let jailed = words.iter().zip(words.iter().skip(1));
        let has_id =
            jailed.into_iter().any(|(flag, value)| flag == "--id" && value.starts_with(&as_id));
        if words[0].contains(&in_name) || has_id {
            found.push(words.join(" "));
        }
    }
    found
}

/// The processes whose name begins so, whoever's they are.
#[must_use]
pub fn pids_named(prefix: &str) -> Vec<Pid> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let named = processes.filter(|entry| {
        fs::read(entry.path().join("cmdline")).unwrap_or_default().starts_with(prefix.as_bytes())
    });
    let numbers = named.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.filter_map(Pid::from_raw).collect()
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
