//! The control group (v2) of a VM's processes: its limits, and the name by which its processes are found and ended.
//!
//! `<cgroup2>/banger/MARK`. A process is put there before it executes its program, so from its first instruction on it
//! carries the mark, whatever it calls itself later.

use serde::{Deserialize, Serialize};

use crate::Held;
use crate::error::HostError;
use crate::mark::{Installation, Mark};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cgroup {
    pub mark: Mark,
    /// `memory.max`: what the guest has and what its VMM needs beside it.
    pub memory_max_bytes: u64,
    /// `cpu.max`, in hundredths of a processor: 200 is two.
    pub cpu_percent: u32,
    /// `pids.max`.
    pub pids_max: u32,
}

pub(super) fn acquire(_cgroup: &Cgroup) -> Result<(), HostError> {
    Err(HostError::because("do this", "it is not made yet"))
}

pub(super) fn release(_mark: &Mark) -> Result<(), HostError> {
    Err(HostError::because("do this", "it is not made yet"))
}

pub(super) fn list(_installation: &Installation) -> Result<Vec<Held>, HostError> {
    Err(HostError::because("do this", "it is not made yet"))
}
