//! Networks and addresses: what a claim says of them, and the arithmetic of subnets. Pure.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use banger_api::ids::ID_ALPHABET;
use serde::{Deserialize, Serialize};

use crate::mark::{Installation, Mark};

/// How many networks an installation has at most: their numbers are below it.
pub const MOST_NETWORKS: u8 = 64;

/// One network of an installation: a bridge, on which the host has the gateway's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// Part of the bridge's name.
    pub number: u8,
    /// The host's address in it.
    pub gateway: Ipv4Addr,
    /// The length of the subnet's prefix in bits.
    pub prefix: u8,
    /// The longest packet on it, in bytes, without the Ethernet header.
    pub mtu: u16,
    /// Whether its guests reach each other. A helper or a ledger of before there was a choice knows only networks where they
    /// do not, and nothing of this field.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub peers: bool,
    /// Its IPv6 prefix, 64 bits of an address whose others are 0. Absent where the host has no IPv6, and in what a helper or a
    /// ledger knows of before there was any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<Ipv6Addr>,
}

/// The length of every IPv6 prefix of a network, in bits.
pub const IPV6_PREFIX: u8 = 64;

/// The prefix of the network of this number below an installation's 40 random bits (RFC 4193, 3.1: a unique local address is of
/// nobody's in the world).
#[must_use]
pub fn unique_local_prefix(global_id: [u8; 5], number: u8) -> Ipv6Addr {
    let mut octets = [0; 16];
    octets[0] = 0xfd;
    octets[1..6].copy_from_slice(&global_id);
    octets[7] = number;
    octets.into()
}

/// The address that whoever has this IPv4 address has below an IPv6 prefix: that is its last 32 bits.
#[must_use]
pub fn ipv6_below(prefix: Ipv6Addr, address: Ipv4Addr) -> Ipv6Addr {
    Ipv6Addr::from_bits(prefix.to_bits() | u128::from(address.to_bits()))
}

impl Network {
    /// The name of its bridge on the host: at most 13 characters, so that it fits a network device.
    #[must_use]
    pub fn bridge(&self, installation: &Installation) -> String {
        bridge_name(installation, self.number)
    }

    /// The lowest address: the subnet's own.
    #[must_use]
    pub fn first(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.gateway.to_bits() & mask(self.prefix))
    }

    /// The highest address: the subnet's broadcasts go there.
    #[must_use]
    pub fn last(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.gateway.to_bits() | !mask(self.prefix))
    }

    /// Whether an address belongs to the subnet.
    #[must_use]
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        (self.first()..=self.last()).contains(&address)
    }

    /// Whether a VM can have this address: inside, and neither the subnet's two own nor the gateway's.
    #[must_use]
    pub fn is_for_a_vm(&self, address: Ipv4Addr) -> bool {
        self.contains(address) && ![self.first(), self.last(), self.gateway].contains(&address)
    }

    /// The host's IPv6 address in it, where there is IPv6: the prefix's `::1`.
    #[must_use]
    pub fn ipv6_gateway(&self) -> Option<Ipv6Addr> {
        Some(ipv6_below(self.ipv6?, Ipv4Addr::new(0, 0, 0, 1)))
    }

    /// The IPv6 address of the VM that has this one, where there is IPv6.
    #[must_use]
    pub fn ipv6_of(&self, address: Ipv4Addr) -> Option<Ipv6Addr> {
        Some(ipv6_below(self.ipv6?, address))
    }

    /// Whether one of the two subnets contains the other.
    #[must_use]
    pub fn overlaps(&self, address: Ipv4Addr, prefix: u8) -> bool {
        let common = mask(self.prefix.min(prefix));
        self.gateway.to_bits() & common == address.to_bits() & common
    }

    /// Whether the whole subnet is in another.
    #[must_use]
    pub fn is_within(&self, address: Ipv4Addr, prefix: u8) -> bool {
        prefix <= self.prefix && self.overlaps(address, prefix)
    }

    /// As `10.213.0.0/22`.
    #[must_use]
    pub fn subnet(&self) -> String {
        format!("{}/{}", self.first(), self.prefix)
    }
}

/// The bits of an address that its subnet fixes.
fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32_u32.saturating_sub(prefix.into())).unwrap_or(0)
}

