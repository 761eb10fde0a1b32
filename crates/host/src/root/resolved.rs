//! systemd-resolved, where it runs, is told who knows the names of VMs: for their zone, and for nothing else, it asks
//! us by way of a network's bridge. It is a setting of the bridge, kept by resolved over its own restarts and forgotten when
//! the bridge goes (`link_save_user`, `link_remove_user` of systemd's src/resolve/resolved-link.c); so there is nothing to
//! undo. Told by resolvectl(1).

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::net::UnixStream;
use std::path::Path;

use banger_api::Zone;
use rustix::net::sockopt::socket_peercred;
use serde::{Deserialize, Serialize};

use super::netlink::{self, Link};
use super::{DNS_PORT, trusted_program};
use crate::command;
use crate::error::{HostError, chain};
use crate::mark::Installation;
use crate::network::bridge_name;

/// Whether the host's own programs get answers for the names of VMs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Routed {
    /// By systemd-resolved.
    Yes,
    /// systemd-resolved runs and has not been told.
    No,
    /// systemd-resolved does not run here.
    NoResolver,
    /// There is no such bridge, or not in the network of systemd-resolved: a number of ours would be another device there.
    NoBridge,
}

/// Where resolved listens. A socket that nobody listens on stays behind when it ends.
const SOCKET: &str = "/run/systemd/resolve/io.systemd.Resolve";

/// Looks, which needs no privilege.
///
/// # Errors
/// When resolvectl fails.
pub fn names_are_routed(
    installation: &Installation,
    number: u8,
    zone: &Zone,
) -> Result<Routed, HostError> {
    let bridge = bridge_name(installation, number);
    let look = || match there(Path::new(SOCKET), &bridge)? {
        Routed::No => {
            let said =
                command::run("resolvectl", &["domain", &bridge]).map_err(io::Error::other)?;
            let told = said.split_whitespace().any(|word| word == format!("~{zone}"));
            Ok(if told { Routed::Yes } else { Routed::No })
        }
        other => Ok(other),
    };
    look().map_err(|e: io::Error| HostError::new("ask systemd-resolved about names of VMs", e))
}

/// Tells it, again if it was told.
pub(super) fn route_names(
    installation: &Installation,
    number: u8,
    zone: &Zone,
) -> Result<Routed, HostError> {
    let bridge = bridge_name(installation, number);
    tell(Path::new(SOCKET), &bridge, zone)
        .map_err(|e| HostError::new("tell systemd-resolved about names of VMs", e))
}

fn tell(socket: &Path, bridge: &str, zone: &Zone) -> io::Result<Routed> {
    match there(socket, bridge)? {
        Routed::No => {}
        other => return Ok(other),
    }
    let program = program()?;
    let server = format!("127.0.0.1:{DNS_PORT}");
    let zone = format!("~{zone}");
    // The server last: until then it is asked for nothing.
    for (verb, value) in [
        ("domain", zone.as_str()),
        ("default-route", "no"),
        // Nor are guests asked for names of the host's network.
        ("llmnr", "no"),
        ("mdns", "no"),
        ("dns", &server),
    ] {
        command::run_with_input(&program, &[verb, bridge, value], b"")?;
    }
    Ok(Routed::Yes)
}

/// Whether resolved runs and sees the bridge: `No` if it does.
fn there(socket: &Path, bridge: &str) -> io::Result<Routed> {
    let connected = match UnixStream::connect(socket) {
        Ok(connected) => connected,
        Err(error)
            if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) =>
        {
            return Ok(Routed::NoResolver);
        }
        Err(error) => return Err(error),
    };
    let Some(link) = netlink::link(bridge)?.filter(Link::is_bridge) else {
        return Ok(Routed::NoBridge);
    };
    let resolved = socket_peercred(&connected)?.pid.as_raw_nonzero();
    // The devices with IPv4 of its network, which everybody may read (proc(5)).
    let devices = fs::read_to_string(format!("/proc/{resolved}/net/igmp"))?;
    Ok(if sees(&devices, link.index, bridge) { Routed::No } else { Routed::NoBridge })
}

/// A line of each begins with its number and its name; lines of its groups begin with a tab.
fn sees(devices: &str, index: u32, name: &str) -> bool {
    devices.lines().any(|line| {
        let mut words = line.split_whitespace();
        !line.starts_with('\t')
            && words.next() == Some(&index.to_string())
            && words.next().is_some_and(|word| word.trim_end_matches(':') == name)
    })
}

/// resolvectl, which only root may have put where it is.
fn program() -> io::Result<std::path::PathBuf> {
    let found = command::find("resolvectl").ok_or(ErrorKind::NotFound)?.canonicalize()?;
    trusted_program(&found).map_err(|error| io::Error::other(chain(&error)))?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::super::{bridge, in_own_network, test_mark};
    use super::*;
    use crate::network::Network;

    fn network() -> Network {
        Network {
            number: 0,
            gateway: [10, 213, 4, 1].into(),
            prefix: 22,
            mtu: 1500,
            peers: false,
            ipv6: None,
        }
    }

    #[test]
    fn a_resolver_that_does_not_run_or_lives_in_another_network_is_told_nothing() {
        in_own_network(|| {
            let folder = tempfile::tempdir().unwrap();
            let socket = folder.path().join("resolved");
            let mark = test_mark();
            let network = network();
            let name = network.bridge(mark.installation());
            assert_eq!(tell(&socket, &name, &Zone::default()).unwrap(), Routed::NoResolver);
            let listener = UnixListener::bind(&socket).unwrap();
            assert_eq!(tell(&socket, &name, &Zone::default()).unwrap(), Routed::NoBridge);
            // It is made in this thread's network; who listens is this process, whose network is that of its first thread.
            bridge::acquire(mark.installation(), &network).unwrap();
            assert_eq!(tell(&socket, &name, &Zone::default()).unwrap(), Routed::NoBridge);
            drop(listener);
            assert_eq!(tell(&socket, &name, &Zone::default()).unwrap(), Routed::NoResolver);
        });
    }

    #[test]
    fn a_device_is_seen_by_its_number_and_its_name() {
        let devices = "Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter\n\
                       1\tlo        :     1      V3\n\t\t\t\t010000E0     1 0:00000000\t\t0\n\
                       4\tbg0000-net0:     1      V3\n";
        assert!(sees(devices, 4, "bg0000-net0"));
        assert!(!sees(devices, 1, "bg0000-net0"));
        assert!(!sees(devices, 4, "bg0000-net1"));
    }

    #[test]
    fn this_network_shows_a_bridge_that_is_up() {
        in_own_network(|| {
            let mark = test_mark();
            let network = network();
            bridge::acquire(mark.installation(), &network).unwrap();
            let name = network.bridge(mark.installation());
            let index = netlink::link(&name).unwrap().unwrap().index;
            let devices = fs::read_to_string("/proc/thread-self/net/igmp").unwrap();
            assert!(sees(&devices, index, &name), "{devices}");
        });
    }
}
