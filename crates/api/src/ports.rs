//! Ports: which of a guest's are published on the host, which of them it listens on, and how they are written.
//!
//! ```text
//! 8080:80              127.0.0.1:8080 of the host leads to port 80 of the guest
//! 0.0.0.0:8080:80      from anywhere
//! [::1]:5353:53/udp    datagrams
//! 0:80                 a free port of the host, chosen when the VM is made
//! 8080                 the same port on both sides
//! ```

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Problem;

/// Ports of the host that may be exposed to one VM.
pub const MOST_EXPOSED: usize = 64;

/// What the streams to a guest's port are upgraded to: see the crate `banger-forward` for what they carry.
pub const UPGRADE: &str = "banger-port";

/// The query of `GET /v1/vms/VM/connect` (daemon) and `GET /v1/connect` (agent), which become a stream to that port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestPort {
    pub protocol: Protocol,
    pub port: u16,
}

impl GuestPort {
    /// The query of the URL, with its question mark.
    #[must_use]
    pub fn query(self) -> String {
        format!("?protocol={}&port={}", self.protocol, self.port)
    }

    /// Reads what [`GuestPort::query`] writes, without the question mark.
    #[must_use]
    pub fn of_query(query: &str) -> Option<Self> {
        let (protocol, port) = query.strip_prefix("protocol=")?.split_once("&port=")?;
        Some(Self { protocol: protocol.parse().ok()?, port: port.parse().ok()? })
    }
}

impl fmt::Display for GuestPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.port, self.protocol.suffix())
    }
}

#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    #[default]
    Tcp,
    Udp,
}

impl Protocol {
    /// What stands behind a port: nothing for TCP.
    #[must_use]
    pub fn suffix(self) -> &'static str {
        match self {
            Protocol::Tcp => "",
            Protocol::Udp => "/udp",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        })
    }
}

impl FromStr for Protocol {
    type Err = NoPort;

    fn from_str(text: &str) -> Result<Self, NoPort> {
        match text {
            "tcp" => Ok(Protocol::Tcp),
            "udp" => Ok(Protocol::Udp),
            _ => Err(NoPort("the protocol is tcp or udp")),
        }
    }
}

/// A port of the host's that leads to one of a guest's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublishedPort {
    /// Where the host listens.
    pub address: IpAddr,
    /// The host's port; 0 in a request for one that is free.
    pub host: u16,
    /// The guest's port.
    pub guest: u16,
    pub protocol: Protocol,
}

/// A text that is no port. It says the rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NoPort(&'static str);

/// A port is a number; 0 is one only where `least` is.
fn number(text: &str, least: u16) -> Result<u16, NoPort> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.parse().ok().filter(|number| digits && *number >= least);
    number.ok_or(NoPort(if least == 0 {
        "a port of the host is a number from 0 to 65535"
    } else {
        "a port is a number from 1 to 65535"
    }))
}

impl PublishedPort {
    /// Where the host listens.
    #[must_use]
    pub fn at(self) -> SocketAddr {
        SocketAddr::new(self.address, self.host)
    }

    /// Where it leads.
    #[must_use]
    pub fn to(self) -> GuestPort {
        GuestPort { protocol: self.protocol, port: self.guest }
    }

    /// Whether one of the two leaves no room for the other on one host.
    #[must_use]
    pub fn meets(self, other: Self) -> bool {
        let meet = self.address == other.address
            || self.address.is_unspecified()
            || other.address.is_unspecified();
        meet && self.host != 0 && self.host == other.host && self.protocol == other.protocol
    }

    /// `[ADDRESS:]HOST:GUEST[/udp]`, or one number for both.
    ///
    /// # Errors
    /// The rule that the text does not follow.
    pub fn parse(text: &str) -> Result<Self, NoPort> {
        let (ports, protocol) = match text.split_once('/') {
            Some((ports, protocol)) => (ports, protocol.parse()?),
            None => (text, Protocol::Tcp),
        };
        let (host, guest) = match ports.rsplit_once(':') {
            None => (ports, ports),
            Some(both) => both,
        };
        let (address, host) = match host.rsplit_once(':') {
            None => (Ipv4Addr::LOCALHOST.into(), host),
            Some((address, host)) => (address_of(address)?, host),
        };
        let guest = number(guest, 1)?;
        Ok(Self { address, host: number(host, 0)?, guest, protocol })
    }
}

