//! How much room there is: looked at before something large is begun.

use std::path::Path;

use crate::error::{HostError, on};

/// Bytes that this user can still write to the filesystem of `path` (statvfs(3): f_bavail).
///
/// # Errors
/// When the path is not there.
pub fn free_bytes(path: &Path) -> Result<u64, HostError> {
    let found =
        rustix::fs::statvfs(path).map_err(|e| on("look at the space of", path)(e.into()))?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

/// Allocated bytes of a file, 0 when it is not there.
#[must_use]
pub fn allocated_bytes(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).map_or(0, |data| data.blocks() * 512)
}
