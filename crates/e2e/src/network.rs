//! A network of a test's own: a namespace with nothing but loopback, in which the test's thread and all that it starts are.
//! What banger makes of bridges, addresses and rules meets neither the host's nor another test's.

use std::fs::File;
use std::io::Write;
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::sync::OnceLock;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::programs::{new, run};

/// The namespace that this program was started in.
fn hosts() -> &'static File {
    static HOSTS: OnceLock<File> = OnceLock::new();
    HOSTS.get_or_init(|| File::open("/proc/self/ns/net").unwrap())
}

/// Moves this thread back to where the program was started.
pub(crate) fn leave() {
    enter_namespace(hosts());
}

/// Moves this thread into a new network, which goes with the last process in it. For root.
pub(crate) fn enter_own() {
    leave();
    let name = format!("banger-e2e-{}", banger_api::ids::random_text(8).unwrap());
    run("ip", &["netns", "add", &name]);
    run("ip", &["-netns", &name, "link", "set", "lo", "up"]);
    let namespace = File::open(format!("/run/netns/{name}")).unwrap();
    enter_namespace(&namespace);
    run("ip", &["netns", "delete", &name]);
}

fn enter_namespace(namespace: &File) {
    if rustix::process::geteuid().is_root() {
        let kind = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(namespace.as_fd(), kind).unwrap();
    }
}

/// A machine beyond the host, which knows no way to any VM: 203.0.113.1 (RFC 5737) at the other end of a cable.
#[derive(Debug)]
pub struct Outside {
    name: String,
}

impl Outside {
    /// Where it serves.
    pub const ADDRESS: &str = "203.0.113.1";
    /// The host's address at this end.
    pub const HOST: &str = "203.0.113.2";

    /// The same of IPv6, of which there is none before [`Self::connect_ipv6`].
    pub const ADDRESS_6: &str = "2001:db8:6::1";
    pub const HOST_6: &str = "2001:db8:6::2";

    /// Connects it to this thread's network.
    #[must_use]
    pub fn connect() -> Self {
        let name = format!("banger-e2e-{}", banger_api::ids::random_text(8).unwrap());
        run("ip", &["netns", "add", &name]);
        run(
            "ip",
            &["link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", &name],
        );
        run("ip", &["address", "add", &format!("{}/24", Self::HOST), "dev", "cable"]);
        run("ip", &["link", "set", "cable", "up"]);
        let there = ["-netns", &name];
        let address = format!("{}/24", Self::ADDRESS);
        run("ip", &[&there[..], &["address", "add", &address, "dev", "cable"]].concat());
        run("ip", &[&there[..], &["link", "set", "cable", "up"]].concat());
        Self { name }
    }

    /// Gives both ends IPv6, and the host a default route by it that leads there.
    pub fn connect_ipv6(&self) {
        let add = |address: &str| {
            ["-6", "address", "add", address, "dev", "cable", "nodad"].map(str::to_owned)
        };
        let run_ip = |words: &[String]| {
            run("ip", &words.iter().map(String::as_str).collect::<Vec<_>>());
        };
        let there = ["-netns".to_owned(), self.name.clone()];
        run_ip(&add(&format!("{}/64", Self::HOST_6)));
        run_ip(&[&there[..], &add(&format!("{}/64", Self::ADDRESS_6))].concat());
        run("ip", &["-6", "route", "add", "default", "via", Self::ADDRESS_6, "dev", "cable"]);
    }

    /// Takes the default route of [`Self::connect_ipv6`] away.
    pub fn lose_ipv6(&self) {
        run("ip", &["-6", "route", "delete", "default", "dev", "cable"]);
    }

    /// A server there that tells each of its first `clients` who it is, by its address. Gives its port.
    #[must_use]
    pub fn serve(&self, clients: usize) -> u16 {
        self.serve_at(Self::ADDRESS, clients)
    }

