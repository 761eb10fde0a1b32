//! Pausing a guest that runs: its processors stand still, and its memory and devices stay. By the VMM's own means, over a
//! socket of its.

use std::os::unix::net::UnixStream;

use banger_host::VmSocket;

use crate::{VmmError, api_of, firecracker, qemu};

/// Where a VMM of this name ([`crate::Vmm::name`]) is told to pause and to resume its guest.
#[must_use]
pub fn control_of(name: &str) -> VmSocket {
    api_of(name).unwrap_or_else(|| VmSocket::RunFolder(qemu::CONTROL_SOCKET.to_owned()))
}

/// Stops the guest's processors, or lets them go on, by a connection to [`control_of`] this name.
///
/// # Errors
/// When the VMM does not answer, or refuses.
pub async fn set_paused(name: &str, control: UnixStream, paused: bool) -> Result<(), VmmError> {
    match api_of(name) {
        Some(_) => firecracker::set_paused(control, paused).await,
        None => qemu::set_paused(control, paused).await,
    }
}

/// Whether the guest is paused.
///
/// # Errors
/// When the VMM does not answer.
pub async fn is_paused(name: &str, control: UnixStream) -> Result<bool, VmmError> {
    match api_of(name) {
        Some(_) => {
            let state = firecracker::state(control).await?;
            Ok(state == firecracker::InstanceState::Paused)
        }
        None => qemu::is_paused(control).await,
    }
}