/// An address of the host's; one of IPv6 in brackets.
fn address_of(text: &str) -> Result<IpAddr, NoPort> {
    let in_brackets = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    let address = match in_brackets {
        Some(text) => text.parse().ok().map(IpAddr::V6),
        None => text.parse().ok().map(IpAddr::V4),
    };
    address.ok_or(NoPort(
        "it is [ADDRESS:]HOST:GUEST, and an address is one of the host's: 127.0.0.1, 0.0.0.0, [::1]",
    ))
}

impl fmt::Display for PublishedPort {
    /// As [`PublishedPort::parse`] reads it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.at(), self.to())
    }
}

impl FromStr for PublishedPort {
    type Err = NoPort;

    fn from_str(text: &str) -> Result<Self, NoPort> {
        Self::parse(text)
    }
}

/// A port of the host's, by which a published one is taken back: `8080`, `5353/udp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostPort {
    pub port: u16,
    pub protocol: Protocol,
}

impl FromStr for HostPort {
    type Err = NoPort;

    fn from_str(text: &str) -> Result<Self, NoPort> {
        let (port, protocol) = match text.split_once('/') {
            Some((port, protocol)) => (port, protocol.parse()?),
            None => (text, Protocol::Tcp),
        };
        Ok(Self { port: number(port, 1)?, protocol })
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.port, self.protocol.suffix())
    }
}

/// GET /v1/vms/VM/ports of a VM that runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    /// What the guest listens on.
    pub listening: Vec<Listening>,
    /// What of it the host passes on.
    pub published: Vec<Published>,
}

/// A published port of a VM that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    pub port: PublishedPort,
    /// Why the host does not listen there, if it does not.
    pub problem: Option<Problem>,
}

/// A socket of the guest's that waits for somebody. Also GET /v1/ports of the agent: an array of these, without URLs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listening {
    pub protocol: Protocol,
    pub address: IpAddr,
    pub port: u16,
    /// The name of the program that has it; of several, the one that was started first.
    pub process: Option<String>,
    /// What it spoke when it was asked.
    pub speaks: Option<Scheme>,
    /// Where the host reaches it, as `web.vm:22` or `127.0.0.1:8080`; absent where it does not.
    pub reached_at: Option<String>,
    /// The same for a browser.
    pub url: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scheme {
    Http,
    Https,
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_published_port_is_written_as_it_is_read() {
        for (text, whole) in [
            ("8080:80", "127.0.0.1:8080:80"),
            ("8080", "127.0.0.1:8080:8080"),
            ("0:80", "127.0.0.1:0:80"),
            ("0.0.0.0:8080:80", "0.0.0.0:8080:80"),
            ("192.0.2.1:53:53/udp", "192.0.2.1:53:53/udp"),
            ("[::1]:8080:80/tcp", "[::1]:8080:80"),
        ] {
            let port = PublishedPort::parse(text).unwrap();
            assert_eq!(port.to_string(), whole);
            assert_eq!(PublishedPort::parse(whole).unwrap(), port);
        }
    }

    #[test]
    fn what_is_no_port_is_refused_with_the_rule() {
        for text in [
            "",
            ":",
            "80:",
            ":80",
            "0",
            "80:0",
            "65536:80",
            "-1:80",
            "+1:80",
            "80:80/sctp",
            "80/",
            "::1:80:80",
            "localhost:80:80",
            "1.2.3:80:80",
            "[127.0.0.1]:80:80",
            "1:2:3",
            "80:80:80",
            " 80:80",
            "80-81:80",
            "[::1]80:80",
        ] {
            let refused = PublishedPort::parse(text).map_err(|error| error.to_string());
            assert!(refused.is_err_and(|rule| !rule.is_empty()), "{text}");
        }
    }

    #[test]
    fn two_ports_meet_where_one_socket_would_be_in_the_way_of_the_other() {
        let meet = |one: &str, other: &str| {
            let [one, other] = [one, other].map(|text| PublishedPort::parse(text).unwrap());
            assert_eq!(one.meets(other), other.meets(one));
            one.meets(other)
        };
        assert!(meet("8080:80", "8080:81"));
        assert!(meet("0.0.0.0:8080:80", "8080:80"));
        assert!(!meet("127.0.0.2:8080:80", "8080:80"));
        assert!(!meet("8080:80/udp", "8080:80"));
        assert!(!meet("0:80", "0:80"), "two free ports are two");
    }

    #[test]
    fn a_guests_port_survives_the_url() {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let port = GuestPort { protocol, port: 65535 };
            assert_eq!(GuestPort::of_query(&port.query()[1..]), Some(port));
        }
        for query in
            ["", "port=80", "protocol=tcp&port=", "protocol=x&port=1", "protocol=tcp&port=65536"]
        {
            assert_eq!(GuestPort::of_query(query), None, "{query}");
        }
    }
}
