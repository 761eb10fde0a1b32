//! What our two nftables tables say (nft(8), libnftables-json(5)): the rules, which are the same for every VM, and the sets,
//! which say for which VMs. Pure: from rules to JSON and back. The rules themselves are in `tables.rs`.
//!
//! An element of a set holds the mark of its VM, so what is there can be listed and undone by marks alone. Tables of others
//! are neither read nor changed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};

use banger_api::Cidr;
use serde_json::{Value, json};

use super::Guard;
use super::lists::{self, LISTED, Passing, SUBNETS};
use super::tables::{Table, written};
use super::{forwarding_ipv6, rules_ipv6};
use crate::mark::{Installation, Mark};
use crate::network::{Mac, bridge_name, bridge_number};

/// Where the daemon answers guests' questions for names, on the gateway's address; they ask port 53.
pub const DNS_PORT: u16 = 42069;

/// Where the daemon takes guests to the host's services that are exposed to them, on the gateway's address; they ask the
/// service's port.
pub const EXPOSE_PORT: u16 = 42070;

/// The families that we have a table in, as nft calls them and as the kernel does (linux/netfilter.h).
pub(super) const FAMILIES: [(&str, u8); 2] = [("inet", INET), ("bridge", 7)];
pub(super) const INET: u8 = 1;

/// For which VMs, and what the host was like before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Rules {
    /// Who a VM is.
    pub(super) guards: BTreeMap<Mark, (Mac, Ipv4Addr)>,
    /// What the VMs that have IPv6 may call themselves by it.
    pub(super) ipv6: BTreeMap<Mark, Ipv6Addr>,
    /// Who reaches the others of its network: the number of that, and the VM's address.
    pub(super) peers: BTreeMap<Mark, (u8, Ipv4Addr)>,
    /// Which ports of the gateway lead to a service of the host: whose they are, and from which address.
    pub(super) exposed: BTreeSet<(Mark, Ipv4Addr, u16)>,
    /// Whose packets leave the host.
    pub(super) ways_out: BTreeMap<Mark, WayOut>,
    /// What the host was before the first way out, where it did not forward. Kept in the table, so that whoever undoes the
    /// last one knows.
    pub(super) before: Option<Before>,
    /// The same of IPv6.
    pub(super) before_ipv6: Option<forwarding_ipv6::Before>,
}

/// What leaves the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct WayOut {
    /// What the VM sends under this address.
    pub(super) address: Ipv4Addr,
    /// To these, none of which is in another, and to what names lead to; to anybody where it is `None`.
    pub(super) only: Option<BTreeSet<Cidr>>,
    /// The VM's IPv6 address, if it is to leave by that, too.
    pub(super) ipv6: Option<Ipv6Addr>,
}

/// Settings of a host that does not forward, which a host that does loses (`inet_forward_change` of the kernel's
/// net/ipv4/devinet.c).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Before {
    /// `net.ipv4.conf.all.accept_redirects`.
    pub(super) accepted_redirects: bool,
    /// Devices that were set to forward by themselves.
    pub(super) forwarding: BTreeSet<String>,
}

impl Rules {
    /// Whether nothing needs the tables.
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What is there.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) rules: Rules,
    pub(super) passing: Passing,
    /// Whether there is a table of ours.
    pub(super) is_there: bool,
    /// Whether both tables say what this version writes.
    pub(super) is_current: bool,
}

/// The names of chains without rules, each of which is there when it is so: the host did not forward; it did not accept
/// redirects either.
pub(super) const MEMORY: &str = "did_not_forward";
const NO_REDIRECTS: &str = "accepted_no_redirects";

/// The name of both tables.
pub(super) fn table(installation: &Installation) -> String {
    format!("bg{installation}")
}

/// Whose table that is, by its name.
pub(super) fn whose(table: &str) -> Option<Installation> {
    table.strip_prefix("bg").and_then(Installation::parse)
}

