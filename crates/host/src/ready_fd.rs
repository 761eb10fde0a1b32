//! The fd on which a started daemon tells its starter that it serves, or why it does not.

use std::fs::File;
use std::os::fd::{FromRawFd, RawFd};

/// The fd whose number the environment variable holds, if it holds one. To be called once, before anything is opened.
#[must_use]
#[expect(unsafe_code, reason = "an inherited fd is only known by its number")]
pub fn take(variable: &str) -> Option<File> {
    let number: RawFd = std::env::var(variable).ok()?.parse().ok()?;
    if number <= 2 {
        return None;
    }
    // SAFETY: the starter has opened this fd for us and nothing in this process has opened or closed one yet. A wrong
    // number is noticed at the first write.
    let file = unsafe { File::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::CLOEXEC).ok()?;
    Some(file)
}
