//! What a VM that is up uses now. GET /v1/vms/VM/stats, which takes a second, in which the processors are looked at.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::guest::GuestUsage;
use crate::vm::State;
use crate::{Size, VmName};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    pub name: VmName,
    pub state: State,
    pub at: Timestamp,
    pub cpus: u32,
    /// Of the host's processors, by guest and VMM together, within the last second: 100 is one of them all the time.
    pub cpu_percent: u32,
    /// The same since the VMM started, in microseconds.
    pub cpu_time_us: u64,
    /// What the guest was given.
    pub memory_bytes: Size,
    /// What guest and VMM have of the host's memory.
    pub memory_host_bytes: u64,
    /// The disk's size.
    pub disk_bytes: Size,
    /// What the disk's file has of the host's space.
    pub disk_host_bytes: u64,
    /// Absent without a network device.
    pub network: Option<Traffic>,
    /// What the guest says of itself; absent when its agent does not answer in time, as that of a paused VM.
    pub guest: Option<GuestUsage>,
}

/// Since the VM started, whole frames, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    pub received_bytes: u64,
    pub sent_bytes: u64,
}
