//! A user-mode network as a guest that makes its own frames meets it: the real passt behind the fence, in a network of this test's.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use crate::command::tests::shell;
use crate::root::{in_own_network, test_mark};
use crate::user_network::{ADDRESS, GATEWAY, start_passt};
use crate::{fence, socket};

/// How long what comes may take; what does not come is waited for as long as what is sent after it.
const PATIENCE: Duration = Duration::from_secs(20);

struct Guest {
    network: UnixStream,
    gateway_mac: [u8; 6],
}

impl Guest {
    fn new() -> Self {
        let (inside, outside) = UnixStream::pair().unwrap();
        start_passt(&test_mark(), outside).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::from(socket::listen(folder.path(), "n").unwrap());
        let network = socket::connect(folder.path(), "n").unwrap();
        drop(std::thread::spawn(move || fence::run(&listener, inside)));
        network.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut guest = Self { network, gateway_mac: [0xff; 6] };
        // RFC 826: who has the gateway's address?
        let mut question = vec![0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1];
        question.extend(ADDRESS.octets());
        question.extend([0; 6]);
        question.extend(GATEWAY.octets());
        guest.send([8, 6], &question);
        let answer = guest.receive();
        assert_eq!(&answer[12..14], [8, 6], "{answer:?}");
        guest.gateway_mac.copy_from_slice(&answer[6..12]);
        guest
    }

    fn send(&mut self, kind: [u8; 2], body: &[u8]) {
        let frame = [&self.gateway_mac[..], &[2, 0, 0, 0, 0, 1], &kind, body].concat();
        let length = u32::try_from(frame.len()).unwrap().to_be_bytes();
        self.network.write_all(&[&length[..], &frame].concat()).unwrap();
    }

    fn receive(&mut self) -> Vec<u8> {
        let mut length = [0; 4];
        self.network.read_exact(&mut length).unwrap();
        let mut frame = vec![0; usize::try_from(u32::from_be_bytes(length)).unwrap()];
        self.network.read_exact(&mut frame).unwrap();
        frame
    }

    /// One datagram (RFC 768) with these bytes.
    fn say(&mut self, to: Ipv4Addr, port: u16, text: &[u8]) {
        let length = u16::try_from(20 + 8 + text.len()).unwrap();
        let mut packet = vec![0x45, 0];
        packet.extend(length.to_be_bytes());
        packet.extend([0, 1, 0, 0, 64, 17, 0, 0]);
        packet.extend(ADDRESS.octets());
        packet.extend(to.octets());
        // The header's checksum (RFC 1071).
        let words = packet.chunks(2).map(|two| u32::from(u16::from_be_bytes([two[0], two[1]])));
        let sum: u32 = words.sum();
        let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        packet.extend(4000_u16.to_be_bytes());
        packet.extend(port.to_be_bytes());
        packet.extend((length - 20).to_be_bytes());
        packet.extend([0, 0]);
        packet.extend(text);
        self.send([8, 0], &packet);
    }
}

/// Somebody on this host who hears everything that is sent to the port, and what was heard.
struct Host(UdpSocket);

impl Host {
    fn new() -> (Self, u16) {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let port = socket.local_addr().unwrap().port();
        (Self(socket), port)
    }

    fn hears(&self) -> String {
        let mut heard = [0; 64];
        let (length, _) = self.0.recv_from(&mut heard).unwrap();
        String::from_utf8_lossy(&heard[..length]).into_owned()
    }
}

/// Beyond this host for whoever only knows its addresses: what is sent there comes here nevertheless.
const BEYOND: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const OWN: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);

fn configure(line: &str) {
    let line = format!("ip link set lo up; {line}");
    assert!(shell(&line, std::process::Stdio::null()).wait().unwrap().success());
}

fn prepare() {
    configure(&format!(
        "ip address add {OWN}/24 dev lo; ip route add local 198.51.100.0/24 dev lo; ip route add local 169.254.169.254 dev lo"
    ));
}

#[test]
fn a_guest_that_makes_its_own_packets_reaches_nothing_of_this_host() {
    in_own_network(|| {
        prepare();
        let (host, port) = Host::new();
        let mut guest = Guest::new();
        for to in [
            Ipv4Addr::LOCALHOST,
            Ipv4Addr::UNSPECIFIED,
            Ipv4Addr::new(127, 1, 2, 3),
            Ipv4Addr::new(169, 254, 169, 254),
            OWN,
            GATEWAY,
        ] {
            guest.say(to, port, to.to_string().as_bytes());
        }
        guest.say(BEYOND, port, b"beyond");
        assert_eq!(host.hears(), "beyond", "the first that comes");
    });
}

#[test]
fn an_address_that_this_host_gets_later_is_its_own_too() {
    in_own_network(|| {
        prepare();
        let (host, port) = Host::new();
        let mut guest = Guest::new();
        guest.say(BEYOND, port, b"beyond");
        assert_eq!(host.hears(), "beyond");
        configure(&format!("ip address add {BEYOND}/32 dev lo"));
        // The kernel tells the fence at some time from now on: until then more comes.
        let other = Ipv4Addr::new(198, 51, 100, 8);
        loop {
            guest.say(BEYOND, port, b"own");
            guest.say(other, port, b"other");
            if host.hears() == "other" {
                break;
            }
            assert_eq!(host.hears(), "other");
        }
    });
}

#[test]
fn passt_ends_with_its_connection_and_the_fence_with_either() {
    in_own_network(|| {
        prepare();
        let mut guest = Guest::new();
        guest.network.write_all(&[0xff; 4]).unwrap();
        let ended = guest.network.read(&mut [0; 64]);
        assert!(
            matches!(&ended, Ok(0)) || ended.is_err_and(|e| e.kind() == ErrorKind::ConnectionReset),
            "what is no frame ends it"
        );
    });
}