/// The name of a bridge of this installation.
pub(crate) fn bridge_name(installation: &Installation, number: u8) -> String {
    format!("bg{installation}-net{number}")
}

/// The number of a bridge of this installation, from its name.
pub(crate) fn bridge_number(installation: &Installation, name: &str) -> Option<u8> {
    let number = name.strip_prefix(&format!("bg{installation}-net"))?.parse().ok()?;
    // No other spelling of a number is a name of ours.
    (bridge_name(installation, number) == name).then_some(number)
}

/// The hardware address of a network device: unicast and locally administered (IEEE 802c).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac([u8; 6]);

/// In the first byte: nobody bought it, and a device of our own making may choose it.
const LOCAL: u8 = 0b10;
/// In the first byte, too: it is a bridge's and no VM's.
const BRIDGE: u8 = 0b100;

impl Mac {
    /// The address of a VM's device. No two VMs of an installation have the same: 5 bytes are the 40 bits of the id.
    #[must_use]
    pub fn of(mark: &Mark) -> Self {
        Self::new(mark.installation(), 0, bits(mark.vm().as_str()))
    }

    /// The address of a bridge, which stays when its ports change: guests remember it.
    #[must_use]
    pub fn of_bridge(installation: &Installation, number: u8) -> Self {
        let own = bits(&installation.to_string()) << 8 | u64::from(number);
        Self::new(installation, BRIDGE, own)
    }

    fn new(installation: &Installation, kind: u8, own: u64) -> Self {
        // Four letters of 5 bits each become the 5 bits that are left: devices of two installations mostly differ.
        let letters = bits(&installation.to_string());
        let folded = (letters ^ letters >> 5 ^ letters >> 10 ^ letters >> 15) & 0b1_1111;
        let [.., a, b, c, d, e] = own.to_be_bytes();
        let [.., folded] = folded.to_be_bytes();
        Self([folded << 3 | kind | LOCAL, a, b, c, d, e])
    }

    #[must_use]
    pub fn bytes(&self) -> [u8; 6] {
        self.0
    }

    /// Six pairs of lower-case hexadecimal digits; `None` for anything else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            *byte = u8::from_str_radix(parts.next()?, 16).ok()?;
        }
        let mac = Self(bytes);
        (mac.to_string() == text).then_some(mac)
    }
}

