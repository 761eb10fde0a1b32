//! A server's two sockets: UDP and TCP at one address and port.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// How often a free port is looked for that is free for UDP and for TCP, where the port does not matter.
const ATTEMPTS: usize = 16;

/// The sockets are not there.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// A socket that is bound to no address answers from one that the asker may not have asked.
    #[error("a DNS server needs an address of its own, {0} is none")]
    NoAddress(SocketAddrV4),
    #[error("cannot open the DNS server's sockets at {address}")]
    Socket {
        address: SocketAddrV4,
        #[source]
        source: io::Error,
    },
}

/// Bound, and not served yet.
#[derive(Debug)]
pub struct Sockets {
    pub(crate) udp: UdpSocket,
    pub(crate) tcp: TcpListener,
    address: SocketAddrV4,
}

impl Sockets {
    /// Binds `address`, which the host need not have yet (`IP_FREEBIND`, ip(7)): a bridge comes with its first VM. Port 0
    /// is any that is free.
    ///
    /// # Errors
    /// When the address is 0.0.0.0, or the port is taken.
    pub fn bind(address: SocketAddrV4) -> Result<Self, BindError> {
        if address.ip().is_unspecified() {
            return Err(BindError::NoAddress(address));
        }
        let mut left = if address.port() == 0 { ATTEMPTS } else { 1 };
        loop {
            left -= 1;
            match Self::open(address) {
                Ok(sockets) => return Ok(sockets),
                Err(error) if left > 0 && error.kind() == io::ErrorKind::AddrInUse => {}
                Err(source) => return Err(BindError::Socket { address, source }),
            }
        }
    }

    fn open(address: SocketAddrV4) -> io::Result<Self> {
        let udp = UdpSocket::from(open(SocketType::DGRAM, address)?);
        let port = udp.local_addr()?.port();
        let address = SocketAddrV4::new(*address.ip(), port);
        let tcp = open(SocketType::STREAM, address)?;
        listen(&tcp, BACKLOG)?;
        Ok(Self { udp, tcp: TcpListener::from(tcp), address })
    }

    /// Where the server is, with the port that was found.
    #[must_use]
    pub fn address(&self) -> SocketAddrV4 {
        self.address
    }

    pub(crate) fn ip(&self) -> Ipv4Addr {
        *self.address.ip()
    }
}

fn open(kind: SocketType, address: SocketAddrV4) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::INET, kind, flags, None)?;
    sockopt::set_ip_freebind(&socket, true)?;
    if kind == SocketType::STREAM {
        // The next daemon listens while connections of the last one are in TIME_WAIT.
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    bind(&socket, &SocketAddr::V4(address))?;
    Ok(socket)
}
