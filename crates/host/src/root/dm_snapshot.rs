//! A writable block device over an image that is only read, by device-mapper's snapshot target
//! (Documentation/admin-guide/device-mapper/snapshot.rst).
//!
//! ```text
//! MARK         snapshot ─┬─ MARK-origin ─┬─ linear: the loop of the image
//!                        │               └─ zero: up to the size that the VM's disk is to have
//!                        └─ the loop of the VM's disk: what was written (persistent, chunks of 8 sectors)
//! ```
//! Both loops are claims of their own, acquired before.

use serde::{Deserialize, Serialize};

use crate::Held;
use crate::error::HostError;
use crate::mark::{Installation, Mark};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DmSnapshot {
    pub mark: Mark,
    /// The device's size: not less than the image's.
    pub size_bytes: u64,
}

impl DmSnapshot {
    /// How large the file of what was written must be, so that it cannot overflow: all chunks, their exceptions (16 bytes
    /// each), and the header.
    #[must_use]
    pub fn cow_bytes(size_bytes: u64) -> u64 {
        const CHUNK: u64 = 4096;
        let chunks = size_bytes.div_ceil(CHUNK);
        // One metadata chunk per 256 exceptions, one for the header, one more for the last one that is begun.
        (chunks + chunks.div_ceil(CHUNK / 16) + 2) * CHUNK
    }
}

pub(super) fn acquire(_claim: &DmSnapshot) -> Result<(), HostError> {
    Err(HostError::because("do this", "it is not made yet"))
}

pub(super) fn release(_mark: &Mark) -> Result<(), HostError> {
    Err(HostError::because("do this", "it is not made yet"))
}

pub(super) fn list(_installation: &Installation) -> Result<Vec<Held>, HostError> {
    Err(HostError::because("do this", "it is not made yet"))
}
