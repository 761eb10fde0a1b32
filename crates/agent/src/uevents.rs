//! The kernel's word that a device has appeared: a netlink socket to wait on, so that nothing looks again and again.
//! Open it before looking for the first time, and no appearance is missed.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};

#[derive(Debug)]
pub(crate) struct Uevents(OwnedFd);

impl Uevents {
    pub(crate) fn listen() -> io::Result<Self> {
        /// The group that the kernel itself speaks to; udev's own is 2.
        const KERNEL: u32 = 1;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket =
            socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(KOBJECT_UEVENT))?;
        bind(&socket, &SocketAddrNetlink::new(0, KERNEL))?;
        Ok(Self(socket))
    }

    /// Looks, then looks again after every event, until `look` finds something or `deadline` has passed (`None` then).
    pub(crate) fn wait_for<T>(
        &self,
        deadline: Option<Instant>,
        mut look: impl FnMut() -> io::Result<Option<T>>,
    ) -> io::Result<Option<T>> {
        loop {
            if let Some(found) = look()? {
                return Ok(Some(found));
            }
            let timeout =
                match deadline.map(|deadline| deadline.checked_duration_since(Instant::now())) {
                    None => None,
                    Some(None) => return Ok(None),
                    Some(Some(left)) => Some(Timespec::try_from(left).map_err(io::Error::other)?),
                };
            let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
            match poll(&mut fds, timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => self.drain(),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// What the events say does not matter, only that there was one. A full buffer (ENOBUFS) is one too.
    fn drain(&self) {
        let mut event = [0_u8; 4096];
        while recv(&self.0, &mut event[..], RecvFlags::empty()).is_ok() {}
    }
}
