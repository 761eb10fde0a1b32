//! This host's own IPv4 addresses, and when they change: an event of the kernel's (rtnetlink(7)). Needs no root.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};

use super::netlink;

/// The group of messages about IPv4 addresses (linux/rtnetlink.h, RTMGRP_IPV4_IFADDR).
const ADDRESSES: u32 = 0x10;

/// Watches the addresses of the network that it is made in.
#[derive(Debug)]
pub(crate) struct OwnAddresses(OwnedFd);

impl OwnAddresses {
    /// From here on no change is missed.
    pub(crate) fn watch() -> io::Result<Self> {
        let (family, kind) = (AddressFamily::NETLINK, SocketType::RAW);
        let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
        bind(&socket, &SocketAddrNetlink::new(0, ADDRESSES))?;
        Ok(Self(socket))
    }

    pub(crate) fn now(&self) -> io::Result<Vec<Ipv4Addr>> {
        Ok(netlink::addresses()?.into_iter().map(|found| found.address).collect())
    }

    /// Waits for the next change.
    pub(crate) fn next(&self) -> io::Result<()> {
        let mut told = [0; 4096];
        match recv(&self.0, &mut told[..], RecvFlags::empty()) {
            // More changes than there was room for: they are looked at all together.
            Ok(_) | Err(Errno::NOBUFS | Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
