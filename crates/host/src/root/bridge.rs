//! The bridge of a network, which the taps of its VMs are ports of: `bgXXXX-netN`. The host has the gateway's address on it.
//! VMs share it: whoever needs it makes it, and the last one's release removes it.

use std::io;
use std::net::Ipv4Addr;
use std::sync::{Mutex, MutexGuard};

use super::bridge_ipv6;
use super::netlink::{self, Link};
use crate::Held;
use crate::error::HostError;
use crate::mark::Installation;
use crate::network::{Mac, Network, bridge_name, bridge_number};

/// A subnet that this host uses, and for what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TakenSubnet {
    pub address: Ipv4Addr,
    /// In bits.
    pub prefix: u8,
    /// As `the route 10.0.0.0/8 through tun0`.
    pub what: String,
}

/// Routes for fewer bits than this lead to everything (10.0.0.0/8 is the largest network that is anybody's own, RFC 1918):
/// what is more exact is an exception from them, as it should be.
const LEAST_PREFIX: u8 = 8;

pub(super) fn acquire(installation: &Installation, network: &Network) -> Result<(), HostError> {
    let _one_at_a_time = lock();
    ensure(installation, network)
        .map(drop)
        .map_err(|e| HostError::new(format!("make {}", held(installation, network.number)), e))
}

pub(super) fn release(installation: &Installation, number: u8) -> Result<(), HostError> {
    let _one_at_a_time = lock();
    remove(&bridge_name(installation, number))
        .map_err(|e| HostError::new(format!("remove {}", held(installation, number)), e))
}

pub(super) fn list(installation: &Installation) -> Result<Vec<Held>, HostError> {
    let of = |link: &Link| bridge_number(installation, &link.name);
    let links = netlink::links()
        .map_err(|e| HostError::new(format!("look for bridges of {installation}"), e))?;
    let numbers = links.iter().filter(|link| link.is_bridge()).filter_map(of);
    Ok(numbers.map(|number| held(installation, number)).collect())
}

/// The subnets that this host has addresses in or routes to, beside those of this installation's own network of that number.
/// Needs no privilege.
///
/// # Errors
/// When the kernel does not tell.
pub fn taken_subnets(
    installation: &Installation,
    number: u8,
) -> Result<Vec<TakenSubnet>, HostError> {
    taken(&bridge_name(installation, number))
        .map_err(|e| HostError::new("look at the host's addresses and routes", e))
}

/// Makes it if need be, and gives its index. The caller holds [`lock`].
pub(super) fn ensure(installation: &Installation, network: &Network) -> io::Result<u32> {
    let name = network.bridge(installation);
    let mac = Mac::of_bridge(installation, network.number);
    // Each request waits for the kernel's lock of all devices: none is made for what is known.
    let (bridge, is_new) = match netlink::link(&name)? {
        Some(bridge) => (bridge, false),
        None => {
            refuse_overlap(&name, network)?;
            netlink::add_bridge(&name, mac)?;
            (netlink::link(&name)?.ok_or(io::ErrorKind::NotFound)?, true)
        }
    };
    if !bridge.is_bridge() {
        return Err(io::Error::other(format!("{name} is there and is no bridge")));
    }
    if bridge.mac != mac.bytes() {
        netlink::set_mac(bridge.index, mac)?;
    }
    if bridge.mtu != u32::from(network.mtu) {
        netlink::set_mtu(bridge.index, network.mtu)?;
    }
    if bridge.answers_for_ports == network.peers {
        if !is_new {
            refuse_to_change_peers(&bridge, network)?;
        }
        netlink::forward_and_answer_for_ports(bridge.index, !network.peers)?;
    } else if !bridge.forwards {
        netlink::forward_from(bridge.index)?;
    }
    address(&bridge, network, is_new)?;
    if !bridge.up {
        netlink::bring_up(bridge.index)?;
    }
    bridge_ipv6::ensure(&bridge, network, || has_ports(&bridge))?;
    Ok(bridge.index)
}