/// Reads what nft lists of our tables; one that is not there is missing.
pub(super) fn read(installation: &Installation, listings: &[Value]) -> Found {
    let (mut rules, mut passing, mut subnets) = (Rules::default(), Passing::default(), Vec::new());
    let (mut objects, mut memories, mut forwarding) = (Vec::new(), Vec::new(), BTreeSet::new());
    let (mut talkers, mut ports) = (BTreeSet::new(), 0);
    let mut ipv6 = rules_ipv6::Reading::default();
    for object in listings.iter().filter_map(|listing| listing["nftables"].as_array()).flatten() {
        let Some((kind, body)) = object.as_object().and_then(|object| object.iter().next()) else {
            continue;
        };
        match kind.as_str() {
            "metainfo" | "table" => continue,
            "chain" if body["name"] == MEMORY || body["name"] == NO_REDIRECTS => {
                memories.push(body["name"].clone());
                continue;
            }
            "chain" if body["name"] == rules_ipv6::MEMORY => {
                ipv6.remembers();
                continue;
            }
            "set" if ipv6.take_set(body, &mut rules) => {}
            "set" if body["name"] == FORWARDING[1] => {
                let names = body["elem"].as_array().into_iter().flatten();
                forwarding.extend(names.filter_map(Value::as_str).map(str::to_owned));
            }
            "set" if [&body["family"], &body["name"]] == TALKERS => {
                let names = body["elem"].as_array().into_iter().flatten();
                talkers.extend(names.filter_map(Value::as_str).filter_map(Mark::parse));
            }
            "set" => {
                let name = body["name"].as_str().unwrap_or_default();
                for element in body["elem"].as_array().into_iter().flatten() {
                    ports += usize::from(name == EXPOSED[1]);
                    match name {
                        "subnets" => subnets.extend(lists::read_subnet(element)),
                        "senders" | "peers" | "exposed" | "ways_out" | "listed" => {
                            read_element(name, element, &mut rules)
                        }
                        _ => passing.read(name, element),
                    }
                }
            }
            _ => {}
        }
        let mut body = body.clone();
        for own in ["handle", "elem"] {
            body.as_object_mut().map(|body| body.remove(own));
        }
        if let Some(flags) = body.get_mut("flags") {
            *flags = plain_flags(flags);
        }
        objects.push(json!({ kind: body }));
    }
    if memories.iter().any(|name| name == MEMORY) {
        let accepted_redirects = !memories.iter().any(|name| name == NO_REDIRECTS);
        rules.before = Some(Before { accepted_redirects, forwarding });
    }
    // Two sets say the same of a peer. If they do not, or of nobody that has a guard, all is written anew. So it is when ports
    // lead from an address of nobody's, or of another's.
    let agree = talkers.iter().eq(rules.peers.keys())
        && talkers.iter().all(|mark| rules.guards.contains_key(mark));
    rules.peers.retain(|mark, _| rules.guards.contains_key(mark));
    let are_its_own = |(mark, address, _): &(Mark, Ipv4Addr, u16)| {
        rules.guards.get(mark).is_some_and(|(_, own)| own == address)
    };
    rules.exposed.retain(are_its_own);
    let mut is_current = agree && rules.exposed.len() == ports && objects == written(installation);
    for (guest, cidr) in subnets {
        let whose = rules.ways_out.values_mut().find(|way| way.address == guest);
        match whose.and_then(|way| way.only.as_mut()) {
            Some(only) => drop(only.insert(cidr)),
            // Nobody's: nothing but writing all anew takes it away.
            None => is_current = false,
        }
    }
    is_current &= ipv6.finish(&mut rules);
    Found { rules, passing, is_there: !listings.is_empty(), is_current }
}

/// As they are written here. Versions of nft differ in whether they say that rules change a set, and in whether one flag is in
/// brackets.
fn plain_flags(flags: &Value) -> Value {
    let all = flags.as_array().cloned().unwrap_or_else(|| vec![flags.clone()]);
    all.into_iter().filter(|flag| flag != "dynamic").collect()
}

/// `"10.213.0.2"` with a mark as its comment, or a bridge twice and an address with one, or an address and a port with one, or a
/// mark, a hardware address and an address.
fn read_element(set: &str, element: &Value, rules: &mut Rules) {
    let whole = &element["elem"];
    let mark = |text: &Value| text.as_str().and_then(Mark::parse);
    let address = |text: &Value| text.as_str().and_then(|text| text.parse().ok());
    if let (Some(mark), Some(address)) = (mark(&whole["comment"]), address(&whole["val"])) {
        let only = (set == LISTED[1]).then(BTreeSet::new);
        rules.ways_out.insert(mark, WayOut { address, only, ipv6: None });
        return;
    }
    let between = whole["val"]["concat"].as_array().map(Vec::as_slice);
    if let (Some(mark), Some([from, port])) = (mark(&whole["comment"]), between) {
        let port = port.as_u64().and_then(|port| u16::try_from(port).ok());
        if let (Some(from), Some(port)) = (address(from), port) {
            rules.exposed.insert((mark, from, port));
        }
        return;
    }
    if let (Some(mark), Some([bridge, _, last])) = (mark(&whole["comment"]), between) {
        let number = bridge.as_str().and_then(|name| bridge_number(mark.installation(), name));
        if let (Some(number), Some(address)) = (number, address(last)) {
            rules.peers.insert(mark, (number, address));
        }
        return;
    }
    let parts = element["concat"].as_array().map(Vec::as_slice);
    if let Some([name, mac, last]) = parts {
        let mac = mac.as_str().and_then(Mac::parse);
        if let (Some(mark), Some(mac), Some(address)) = (mark(name), mac, address(last)) {
            rules.guards.insert(mark, (mac, address));
        }
    }
}

