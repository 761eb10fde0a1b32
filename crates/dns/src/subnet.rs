//! A range of IPv4 addresses, as `10.213.0.0/22`.

use std::fmt;
use std::net::Ipv4Addr;

/// An IPv4 subnet. The address may be any within it, such as the gateway's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    network: u32,
    prefix: u8,
}

/// There is no such subnet.
#[derive(Debug, thiserror::Error)]
#[error("a subnet's prefix is from 8 to 32, {prefix} is not")]
pub struct SubnetError {
    prefix: u8,
}

impl Subnet {
    /// # Errors
    /// When `prefix` is below 8, of which there is no private range, or above 32.
    pub fn new(address: Ipv4Addr, prefix: u8) -> Result<Self, SubnetError> {
        if !(8..=32).contains(&prefix) {
            return Err(SubnetError { prefix });
        }
        Ok(Self { network: address.to_bits() & mask(prefix), prefix })
    }

    #[must_use]
    pub fn contains(self, address: Ipv4Addr) -> bool {
        address.to_bits() & mask(self.prefix) == self.network
    }

    /// How many of an address's octets are in the names of its reverse zones: zones are cut between octets (RFC 1035,
    /// 3.5), so a /22 has four.
    pub(crate) fn zone_octets(self) -> usize {
        usize::from(self.prefix.div_ceil(8))
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX << (32 - u32::from(prefix))
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from_bits(self.network), self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subnet_ends_where_its_prefix_says() {
        let subnet = Subnet::new(Ipv4Addr::new(10, 213, 5, 1), 22).unwrap();
        assert_eq!(subnet.to_string(), "10.213.4.0/22");
        assert!(subnet.contains(Ipv4Addr::new(10, 213, 7, 255)));
        assert!(!subnet.contains(Ipv4Addr::new(10, 213, 8, 0)));
        assert_eq!(subnet.zone_octets(), 3);
    }

    #[test]
    fn a_prefix_that_is_none_is_refused() {
        assert!(Subnet::new(Ipv4Addr::LOCALHOST, 33).is_err());
        assert!(Subnet::new(Ipv4Addr::LOCALHOST, 0).is_err());
        assert!(Subnet::new(Ipv4Addr::LOCALHOST, 32).unwrap().contains(Ipv4Addr::LOCALHOST));
    }
}
