//! The fence between a guest and passt, a process of its own: what a guest sends reaches passt only if it is for somebody beyond
//! this host.
//!
//! ```text
//! VMM ──network.sock──► fence ──► passt ──► sockets of this user's
//!     ◄────────────────  as it is  ◄──────
//! ```
//! passt connects where a packet says, as this user: a guest that makes its own packets would reach services on this host's
//! loopback by it, whatever passt is told (0.0~git20230309 looks at no address with `--no-map-gw`). Packets are dropped, not
//! answered. A frame is its length in four bytes and then itself (QEMU's `-netdev stream`, passt(1)).
//!
//! It ends when the VMM, or passt, does; passt ends with it.

use std::io::{self, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread;

use crate::root::OwnAddresses;
use crate::user_network::{ADDRESS, GATEWAY, PREFIX};

/// The argument with which a program is to call [`answer`].
pub const ARGUMENT: &str = "fence";

/// What no packet may be for: this host and its link, and what is nobody's or many's. Length of the prefix in bits.
const NEVER: [(Ipv4Addr, u8); 4] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(224, 0, 0, 0), 3),
];

/// Bytes of an Ethernet header; shorter frames are none.
const ETHERNET: usize = 14;
/// The longest frame that passt takes (ETH_MAX_MTU), in bytes.
const LONGEST: usize = 65535;
/// What is read at once, in bytes.
const BUFFER: usize = 4 * (LONGEST + 1);

const IPV4: [u8; 2] = [0x08, 0x00];
const ARP: [u8; 2] = [0x08, 0x06];
/// TCP and UDP (IANA's protocol numbers).
const WITH_PORTS: [u8; 2] = [6, 17];
const DNS: [u8; 2] = 53_u16.to_be_bytes();

/// The fence's process: stdin is a socket on which one VMM is accepted, stdout the connection to passt.
///
/// # Errors
/// When it is started with anything else, or this host's addresses cannot be watched.
pub fn answer() -> io::Result<()> {
    let listener = UnixListener::from(io::stdin().as_fd().try_clone_to_owned()?);
    let passt = UnixStream::from(io::stdout().as_fd().try_clone_to_owned()?);
    // The other copies of both are closed when this process ends.
    run(&listener, passt)
}

/// Lets through what may pass, until either end is closed.
///
/// # Errors
/// When this host's addresses cannot be watched, or nobody can be accepted.
pub(crate) fn run(listener: &UnixListener, passt: UnixStream) -> io::Result<()> {
    let changes = OwnAddresses::watch()?;
    let own = Arc::new(RwLock::new(changes.now()?));
    let (vmm, _) = listener.accept()?;
    let (vmm, passt) = (Arc::new(vmm), Arc::new(passt));
    let close = {
        let (vmm, passt) = (Arc::clone(&vmm), Arc::clone(&passt));
        move || {
            // One that is closed already is as it is to be.
            let _closed = (vmm.shutdown(Shutdown::Both), passt.shutdown(Shutdown::Both));
        }
    };
    // Not waited for: it ends with the process, and closes both when it no longer knows which addresses are this host's.
    drop(thread::spawn({
        let (own, close) = (Arc::clone(&own), close.clone());
        move || {
            while changes.next().is_ok() {
                let Ok(now) = changes.now() else { break };
                *own.write().unwrap_or_else(PoisonError::into_inner) = now;
            }
            close();
        }
    }));
    let back = thread::spawn({
        let (vmm, passt, close) = (Arc::clone(&vmm), Arc::clone(&passt), close.clone());
        move || {
            copy(&passt, &vmm);
            close();
        }
    });
    let is_own =
        |address: Ipv4Addr| own.read().unwrap_or_else(PoisonError::into_inner).contains(&address);
    // However it ends, both ends are closed.
    let _ended = pass(&*vmm, &*passt, is_own);
    close();
    // A panic there has closed nothing, and this has.
    let _joined = back.join();
    Ok(())
}

fn copy(mut from: &UnixStream, mut to: &UnixStream) {
    let mut buffer = vec![0; BUFFER];
    loop {
        match from.read(&mut buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => return,
            Ok(got) => {
                if to.write_all(&buffer[..got]).is_err() {
                    return;
                }
            }
        }
    }
}

/// Passes frames on, as far as they may, until there are no more.
fn pass(from: impl Read, mut to: impl Write, is_own: impl Fn(Ipv4Addr) -> bool) -> io::Result<()> {
    const LENGTH: usize = 4;
    let mut from = BufReader::with_capacity(BUFFER, from);
    let mut frame = vec![0; LENGTH + LONGEST];
    loop {
        let (head, body) = frame.split_at_mut(LENGTH);
        from.read_exact(head)?;
        let length = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        let body = usize::try_from(length).ok().and_then(|length| body.get_mut(..length));
        let body = body.ok_or(ErrorKind::InvalidData)?;
        from.read_exact(body)?;
        let end = LENGTH + body.len();
        if may_pass(body, &is_own) {
            to.write_all(&frame[..end])?;
        }
    }
}

