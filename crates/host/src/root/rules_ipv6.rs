//! The elements of our tables' sets for IPv6, beside those of [`super::rules`]: from rules to JSON and back. Pure. Sets that say
//! something else than the rest does make the tables stale, and they are written anew.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};

use serde_json::{Value, json};

use super::forwarding_ipv6::Before;
use super::rules::{Rules, elements, table};
use super::tables::Table;
use crate::mark::{Installation, Mark};
use crate::network::bridge_name;

/// A set's family and name.
type Set = [&'static str; 2];

/// What a VM may call itself.
const SENDERS: Set = ["bridge", "senders_ipv6"];
/// What it may say that its own hardware address has (neighbour advertisements).
const NEIGHBOURS: Set = ["bridge", "neighbours_ipv6"];
/// As `peers` for IPv4.
const PEERS: Set = ["inet", "peers_ipv6"];
const WAYS_OUT: Set = ["inet", "ways_out_ipv6"];
/// No rules ask for these: they are what is kept of [`Before`].
const FORWARDING: Set = ["inet", "forwarding_ipv6"];
const LISTENING: Set = ["inet", "listening_ipv6"];

/// A chain without rules, which is there when the host did not forward IPv6.
pub(super) const MEMORY: &str = "did_not_forward_ipv6";

/// What nft lists of these sets.
#[derive(Debug, Default)]
pub(super) struct Reading {
    found: BTreeSet<(Set, String)>,
    before: Option<Before>,
    ways_out: BTreeMap<Mark, Ipv6Addr>,
}

impl Reading {
    /// Whether a set is one of these, and then its elements are noted.
    pub(super) fn take_set(&mut self, body: &Value, rules: &mut Rules) -> bool {
        let all = [SENDERS, NEIGHBOURS, PEERS, WAYS_OUT, FORWARDING, LISTENING];
        let Some(set) = all.into_iter().find(|[_, name]| body["name"] == *name) else {
            return false;
        };
        for element in body["elem"].as_array().into_iter().flatten() {
            self.found.insert((set, element.to_string()));
            self.read_element(set, element, rules);
            if let Some(name) = element.as_str() {
                let before = self.before.get_or_insert_default();
                match set {
                    FORWARDING => drop(before.forwarding.insert(name.to_owned())),
                    LISTENING => drop(before.listening.insert(name.to_owned())),
                    _ => {}
                }
            }
        }
        true
    }

    fn read_element(&mut self, set: Set, element: &Value, rules: &mut Rules) {
        let mark = |text: &Value| text.as_str().and_then(Mark::parse);
        let address = |text: &Value| text.as_str().and_then(|text| text.parse::<Ipv6Addr>().ok());
        let parts = element["concat"].as_array().map_or(&[][..], Vec::as_slice);
        let whole = &element["elem"];
        match (set, parts) {
            (SENDERS, [name, _, last]) => {
                rules.ipv6.extend(mark(name).zip(address(last)));
            }
            (WAYS_OUT, _) => {
                self.ways_out.extend(mark(&whole["comment"]).zip(address(&whole["val"])));
            }
            _ => {}
        }
    }

    /// The chain that remembers is there.
    pub(super) fn remembers(&mut self) {
        self.before.get_or_insert_default();
    }

    /// Completes the rules. Whether the sets say what rules like these are written with; what belongs to no guard is forgotten.
    pub(super) fn finish(self, rules: &mut Rules) -> bool {
        rules.before_ipv6 = self.before;
        for (mark, way) in &mut rules.ways_out {
            way.ipv6 = self.ways_out.get(mark).copied();
        }
        rules.ipv6.retain(|mark, _| rules.guards.contains_key(mark));
        let written = all(rules).into_iter().map(|(set, element)| (set, element.to_string()));
        written.collect::<BTreeSet<_>>() == self.found
    }
}

/// Every element of these sets.
fn all(rules: &Rules) -> Vec<(Set, Value)> {
    let mut all = Vec::new();
    for (mark, address) in &rules.ipv6 {
        if let Some((mac, own)) = rules.guards.get(mark) {
            all.push((SENDERS, json!({ "concat": [mark, mac, address] })));
            let numbers: BTreeSet<u32> = numbers(*own).into();
            all.extend(
                numbers.iter().map(|number| (NEIGHBOURS, json!({ "concat": [mark, number] }))),
            );
        }
        if let Some((number, _)) = rules.peers.get(mark) {
            let bridge = bridge_name(mark.installation(), *number);
            let peer = json!({ "concat": [bridge, bridge, address] });
            all.push((PEERS, json!({ "elem": { "val": peer, "comment": mark } })));
        }
    }
    for (mark, way) in &rules.ways_out {
        let element = |address| json!({ "elem": { "val": address, "comment": mark } });
        all.extend(way.ipv6.map(|address| (WAYS_OUT, element(address))));
    }
    let before = rules.before_ipv6.iter();
    all.extend(before.clone().flat_map(|it| &it.forwarding).map(|name| (FORWARDING, json!(name))));
    all.extend(before.flat_map(|it| &it.listening).map(|name| (LISTENING, json!(name))));
    all
}

/// The last 32 bits of a VM's IPv6 address, which no other VM has, as a packet's mark may hold them: versions of nft differ in
/// whether they turn the bytes of a packet round that they put into a mark. No other address of the same subnet of at most 16
/// bits is one's own turned round.
fn numbers(own: Ipv4Addr) -> [u32; 2] {
    [own.to_bits(), own.to_bits().swap_bytes()]
}

/// What makes of what is there what is wanted.
pub(super) fn change(installation: &Installation, there: &Rules, wanted: &Rules) -> Vec<Value> {
    let mut commands = Vec::new();
    for (verb, from, to) in [("delete", there, wanted), ("add", wanted, there)] {
        let stays = all(to);
        let gone = all(from).into_iter().filter(|it| !stays.contains(it)).collect();
        let memory =
            (from.before_ipv6.is_some() && to.before_ipv6.is_none()).then(|| memory(installation));
        let objects = grouped(installation, gone).into_iter().chain(memory);
        commands.extend(objects.map(|it| json!({ verb: it })));
    }
    commands
}

/// What tables that are written anew have of this.
pub(super) fn contents(installation: &Installation, rules: &Rules) -> Vec<Value> {
    let memory = rules.before_ipv6.iter().map(|_| memory(installation));
    grouped(installation, all(rules)).into_iter().chain(memory).collect()
}

fn grouped(installation: &Installation, all: Vec<(Set, Value)>) -> Vec<Value> {
    let sets: BTreeSet<Set> = all.iter().map(|(set, _)| *set).collect();
    let of = |set: Set| all.iter().filter(|it| it.0 == set).map(|it| it.1.clone()).collect();
    sets.into_iter().filter_map(|set| elements(installation, &set, of(set))).collect()
}

fn memory(installation: &Installation) -> Value {
    Table { family: "inet", name: table(installation) }.chain(MEMORY)
}