/// The number that letters of the id alphabet are, 5 bits each.
fn bits(text: &str) -> u64 {
    text.bytes().fold(0, |number, byte| {
        let digit = ID_ALPHABET.iter().position(|&known| known == byte).unwrap_or_default();
        number << 5 | digit as u64
    })
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl TryFrom<String> for Mac {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text).ok_or_else(|| format!("{text:?} is no hardware address"))
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> String {
        mac.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(gateway: &str, prefix: u8) -> Network {
        Network {
            number: 0,
            gateway: gateway.parse().unwrap(),
            prefix,
            mtu: 1500,
            peers: false,
            ipv6: None,
        }
    }

    fn address(text: &str) -> Ipv4Addr {
        text.parse().unwrap()
    }

    #[test]
    fn a_subnet_has_a_first_and_a_last_address_that_no_vm_has() {
        let network = network("10.213.4.1", 22);
        assert_eq!(network.subnet(), "10.213.4.0/22");
        assert_eq!(network.last(), address("10.213.7.255"));
        for vm in ["10.213.4.2", "10.213.5.0", "10.213.7.254"] {
            assert!(network.is_for_a_vm(address(vm)), "{vm}");
        }
        for other in ["10.213.4.0", "10.213.4.1", "10.213.7.255", "10.213.3.255", "10.213.8.0"] {
            assert!(!network.is_for_a_vm(address(other)), "{other}");
        }
    }

    #[test]
    fn prefixes_at_both_ends_are_no_arithmetic_errors() {
        assert_eq!(network("10.0.0.1", 32).subnet(), "10.0.0.1/32");
        assert_eq!(network("10.0.0.1", 0).subnet(), "0.0.0.0/0");
        assert_eq!(network("10.0.0.1", 0).last(), Ipv4Addr::BROADCAST);
        assert_eq!(network("10.0.0.1", 255).subnet(), "10.0.0.1/255");
    }

    #[test]
    fn subnets_overlap_when_one_is_in_the_other() {
        let network = network("10.213.4.1", 22);
        for (other, prefix) in
            [("10.213.4.0", 22), ("10.213.0.0", 16), ("10.213.7.9", 32), ("0.0.0.0", 0)]
        {
            assert!(network.overlaps(address(other), prefix), "{other}/{prefix}");
        }
        for (other, prefix) in [("10.213.0.0", 22), ("10.213.8.0", 32), ("192.168.0.0", 16)] {
            assert!(!network.overlaps(address(other), prefix), "{other}/{prefix}");
        }
        assert!(network.is_within(address("10.0.0.0"), 8));
        assert!(!network.is_within(address("10.213.4.0"), 23));
        assert!(!network.is_within(address("192.168.0.0"), 16));
    }

    #[test]
    fn a_network_of_before_peers_is_one_without_them_and_is_written_as_it_was() {
        let old = r#"{"number":0,"gateway":"10.213.4.1","prefix":22,"mtu":1500}"#;
        let read: Network = serde_json::from_str(old).unwrap();
        assert_eq!(read, network("10.213.4.1", 22));
        assert_eq!(serde_json::to_string(&read).unwrap(), old);
        let with = Network { peers: true, ..read };
        let text = serde_json::to_string(&with).unwrap();
        assert_eq!(serde_json::from_str::<Network>(&text).unwrap(), with);
    }

    #[test]
    fn a_vms_ipv6_address_is_its_ipv4_address_below_the_networks_prefix() {
        let prefix = unique_local_prefix([0x12, 0x34, 0x56, 0x78, 0x9a], 7);
        assert_eq!(prefix.to_string(), "fd12:3456:789a:7::");
        let with = Network { ipv6: Some(prefix), ..network("10.213.4.1", 22) };
        assert_eq!(with.ipv6_gateway().unwrap().to_string(), "fd12:3456:789a:7::1");
        let vms = with.ipv6_of(address("10.213.4.2")).unwrap();
        assert_eq!(vms.to_string(), "fd12:3456:789a:7::ad5:402");
        assert_eq!(network("10.213.4.1", 22).ipv6_of(address("10.213.4.2")), None);
        let text = serde_json::to_string(&with).unwrap();
        assert_eq!(serde_json::from_str::<Network>(&text).unwrap(), with);
    }

    #[test]
    fn a_bridges_number_is_in_its_name_in_one_spelling() {
        let installation = Installation::parse("0000").unwrap();
        for number in [0, 7, 255] {
            let name = bridge_name(&installation, number);
            assert!(name.len() <= 15);
            assert_eq!(bridge_number(&installation, &name), Some(number));
        }
        for name in ["bg0000-net", "bg0000-net00", "bg0000-net+1", "bg0000-net256", "bg1111-net0"] {
            assert_eq!(bridge_number(&installation, name), None, "{name}");
        }
    }

    #[test]
    fn a_hardware_address_is_the_vms_own_and_always_the_same() {
        let of = |mark: &str| Mac::of(&Mark::parse(mark).unwrap());
        assert_eq!(of("bg0000-00000000").to_string(), "02:00:00:00:00:00");
        assert_eq!(of("bg0001-0000000z").to_string(), "0a:00:00:00:00:1f");
        assert_eq!(of("bg0000-zzzzzzzz").to_string(), "02:ff:ff:ff:ff:ff");
        let installation = Installation::parse("000z").unwrap();
        assert_eq!(Mac::of_bridge(&installation, 3).to_string(), "fe:00:00:00:1f:03");
    }

    #[test]
    fn hardware_addresses_are_unicast_and_local_and_come_back_from_their_text() {
        for _some in 0..100 {
            let installation = Installation::random().unwrap();
            let vm = banger_api::VmId::random().unwrap();
            let bridge = Mac::of_bridge(&installation, 0);
            let mac = Mac::of(&Mark::new(installation, vm));
            assert_eq!((mac.bytes()[0] & 0b111, bridge.bytes()[0] & 0b111), (0b010, 0b110));
            assert_eq!(Mac::parse(&mac.to_string()), Some(mac));
        }
        for text in
            ["", "02:00:00:00:00", "02:00:00:00:00:00:00", "2:0:0:0:0:0", "02:00:00:00:00:0A"]
        {
            assert_eq!(Mac::parse(text), None, "{text}");
        }
    }
}