/// What makes of `found` what is wanted, all of it at once or nothing. `None` when it is so. `taps_left`: whether a tap of
/// this installation is there; as long as one is, the tables are too, since what has no guard passes nothing by them.
pub(super) fn change(
    installation: &Installation,
    found: &Found,
    wanted: &Rules,
    taps_left: bool,
) -> Option<Value> {
    let there = &found.rules;
    if wanted.is_empty() && !found.is_there {
        return None;
    }
    if wanted.is_empty() && !taps_left {
        return Some(commands(without(installation)));
    }
    if !found.is_current {
        return Some(commands(whole(installation, wanted, &found.passing)));
    }
    let mut all = Vec::new();
    for (verb, from, to) in [("delete", there, wanted), ("add", wanted, there)] {
        let guards = from.guards.iter().filter(|(mark, who)| to.guards.get(mark) != Some(who));
        let ways_out = from.ways_out.iter().filter(|(mark, at)| to.ways_out.get(mark) != Some(at));
        let peers = from.peers.iter().filter(|(mark, at)| to.peers.get(mark) != Some(at));
        let senders = elements(installation, &SENDERS, guards.map(sender).collect());
        let talkers = elements(installation, &TALKERS, peers.clone().map(talker).collect());
        let peers = elements(installation, &PEERS, peers.map(peer).collect());
        let exposed = from.exposed.difference(&to.exposed).map(exposed).collect();
        let exposed = elements(installation, &EXPOSED, exposed);
        let ways_out = leaving(installation, ways_out);
        let before = from.before.iter().filter(|before| to.before.as_ref() != Some(before));
        let before = before.flat_map(|before| memory(installation, before));
        let elements = [senders, talkers, peers, exposed].into_iter().flatten().chain(ways_out);
        let changed = elements.chain(before);
        all.extend(changed.map(|it| json!({ verb: it })));
    }
    all.extend(rules_ipv6::change(installation, there, wanted));
    let closed = there.ways_out.iter().filter(|(mark, way)| wanted.ways_out.get(mark) != Some(way));
    let closed = closed.map(|(_, way)| way.address).collect();
    let gone = there.guards.iter().filter(|(mark, who)| wanted.guards.get(mark) != Some(who));
    let gone = gone.map(|(_, (_, address))| *address).collect();
    all.extend(found.passing.forget(installation, &closed, &gone));
    (!all.is_empty()).then(|| commands(all))
}

/// What opens addresses to a VM that has a list, for so many seconds; `None` when they are open for as long.
///
/// # Errors
/// In a sentence, when it has no list, or too many addresses.
pub(super) fn open(
    mark: &Mark,
    found: &Found,
    addresses: &BTreeSet<Ipv4Addr>,
    seconds: u32,
) -> Result<Option<Value>, String> {
    match found.rules.ways_out.get(mark) {
        Some(WayOut { address, only: Some(_), ipv6: _ }) => {
            let opened = found.passing.open(mark.installation(), *address, addresses, seconds)?;
            Ok(opened.map(commands))
        }
        _ => Err("it has no list of what it may reach".to_owned()),
    }
}

/// What nft is told where nothing is yet, for one VM; and what undoes that, in nft's own language. For a measurement: claims
/// are made by [`change`].
#[must_use]
pub fn for_one(guard: &Guard) -> (Value, String) {
    let installation = guard.mark.installation();
    let mut rules = Rules::default();
    rules.guards.insert(guard.mark.clone(), (guard.mac, guard.address));
    let ipv6 = guard.network.ipv6_of(guard.address);
    rules.ipv6.extend(ipv6.map(|address| (guard.mark.clone(), address)));
    let table = table(installation);
    let undo = FAMILIES.map(|(family, _)| format!("delete table {family} {table}"));
    (commands(whole(installation, &rules, &Passing::default())), undo.join("; "))
}

