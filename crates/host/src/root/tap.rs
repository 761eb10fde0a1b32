//! A VM's network device: a persistent tap (Documentation/networking/tuntap.rst) named MARK, which only the VM's uid may
//! open, and which is a port of the installation's bridge.

use serde::{Deserialize, Serialize};

use crate::Held;
use crate::error::HostError;
use crate::mark::{Installation, Mark};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tap {
    pub mark: Mark,
    /// Who may open it, beside root.
    pub uid: u32,
}

pub(super) fn acquire(_tap: &Tap) -> Result<(), HostError> {
    Err(HostError::because("do this", "it is not made yet"))
}

pub(super) fn release(_mark: &Mark) -> Result<(), HostError> {
    Err(HostError::because("do this", "it is not made yet"))
}

pub(super) fn list(_installation: &Installation) -> Result<Vec<Held>, HostError> {
    Err(HostError::because("do this", "it is not made yet"))
}
