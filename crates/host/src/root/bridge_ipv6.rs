//! IPv6 of a bridge, where the host has IPv6: the gateway's address and one for neighbour discovery, both given and none of the
//! kernel's own making, and no router that it listens to.

use std::fs;
use std::io;
use std::net::Ipv6Addr;

use super::netlink::ipv6::Address;
use super::netlink::{self, Link};
use crate::error::HostError;
use crate::mark::Installation;
use crate::network::{IPV6_PREFIX, Network, bridge_name};

/// The kernel asks for neighbours under an address of this kind when what it sends on is somebody else's (`ndisc_solicit`).
const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// Routes for fewer bits than this lead to everything: a prefix of 40 random bits is an exception from them, as it should be.
const LEAST_PREFIX: u8 = 16;

const SETTINGS: &str = "/proc/sys/net/ipv6/conf";

/// Whether new devices of this host have IPv6: the kernel knows it, and it is not turned off. Needs no privilege.
#[must_use]
pub fn host_has_ipv6() -> bool {
    let is_on = |whose| {
        let said = fs::read_to_string(format!("{SETTINGS}/{whose}/disable_ipv6"));
        said.is_ok_and(|said| said.trim() == "0")
    };
    is_on("all") && is_on("default")
}

/// What of this host is in the way of an IPv6 prefix for this installation's network of that number, as
/// `the route fd00::/16 through tun0`. Needs no privilege.
///
/// # Errors
/// When the kernel does not tell.
pub fn ipv6_taken(
    installation: &Installation,
    number: u8,
    prefix: Ipv6Addr,
) -> Result<Option<String>, HostError> {
    taken(&bridge_name(installation, number), prefix)
        .map_err(|e| HostError::new("look at the host's IPv6 addresses and routes", e))
}

/// Gives the bridge, which is up, what its network has of IPv6. That of VMs that run there is left as it is.
pub(super) fn ensure(
    bridge: &Link,
    network: &Network,
    is_in_use: impl FnOnce() -> io::Result<bool>,
) -> io::Result<()> {
    let (Some(prefix), Some(gateway)) = (network.ipv6, network.ipv6_gateway()) else {
        return Ok(());
    };
    let name = &bridge.name;
    let setting = format!("{SETTINGS}/{name}/accept_ra");
    fs::write(&setting, "0").map_err(|e| io::Error::new(e.kind(), format!("{setting}: {e}")))?;
    let wanted = [gateway, LINK_LOCAL];
    let all = netlink::ipv6::addresses()?;
    let there = all.iter().filter(|found| found.device == bridge.index);
    let (right, other): (Vec<&Address>, Vec<&Address>) =
        there.partition(|found| wanted.contains(&found.address) && found.prefix == IPV6_PREFIX);
    if let Some(other) = other.first()
        && is_in_use()?
    {
        return Err(io::Error::other(format!(
            "VMs use {name} with the address {}/{} instead of {gateway}/{IPV6_PREFIX}: stop them, then start them again",
            other.address, other.prefix
        )));
    }
    for other in other {
        netlink::ipv6::remove_address(bridge.index, other.address, other.prefix)?;
    }
    let missing = wanted.iter().filter(|address| !right.iter().any(|it| it.address == **address));
    for address in missing {
        if *address == gateway
            && let Some(what) = taken(name, prefix)?
        {
            let said = format!("{prefix}/{IPV6_PREFIX} overlaps {what} of this host");
            return Err(io::Error::new(io::ErrorKind::AddrInUse, said));
        }
        netlink::ipv6::add_address(bridge.index, *address, IPV6_PREFIX)?;
    }
    Ok(())
}

/// What the host has of this prefix beside its bridge of that name.
fn taken(own: &str, prefix: Ipv6Addr) -> io::Result<Option<String>> {
    let links = netlink::links()?;
    let name = |index: Option<u32>| {
        let link = links.iter().find(|link| Some(link.index) == index);
        link.map_or("several devices", |link| link.name.as_str())
    };
    let meets = |address: Ipv6Addr, bits: u8| {
        let free = 128 - u32::from(bits.min(IPV6_PREFIX));
        let common = u128::MAX.checked_shl(free).unwrap_or(0);
        bits >= LEAST_PREFIX && (address.to_bits() ^ prefix.to_bits()) & common == 0
    };
    for found in netlink::ipv6::addresses()? {
        let device = name(Some(found.device));
        if device != own && meets(found.address, found.prefix) {
            return Ok(Some(format!("the address {}/{} on {device}", found.address, found.prefix)));
        }
    }
    for route in netlink::ipv6::routes()?.into_iter().filter(|route| route.leads_somewhere) {
        let device = name(route.device);
        if device != own && meets(route.to, route.prefix) {
            return Ok(Some(format!("the route {}/{} through {device}", route.to, route.prefix)));
        }
    }
    Ok(None)
}