/// Everything anew: the old tables go in the same transaction, so that no packet passes between them.
fn whole(installation: &Installation, rules: &Rules, passing: &Passing) -> Vec<Value> {
    let mut all = without(installation);
    let table = table(installation);
    let tables =
        FAMILIES.map(|(family, _)| json!({ "table": { "family": family, "name": table } }));
    let senders = elements(installation, &SENDERS, rules.guards.iter().map(sender).collect());
    let talkers = elements(installation, &TALKERS, rules.peers.iter().map(talker).collect());
    let peers = elements(installation, &PEERS, rules.peers.iter().map(peer).collect());
    let exposed = elements(installation, &EXPOSED, rules.exposed.iter().map(exposed).collect());
    let ways_out = leaving(installation, rules.ways_out.iter());
    let listed = rules.ways_out.values().filter(|way| way.only.is_some());
    let kept = passing.kept(installation, &listed.map(|way| way.address).collect());
    let before = rules.before.iter().flat_map(|before| memory(installation, before));
    let elements = [senders, talkers, peers, exposed].into_iter().flatten().chain(ways_out);
    let contents = elements.chain(kept).chain(before);
    let contents = contents.chain(rules_ipv6::contents(installation, rules));
    let added = tables.into_iter().chain(written(installation)).chain(contents);
    all.extend(added.map(|it| json!({ "add": it })));
    all
}

/// A table that is not there cannot be removed, so it is made first.
fn without(installation: &Installation) -> Vec<Value> {
    let tables = FAMILIES
        .map(|(family, _)| json!({ "table": { "family": family, "name": table(installation) } }));
    tables.into_iter().flat_map(|it| [json!({ "add": it }), json!({ "delete": it })]).collect()
}

fn commands(all: Vec<Value>) -> Value {
    json!({ "nftables": all })
}

/// A set's family and name.
const SENDERS: [&str; 2] = ["bridge", "senders"];
/// The taps between which a bridge passes frames.
const TALKERS: [&str; 2] = ["bridge", "peers"];
/// The same VMs, by the bridge that they send to others through and by their address.
const PEERS: [&str; 2] = ["inet", "peers"];
/// The ports of the gateway that lead further, each with the address that they lead from.
const EXPOSED: [&str; 2] = ["inet", "exposed"];
const WAYS_OUT: [&str; 2] = ["inet", "ways_out"];
/// No rule asks for it: it is what [`Before::forwarding`] is kept in.
const FORWARDING: [&str; 2] = ["inet", "forwarding"];

pub(super) fn elements(
    installation: &Installation,
    set: &[&str; 2],
    all: Vec<Value>,
) -> Option<Value> {
    let [family, name] = set;
    let table = table(installation);
    (!all.is_empty()).then(
        || json!({ "element": { "family": family, "table": table, "name": name, "elem": all } }),
    )
}

fn sender((mark, (mac, address)): (&Mark, &(Mac, Ipv4Addr))) -> Value {
    json!({ "concat": [mark, mac, address] })
}

fn talker((mark, _): (&Mark, &(u8, Ipv4Addr))) -> Value {
    json!(mark)
}

fn peer((mark, (number, address)): (&Mark, &(u8, Ipv4Addr))) -> Value {
    let bridge = bridge_name(mark.installation(), *number);
    json!({ "elem": { "val": { "concat": [bridge, bridge, address] }, "comment": mark } })
}

fn exposed((mark, address, port): &(Mark, Ipv4Addr, u16)) -> Value {
    json!({ "elem": { "val": { "concat": [address, port] }, "comment": mark } })
}

/// The elements of these ways out, in all sets that have some.
fn leaving<'a>(
    installation: &Installation,
    ways_out: impl Iterator<Item = (&'a Mark, &'a WayOut)>,
) -> Vec<Value> {
    let (mut free, mut listed, mut subnets) = (Vec::new(), Vec::new(), Vec::new());
    for (mark, WayOut { address, only, ipv6: _ }) in ways_out {
        let element = lists::way_out((mark, *address));
        if only.is_some() { &mut listed } else { &mut free }.push(element);
        let only = only.iter().flatten();
        subnets.extend(only.map(|cidr| lists::subnet(*address, cidr)));
    }
    let all = [(&WAYS_OUT, free), (&LISTED, listed), (&SUBNETS, subnets)];
    all.into_iter().filter_map(|(set, all)| elements(installation, set, all)).collect()
}

