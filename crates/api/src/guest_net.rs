//! What a guest is told of its network, as one word of the kernel's command line: the VMM's plan writes it, the guest's
//! agent reads it.
//!
//! ```text
//! banger.net=10.213.0.2/22,10.213.0.1,1500       address and length of the prefix, gateway, MTU
//! banger.net=10.213.0.2/22,10.213.0.1,1500,lab   and what names of VMs end with, unless it is `vm`
//! ```
//! and, on a host that has IPv6, by a second word, which agents of before there was any pass over:
//! ```text
//! banger.net6=fd12:3456:789a::ad5:2/128,fd12:3456:789a::1   address and length of the prefix, gateway
//! ```

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use crate::Zone;

/// The word's name.
pub const WORD: &str = "banger.net";

/// The second word's name.
pub const IPV6_WORD: &str = "banger.net6";

/// The least that IPv4 needs of a link, in bytes (RFC 791, section 3.2).
const LEAST_MTU: u16 = 68;
/// Longer prefixes leave no two addresses beside the subnet's own and its broadcast.
const LONGEST_PREFIX: u8 = 30;

/// A guest's network. The gateway is its DNS server, too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestNet {
    pub address: Ipv4Addr,
    /// The length of the subnet's prefix in bits.
    pub prefix: u8,
    /// The host's address in it.
    pub gateway: Ipv4Addr,
    /// The longest packet, in bytes, without the Ethernet header.
    pub mtu: u16,
    /// What the names of VMs end with, the guest's own too.
    pub zone: Zone,
    /// Absent where the host has no IPv6.
    pub ipv6: Option<GuestIpv6>,
}

/// What a guest has of IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestIpv6 {
    pub address: Ipv6Addr,
    /// How many bits of it others have that are reached without the gateway: all of them where nobody is.
    pub prefix: u8,
    /// The host's address.
    pub gateway: Ipv6Addr,
}

impl GuestIpv6 {
    /// Reads the value behind `banger.net6=`.
    ///
    /// # Errors
    /// When it says no two addresses.
    pub fn parse(value: &str) -> Result<Self, NoGuestNet> {
        let read = || {
            let (own, gateway) = value.split_once(',')?;
            let (address, prefix) = own.split_once('/')?;
            let read = Self {
                address: address.parse().ok()?,
                prefix: prefix.parse().ok()?,
                gateway: gateway.parse().ok()?,
            };
            ((1..=128).contains(&read.prefix) && read.address != read.gateway).then_some(read)
        };
        read().ok_or_else(|| NoGuestNet::Ipv6(value.to_owned()))
    }
}

/// A value that is no network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoGuestNet {
    #[error(
        "{WORD}={0} is not ADDRESS/PREFIX,GATEWAY,MTU[,ZONE] with two addresses of one subnet, a prefix of 1 to {LONGEST_PREFIX} bits \
         and an MTU of {LEAST_MTU} or more"
    )]
    Ipv4(String),
    #[error("{IPV6_WORD}={0} is not ADDRESS/PREFIX,GATEWAY with two IPv6 addresses")]
    Ipv6(String),
}

impl GuestNet {
    /// Reads the value behind `banger.net=`.
    ///
    /// # Errors
    /// When it says no network that works.
    pub fn parse(value: &str) -> Result<Self, NoGuestNet> {
        Self::read(value).ok_or_else(|| NoGuestNet::Ipv4(value.to_owned()))
    }

    fn read(value: &str) -> Option<Self> {
        let mut parts = value.split(',');
        let (address, prefix) = parts.next()?.split_once('/')?;
        let net = Self {
            address: address.parse().ok()?,
            prefix: prefix.parse().ok()?,
            gateway: parts.next()?.parse().ok()?,
            mtu: parts.next()?.parse().ok()?,
            zone: parts.next().map_or(Some(Zone::default()), |zone| Zone::parse(zone).ok())?,
            ipv6: None,
        };
        let works = (1..=LONGEST_PREFIX).contains(&net.prefix)
            && net.mtu >= LEAST_MTU
            && net.address != net.gateway
            && net.last(net.address) == net.last(net.gateway);
        (works && parts.next().is_none()).then_some(net)
    }

