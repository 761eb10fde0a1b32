//! VMs that may reach what a list names and nothing else: the sets, the rules and the elements of that in our table `inet`
//! ([`super::rules`]). Pure.
//!
//! ```text
//! guest ─► listed? ─► port 53, 853 ──────────────────────────────► refused
//!                     subnets (guest . subnet) ──────────────────► out
//!                     allowed (guest . address), by a name, timed ► out, noted in in_use
//!                     in_use (guest . address), if answered ─────► out: what is open outlives the name's time
//!                     all else ──────────────────────────────────► refused, noted in denied
//! ```
//! What comes back is held against the same three sets: who is taken from them is not heard any more either.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use banger_api::Cidr;
use serde_json::{Value, json};

use super::rules::elements;
use super::tables::{TCP, Table, UDP, matches, meta, payload, protocol_is};
use crate::mark::{Installation, Mark};

/// Addresses that one VM may reach by names at a time.
pub(super) const MOST_OPEN: usize = 4096;

/// Who has a list.
pub(super) const LISTED: [&str; 2] = ["inet", "listed"];
/// What lists name by addresses.
pub(super) const SUBNETS: [&str; 2] = ["inet", "subnets"];
/// What names on lists led to, each for its time.
const ALLOWED: [&str; 2] = ["inet", "allowed"];
/// Where connections lead that were let through for their name.
const IN_USE: [&str; 2] = ["inet", "in_use"];
/// What was refused, each the last time.
const DENIED: [&str; 2] = ["inet", "denied"];

/// For how long a refusal is remembered, in seconds.
const REMEMBERED_S: u32 = 3600;
/// For how long a connection may be silent and still be known as open, in seconds.
const IN_USE_S: u32 = 24 * 3600;

/// A VM and an address beyond the host.
type Pair = (Ipv4Addr, Ipv4Addr);

/// Elements that the kernel adds or takes away by itself: there at a look, and never wanted, so that they make no table stale.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Passing {
    /// For how many seconds more.
    pub(super) allowed: BTreeMap<Pair, u32>,
    pub(super) in_use: BTreeSet<Pair>,
    /// What it was, and for how many seconds more it is remembered.
    pub(super) denied: BTreeMap<(Ipv4Addr, Attempt), u32>,
}

/// What was refused to a VM.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Attempt {
    pub(super) address: Ipv4Addr,
    pub(super) is_udp: bool,
    pub(super) port: u16,
}

impl Passing {
    /// An element of the set of this name, if it is one of those.
    pub(super) fn read(&mut self, set: &str, element: &Value) {
        let expires = element["elem"]["expires"].as_u64().and_then(|left| u32::try_from(left).ok());
        let parts = element["elem"]["val"]["concat"].as_array().map_or(&[][..], Vec::as_slice);
        let (Some(left), [guest, there, more @ ..]) = (expires, parts) else { return };
        let (Some(guest), Some(address)) = (address(guest), address(there)) else { return };
        match (set, more) {
            ("allowed", []) => drop(self.allowed.insert((guest, address), left)),
            ("in_use", []) => drop(self.in_use.insert((guest, address))),
            ("denied", [protocol, port]) => {
                let port = port.as_u64().and_then(|port| u16::try_from(port).ok());
                let Some(port) = port else { return };
                let attempt = Attempt { address, is_udp: *protocol == UDP, port };
                self.denied.insert((guest, attempt), left);
            }
            _ => {}
        }
    }

    /// What was refused to this VM, and how many seconds ago.
    pub(super) fn denied_to(&self, guest: Ipv4Addr) -> impl Iterator<Item = (u32, &Attempt)> {
        let of_guest = self.denied.iter().filter(move |((whose, _), _)| *whose == guest);
        of_guest.map(|((_, attempt), left)| (REMEMBERED_S.saturating_sub(*left), attempt))
    }

