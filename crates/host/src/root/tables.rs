//! The rules of our two nftables tables, the same for every VM, as nft's JSON has them (libnftables-json(5)).
//!
//! ```text
//! guest ─► tap ─► table bridge bgXXXX ─► bridge ─┬─► table inet bgXXXX, input ────► the host: names, what is exposed
//!                 is it who it says it is?       ├─► table inet bgXXXX, forward ──► as the host, to the world
//!                                                └─► table bridge bgXXXX, forward ► a peer's tap
//! ```
//! Where br_netfilter is on (Docker turns it on), what a bridge passes from port to port goes by the inet table's `forward`, too,
//! as if it came in and went out by the bridge.

use serde_json::{Value, json};

use super::lists;
use super::rules::{DNS_PORT, EXPOSE_PORT, table};
use super::tables_ipv6 as ipv6;
use crate::mark::Installation;

/// Sets, chains and rules of both tables, in the order and the words that nft lists them in: what differs is written anew.
pub(super) fn written(installation: &Installation) -> Vec<Value> {
    [inet(installation), bridge(installation)].concat()
}

/// What guests send the host, and through it.
fn inet(installation: &Installation) -> Vec<Value> {
    let table = Table { family: "inet", name: table(installation) };
    let bridges = format!("bg{installation}-net*");
    let from_guest = || meta("iifname", "==", &bridges);
    let to_guest = || meta("oifname", "==", &bridges);
    // The address that the host has on the device that it comes in by: the gateway's.
    let to_gateway = || {
        let fib = json!({ "fib": { "result": "type", "flags": ["daddr", "iif"] } });
        matches(&fib, "==", "local")
    };
    let port = |protocol, port: u16| matches(&payload(protocol, "dport"), "==", port);
    let redirected = || matches(&json!({ "ct": { "key": "status" } }), "in", "dnat");
    let answers =
        || matches(&json!({ "ct": { "key": "state" } }), "in", json!(["established", "related"]));
    let may_leave = |field| matches(&payload("ip", field), "==", "@ways_out");
    let among_peers = || {
        let interface = |key| json!({ "meta": { "key": key } });
        let parts = [interface("iifname"), interface("oifname"), payload("ip", "saddr")];
        matches(&json!({ "concat": parts }), "==", "@peers")
    };
    let is_exposed = || {
        let parts = [payload("ip", "saddr"), payload("tcp", "dport")];
        matches(&json!({ "concat": parts }), "==", "@exposed")
    };
    let link_local = json!({ "prefix": { "addr": "169.254.0.0", "len": 16 } });
    let to = |chain| json!({ "goto": { "target": chain } });
    let forbidden = || json!({ "reject": { "type": "icmpx", "expr": "admin-prohibited" } });
    let accept = || json!({ "accept": null });
    let redirect = |port: u16| json!({ "redirect": { "port": port } });
    let dns = || redirect(DNS_PORT);

    let mut all = vec![
        table.set("peers", json!(["ifname", "ifname", "ipv4_addr"])),
        table.set("exposed", json!(["ipv4_addr", "inet_service"])),
        table.set("ways_out", json!("ipv4_addr")),
        table.set("forwarding", json!("ifname")),
    ];
    all.extend(lists::sets(&table));
    all.extend(ipv6::inet_sets(&table));
    all.extend([
        // Before other people's translations of the same packets: the first that takes one has it.
        table.hook("prerouting", "nat", -110),
        table.hook("input", "filter", 0),
        table.hook("forward", "filter", 0),
        table.hook("postrouting", "nat", 100),
        table.chain("guest_to_host"),
        table.chain("guest_to_world"),
        table.chain("world_to_guest"),
    ]);
    all.extend(lists::CHAINS.map(|chain| table.chain(chain)));
    all.extend(ipv6::inet_chains(&table));
    let rules = [
        ("prerouting", vec![from_guest(), to_gateway(), port("udp", 53), dns()]),
        ("prerouting", vec![from_guest(), to_gateway(), port("tcp", 53), dns()]),
        ("prerouting", vec![from_guest(), to_gateway(), is_exposed(), redirect(EXPOSE_PORT)]),
        ("input", vec![from_guest(), to("guest_to_host")]),
        ("forward", vec![from_guest(), to("guest_to_world")]),
        ("forward", vec![to_guest(), to("world_to_guest")]),
        (
            "postrouting",
            vec![
                may_leave("saddr"),
                meta("oifname", "!=", &bridges),
                json!({ "masquerade": null }),
            ],
        ),
        ("postrouting", lists::masqueraded(&bridges)),
        (
            "postrouting",
            vec![
                ipv6::may_leave("saddr"),
                meta("oifname", "!=", &bridges),
                json!({ "masquerade": null }),
            ],
        ),
        ("guest_to_host", vec![answers(), accept()]),
        ("guest_to_host", vec![redirected(), port("udp", DNS_PORT), accept()]),
        ("guest_to_host", vec![redirected(), port("tcp", DNS_PORT), accept()]),
        ("guest_to_host", vec![redirected(), port("tcp", EXPOSE_PORT), accept()]),
        (
            "guest_to_host",
            vec![to_gateway(), matches(&payload("icmp", "type"), "==", "echo-request"), accept()],
        ),
        ("guest_to_host", vec![to_gateway(), ipv6::is_echo_request(), accept()]),
        ("guest_to_host", vec![ipv6::is_of_neighbours(), accept()]),
        ("guest_to_host", vec![protocol_is(TCP), json!({ "reject": { "type": "tcp reset" } })]),
        (
            "guest_to_host",
            vec![json!({ "reject": { "type": "icmpx", "expr": "port-unreachable" } })],
        ),
        ("guest_to_world", vec![among_peers(), accept()]),
        ("guest_to_world", vec![ipv6::among_peers(), accept()]),
        // One guest to another: their ports are isolated, and the host answers in the other's place.
        // The kernel tells the first packet of each a better way (ICMP redirect), and is then slow to say no by ICMP: they share
        // one rate (`inet_peer_xrlim_allow`).
        (
            "guest_to_world",
            vec![to_guest(), protocol_is(TCP), json!({ "reject": { "type": "tcp reset" } })],
        ),
        ("guest_to_world", vec![to_guest(), forbidden()]),
        ("guest_to_world", vec![matches(&payload("ip", "daddr"), "==", link_local), to("refused")]),
        ("guest_to_world", vec![ipv6::is_nobodys(), to("refused")]),
        ("guest_to_world", vec![may_leave("saddr"), accept()]),
        ("guest_to_world", vec![ipv6::may_leave("saddr"), accept()]),
        ("guest_to_world", vec![lists::is_listed("saddr"), to("guest_to_listed")]),
        ("guest_to_world", vec![to("refused")]),
        ("world_to_guest", vec![may_leave("daddr"), answers(), accept()]),
        ("world_to_guest", vec![ipv6::may_leave("daddr"), answers(), accept()]),
        ("world_to_guest", vec![lists::is_listed("daddr"), answers(), to("listed_to_guest")]),
        ("world_to_guest", vec![forbidden()]),
    ];
    let rules = rules.into_iter().chain(lists::rules(&answers(), &forbidden()));
    let rules = rules.chain(ipv6::inet_rules(&bridges, &forbidden()));
    all.extend(rules.map(|(chain, rule)| table.rule(chain, rule)));
    all
}

