//! The guest's sockets that wait for somebody, as the kernel lists them in /proc/net, and whose they are.
//!
//! A line of those files (Documentation/networking/proc_net_tcp.rst of the kernel):
//!
//! ```text
//!   0: 0100007F:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 12345 …
//!      address:port  peer          state                                                    inode
//! ```

use std::collections::HashMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use banger_api::ports::{Listening, Protocol};

/// The state of a TCP socket that listens, and of a UDP socket without a peer (include/net/tcp_states.h).
const LISTEN: u8 = 0x0a;
const UNCONNECTED: u8 = 0x07;

const TABLES: [(&str, Protocol); 4] = [
    ("tcp", Protocol::Tcp),
    ("tcp6", Protocol::Tcp),
    ("udp", Protocol::Udp),
    ("udp6", Protocol::Udp),
];

/// A socket that waits for somebody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Socket {
    pub(crate) protocol: Protocol,
    pub(crate) address: IpAddr,
    pub(crate) port: u16,
    inode: u64,
}

/// All of them, by protocol and port.
///
/// # Errors
/// When a table cannot be read. A kernel without IPv6 has two less.
pub(crate) fn waiting() -> io::Result<Vec<Socket>> {
    let mut sockets = Vec::new();
    for (name, protocol) in TABLES {
        match fs::read_to_string(Path::new("/proc/net").join(name)) {
            Ok(text) => {
                sockets.extend(text.lines().skip(1).filter_map(|line| socket(line, protocol)));
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    sockets.sort_by_key(|socket| (socket.protocol, socket.port, socket.address));
    Ok(sockets)
}

/// They, and the programs that have them.
///
/// # Errors
/// As [`waiting`].
pub(crate) fn listening() -> io::Result<Vec<Listening>> {
    let owners = owners();
    let shown = |socket: Socket| Listening {
        protocol: socket.protocol,
        address: socket.address,
        port: socket.port,
        process: owners.get(&socket.inode).map(|(_, name)| name.clone()),
        speaks: None,
        reached_at: None,
        url: None,
    };
    Ok(waiting()?.into_iter().map(shown).collect())
}

fn socket(line: &str, protocol: Protocol) -> Option<Socket> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let [_, local, peer, state, _, _, _, _, _, inode, ..] = words[..] else { return None };
    let wanted = match protocol {
        Protocol::Tcp => LISTEN,
        Protocol::Udp => UNCONNECTED,
    };
    let (address, port) = local.split_once(':')?;
    let has_peer = !peer.ends_with(":0000");
    if u8::from_str_radix(state, 16).ok()? != wanted || has_peer {
        return None;
    }
    Some(Socket {
        protocol,
        address: address_of(address)?,
        port: u16::from_str_radix(port, 16).ok()?,
        inode: inode.parse().ok()?,
    })
}

/// One or four words of 32 bits, each in the processor's order. An IPv4 address in IPv6 clothes is one of IPv4.
fn address_of(text: &str) -> Option<IpAddr> {
    let word = |at: usize| {
        let word = u32::from_str_radix(text.get(at..at + 8)?, 16).ok()?;
        Some(word.to_ne_bytes())
    };
    match text.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let mut bytes = [0; 16];
            for (at, part) in bytes.chunks_exact_mut(4).enumerate() {
                part.copy_from_slice(&word(at * 8)?);
            }
            Some(Ipv6Addr::from(bytes).to_canonical())
        }
        _ => None,
    }
}

/// The first process that has each socket, by the socket's inode. A process that goes meanwhile has none.
fn owners() -> HashMap<u64, (u32, String)> {
    let mut owners = HashMap::<u64, (u32, String)>::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let files = fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
        let mut name = None;
        for file in files {
            let Ok(target) = fs::read_link(file.path()) else { continue };
            let inode = target.to_str().and_then(|text| {
                text.strip_prefix("socket:[")?.strip_suffix(']')?.parse::<u64>().ok()
            });
            let Some(inode) = inode else { continue };
            if owners.get(&inode).is_some_and(|(first, _)| *first < pid) {
                continue;
            }
            let name = name.get_or_insert_with(|| {
                let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                name.trim_end().to_owned()
            });
            owners.insert(inode, (pid, name.clone()));
        }
    }
    owners
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    #[test]
    fn what_listens_is_found_with_its_program_and_what_is_connected_is_not() {
        let own = fs::read_to_string("/proc/self/comm").unwrap().trim_end().to_owned();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("127.0.0.2:0").unwrap();
        let client = TcpStream::connect(tcp.local_addr().unwrap()).unwrap();
        let connected = UdpSocket::bind("127.0.0.1:0").unwrap();
        connected.connect(udp.local_addr().unwrap()).unwrap();
        let found = listening().unwrap();
        let find = |address: std::net::SocketAddr| {
            let is = |s: &&Listening| s.address == address.ip() && s.port == address.port();
            found.iter().find(is)
        };
        for address in [tcp.local_addr().unwrap(), udp.local_addr().unwrap()] {
            assert_eq!(find(address).unwrap().process.as_ref(), Some(&own));
        }
        for address in [client.local_addr().unwrap(), connected.local_addr().unwrap()] {
            assert_eq!(find(address), None);
        }
    }

    #[test]
    fn addresses_are_read_as_the_kernel_writes_them() {
        for (text, address) in [
            ("0100007F", "127.0.0.1"),
            ("00000000", "0.0.0.0"),
            ("00000000000000000000000001000000", "::1"),
            ("0000000000000000FFFF00000100007F", "127.0.0.1"),
        ] {
            assert_eq!(address_of(text), Some(address.parse().unwrap()));
        }
        for text in
            ["", "0100007", "0100007G", "010000\u{e9}7", "000000000000000000000000010000000"]
        {
            assert_eq!(address_of(text), None, "{text}");
        }
    }
}
