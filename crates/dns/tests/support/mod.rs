//! What the tests share: servers on loopback addresses and ports that were free, dig as the client that is not ours, and
//! packets put together by hand.
#![allow(dead_code, reason = "not every test uses all of it")]

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::process::Command;
use std::time::Duration;

use banger_dns::{Guests, Names, Sockets, Subnet, serve_authoritative, serve_guests};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// More than anything here takes, unless it hangs.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// Of the clients here, and of the machines that they are told of.
pub(crate) fn subnets() -> Vec<Subnet> {
    let subnet = |address, prefix| Subnet::new(address, prefix).unwrap();
    vec![subnet(Ipv4Addr::LOCALHOST, 8), subnet(Ipv4Addr::new(10, 213, 0, 1), 22)]
}

pub(crate) const WEB: Ipv4Addr = Ipv4Addr::new(10, 213, 0, 2);

pub(crate) fn names() -> Names {
    let names = Names::new("vm").unwrap();
    names.set_subnets(vec![Subnet::new(Ipv4Addr::new(10, 213, 0, 1), 22).unwrap()]);
    names.set("web", WEB).unwrap();
    names.set("db.prod", Ipv4Addr::new(10, 213, 1, 3)).unwrap();
    names
}

/// A server that runs until it is dropped or stopped.
pub(crate) struct Server {
    pub(crate) address: SocketAddrV4,
    pub(crate) names: Names,
    pub(crate) stop: CancellationToken,
    pub(crate) task: JoinHandle<std::io::Result<()>>,
}

impl Server {
    pub(crate) fn authoritative() -> Self {
        let sockets = Sockets::bind(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).unwrap();
        let (address, names, stop) = (sockets.address(), names(), CancellationToken::new());
        let task = tokio::spawn(serve_authoritative(sockets, names.clone(), stop.clone()));
        Self { address, names, stop, task }
    }

    /// On an address of its own, since that one is never asked.
    pub(crate) fn guests(settings: Guests) -> Self {
        let sockets = Sockets::bind("127.0.0.5:0".parse().unwrap()).unwrap();
        let (address, names, stop) = (sockets.address(), names(), CancellationToken::new());
        let task = tokio::spawn(serve_guests(sockets, names.clone(), settings, stop.clone()));
        Self { address, names, stop, task }
    }

    /// dig's output to `arguments`, in its sections' order, without comments on time and size.
    pub(crate) async fn dig(&self, arguments: &str) -> String {
        dig(self.address.into(), arguments).await
    }

    /// The answer's code and flags, and the records of the answer and of the authority section, each as `dig` writes it.
    pub(crate) async fn asked(&self, arguments: &str) -> String {
        let output = self.dig(&format!("+noall +comments +answer +authority {arguments}")).await;
        let mut lines = Vec::new();
        for line in output.lines() {
            if let Some(code) = line.split("status: ").nth(1) {
                lines.push(code.split(',').next().unwrap().to_owned());
            } else if let Some(flags) = line.strip_prefix(";; flags: ") {
                lines.push(flags.split(';').next().unwrap().to_owned());
            } else if !line.starts_with(';') && !line.is_empty() {
                lines.push(line.split_ascii_whitespace().collect::<Vec<_>>().join(" "));
            }
        }
        lines.join("\n")
    }
}

#[expect(clippy::disallowed_methods, reason = "dig is the client that is not ours")]
pub(crate) async fn dig(server: SocketAddr, arguments: &str) -> String {
    let mut command = Command::new("dig");
    command.env("LC_ALL", "C.UTF-8").env("HOME", "/nonexistent");
    command.args([&format!("@{}", server.ip()), "-p", &server.port().to_string()]);
    command.args(["+tries=1", "+time=8"]).args(arguments.split_ascii_whitespace());
    let run = tokio::task::spawn_blocking(move || command.output());
    let output = tokio::time::timeout(SOON, run).await.unwrap().unwrap().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// A query's octets: header, `questions` times the question for `name`'s address, and then `rest`.
pub(crate) struct Packet {
    pub(crate) id: u16,
    pub(crate) flags: u16,
    pub(crate) counts: [u16; 4],
    pub(crate) body: Vec<u8>,
}

impl Packet {
    /// A plain question, recursion desired.
    pub(crate) fn question(id: u16, name: &str, rtype: u16) -> Self {
        let mut body = wire(name);
        body.extend(rtype.to_be_bytes());
        body.extend([0, 1]);
        Self { id, flags: 0x0100, counts: [1, 0, 0, 0], body }
    }

    /// With an OPT record.
    pub(crate) fn edns(mut self, payload: u16, version: u8, options: &[u8]) -> Self {
        self.counts[3] += 1;
        self.body.extend([0, 0, 41]);
        self.body.extend(payload.to_be_bytes());
        self.body.extend([0, version, 0, 0]);
        self.body.extend(u16::try_from(options.len()).unwrap().to_be_bytes());
        self.body.extend(options);
        self
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.id.to_be_bytes());
        bytes.extend(self.flags.to_be_bytes());
        bytes.extend(self.counts.iter().flat_map(|count| count.to_be_bytes()));
        bytes.extend(&self.body);
        bytes
    }
}

pub(crate) fn wire(name: &str) -> Vec<u8> {
    let mut wire = Vec::new();
    for label in name.split('.').filter(|label| !label.is_empty()) {
        wire.push(u8::try_from(label.len()).unwrap());
        wire.extend(label.as_bytes());
    }
    wire.push(0);
    wire
}

pub(crate) fn id(packet: &[u8]) -> u16 {
    u16::from_be_bytes([packet[0], packet[1]])
}

/// The code in the header, without the OPT's half.
pub(crate) fn code(packet: &[u8]) -> u8 {
    packet[3] & 0xf
}

pub(crate) fn is_truncated(packet: &[u8]) -> bool {
    packet[2] & 2 != 0
}

/// The same numbers every time (xorshift64, Marsaglia 2003).
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % (end.max(1) as u64)).unwrap()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        u8::try_from(self.below(256)).unwrap()
    }
}
