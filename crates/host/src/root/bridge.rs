//! The bridge that the taps of an installation are ports of: `bgXXXX-net0`. VMs share it: whoever needs it makes it, and
//! the last one's release removes it.

use crate::Held;
use crate::error::HostError;
use crate::mark::Installation;

pub(super) fn acquire(_installation: &Installation) -> Result<(), HostError> {
    Err(HostError::because("do this", "it is not made yet"))
}

pub(super) fn release(_installation: &Installation) -> Result<(), HostError> {
    Err(HostError::because("do this", "it is not made yet"))
}

pub(super) fn list(_installation: &Installation) -> Result<Vec<Held>, HostError> {
    Err(HostError::because("do this", "it is not made yet"))
}