    /// What is taken away: where these may reach nothing by a name any more, and what was refused to those. Whatever is
    /// forgotten meanwhile is added first, since nothing can be taken away that is not there.
    pub(super) fn forget(
        &self,
        installation: &Installation,
        closed: &BTreeSet<Ipv4Addr>,
        gone: &BTreeSet<Ipv4Addr>,
    ) -> Vec<Value> {
        let allowed = self.allowed.keys().filter(|(guest, _)| closed.contains(guest));
        let in_use = self.in_use.iter().filter(|(guest, _)| closed.contains(guest));
        let denied = self.denied.keys().filter(|(guest, _)| gone.contains(guest));
        [
            elements(installation, &ALLOWED, allowed.map(pair).collect()),
            elements(installation, &IN_USE, in_use.map(pair).collect()),
            elements(installation, &DENIED, denied.map(denial).collect()),
        ]
        .into_iter()
        .flatten()
        .flat_map(|it| [json!({ "add": it }), json!({ "delete": it })])
        .collect()
    }

    /// What tables that are written anew still have: what these VMs may reach for a while, and what they have open.
    pub(super) fn kept(
        &self,
        installation: &Installation,
        guests: &BTreeSet<Ipv4Addr>,
    ) -> Vec<Value> {
        let allowed = self.allowed.iter().filter(|((guest, _), _)| guests.contains(guest));
        let in_use = self.in_use.iter().filter(|(guest, _)| guests.contains(guest));
        let allowed = allowed.map(|(whose, left)| timed(whose, (*left).max(1)));
        [
            elements(installation, &ALLOWED, allowed.collect()),
            elements(installation, &IN_USE, in_use.map(pair).collect()),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// What opens these addresses to a VM for that many seconds from now; those that are open for longer stay so. `None` when
    /// all are.
    ///
    /// # Errors
    /// In a sentence, when it would have more of them than it may.
    pub(super) fn open(
        &self,
        installation: &Installation,
        guest: Ipv4Addr,
        addresses: &BTreeSet<Ipv4Addr>,
        seconds: u32,
    ) -> Result<Option<Vec<Value>>, String> {
        let short = |at: &&Ipv4Addr| self.allowed.get(&(guest, **at)).is_none_or(|l| *l < seconds);
        let opened: Vec<Pair> = addresses.iter().filter(short).map(|at| (guest, *at)).collect();
        let others =
            self.allowed.keys().filter(|(whose, to)| *whose == guest && !addresses.contains(to));
        let count = others.count() + addresses.len();
        if count > MOST_OPEN {
            return Err(format!(
                "it would reach {count} addresses by names, more than {MOST_OPEN}"
            ));
        }
        let all = |make: &dyn Fn(&Pair) -> Value| {
            elements(installation, &ALLOWED, opened.iter().map(make).collect())
        };
        let (Some(there), Some(anew)) = (all(&pair), all(&|whose| timed(whose, seconds))) else {
            return Ok(None);
        };
        // The time of one that is there does not change by adding it again (before Linux 6.13, nf_tables_api.c), so it goes
        // first; and only what is there can go.
        Ok(Some(vec![json!({ "add": anew }), json!({ "delete": there }), json!({ "add": anew })]))
    }
}

fn pair((guest, to): &Pair) -> Value {
    json!({ "concat": [guest, to] })
}

fn timed(whose: &Pair, seconds: u32) -> Value {
    json!({ "elem": { "val": pair(whose), "timeout": seconds } })
}

fn denial((guest, attempt): &(Ipv4Addr, Attempt)) -> Value {
    let Attempt { address, is_udp, port } = attempt;
    json!({ "concat": [guest, address, if *is_udp { UDP } else { TCP }, port] })
}

fn address(text: &Value) -> Option<Ipv4Addr> {
    text.as_str()?.parse().ok()
}

/// An element of [`SUBNETS`].
pub(super) fn subnet(guest: Ipv4Addr, cidr: &Cidr) -> Value {
    let there = match cidr.prefix() {
        32 => json!(cidr.first()),
        prefix => json!({ "prefix": { "addr": cidr.first(), "len": prefix } }),
    };
    json!({ "concat": [guest, there] })
}

/// Whose element of [`SUBNETS`] it is, and of what.
pub(super) fn read_subnet(element: &Value) -> Option<(Ipv4Addr, Cidr)> {
    let [guest, there] = element["concat"].as_array()?.as_slice() else { return None };
    let text = match &there["prefix"] {
        Value::Null => there.as_str()?.to_owned(),
        prefix => format!("{}/{}", prefix["addr"].as_str()?, prefix["len"].as_u64()?),
    };
    Some((address(guest)?, Cidr::parse(&text).ok()?))
}

/// An element of [`LISTED`], and of the set of those that may go anywhere.
pub(super) fn way_out((mark, address): (&Mark, Ipv4Addr)) -> Value {
    json!({ "elem": { "val": address, "comment": mark } })
}

pub(super) fn sets(table: &Table) -> Vec<Value> {
    let pairs = || json!(["ipv4_addr", "ipv4_addr"]);
    let attempts = json!(["ipv4_addr", "ipv4_addr", "inet_proto", "inet_service"]);
    vec![
        table.set(LISTED[1], json!("ipv4_addr")),
        table.set_of(SUBNETS[1], pairs(), &json!({ "flags": ["interval"] })),
        table.set_of(ALLOWED[1], pairs(), &json!({ "flags": ["timeout"], "size": 65_536 })),
        table.set_of(
            IN_USE[1],
            pairs(),
            &json!({ "flags": ["timeout"], "size": 65_536, "timeout": IN_USE_S }),
        ),
        table.set_of(
            DENIED[1],
            attempts,
            &json!({ "flags": ["timeout"], "size": 4096, "timeout": REMEMBERED_S }),
        ),
    ]
}

pub(super) const CHAINS: [&str; 3] = ["guest_to_listed", "listed_to_guest", "refused"];

/// The rules of [`CHAINS`]. Notes are in rules of their own: one that finds its set full ends its rule, and no decision may
/// depend on that.
pub(super) fn rules(answers: &Value, forbidden: &Value) -> Vec<(&'static str, Vec<Value>)> {
    let accept = || json!({ "accept": null });
    let concat = |parts: [Value; 2]| json!({ "concat": parts });
    let (from, to) = (payload("ip", "saddr"), payload("ip", "daddr"));
    // Of an answer, and of an error of somebody on the way, the address that the guest has asked.
    let asked = json!({ "ct": { "key": "ip daddr", "dir": "original" } });
    let there = concat([from.clone(), to.clone()]);
    let back = concat([to.clone(), asked]);
    let with_ports = || protocol_is(json!({ "set": [TCP, UDP] }));
    let port = payload("th", "dport");
    let names = json!({ "set": [53, 853] });
    let note =
        |set: &str, what: Value| json!({ "set": { "op": "update", "elem": what, "set": set } });
    let in_use = || note("@in_use", there.clone());
    let protocol = json!({ "meta": { "key": "l4proto" } });
    let attempt = json!({ "concat": [from, to, protocol, port.clone()] });
    let refuse = || json!({ "goto": { "target": "refused" } });
    vec![
        // Names are asked of the daemon, who knows which; ports of DNS and of DNS over TLS and QUIC.
        ("guest_to_listed", vec![with_ports(), matches(&port, "==", names), refuse()]),
        ("guest_to_listed", vec![matches(&there, "==", "@subnets"), accept()]),
        ("guest_to_listed", vec![matches(&there, "==", "@allowed"), in_use()]),
        ("guest_to_listed", vec![matches(&there, "==", "@allowed"), accept()]),
        ("guest_to_listed", vec![answers.clone(), matches(&there, "==", "@in_use"), in_use()]),
        ("guest_to_listed", vec![answers.clone(), matches(&there, "==", "@in_use"), accept()]),
        ("guest_to_listed", vec![refuse()]),
        ("listed_to_guest", vec![matches(&back, "==", "@subnets"), accept()]),
        ("listed_to_guest", vec![matches(&back, "==", "@allowed"), accept()]),
        ("listed_to_guest", vec![matches(&back, "==", "@in_use"), accept()]),
        ("listed_to_guest", vec![forbidden.clone()]),
        ("refused", vec![with_ports(), note("@denied", attempt)]),
        ("refused", vec![forbidden.clone()]),
    ]
}

/// A VM's rule: its address is in the set of those that have a list.
pub(super) fn is_listed(field: &str) -> Value {
    matches(&payload("ip", field), "==", "@listed")
}

/// Not to a bridge of ours, as everything that leaves the host.
pub(super) fn masqueraded(bridges: &str) -> Vec<Value> {
    vec![is_listed("saddr"), meta("oifname", "!=", bridges), json!({ "masquerade": null })]
}
