//! The listening socket that systemd passes to the service which it starts for it (sd_listen_fds(3)).

use std::env;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use rustix::fs::{FileType, fstat};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::SocketType;
use rustix::net::sockopt::{socket_acceptconn, socket_type};

/// The first one's number (`SD_LISTEN_FDS_START`).
const FIRST: RawFd = 3;

/// The socket, if it is one that listens for whole messages (`SOCK_SEQPACKET`). To be called once, before anything is
/// opened.
///
/// # Errors
/// What was passed instead, in words.
#[expect(unsafe_code, reason = "an inherited fd is only known by its number")]
pub fn take() -> Result<OwnedFd, String> {
    let number = |variable: &str| env::var(variable).ok().and_then(|text| text.parse().ok());
    let own = u32::try_from(rustix::process::getpid().as_raw_nonzero().get()).ok();
    if number("LISTEN_PID") != own {
        return Err(
            "no socket was passed to this process: systemd starts it when one is asked".into()
        );
    }
    if number("LISTEN_FDS") != Some(1) {
        return Err("more than one socket was passed, or none".into());
    }
    // SAFETY: whoever set LISTEN_PID to this process's id has opened this fd for it, and nothing in this process has opened
    // or closed one yet. A wrong number is noticed by the calls that follow, which fail on a closed fd.
    let socket = unsafe { OwnedFd::from_raw_fd(FIRST) };
    let checked = fstat(&socket).and_then(|data| {
        fcntl_setfd(&socket, FdFlags::CLOEXEC)?;
        let is_socket = FileType::from_raw_mode(data.st_mode) == FileType::Socket;
        Ok(is_socket
            && socket_acceptconn(&socket)?
            && socket_type(&socket)? == SocketType::SEQPACKET)
    });
    match checked {
        Ok(true) => Ok(socket),
        Ok(false) => Err("what was passed is no socket that listens for messages".into()),
        Err(error) => {
            // Not ours to close: it is closed already, or nobody knows what it is.
            std::mem::forget(socket);
            Err(format!("the socket that was passed cannot be looked at: {error}"))
        }
    }
}
