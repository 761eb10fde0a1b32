//! A network of a test's own: a namespace with nothing but loopback, in which the test's thread and all that it starts are.
//! What banger makes of bridges, addresses and rules meets neither the host's nor another test's.

use std::fs::File;
use std::io::Write;
use std::net::TcpListener;
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

    /// A server there that tells each of its first `clients` who it is, by its address. Gives its port.
    #[must_use]
    pub fn serve(&self, clients: usize) -> u16 {
        let namespace = File::open(format!("/run/netns/{}", self.name)).unwrap();
        let begun = std::thread::spawn(move || {
            enter_namespace(&namespace);
            TcpListener::bind((Self::ADDRESS, 0)).unwrap()
        });
        let listener = begun.join().unwrap();
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

    /// Takes the cable away.
    pub fn disconnect(self) {
        run("ip", &["link", "delete", "cable"]);
        run("ip", &["netns", "delete", &self.name]);
    }
}

/// What a network consists of, as the programs that administer it say it. Counters and times are left out.
#[must_use]
pub(crate) fn state() -> String {
    let commands: [&[&str]; 5] = [
        &["ip", "-details", "link"],
        &["ip", "address"],
        &["ip", "route", "show", "table", "all"],
        &["nft", "list", "ruleset"],
        &["sysctl", "net.ipv4.ip_forward"],
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
