//! What a guest is told of its network, as one word of the kernel's command line: the VMM's plan writes it, the guest's
//! agent reads it.
//!
//! ```text
//! banger.net=10.213.0.2/22,10.213.0.1,1500       address and length of the prefix, gateway, MTU
//! banger.net=10.213.0.2/22,10.213.0.1,1500,lab   and what names of VMs end with, unless it is `vm`
//! ```

use std::fmt;
use std::net::Ipv4Addr;

use crate::Zone;

/// The word's name.
pub const WORD: &str = "banger.net";

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
}

/// A value that is no network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{WORD}={0} is not ADDRESS/PREFIX,GATEWAY,MTU[,ZONE] with two addresses of one subnet, a prefix of 1 to {LONGEST_PREFIX} bits \
     and an MTU of {LEAST_MTU} or more"
)]
pub struct NoGuestNet(pub String);

impl GuestNet {
    /// Reads the value behind `banger.net=`.
    ///
    /// # Errors
    /// When it says no network that works.
    pub fn parse(value: &str) -> Result<Self, NoGuestNet> {
        Self::read(value).ok_or_else(|| NoGuestNet(value.to_owned()))
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

/// The whole word, with its name.
impl fmt::Display for GuestNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{WORD}={}/{},{},{}", self.address, self.prefix, self.gateway, self.mtu)?;
        if self.zone == Zone::default() { Ok(()) } else { write!(f, ",{}", self.zone) }
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
