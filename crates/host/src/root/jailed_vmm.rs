//! Firecracker in its jailer: in the VM's cgroup, its root the VM's jail, its user the VM's own, no capability, seccomp on.
//! Found and ended by its cgroup.

use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

use super::RootPlaces;
use crate::Held;
use crate::error::HostError;
use crate::mark::{Installation, Mark};
use crate::process::{Children, Watched};

/// The name of the API's socket in the jail.
pub const API_SOCKET: &str = "api.sock";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JailedVmm {
    pub mark: Mark,
    pub uid: u32,
    /// As [`crate::Vmm::log_limit_bytes`].
    pub log_limit_bytes: u64,
}

pub(super) fn acquire(
    _vmm: &JailedVmm,
    _places: &RootPlaces,
    _console: Option<OwnedFd>,
    _children: &Children,
) -> Result<(), HostError> {
    Err(HostError::because("do this", "it is not made yet"))
}

pub(super) fn release(_mark: &Mark, _children: &Children) -> Result<(), HostError> {
    Err(HostError::because("do this", "it is not made yet"))
}

pub(super) fn list(_installation: &Installation) -> Result<Vec<Held>, HostError> {
    Err(HostError::because("do this", "it is not made yet"))
}

pub(super) fn watch(_mark: &Mark) -> Result<Option<Watched>, HostError> {
    Err(HostError::because("do this", "it is not made yet"))
}

pub(super) fn signal(_mark: &Mark, _signal: rustix::process::Signal) -> Result<(), HostError> {
    Err(HostError::because("do this", "it is not made yet"))
}