/// What a guest may call itself, and whether others of its bridge hear it. Everything is dropped that is neither IPv4, IPv6 nor
/// ARP of the VM's own addresses, whatever device of ours it comes in by: a tap that no guard was made for passes nothing.
fn bridge(installation: &Installation) -> Vec<Value> {
    let table = Table { family: "bridge", name: table(installation) };
    let taps = format!("bg{installation}-*");
    let from_guest = || meta("iifname", "==", &taps);
    let are_its_own = |mac: Value, address: Value| {
        let parts = [json!({ "meta": { "key": "iifname" } }), mac, address];
        matches(&json!({ "concat": parts }), "==", "@senders")
    };
    let sender = || payload("ether", "saddr");
    let arp = |field, value: Value| matches(&payload("arp", field), "==", value);
    let ether_type = |op, kind: Value| matches(&payload("ether", "type"), op, kind);
    let to = |chain| json!({ "goto": { "target": chain } });
    let drop = || json!({ "drop": null });
    let accept = || json!({ "accept": null });

    let mut all = vec![
        table.set("senders", json!(["ifname", "ether_addr", "ipv4_addr"])),
        table.set("peers", json!("ifname")),
    ];
    all.extend(ipv6::bridge_sets(&table));
    all.extend([
        table.hook("prerouting", "filter", -200),
        table.hook("forward", "filter", -200),
        table.chain("guest"),
        table.chain("guest_arp"),
        table.chain(ipv6::BRIDGE_CHAIN),
    ]);
    let rules = [
        ("prerouting", vec![from_guest(), to("guest")]),
        (
            "forward",
            vec![meta("iifname", "==", "@peers"), meta("oifname", "==", "@peers"), accept()],
        ),
        ("forward", vec![from_guest(), drop()]),
        // As the frame has it: one with a VLAN tag is neither.
        ("guest", vec![ether_type("!=", json!({ "set": ["ip", "arp", "ip6"] })), drop()]),
        ("guest", vec![are_its_own(sender(), payload("ip", "saddr")), accept()]),
        ("guest", vec![ether_type("==", json!("arp")), to("guest_arp")]),
        ("guest", ipv6::is_its_own()),
        ("guest", vec![drop()]),
        (
            "guest_arp",
            vec![
                arp("htype", json!(1)),
                arp("ptype", json!("ip")),
                arp("hlen", json!(6)),
                arp("plen", json!(4)),
                arp("operation", json!({ "set": ["request", "reply"] })),
                are_its_own(sender(), payload("arp", "saddr ip")),
                are_its_own(payload("arp", "saddr ether"), payload("arp", "saddr ip")),
                accept(),
            ],
        ),
        ("guest_arp", vec![drop()]),
    ];
    let rules = rules.into_iter().chain(ipv6::bridge_rules());
    all.extend(rules.map(|(chain, rule)| table.rule(chain, rule)));
    all
}