    /// Another address of that machine.
    pub fn add_address(&self, address: &str) {
        run(
            "ip",
            &["-netns", &self.name, "address", "add", &format!("{address}/24"), "dev", "cable"],
        );
    }

    /// As [`Self::serve`], at one of its addresses.
    #[must_use]
    pub fn serve_at(&self, address: &'static str, clients: usize) -> u16 {
        let listener = self.inside(move || TcpListener::bind((address, 0)).unwrap());
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for client in listener.incoming().take(clients) {
                let mut client = client.unwrap();
                let address = client.peer_addr().unwrap().ip();
                // Whoever has gone needs no answer.
                drop(writeln!(client, "{address}"));
            }
        });
        port
    }

    /// A nameserver there, for as long as the test program runs: every name that ends with `.example` has the address that its
    /// first label says, as `203-0-113-7.example` and `2001-db8-6--1.example` do, for a minute.
    pub fn answer_names(&self) {
        let socket = self.inside(|| UdpSocket::bind((Self::ADDRESS, 53)).unwrap());
        std::thread::spawn(move || {
            let mut packet = [0; 1232];
            while let Ok((length, client)) = socket.recv_from(&mut packet) {
                // Whoever has gone needs no answer.
                drop(socket.send_to(&named(&packet[..length]), client));
            }
        });
    }

    fn inside<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let namespace = File::open(format!("/run/netns/{}", self.name)).unwrap();
        let worker = std::thread::spawn(move || {
            enter_namespace(&namespace);
            work()
        });
        worker.join().unwrap()
    }

    /// Takes the cable away.
    pub fn disconnect(self) {
        run("ip", &["link", "delete", "cable"]);
        run("ip", &["netns", "delete", &self.name]);
    }
}

/// The answer to a query for the address of such a name (RFC 1035, 4.1), and NXDOMAIN to all else.
fn named(query: &[u8]) -> Vec<u8> {
    const HEADER: usize = 12;
    let first = usize::from(query[HEADER]);
    let label = String::from_utf8_lossy(&query[HEADER + 1..][..first]);
    let name = query[HEADER..].iter().position(|&byte| byte == 0).unwrap();
    let end = HEADER + name + 5;
    let mut answer = query[..end].to_vec();
    let ipv4 = label.replace('-', ".").parse::<Ipv4Addr>().map(|it| it.octets().to_vec());
    let ipv6 = label.replace('-', ":").parse::<Ipv6Addr>().map(|it| it.octets().to_vec());
    let address = match query[end - 3] {
        1 => ipv4.ok(),
        28 => ipv6.ok(),
        _ => None,
    };
    let (code, count) = if address.is_some() { (0x80, 1) } else { (0x83, 0) };
    answer[2..HEADER].copy_from_slice(&[0x81, code, 0, 1, 0, count, 0, 0, 0, 0]);
    if let Some(address) = address {
        let length = u8::try_from(address.len()).unwrap();
        answer.extend([0xc0, 12, 0, query[end - 3], 0, 1, 0, 0, 0, 60, 0, length]);
        answer.extend(address);
    }
    answer
}

/// What a network consists of, as the programs that administer it say it. Counters and times are left out.
#[must_use]
pub(crate) fn state() -> String {
    // What cannot be read is no setting of this kernel's, or a secret.
    let ipv6 = "cd /proc/sys/net/ipv6/conf && grep -rs . all default lo | sort";
    let commands: [&[&str]; 6] = [
        &["ip", "-details", "link"],
        &["ip", "address"],
        &["ip", "route", "show", "table", "all"],
        &["nft", "list", "ruleset"],
        &["sysctl", "net.ipv4.ip_forward"],
        &["sh", "-c", ipv6],
    ];
    commands
        .iter()
        .map(|words| {
            let output = new(words[0]).args(&words[1..]).output().unwrap();
            assert!(output.status.success(), "{words:?}: {output:?}");
            format!("{words:?}\n{}", String::from_utf8_lossy(&output.stdout))
        })
        .collect()
}
