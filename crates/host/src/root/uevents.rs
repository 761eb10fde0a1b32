//! The kernel's word that something about a device has changed: a netlink socket to wait on between two tries.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};

/// The kernel does not tell when a device is closed: after this long it is tried again without an event.
const MOST: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub(super) struct Uevents(OwnedFd);

impl Uevents {
    pub(super) fn listen() -> io::Result<Self> {
        /// The group that the kernel itself speaks to; udev's own is 2.
        const KERNEL: u32 = 1;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket =
            socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(KOBJECT_UEVENT))?;
        bind(&socket, &SocketAddrNetlink::new(0, KERNEL))?;
        Ok(Self(socket))
    }

    /// Tries until `attempt` gives something, after every event and at least every 50 ms; `None` at the deadline.
    pub(super) fn retry<T>(
        &self,
        most: Duration,
        mut attempt: impl FnMut() -> io::Result<Option<T>>,
    ) -> io::Result<Option<T>> {
        let end = Instant::now() + most;
        loop {
            if let Some(done) = attempt()? {
                return Ok(Some(done));
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            let timeout = Timespec::try_from(left.min(MOST)).map_err(io::Error::other)?;
            match poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&timeout)) {
                Ok(_) | Err(Errno::INTR) => self.drain(),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// What the events say does not matter, only that there was one. A full buffer (ENOBUFS) is one too.
    fn drain(&self) {
        let mut event = [0_u8; 4096];
        while recv(&self.0, &mut event[..], RecvFlags::empty()).is_ok() {}
    }
}
