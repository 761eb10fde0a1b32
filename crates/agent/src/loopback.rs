//! Brings `lo` up, by netlink: the kernel then gives it 127.0.0.1 and ::1 itself. Other interfaces are not ours.

use std::io;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with,
};

#[derive(Debug, thiserror::Error)]
#[error("cannot bring the loopback interface up")]
pub(crate) struct LoopbackError(#[source] io::Error);

pub(crate) fn up() -> Result<(), LoopbackError> {
    try_up().map_err(LoopbackError)
}

fn try_up() -> io::Result<()> {
    /// The number 0, which the library has no name for.
    const NETLINK_ROUTE: Option<rustix::net::Protocol> = None;
    let socket =
        socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, NETLINK_ROUTE)?;
    sendto(&socket, &request(), SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    let mut reply = [0_u8; 1024];
    let (_, length) = recv(&socket, &mut reply[..], RecvFlags::empty())?;
    // struct nlmsghdr, then struct nlmsgerr, whose first field is 0 or a negative errno (netlink(7)).
    match reply[..length].get(16..20) {
        Some([0, 0, 0, 0]) => Ok(()),
        Some(&[a, b, c, d]) => Err(io::Error::from_raw_os_error(-i32::from_ne_bytes([a, b, c, d]))),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer is too short")),
    }
}

/// RTM_NEWLINK that sets IFF_UP of interface 1, which is `lo` in every network namespace.
fn request() -> [u8; 32] {
    const RTM_NEWLINK: u16 = 16;
    const NLM_F_REQUEST_ACK: u16 = 1 | 4;
    const IFF_UP: u32 = 1;
    let mut message = [0_u8; 32];
    message[0..4].copy_from_slice(&32_u32.to_ne_bytes());
    message[4..6].copy_from_slice(&RTM_NEWLINK.to_ne_bytes());
    message[6..8].copy_from_slice(&NLM_F_REQUEST_ACK.to_ne_bytes());
    // struct ifinfomsg from 16 on: family, type, index, flags, mask of the flags to change.
    message[20..24].copy_from_slice(&1_u32.to_ne_bytes());
    message[24..28].copy_from_slice(&IFF_UP.to_ne_bytes());
    message[28..32].copy_from_slice(&IFF_UP.to_ne_bytes());
    message
}
