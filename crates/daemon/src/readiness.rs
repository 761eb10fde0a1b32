//! Waiting for fds that the runtime does not know by kind: a process's end, a folder's changes.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use banger_host::Watched;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// An fd whose being readable can be awaited.
///
/// # Errors
/// When it cannot be polled (epoll(7)).
#[expect(
    deprecated,
    reason = "sound for an OwnedFd, whose number never changes; the replacement is unsafe for all types"
)]
pub fn readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, Interest::READABLE)
}

/// A VMM's process, whose end can be awaited.
#[derive(Debug)]
pub struct VmmProcess {
    process: Watched,
    end: AsyncFd<OwnedFd>,
}

impl VmmProcess {
    /// # Errors
    /// When its pidfd cannot be polled.
    pub fn new(process: Watched) -> io::Result<Self> {
        let end = readable(process.as_fd().try_clone_to_owned()?)?;
        Ok(Self { process, end })
    }

    #[must_use]
    pub fn process(&self) -> &Watched {
        &self.process
    }

    /// Returns when it has ended.
    ///
    /// # Errors
    /// When the runtime is going away.
    pub async fn ended(&self) -> io::Result<()> {
        self.end.readable().await.map(drop)
    }
}