fn memory(installation: &Installation, before: &Before) -> Vec<Value> {
    let table = Table { family: "inet", name: table(installation) };
    let mut all = vec![table.chain(MEMORY)];
    if !before.accepted_redirects {
        all.push(table.chain(NO_REDIRECTS));
    }
    let names = before.forwarding.iter().map(|name| json!(name)).collect();
    all.extend(elements(installation, &FORWARDING, names));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn installation() -> Installation {
        Installation::parse("0000").unwrap()
    }

    fn vm(number: u8) -> (Mark, (Mac, Ipv4Addr)) {
        let mark = Mark::parse(&format!("bg0000-0000000{number}")).unwrap();
        let mac = Mac::of(&mark);
        (mark, (mac, Ipv4Addr::new(10, 213, 0, number)))
    }

    fn ipv6(number: u8) -> Ipv6Addr {
        crate::network::ipv6_below("fd12:3456:789a::".parse().unwrap(), vm(number).1.1)
    }

    /// With guards for the first ones, a way out for the second, and one to some addresses for the first.
    fn rules(guards: u8) -> Rules {
        let mut rules = Rules { guards: (2..2 + guards).map(vm).collect(), ..Rules::default() };
        let (mark, (_, address)) = vm(3);
        rules.peers.insert(mark.clone(), (1, address));
        rules.exposed.insert((mark.clone(), address, 5432));
        rules.ways_out.insert(mark.clone(), WayOut { address, only: None, ipv6: Some(ipv6(3)) });
        rules.ipv6.insert(mark, ipv6(3));
        let (mark, (_, address)) = vm(2);
        let only = ["203.0.113.0/24", "198.51.100.7"].map(|cidr| Cidr::parse(cidr).unwrap());
        rules.ways_out.insert(mark, WayOut { address, only: Some(only.into()), ipv6: None });
        let forwarding = ["eth1".to_owned()].into();
        rules.before = Some(Before { accepted_redirects: false, forwarding });
        let [forwarding, listening] = [["eth1".to_owned()].into(), ["eth0".to_owned()].into()];
        rules.before_ipv6 = Some(forwarding_ipv6::Before { forwarding, listening });
        rules
    }

    /// One command a line.
    fn text(change: &Value) -> String {
        change["nftables"].as_array().unwrap().iter().map(|line| format!("{line}\n")).collect()
    }

    #[test]
    fn what_is_written_is_what_the_snapshot_says() {
        let change = change(&installation(), &Found::default(), &rules(2), true).unwrap();
        assert_eq!(text(&change), include_str!("snapshots/rules.txt"));
    }

    #[test]
    fn one_vm_more_or_less_is_one_element_and_the_last_takes_the_tables() {
        let found = |rules| Found { rules, is_there: true, is_current: true, ..Found::default() };
        let change = |from, to: &Rules| change(&installation(), &found(from), to, false);
        assert_eq!(change(rules(2), &rules(2)), None);
        let element = r#"{"element":{"elem":[{"concat":["bg0000-00000004","02:00:00:00:00:04","10.213.0.4"]}],"family":"bridge","name":"senders","table":"bg0000"}}"#;
        let added = change(rules(2), &rules(3)).unwrap();
        assert_eq!(text(&added), format!("{{\"add\":{element}}}\n"));
        let deleted = change(rules(3), &rules(2)).unwrap();
        assert_eq!(text(&deleted), format!("{{\"delete\":{element}}}\n"));
        let gone = text(&change(rules(3), &Rules::default()).unwrap());
        assert_eq!(gone.matches("\"delete\":{\"table\"").count(), 2, "{gone}");
    }

    #[test]
    fn what_is_listed_strangely_is_no_vms_and_not_current() {
        for listing in [
            json!(null),
            json!([]),
            json!({ "nftables": 7 }),
            json!({ "nftables": [null, 7, {}, { "set": null }, { "chain": [] }] }),
            json!({ "nftables": [{ "set": { "name": "senders", "elem": [
                7, null, "eth0", { "elem": { "val": "10.0.0.1", "comment": "hello" } },
                { "elem": { "val": "nowhere", "comment": "bg0000-00000000" } },
                { "concat": ["eth0", "02:00:00:00:00:00", "10.0.0.1"] },
                { "concat": ["bg0000-00000000", "02:00:00:00:00:00"] },
            ] } }] }),
        ] {
            let found = read(&installation(), std::slice::from_ref(&listing));
            assert_eq!(found.rules, Rules::default(), "{listing}");
            assert!(found.is_there && !found.is_current, "{listing}");
        }
    }
}
