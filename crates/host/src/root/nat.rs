//! A VM's way out of the host: what it sends leaves under the host's address, and what answers it comes back
//! ([`super::rules`]). It leads anywhere, or where a list says ([`super::lists`]). An element of a set and what belongs to
//! it, made and undone while the VM runs, too.
//!
//! The first one makes the host forward (`net.ipv4.ip_forward`), the last one's release makes that what it was: the table
//! says so from before the change until after the change back, so that a crash in between changes nothing. Of several
//! installations on one host each remembers it, and the last one with a way out changes it back.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::Ipv4Addr;

use banger_api::{Cidr, Egress};
use serde::{Deserialize, Serialize};

use super::lists::Attempt;
use super::rules::{self, Before, INET, MEMORY, Rules, WayOut};
use super::{forwarding_ipv6, netlink, nft};
use crate::Held;
use crate::error::HostError;
use crate::mark::{Installation, Mark};
use crate::network::{Network, bridge_number};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nat {
    pub mark: Mark,
    pub network: Network,
    /// The VM's.
    pub address: Ipv4Addr,
    /// It leads to these, and to what is opened to it ([`crate::Host::open`]). Anywhere when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub only: Option<Vec<Cidr>>,
}

impl Nat {
    /// What a VM holds for this policy; nothing where it may reach nothing.
    #[must_use]
    pub fn of(mark: &Mark, network: Network, address: Ipv4Addr, egress: &Egress) -> Option<Self> {
        let only = match egress {
            Egress::None => return None,
            Egress::All => None,
            Egress::Allow(list) => Some(list.subnets().collect()),
        };
        Some(Self { mark: mark.clone(), network, address, only })
    }
}

/// What was refused to a VM beyond the host, the last time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Denied {
    /// How long ago, in seconds.
    pub ago_s: u32,
    pub address: Ipv4Addr,
    /// Over UDP, not TCP.
    pub is_udp: bool,
    pub port: u16,
}

/// The most of [`Denied`] that is told at once: what came last.
const MOST_DENIED: usize = 512;

/// Documentation/networking/ip-sysctl.rst. Writing it sets every device's own setting, and the next one to the opposite.
const IP_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";
const ACCEPT_REDIRECTS: &str = "/proc/sys/net/ipv4/conf/all/accept_redirects";

pub(super) fn acquire(claim: &Nat) -> Result<(), HostError> {
    let installation = claim.mark.installation();
    let make = || {
        let rules = nft::change(installation, |rules| {
            insert(rules, claim)?;
            if rules.before.is_none() {
                rules.before =
                    if is_on(IP_FORWARD)? { others_memory(installation)? } else { Some(look()?) };
            }
            forwarding_ipv6::remember(installation, rules)
        })?;
        forwarding_ipv6::turn_on(&rules)?;
        if is_on(IP_FORWARD)? { Ok(()) } else { set(IP_FORWARD, true) }
    };
    make().map_err(|e: io::Error| {
        HostError::new(format!("give VM {} a way out of the host", claim.mark), e)
    })
}

pub(super) fn release(mark: &Mark) -> Result<(), HostError> {
    let remove = || {
        let left = nft::change(mark.installation(), |rules| {
            rules.ways_out.remove(mark);
            Ok(())
        })?;
        settle(mark.installation(), &left)
    };
    remove().map_err(|e| HostError::new(format!("take the way out of the host from VM {mark}"), e))
}

/// Those that the tables have.
pub(super) fn list(rules: &Rules) -> impl Iterator<Item = Held> {
    rules.ways_out.keys().map(|mark| Held::Nat { mark: mark.clone() })
}

/// Lets a VM that has a list reach these addresses too, for so many seconds at least from now.
pub(super) fn open(
    mark: &Mark,
    addresses: &BTreeSet<Ipv4Addr>,
    seconds: u32,
) -> Result<(), HostError> {
    nft::open(mark, addresses, seconds).map_err(|e| {
        let count = addresses.len();
        HostError::new(format!("let VM {mark} reach {count} addresses more"), e)
    })
}

