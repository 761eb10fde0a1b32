//! The rules of our tables for IPv6, as [`super::tables`] has those for IPv4 and for both.
//!
//! A guest has one IPv6 address, without a second one for its link: what it may send and say of neighbours is all of that one. What
//! goes neither to the host nor to a peer is judged where it arrives, because the host need not forward: then nobody else would
//! say no to it.

use serde_json::{Value, json};

use super::tables::{TCP, Table, matches, meta, payload, protocol_is};

/// IANA's number of ICMPv6.
const ICMPV6: u8 = 58;

/// The sets of the table `inet`.
pub(super) fn inet_sets(table: &Table) -> Vec<Value> {
    vec![
        table.set("peers_ipv6", json!(["ifname", "ifname", "ipv6_addr"])),
        table.set("ways_out_ipv6", json!("ipv6_addr")),
        table.set("forwarding_ipv6", json!("ifname")),
        table.set("listening_ipv6", json!("ifname")),
    ]
}

/// The chains of the table `inet`. Those that come in first are judged after connections are known and before they are routed.
pub(super) fn inet_chains(table: &Table) -> Vec<Value> {
    vec![
        table.hook_named("arrival_ipv6", "prerouting", "filter", 0),
        table.chain("guest_ipv6"),
        table.chain("leaving_ipv6"),
        table.chain("refused_ipv6"),
    ]
}

/// The rules of [`inet_chains`].
pub(super) fn inet_rules(bridges: &str, forbidden: &Value) -> Vec<(&'static str, Vec<Value>)> {
    let fib = |result: &str, flags: &[&str]| json!({ "fib": { "result": result, "flags": flags } });
    let to = |chain| json!({ "goto": { "target": chain } });
    let accept = || json!({ "accept": null });
    // By the way to it, so that guests of all networks are meant.
    let to_guest = matches(&fib("oifname", &["daddr"]), "==", bridges);
    let is_of_a_peer = |field| {
        let interface = json!({ "meta": { "key": "iifname" } });
        let parts = [interface.clone(), interface, payload("ip6", field)];
        matches(&json!({ "concat": parts }), "==", "@peers_ipv6")
    };
    let elsewhere = json!({ "set": ["local", "anycast", "multicast"] });
    vec![
        (
            "arrival_ipv6",
            vec![
                meta("iifname", "==", bridges),
                meta("nfproto", "==", "ipv6"),
                matches(&fib("type", &["daddr", "iif"]), "!=", "local"),
                matches(&fib("type", &["daddr"]), "!=", elsewhere),
                to("guest_ipv6"),
            ],
        ),
        ("guest_ipv6", vec![is_of_a_peer("saddr"), is_of_a_peer("daddr"), accept()]),
        ("guest_ipv6", vec![may_leave("saddr"), to("leaving_ipv6")]),
        ("guest_ipv6", vec![to("refused_ipv6")]),
        // Before the host tells it a better way to another guest, to which there is none (ICMPv6 redirect).
        ("leaving_ipv6", vec![to_guest, to("refused_ipv6")]),
        ("leaving_ipv6", vec![is_nobodys(), to("refused_ipv6")]),
        ("leaving_ipv6", vec![accept()]),
        // Of ICMP's errors the kernel sends few at a time.
        ("refused_ipv6", vec![protocol_is(TCP), json!({ "reject": { "type": "tcp reset" } })]),
        ("refused_ipv6", vec![forbidden.clone()]),
    ]
}

/// A VM that may go anywhere.
pub(super) fn may_leave(field: &str) -> Value {
    matches(&payload("ip6", field), "==", "@ways_out_ipv6")
}

/// What goes from peer to peer.
pub(super) fn among_peers() -> Value {
    let interface = |key| json!({ "meta": { "key": key } });
    let parts = [interface("iifname"), interface("oifname"), payload("ip6", "saddr")];
    matches(&json!({ "concat": parts }), "==", "@peers_ipv6")
}

/// Where nobody is sent: links, and where clouds keep credentials (fd00:ec2::254 of AWS, fd20:ce::254 of Google).
pub(super) fn is_nobodys() -> Value {
    let prefix = |addr: &str, len: u8| json!({ "prefix": { "addr": addr, "len": len } });
    let all = [prefix("fd00:ec2::", 32), prefix("fd20:ce::", 32), prefix("fe80::", 10)];
    matches(&payload("ip6", "daddr"), "==", json!({ "set": all }))
}

/// The neighbours' questions and answers, as far as the table `bridge` let them through.
pub(super) fn is_of_neighbours() -> Value {
    is_icmpv6(json!({ "set": ["nd-neighbor-solicit", "nd-neighbor-advert"] }))
}

pub(super) fn is_echo_request() -> Value {
    is_icmpv6("echo-request")
}

fn is_icmpv6(kind: impl Into<Value>) -> Value {
    matches(&payload("icmpv6", "type"), "==", kind)
}

/// The sets of the table `bridge`.
pub(super) fn bridge_sets(table: &Table) -> Vec<Value> {
    vec![
        table.set("senders_ipv6", json!(["ifname", "ether_addr", "ipv6_addr"])),
        table.set("neighbours_ipv6", json!(["ifname", "mark"])),
    ]
}

pub(super) const BRIDGE_CHAIN: &str = "guest_ipv6";

/// An IPv6 packet of a VM's own address goes on to the rules below.
pub(super) fn is_its_own() -> Vec<Value> {
    let interface = json!({ "meta": { "key": "iifname" } });
    let parts = [interface, payload("ether", "saddr"), payload("ip6", "saddr")];
    vec![
        matches(&json!({ "concat": parts }), "==", "@senders_ipv6"),
        json!({ "goto": { "target": BRIDGE_CHAIN } }),
    ]
}

/// A guest sends no router's messages (advertisements, redirects, questions for groups), and says of no other address than its own
/// that it has it. nft (1.0.6) knows no name for that field, and a field without a name is in no set with others; a mark is.
pub(super) fn bridge_rules() -> Vec<(&'static str, Vec<Value>)> {
    let accept = || json!({ "accept": null });
    let mark = || json!({ "meta": { "key": "mark" } });
    let set_mark = |value: Value| json!({ "mangle": { "key": mark(), "value": value } });
    // Of the target, which begins after 8 bytes (RFC 4861, 4.4), the last 32 bits.
    let target = json!({ "payload": { "base": "th", "offset": 160, "len": 32 } });
    let claimed = json!({ "concat": [{ "meta": { "key": "iifname" } }, mark()] });
    let is_advert = || is_icmpv6("nd-neighbor-advert");
    let harmless = json!({ "set": [
        "destination-unreachable", "packet-too-big", "time-exceeded", "parameter-problem", "echo-request",
        "echo-reply", "nd-neighbor-solicit",
    ] });
    let is_something_else = matches(&json!({ "meta": { "key": "l4proto" } }), "!=", ICMPV6);
    vec![
        (BRIDGE_CHAIN, vec![is_something_else, accept()]),
        (BRIDGE_CHAIN, vec![is_icmpv6(harmless), accept()]),
        (BRIDGE_CHAIN, vec![is_advert(), set_mark(target)]),
        (
            BRIDGE_CHAIN,
            vec![
                is_advert(),
                matches(&claimed, "==", "@neighbours_ipv6"),
                set_mark(json!(0)),
                accept(),
            ],
        ),
        (BRIDGE_CHAIN, vec![json!({ "drop": null })]),
    ]
}