    /// The highest address of the subnet.
    #[must_use]
    pub fn broadcast(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.last(self.address))
    }

    /// The highest address of the subnet of this length that the address is in.
    fn last(&self, address: Ipv4Addr) -> u32 {
        address.to_bits() | u32::MAX.checked_shr(self.prefix.into()).unwrap_or(0)
    }
}

/// The whole word, with its name, and the second one.
impl fmt::Display for GuestNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{WORD}={}/{},{},{}", self.address, self.prefix, self.gateway, self.mtu)?;
        if self.zone != Zone::default() {
            write!(f, ",{}", self.zone)?;
        }
        let Some(GuestIpv6 { address, prefix, gateway }) = self.ipv6 else { return Ok(()) };
        write!(f, " {IPV6_WORD}={address}/{prefix},{gateway}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_comes_back_from_its_word() {
        let net = GuestNet {
            address: Ipv4Addr::new(10, 213, 1, 2),
            prefix: 22,
            gateway: Ipv4Addr::new(10, 213, 0, 1),
            mtu: 1500,
            zone: Zone::default(),
            ipv6: None,
        };
        let word = net.to_string();
        assert_eq!(word, "banger.net=10.213.1.2/22,10.213.0.1,1500");
        let (name, value) = word.split_once('=').unwrap();
        assert_eq!((name, GuestNet::parse(value)), (WORD, Ok(net.clone())));
        assert_eq!(net.broadcast(), Ipv4Addr::new(10, 213, 3, 255));
        let net = GuestNet { zone: Zone::parse("lab.example").unwrap(), ..net };
        let word = net.to_string();
        assert_eq!(word, "banger.net=10.213.1.2/22,10.213.0.1,1500,lab.example");
        assert_eq!(GuestNet::parse(word.split_once('=').unwrap().1), Ok(net));
    }

    #[test]
    fn what_it_has_of_ipv6_comes_back_from_the_second_word() {
        let net = GuestNet::parse("10.213.1.2/22,10.213.0.1,1500").unwrap();
        let value = "fd12:3456:789a::ad5:102/128,fd12:3456:789a::1";
        let with = GuestNet { ipv6: Some(GuestIpv6::parse(value).unwrap()), ..net };
        assert_eq!(
            with.to_string(),
            format!("banger.net=10.213.1.2/22,10.213.0.1,1500 banger.net6={value}")
        );
        for value in [
            "",
            "fd00::2,fd00::1",
            "fd00::2/0,fd00::1",
            "fd00::2/129,fd00::1",
            "fd00::1/64,fd00::1",
            "10.0.0.2/24,10.0.0.1",
            "fd00::2/64,fd00::1,1500",
        ] {
            let error = GuestIpv6::parse(value).unwrap_err().to_string();
            assert!(error.starts_with(&format!("banger.net6={value} is not ")), "{error}");
        }
    }

    #[test]
    fn what_is_no_network_is_refused_with_its_text() {
        for value in [
            "",
            "10.0.0.2,10.0.0.1,1500",
            "10.0.0.2/24,10.0.0.1",
            "10.0.0.2/24,10.0.0.1,1500,8.8.8.8",
            "10.0.0.2/24,10.0.0.1,1500,",
            "10.0.0.2/24,10.0.0.1,1500,vm,vm",
            "10.0.0.2/24,10.0.1.1,1500",
            "10.0.0.1/24,10.0.0.1,1500",
            "10.0.0.2/0,10.0.0.1,1500",
            "10.0.0.2/31,10.0.0.3,1500",
            "10.0.0.2/255,10.0.0.1,1500",
            "10.0.0.2/24,10.0.0.1,67",
            "10.0.0.2/24,10.0.0.1,65536",
            "fd00::2/64,fd00::1,1500",
        ] {
            let error = GuestNet::parse(value).unwrap_err().to_string();
            assert!(error.starts_with(&format!("banger.net={value} is not ")), "{error}");
        }
    }
}
