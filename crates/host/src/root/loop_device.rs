//! Loop devices (loop(4)) over files of the state. The kernel chooses the number; ours is found by the name that we give
//! it in its status (`lo_file_name`): `MARK:ROLE`.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::RootPlaces;
use crate::Held;
use crate::error::HostError;
use crate::mark::{Installation, Mark};
use crate::state_file::StateFile;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Loop {
    pub mark: Mark,
    pub role: LoopRole,
    pub file: StateFile,
}

/// What a loop device is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoopRole {
    /// The image: read-only.
    Image,
    /// The VM's own disk.
    Disk,
}

impl fmt::Display for LoopRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            LoopRole::Image => "image",
            LoopRole::Disk => "disk",
        })
    }
}

pub(super) fn acquire(_claim: &Loop, _places: &RootPlaces) -> Result<(), HostError> {
    Err(HostError::because("do this", "it is not made yet"))
}

pub(super) fn release(_mark: &Mark, _role: LoopRole) -> Result<(), HostError> {
    Err(HostError::because("do this", "it is not made yet"))
}

pub(super) fn list(_installation: &Installation) -> Result<Vec<Held>, HostError> {
    Err(HostError::because("do this", "it is not made yet"))
}
