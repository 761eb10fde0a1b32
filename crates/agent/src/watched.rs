//! Descriptors that tokio watches: the one place that promises tokio what it asks of them.
#![expect(
    unsafe_code,
    reason = "AsyncFd::register is unsafe for types whose descriptor might change"
)]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use tokio::io::unix::AsyncFd;

/// Owners of one descriptor that stays open, and the same, for as long as they live.
pub(crate) trait Owner: AsRawFd {}

impl Owner for OwnedFd {}
impl Owner for Arc<OwnedFd> {}

pub(crate) fn watch<T: Owner>(owner: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: an `Owner` gives the same open descriptor until it is dropped, which is when the `AsyncFd` is.
    Ok(unsafe { AsyncFd::register(owner) }?)
}
