//! What may come from a VM's network device: frames with the VM's own addresses, to those whom the rules let it reach
//! ([`super::rules`]). An element of a set; it is made before the tap and goes after it, so no frame is unguarded; a tap that
//! stays behind passes nothing.

use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::rules::Rules;
use super::{nat, nft};
use crate::Held;
use crate::error::HostError;
use crate::mark::Mark;
use crate::network::{Mac, Network};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Guard {
    pub mark: Mark,
    pub network: Network,
    /// What the VM may call itself.
    pub address: Ipv4Addr,
    /// [`Mac::of`] the mark.
    pub mac: Mac,
    /// TCP ports of the gateway that lead to whoever listens at [`super::EXPOSE_PORT`] there. A helper or a ledger of before there
    /// were any knows nothing of this field.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub exposed: BTreeSet<u16>,
}

pub(super) fn acquire(claim: &Guard) -> Result<(), HostError> {
    nft::change(claim.mark.installation(), |rules| insert(rules, claim))
        .map(drop)
        .map_err(|e| HostError::new(format!("make the network rules of VM {}", claim.mark), e))
}

pub(super) fn release(mark: &Mark) -> Result<(), HostError> {
    let remove = || {
        let left = nft::change(mark.installation(), |rules| {
            rules.guards.remove(mark);
            rules.ipv6.remove(mark);
            rules.peers.remove(mark);
            rules.exposed.retain(|(whose, ..)| whose != mark);
            Ok(())
        })?;
        nat::settle(mark.installation(), &left)
    };
    remove().map_err(|e| HostError::new(format!("remove the network rules of VM {mark}"), e))
}

/// Those that the tables have.
pub(super) fn list(rules: &Rules) -> impl Iterator<Item = Held> {
    rules.guards.keys().map(|mark| Held::Guard { mark: mark.clone() })
}

fn insert(rules: &mut Rules, claim: &Guard) -> io::Result<()> {
    let wanted = (claim.mac, claim.address);
    let ipv6 = claim.network.ipv6_of(claim.address);
    let other = rules.guards.iter().find(|(mark, there)| {
        let is_another = **there != wanted || rules.ipv6.get(*mark) != ipv6.as_ref();
        if **mark == claim.mark { is_another } else { there.1 == claim.address }
    });
    if let Some((mark, (mac, address))) = other {
        let said = format!("VM {mark} is known as {address} with {mac} already");
        return Err(io::Error::other(said));
    }
    // All guests of a network reach each other, or none does.
    let odd = rules.guards.iter().find(|(mark, (_, there))| {
        claim.network.contains(*there) && rules.peers.contains_key(*mark) != claim.network.peers
    });
    if let Some((mark, _)) = odd {
        let which = if claim.network.peers { "that do not" } else { "that" };
        let said = format!(
            "VM {mark} is in {} with guests {which} reach each other",
            claim.network.subnet()
        );
        return Err(io::Error::other(said));
    }
    rules.guards.insert(claim.mark.clone(), wanted);
    rules.ipv6.extend(ipv6.map(|address| (claim.mark.clone(), address)));
    if claim.network.peers {
        rules.peers.insert(claim.mark.clone(), (claim.network.number, claim.address));
    }
    rules.exposed.retain(|(whose, ..)| *whose != claim.mark);
    let exposed = claim.exposed.iter().map(|port| (claim.mark.clone(), claim.address, *port));
    rules.exposed.extend(exposed);
    Ok(())
}