/// Whether passt may have this frame: a question for the gateway's hardware address, or IPv4 from the guest to somebody else.
fn may_pass(frame: &[u8], is_own: impl Fn(Ipv4Addr) -> bool) -> bool {
    let Some((ethernet, packet)) = frame.split_at_checked(ETHERNET) else { return false };
    if ethernet.ends_with(&ARP) {
        return true;
    }
    if !ethernet.ends_with(&IPV4) {
        return false;
    }
    // RFC 791, 3.1: version and length of the header in words; protocol; both addresses.
    let Some(header) = packet.first_chunk::<20>() else { return false };
    let words = usize::from(header[0] & 0xf);
    let [.., s0, s1, s2, s3, d0, d1, d2, d3] = *header;
    let (source, to) = (Ipv4Addr::new(s0, s1, s2, s3), Ipv4Addr::new(d0, d1, d2, d3));
    if header[0] >> 4 != 4 || words < 5 || source != ADDRESS {
        return false;
    }
    if is_within(to, GATEWAY, PREFIX) {
        // The gateway is nobody: of this host it answers for names, and beyond it that address is somebody else's.
        let port = packet.get(words * 4 + 2..words * 4 + 4);
        return to == GATEWAY && WITH_PORTS.contains(&header[9]) && port == Some(&DNS);
    }
    !NEVER.iter().any(|(subnet, prefix)| is_within(to, *subnet, *prefix)) && !is_own(to)
}

fn is_within(address: Ipv4Addr, subnet: Ipv4Addr, prefix: u8) -> bool {
    let host = u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
    address.to_bits() | host == subnet.to_bits() | host
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);

    fn frame(kind: [u8; 2], from: Ipv4Addr, to: &str, protocol: u8, port: u16) -> Vec<u8> {
        let to: Ipv4Addr = to.parse().unwrap();
        let mut bytes = [[0xff; 6], [2; 6]].concat();
        bytes.extend(kind);
        bytes.extend([0x45, 0, 0, 28, 0, 0, 0, 0, 64, protocol, 0, 0]);
        bytes.extend(from.octets());
        bytes.extend(to.octets());
        bytes.extend([0x12, 0x34]);
        bytes.extend(port.to_be_bytes());
        bytes.extend([0, 8, 0, 0]);
        bytes
    }

    fn passes(frame: &[u8]) -> bool {
        may_pass(frame, |address| address == OWN)
    }

    #[test]
    fn what_is_for_somebody_beyond_this_host_passes_and_what_is_for_this_host_does_not() {
        let to = |to: &str| passes(&frame(IPV4, ADDRESS, to, 6, 80));
        for beyond in ["203.0.113.1", "10.0.0.1", "192.0.2.8", "172.16.0.1", "8.8.8.8", "1.0.0.0"] {
            assert!(to(beyond), "{beyond}");
        }
        for never in [
            "127.0.0.1",
            "127.255.255.254",
            "0.0.0.0",
            "0.1.2.3",
            "169.254.169.254",
            "224.0.0.1",
            "255.255.255.255",
            "192.0.2.7",
            "10.212.255.0",
            "10.212.255.2",
        ] {
            assert!(!to(never), "{never}");
        }
    }

    #[test]
    fn the_gateway_is_asked_for_names_and_for_nothing_else() {
        let gateway =
            |protocol, port| passes(&frame(IPV4, ADDRESS, &GATEWAY.to_string(), protocol, port));
        assert!(gateway(17, 53) && gateway(6, 53));
        assert!(!gateway(17, 54) && !gateway(6, 80) && !gateway(1, 53));
        // Options stand between the addresses and the ports.
        let mut with_options = frame(IPV4, ADDRESS, &GATEWAY.to_string(), 17, 53);
        with_options[ETHERNET] = 0x46;
        assert!(!passes(&with_options));
        with_options.splice(34..34, [0, 0, 0, 0]);
        assert!(passes(&with_options));
    }

    #[test]
    fn a_guest_sends_ipv4_under_its_own_address_and_arp() {
        assert!(!passes(&frame(IPV4, OWN, "203.0.113.1", 6, 80)), "another's address");
        assert!(passes(&frame(ARP, ADDRESS, "203.0.113.1", 6, 80)));
        assert!(!passes(&frame([0x86, 0xdd], ADDRESS, "203.0.113.1", 6, 80)), "IPv6");
        assert!(!passes(&frame([0x81, 0x00], ADDRESS, "203.0.113.1", 6, 80)), "a VLAN");
        let whole = frame(IPV4, ADDRESS, "203.0.113.1", 6, 80);
        for length in 0..ETHERNET + 20 {
            assert!(!passes(&whole[..length]), "{length}");
        }
        for (at, value) in [(ETHERNET, 0x65), (ETHERNET, 0x44)] {
            let mut broken = whole.clone();
            broken[at] = value;
            assert!(!passes(&broken), "{value:x}");
        }
    }

    #[test]
    fn frames_pass_whole_and_one_after_a_dropped_one_too() {
        let [good, bad] = ["203.0.113.1", "127.0.0.1"].map(|to| {
            let frame = frame(IPV4, ADDRESS, to, 6, 80);
            [&u32::try_from(frame.len()).unwrap().to_be_bytes()[..], &frame].concat()
        });
        let sent = [&good[..], &bad, &good].concat();
        let mut got = Vec::new();
        assert!(pass(&sent[..], &mut got, |_| false).is_err(), "it ends with what is sent");
        assert_eq!(got, [&good[..], &good].concat());
        let mut got = Vec::new();
        let too_long = 65536_u32.to_be_bytes();
        let error = pass(&[&too_long[..], &good].concat()[..], &mut got, |_| false).unwrap_err();
        assert_eq!((error.kind(), got.len()), (ErrorKind::InvalidData, 0));
    }
}