/// One of the two, by whose name its objects are written.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) family: &'static str,
    pub(super) name: String,
}

impl Table {
    pub(super) fn set(&self, name: &str, kind: Value) -> Value {
        self.set_of(name, kind, &json!({}))
    }

    /// With more of nft's words for a set.
    pub(super) fn set_of(&self, name: &str, kind: Value, more: &Value) -> Value {
        let mut set =
            json!({ "family": self.family, "table": self.name, "name": name, "type": kind });
        for (word, value) in more.as_object().into_iter().flatten() {
            set[word] = value.clone();
        }
        json!({ "set": set })
    }

    pub(super) fn chain(&self, name: &str) -> Value {
        json!({ "chain": { "family": self.family, "table": self.name, "name": name } })
    }

    fn hook(&self, hook: &str, kind: &str, priority: i32) -> Value {
        self.hook_named(hook, hook, kind, priority)
    }

    pub(super) fn hook_named(&self, name: &str, hook: &str, kind: &str, priority: i32) -> Value {
        json!({ "chain": {
            "family": self.family, "table": self.name, "name": name,
            "type": kind, "hook": hook, "prio": priority, "policy": "accept",
        } })
    }

    fn rule(&self, chain: &str, expressions: Vec<Value>) -> Value {
        json!({ "rule": {
            "family": self.family, "table": self.name, "chain": chain, "expr": expressions,
        } })
    }
}

pub(super) fn matches(left: &Value, op: &str, right: impl Into<Value>) -> Value {
    json!({ "match": { "op": op, "left": left, "right": right.into() } })
}

pub(super) fn meta(key: &str, op: &str, value: &str) -> Value {
    matches(&json!({ "meta": { "key": key } }), op, value)
}

/// IANA's numbers. nft knows names only on a host with /etc/protocols.
pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;

/// The protocol above IP, as the list of [`super::nft`] has it: by its number.
pub(super) fn protocol_is(number: impl Into<Value>) -> Value {
    matches(&json!({ "meta": { "key": "l4proto" } }), "==", number)
}

pub(super) fn payload(protocol: &str, field: &str) -> Value {
    json!({ "payload": { "protocol": protocol, "field": field } })
}
