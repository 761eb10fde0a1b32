//! A VM's way out of the host: what it sends leaves under the host's address, and what answers it comes back
//! ([`super::rules`]). An element of a set, made and undone while the VM runs, too.
//!
//! The first one makes the host forward (`net.ipv4.ip_forward`), the last one's release makes that what it was: the table
//! says so from before the change until after the change back, so that a crash in between changes nothing. Of several
//! installations on one host each remembers it, and the last one with a way out changes it back.

use std::fs;
use std::io;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::rules::{self, Before, INET, MEMORY, Rules};
use super::{netlink, nft};
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
}

/// Documentation/networking/ip-sysctl.rst. Writing it sets every device's own setting, and the next one to the opposite.
const IP_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";
const ACCEPT_REDIRECTS: &str = "/proc/sys/net/ipv4/conf/all/accept_redirects";

pub(super) fn acquire(claim: &Nat) -> Result<(), HostError> {
    let installation = claim.mark.installation();
    let make = || {
        nft::change(installation, |rules| {
            insert(rules, claim)?;
            if rules.before.is_none() {
                rules.before =
                    if is_on(IP_FORWARD)? { others_memory(installation)? } else { Some(look()?) };
            }
            Ok(())
        })?;
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

/// Makes the host what it was when the last way out has gone. What somebody else has changed meanwhile stays.
pub(super) fn settle(installation: &Installation, left: &Rules) -> io::Result<()> {
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
    let other = rules
        .ways_out
        .iter()
        .find(|(mark, address)| (*mark == &claim.mark) != (**address == claim.address));
    if let Some((mark, address)) = other {
        return Err(io::Error::other(format!("{address} has one already, as VM {mark}")));
    }
    rules.ways_out.insert(claim.mark.clone(), claim.address);
    Ok(())
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
