//! The folder that becomes a jailed VMM's root: `<jails>/firecracker/MARK/root`, as Firecracker's jailer wants it. Holds
//! what the VMM is to see before the jailer adds its own: hard links of files, nodes of block devices.

use serde::{Deserialize, Serialize};

use super::{LoopRole, RootPlaces};
use crate::Held;
use crate::error::HostError;
use crate::mark::{Installation, Mark};
use crate::state_file::StateFile;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Jail {
    pub mark: Mark,
    /// The VMM's user and group, which own the devices.
    pub uid: u32,
    /// Files to read.
    pub files: Vec<JailFile>,
    /// Block devices.
    pub devices: Vec<JailDevice>,
}

/// `source`, seen as `/name` in the jail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JailFile {
    /// Letters, digits and `-`.
    pub name: String,
    pub source: StateFile,
}

/// A block device of this mark, seen as `/name` in the jail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JailDevice {
    /// Letters, digits and `-`.
    pub name: String,
    pub source: DeviceSource,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceSource {
    Loop(LoopRole),
    DmSnapshot,
}

pub(super) fn acquire(_jail: &Jail, _places: &RootPlaces) -> Result<(), HostError> {
    Err(HostError::because("do this", "it is not made yet"))
}

pub(super) fn release(_mark: &Mark, _places: &RootPlaces) -> Result<(), HostError> {
    Err(HostError::because("do this", "it is not made yet"))
}

pub(super) fn list(
    _installation: &Installation,
    _places: &RootPlaces,
) -> Result<Vec<Held>, HostError> {
    Err(HostError::because("do this", "it is not made yet"))
}

pub(super) fn connect(
    _mark: &Mark,
    _name: &str,
    _places: &RootPlaces,
) -> Result<std::os::unix::net::UnixStream, HostError> {
    Err(HostError::because("do this", "it is not made yet"))
}