/// What was refused to it lately, the last first.
pub(super) fn denied(mark: &Mark) -> Result<Vec<Denied>, HostError> {
    let found = nft::read(mark.installation())
        .map_err(|e| HostError::new(format!("look for what was refused to VM {mark}"), e))?;
    let Some((_, address)) = found.rules.guards.get(mark) else { return Ok(Vec::new()) };
    let all = found.passing.denied_to(*address).map(|(ago_s, attempt)| {
        let Attempt { address, is_udp, port } = *attempt;
        Denied { ago_s, address, is_udp, port }
    });
    let mut all: Vec<Denied> = all.collect();
    all.sort_by_key(|denied| denied.ago_s);
    all.truncate(MOST_DENIED);
    Ok(all)
}

/// Makes the host what it was when the last way out has gone. What somebody else has changed meanwhile stays.
pub(super) fn settle(installation: &Installation, left: &Rules) -> io::Result<()> {
    forwarding_ipv6::settle(installation, left)?;
    if left.before.is_none() || !left.ways_out.is_empty() {
        return Ok(());
    }
    nft::change(installation, |rules| {
        if rules.ways_out.is_empty()
            && let Some(before) = rules.before.take()
            && is_on(IP_FORWARD)?
            && others_memory(installation)?.is_none()
        {
            restore(&before)?;
        }
        Ok(())
    })
    .map(drop)
}

fn insert(rules: &mut Rules, claim: &Nat) -> io::Result<()> {
    // What a list names is IPv4: nothing else is let through by it.
    let ipv6 = claim.network.ipv6_of(claim.address).filter(|_| claim.only.is_none());
    let only = claim.only.as_deref().map(outermost);
    let wanted = WayOut { address: claim.address, only, ipv6 };
    let other = rules.ways_out.iter().find(|(mark, there)| {
        if **mark == claim.mark { **there != wanted } else { there.address == claim.address }
    });
    if let Some((mark, WayOut { address, .. })) = other {
        return Err(io::Error::other(format!("{address} has another one already, as VM {mark}")));
    }
    rules.ways_out.insert(claim.mark.clone(), wanted);
    Ok(())
}

/// Those of them that are in no other one: a set of subnets has none twice.
fn outermost(all: &[Cidr]) -> BTreeSet<Cidr> {
    let is_outermost = |cidr: &&Cidr| !all.iter().any(|other| other != *cidr && other.covers(cidr));
    all.iter().filter(is_outermost).copied().collect()
}

/// What another installation will make the host again.
fn others_memory(installation: &Installation) -> io::Result<Option<Before>> {
    for table in netlink::tables(INET)? {
        let other = rules::whose(&table).filter(|whose| whose != installation);
        if let Some(other) = other
            && netlink::has_chain(INET, &table, MEMORY)?
        {
            return Ok(nft::read(&other)?.rules.before);
        }
    }
    Ok(None)
}

/// What the host is before it forwards. Bridges of networks always do.
fn look() -> io::Result<Before> {
    // What nft takes for a name and nothing else; the kernel allows stranger ones.
    let is_plain =
        |name: &str| name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    let forwarding = netlink::links()?
        .into_iter()
        .filter(|link| link.forwards && !is_networks(&link.name) && is_plain(&link.name))
        .map(|link| link.name);
    Ok(Before { accepted_redirects: is_on(ACCEPT_REDIRECTS)?, forwarding: forwarding.collect() })
}

fn restore(before: &Before) -> io::Result<()> {
    set(IP_FORWARD, false)?;
    if !before.accepted_redirects {
        set(ACCEPT_REDIRECTS, false)?;
    }
    for link in netlink::links()? {
        if is_networks(&link.name) || before.forwarding.contains(&link.name) {
            netlink::forward_from(link.index)?;
        }
    }
    Ok(())
}

/// Whether that is the bridge of a network, of any installation.
fn is_networks(name: &str) -> bool {
    let whose = name.split('-').next().and_then(rules::whose);
    whose.is_some_and(|whose| bridge_number(&whose, name).is_some())
}

fn is_on(setting: &str) -> io::Result<bool> {
    let read = fs::read_to_string(setting);
    Ok(read.map_err(|error| of(setting, &error))?.trim() != "0")
}

fn set(setting: &str, on: bool) -> io::Result<()> {
    fs::write(setting, if on { "1" } else { "0" }).map_err(|error| of(setting, &error))
}

fn of(setting: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{setting}: {error}"))
}
