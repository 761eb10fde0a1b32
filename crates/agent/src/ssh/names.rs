//! Addresses by name, as the guest's own programs find them. A static program cannot use the guest's name services itself
//! (nsswitch.conf(5)), so `getent` is asked where the image has it; `/etc/hosts` is read in any case.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use crate::spawn;

const GETENT: [&str; 2] = ["/usr/bin/getent", "/bin/getent"];

/// The addresses of `name`, in the order in which they are to be tried.
///
/// # Errors
/// When nobody knows it, or nobody can be asked.
pub(super) async fn find(name: &str) -> io::Result<Vec<IpAddr>> {
    if let Ok(address) = name.parse() {
        return Ok(vec![address]);
    }
    let hosts = std::fs::read("/etc/hosts").unwrap_or_default();
    let mut found = of_hosts(&String::from_utf8_lossy(&hosts), name);
    if found.is_empty() && name.eq_ignore_ascii_case("localhost") {
        found = vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    }
    if !found.is_empty() {
        return Ok(found);
    }
    let unknown = |why: &str| io::Error::new(io::ErrorKind::NotFound, format!("{name}: {why}"));
    // It becomes an argument.
    if name.is_empty() || name.starts_with('-') {
        return Err(unknown("that is no name"));
    }
    let Some(getent) = GETENT.into_iter().find(|path| Path::new(path).exists()) else {
        return Err(unknown("/etc/hosts has no such name, and the image has no getent to ask"));
    };
    let answer = spawn::output(getent, &["ahosts", name]).await?;
    match of_getent(&String::from_utf8_lossy(&answer)) {
        found if found.is_empty() => Err(unknown("no such name")),
        found => Ok(found),
    }
}

/// hosts(5): an address, then its names.
fn of_hosts(text: &str, name: &str) -> Vec<IpAddr> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default());
    let found = lines.filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let address = words.next()?.parse().ok()?;
        words.any(|word| word.eq_ignore_ascii_case(name)).then_some(address)
    });
    found.collect()
}

/// A line an address and a kind of socket: each address comes several times.
fn of_getent(text: &str) -> Vec<IpAddr> {
    let words = text.lines().filter_map(|line| line.split_ascii_whitespace().next());
    let mut found: Vec<IpAddr> = Vec::new();
    for address in words.filter_map(|word| word.parse().ok()) {
        if !found.contains(&address) {
            found.push(address);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_getent_are_read_as_they_are_written() {
        let hosts = "127.0.0.1 localhost\n10.213.0.2 web.vm web # banger\n#1.2.3.4 web\n::1 ip6-localhost\n";
        let addresses = |texts: &[&str]| -> Vec<IpAddr> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        assert_eq!(of_hosts(hosts, "WEB.vm"), addresses(&["10.213.0.2"]));
        assert_eq!(of_hosts(hosts, "banger"), addresses(&[]));
        let getent = "10.0.0.9       STREAM a.vm\n10.0.0.9       DGRAM\nfd00::9 STREAM\n";
        assert_eq!(of_getent(getent), addresses(&["10.0.0.9", "fd00::9"]));
    }
}
