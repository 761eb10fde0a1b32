//! A VM's log: what its VMM and its guest's console said. Written by a process of its own, only read here.

use std::fs;
use std::path::Path;

use banger_api::{Code, Problem};
use rustix::fs::inotify;
use tokio::io::unix::AsyncFd;

use crate::readiness;

/// How many of the console's last lines explain a failed start.
const TAIL_LINES: usize = 12;

/// What the console says of a kernel that panicked, if it did in this boot.
#[must_use]
pub fn panicked(log: &Path) -> Option<Problem> {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    text.contains(PANIC)
        .then(|| explain(Problem::new(Code::Guest, "the guest ended by itself"), log))
}

/// How Linux begins its last words (kernel/panic.c).
const PANIC: &str = "Kernel panic";

/// Adds to a problem what the console said last, and says so when the kernel panicked.
#[must_use]
pub fn explain(mut problem: Problem, log: &Path) -> Problem {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    if let Some(line) = text.lines().find(|line| line.contains(PANIC)) {
        problem = problem.because(format!("the guest's kernel panicked: {}", printable(line)));
    } else if let Some(line) = text.lines().rev().find(|line| line.contains("banger-agent: ")) {
        problem = problem.because(format!("the guest said: {}", printable(line)));
    }
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let tail = &lines[lines.len().saturating_sub(TAIL_LINES)..];
    problem.causes.extend(tail.iter().map(|line| format!("console: {}", printable(line))));
    if tail.is_empty() {
        problem = problem.because("its console said nothing");
    }
    problem
}

/// A guest's words without what would move a reader's cursor.
fn printable(line: &str) -> String {
    let mut shown = String::new();
    let mut characters = line.trim_end().chars().peekable();
    while let Some(character) = characters.next() {
        if character == '\u{1b}' {
            // ESC [ … letter (ECMA-48, 5.4)
            if characters.next_if_eq(&'[').is_some() {
                while characters.next_if(|c| !c.is_ascii_alphabetic()).is_some() {}
                characters.next();
            }
        } else if !character.is_control() {
            shown.push(character);
        }
    }
    shown
}

/// Changes in the log's folder (inotify(7)): writes, and the new file after a turn-over.
pub(crate) struct Changes(AsyncFd<std::os::fd::OwnedFd>);

impl Changes {
    /// # Errors
    /// When the folder cannot be watched.
    pub(crate) fn watch(log: &Path) -> Result<Self, Problem> {
        let failed = |error: &(dyn std::error::Error + 'static)| {
            Problem::new(Code::Internal, format!("cannot follow {}", log.display())).cause(error)
        };
        let folder = log.parent().expect("a log is in its VM's folder");
        let watcher = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC);
        let watcher = watcher.map_err(|e| failed(&e))?;
        let what = inotify::WatchFlags::MODIFY
            | inotify::WatchFlags::CREATE
            | inotify::WatchFlags::MOVED_TO
            | inotify::WatchFlags::DELETE_SELF;
        inotify::add_watch(&watcher, folder, what).map_err(|e| failed(&e))?;
        readiness::readable(watcher).map(Self).map_err(|e| failed(&e))
    }

    /// Returns at the next change; false when the folder is gone.
    pub(crate) async fn wait(&self) -> bool {
        let Ok(mut ready) = self.0.readable().await else { return false };
        let mut buffer = [const { std::mem::MaybeUninit::uninit() }; 4096];
        let mut events = inotify::Reader::new(self.0.get_ref(), &mut buffer);
        let mut there = true;
        while let Ok(event) = events.next() {
            there &= !event
                .events()
                .intersects(inotify::ReadFlags::DELETE_SELF | inotify::ReadFlags::IGNORED);
        }
        ready.clear_ready();
        there
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explained(console: &str) -> Problem {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("console.log");
        fs::write(&log, console).unwrap();
        explain(Problem::new(Code::Guest, "it ended"), &log)
    }

    #[test]
    fn a_panic_is_named_before_the_tail() {
        let problem = explained("boot\n[    0.5] Kernel panic - not syncing: no init\nend\n");
        assert_eq!(
            problem.causes[0],
            "the guest's kernel panicked: [    0.5] Kernel panic - not syncing: no init"
        );
        assert_eq!(problem.causes.last().unwrap(), "console: end");
    }

    #[test]
    fn a_guest_cannot_move_the_readers_cursor() {
        let problem = explained("\u{1b}[2J\u{1b}[1;31mred\u{7}\r\n");
        assert_eq!(problem.causes, ["console: red"]);
    }

    #[test]
    fn a_silent_console_is_said_to_be_silent() {
        assert_eq!(explained("").causes, ["its console said nothing"]);
    }
}