/// Whether guests find each other, or the host in each other's place, is not changed between VMs that run.
fn refuse_to_change_peers(bridge: &Link, network: &Network) -> io::Result<()> {
    if !has_ports(bridge)? {
        return Ok(());
    }
    let (there, wanted) = if network.peers { ("do not", "do") } else { ("do", "do not") };
    Err(io::Error::other(format!(
        "VMs that {there} reach each other use {}, and those of this network {wanted}: stop them, then start them again",
        bridge.name
    )))
}

/// Sees to it that the host has the gateway's address there. A bridge that VMs of another subnet use is left as it is.
fn address(bridge: &Link, network: &Network, is_new: bool) -> io::Result<()> {
    let all = netlink::addresses()?;
    let there: Vec<_> = all.iter().filter(|found| found.device == bridge.index).collect();
    let wanted = (network.gateway, network.prefix);
    if there.iter().any(|found| (found.address, found.prefix) == wanted) {
        return Ok(());
    }
    if let Some(other) = there.first()
        && has_ports(bridge)?
    {
        return Err(io::Error::other(format!(
            "VMs use {} with the address {}/{} instead of {}/{}: stop them, then start them again",
            bridge.name, other.address, other.prefix, network.gateway, network.prefix
        )));
    }
    if !is_new {
        refuse_overlap(&bridge.name, network)?;
    }
    for other in there {
        netlink::remove_address(bridge.index, other.address, other.prefix)?;
    }
    netlink::add_address(bridge.index, network.gateway, network.prefix)
}

/// A subnet that the host has already would take its traffic away, or lose its own to it.
fn refuse_overlap(own: &str, network: &Network) -> io::Result<()> {
    let overlapping =
        taken(own)?.into_iter().find(|taken| network.overlaps(taken.address, taken.prefix));
    overlapping.map_or(Ok(()), |taken| {
        let said = format!("{} overlaps {} of this host", network.subnet(), taken.what);
        Err(io::Error::new(io::ErrorKind::AddrInUse, said))
    })
}

/// What the host has beside its bridge of this name.
fn taken(own: &str) -> io::Result<Vec<TakenSubnet>> {
    let links = netlink::links()?;
    let name = |index: Option<u32>| {
        let link = links.iter().find(|link| Some(link.index) == index);
        link.map_or("several devices", |link| link.name.as_str())
    };
    let mut all = Vec::new();
    for found in netlink::addresses()? {
        let device = name(Some(found.device));
        let what = format!("the address {}/{} on {device}", found.address, found.prefix);
        all.push((device, TakenSubnet { address: found.subnet, prefix: found.prefix, what }));
    }
    for route in netlink::routes()?.into_iter().filter(|route| route.leads_somewhere) {
        let device = name(route.device);
        let what = format!("the route {}/{} through {device}", route.to, route.prefix);
        all.push((device, TakenSubnet { address: route.to, prefix: route.prefix, what }));
    }
    all.retain(|(device, taken)| *device != own && taken.prefix >= LEAST_PREFIX);
    Ok(all.into_iter().map(|(_, taken)| taken).collect())
}

/// Removes every bridge of this installation that nothing is in.
pub(super) fn release_unused(installation: &Installation) -> Result<(), HostError> {
    let held = list(installation)?;
    let numbers = held.iter().filter_map(|held| match held {
        Held::Bridge { number, .. } => Some(*number),
        _ => None,
    });
    numbers.map(|number| release(installation, number)).fold(Ok(()), Result::and)
}

fn remove(name: &str) -> io::Result<()> {
    let Some(bridge) = netlink::link(name)?.filter(Link::is_bridge) else { return Ok(()) };
    if has_ports(&bridge)? { Ok(()) } else { netlink::delete(bridge.index) }
}

fn has_ports(bridge: &Link) -> io::Result<bool> {
    Ok(netlink::links()?.iter().any(|link| link.master == Some(bridge.index)))
}

/// Held by whoever changes bridges or what is attached to them: a bridge without ports may be about to get one.
pub(super) fn lock() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().expect("nothing that holds this lock can panic")
}

fn held(installation: &Installation, number: u8) -> Held {
    Held::Bridge { installation: installation.clone(), number }
}
