//! What the daemon tells the agent of a guest that runs, and asks it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::VmName;

/// PUT /v1/name of the agent: the guest's hostname from now on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestName {
    pub name: VmName,
}

/// PUT /v1/clock of the agent: what time it is, on the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestClock {
    pub now: Timestamp,
}

/// GET /v1/usage of the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestUsage {
    /// What the guest's kernel has to give: what the VM has, less what the kernel itself needs.
    pub memory_total_bytes: u64,
    /// What a program could have, caches given up for it.
    pub memory_available_bytes: u64,
    /// Of the root filesystem.
    pub disk_total_bytes: u64,
    pub disk_used_bytes: u64,
}
