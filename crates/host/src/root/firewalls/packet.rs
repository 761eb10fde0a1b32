//! A packet of a guest's, as far as it is known before there is one, and whether an expression of a rule is true of it:
//! yes, no, or nobody knows.

use std::net::Ipv4Addr;

use serde_json::Value;

use super::super::rules::DNS_PORT;
use super::ruleset::{Chain, Ruleset, words};

/// `None` where it cannot be known.
pub(super) type Answer = Option<bool>;

/// What is known of a device's name.
#[derive(Debug, Clone)]
pub(super) enum Name {
    Exactly(String),
    Begins(String),
    /// Nothing is known of it where there is none.
    OneOf(Vec<String>),
    /// There is no device: the packet is the host's own, or for the host.
    None,
}

/// Both directions of a connection, at the chains that see them.
#[derive(Debug)]
pub(super) struct Packet {
    from: Name,
    to: Name,
    source: Place,
    destination: Place,
    protocol: Protocol,
    is_answer: bool,
    /// Whether our rules have changed where it goes.
    redirected: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    /// To a port that nobody knows, or from it.
    Tcp,
    /// To this port.
    Udp(u16),
}

/// What is known of an address.
#[derive(Debug, Clone, Copy)]
enum Place {
    /// One of these.
    Subnet(Ipv4Addr, u8),
    /// Somewhere that no rule names.
    World,
}

impl Packet {
    /// The first of a connection of a guest's to the world.
    pub(super) fn out(from: Name, to: Name, (first, prefix): (Ipv4Addr, u8)) -> Self {
        Self {
            from,
            to,
            source: Place::Subnet(first, prefix),
            destination: Place::World,
            protocol: Protocol::Tcp,
            is_answer: false,
            redirected: false,
        }
    }

    /// What answers it, when its destination is the guest's again.
    pub(super) fn back(from: Name, to: Name, (first, prefix): (Ipv4Addr, u8)) -> Self {
        Self {
            from,
            to,
            source: Place::World,
            destination: Place::Subnet(first, prefix),
            protocol: Protocol::Tcp,
            is_answer: true,
            redirected: false,
        }
    }

    /// A guest's question to the gateway, which leads to our port by then.
    pub(super) fn name_asked(
        from: Name,
        (first, prefix): (Ipv4Addr, u8),
        gateway: Ipv4Addr,
    ) -> Self {
        Self {
            from,
            to: Name::None,
            source: Place::Subnet(first, prefix),
            destination: Place::Subnet(gateway, 32),
            protocol: Protocol::Udp(DNS_PORT),
            is_answer: false,
            redirected: true,
        }
    }

    /// Whether a `match` statement of a rule in this chain is true of it.
    pub(super) fn matches(&self, body: &Value, ruleset: &Ruleset, chain: &Chain) -> Answer {
        let right = &body["right"];
        let is = match right.as_str().and_then(|name| name.strip_prefix('@')) {
            Some(name) => self.is(&body["left"], ruleset.set(chain, name)?),
            None => self.is(&body["left"], right),
        };
        match body["op"].as_str() {
            Some("==" | "in") => is,
            Some("!=") => is.map(|is| !is),
            _ => None,
        }
    }

    /// Whether what `left` names is, or is among, `right`.
    pub(super) fn is(&self, left: &Value, right: &Value) -> Answer {
        let (kind, body) = left.as_object()?.iter().next()?;
        let key = body["key"].as_str().unwrap_or_default();
        match kind.as_str() {
            "meta" => match key {
                "iifname" | "iif" => any(right, |value| self.from.is(value)),
                "oifname" | "oif" => any(right, |value| self.to.is(value)),
                "nfproto" => any(right, |value| Some(value == "ipv4")),
                "protocol" => any(right, |value| Some(value == "ip")),
                "l4proto" => any(right, |value| self.is_protocol(value)),
                _ => None,
            },
            "ct" => match key {
                "state" => Some(flags(right).contains(&self.state())),
                "status" if flags(right) == ["dnat"] => Some(self.redirected),
                "direction" => any(right, |value| Some((value == "reply") == self.is_answer)),
                _ => None,
            },
            "payload" => self.is_payload(body, right),
            "fib" if body["result"] == "type" && words(&body["flags"]).contains(&"daddr") => {
                any(right, |value| self.is_of_type(value.as_str()?))
            }
            _ => None,
        }
    }

    /// The same for what iptables says by extensions, of which JSON has the name and the rule's text the rest.
    pub(super) fn matches_extension(&self, name: &str, text: &str) -> Answer {
        match name {
            "comment" => Some(true),
            "conntrack" | "state" => {
                let states = argument(text, "ct ", "state ")?;
                let is = states.split(',').any(|state| state == self.state());
                states.bytes().all(|b| b.is_ascii_lowercase() || b == b',').then_some(is)
            }
            "addrtype" => self.is_of_type(argument(text, "fib ", "daddr type ")?),
            _ => None,
        }
    }

    fn is_payload(&self, body: &Value, right: &Value) -> Answer {
        let field = body["field"].as_str()?;
        match (body["protocol"].as_str()?, field) {
            ("ip", "saddr") => any(right, |value| self.source.is(value)),
            ("ip", "daddr") => any(right, |value| self.destination.is(value)),
            ("ip", "protocol") => any(right, |value| self.is_protocol(value)),
            ("ip", _) => None,
            ("ether", "type") => any(right, |value| Some(value == "ip")),
            ("ether", _) => None,
            ("th", field) => self.is_port(field, right),
            ("tcp", field) if self.protocol == Protocol::Tcp => self.is_port(field, right),
            ("udp", field) if self.protocol != Protocol::Tcp => self.is_port(field, right),
            // A header that it does not have.
            _ => Some(false),
        }
    }

    fn is_port(&self, field: &str, right: &Value) -> Answer {
        match (self.protocol, field) {
            (Protocol::Udp(port), "dport") => any(right, |value| {
                let number = |value: &Value| value.as_u64();
                match value["range"].as_array().map(Vec::as_slice) {
                    Some([first, last]) => {
                        Some((number(first)?..=number(last)?).contains(&port.into()))
                    }
                    _ => Some(number(value)? == u64::from(port)),
                }
            }),
            _ => None,
        }
    }

    fn is_protocol(&self, value: &Value) -> Answer {
        let (name, number) = match self.protocol {
            Protocol::Tcp => ("tcp", 6),
            Protocol::Udp(_) => ("udp", 17),
        };
        Some(value == name || value.as_u64() == Some(number))
    }

    /// The type of its destination, as seen from the host.
    fn is_of_type(&self, kind: &str) -> Answer {
        let own = if matches!(self.to, Name::None) { "local" } else { "unicast" };
        kind.bytes().all(|b| b.is_ascii_lowercase()).then_some(kind == own)
    }

    fn state(&self) -> &'static str {
        if self.is_answer { "established" } else { "new" }
    }
}

impl Name {
    fn is(&self, value: &Value) -> Answer {
        let pattern = value.as_str()?;
        match self {
            Name::None => Some(false),
            Name::Exactly(name) => Some(fits(name, pattern)),
            Name::OneOf(names) => {
                let count = names.iter().filter(|name| fits(name, pattern)).count();
                let all = !names.is_empty() && count == names.len();
                if all { Some(true) } else { (count == 0 && !names.is_empty()).then_some(false) }
            }
            Name::Begins(begin) => match pattern.strip_suffix('*') {
                Some(short) if begin.starts_with(short) => Some(true),
                Some(long) if long.starts_with(begin.as_str()) => None,
                Some(_) => Some(false),
                None => {
                    if pattern.starts_with(begin.as_str()) {
                        None
                    } else {
                        Some(false)
                    }
                }
            },
        }
    }
}

/// Whether a name is what a rule says, which may end with `*`.
fn fits(name: &str, pattern: &str) -> bool {
    pattern.strip_suffix('*').map_or(name == pattern, |begin| name.starts_with(begin))
}

impl Place {
    fn is(self, value: &Value) -> Answer {
        let address = |value: &Value| value.as_str()?.parse::<Ipv4Addr>().ok();
        let prefix = &value["prefix"];
        let (first, last) =
            if let Some([first, last]) = value["range"].as_array().map(Vec::as_slice) {
                (address(first)?, address(last)?)
            } else if prefix.is_object() {
                let bits = u8::try_from(prefix["len"].as_u64()?).ok()?;
                ends(address(&prefix["addr"])?, bits)
            } else {
                let one = address(value)?;
                (one, one)
            };
        let (own_first, own_last) = match self {
            Place::Subnet(first, prefix) => ends(first, prefix),
            Place::World => return Some(is_everything(first, last)),
        };
        if first <= own_first && own_last <= last {
            return Some(true);
        }
        (last < own_first || own_last < first).then_some(false)
    }
}

/// Whether it is so much that nobody in particular is meant: half of all addresses, or more.
fn is_everything(first: Ipv4Addr, last: Ipv4Addr) -> bool {
    last.to_bits().saturating_sub(first.to_bits()) >= u32::MAX / 2
}

fn ends(address: Ipv4Addr, prefix: u8) -> (Ipv4Addr, Ipv4Addr) {
    let mask = u32::MAX.checked_shl(32_u32.saturating_sub(prefix.into())).unwrap_or(0);
    let first = address.to_bits() & mask;
    (Ipv4Addr::from_bits(first), Ipv4Addr::from_bits(first | !mask))
}

/// Whether it is one value, or one among several: a set in braces, or a named set's elements.
fn any(right: &Value, is: impl Fn(&Value) -> Answer) -> Answer {
    let several = right.get("set").unwrap_or(right);
    let Some(all) = several.as_array() else { return is(element(several)) };
    let mut answer = Some(false);
    for one in all {
        match is(element(one)) {
            Some(true) => return Some(true),
            Some(false) => {}
            None => answer = None,
        }
    }
    answer
}

/// An element may have a comment or a timeout around it.
fn element(value: &Value) -> &Value {
    value.get("elem").map_or(value, |whole| &whole["val"])
}

/// Flags, however they are written: `new`, `[new, related]`, `{set: […]}`, `{"|": […]}`.
fn flags(right: &Value) -> Vec<&str> {
    match right {
        Value::Object(inner) => inner.values().flat_map(flags).collect(),
        Value::Array(all) => all.iter().flat_map(flags).collect(),
        one => one.as_str().into_iter().collect(),
    }
}

/// The word after `what` and `then` in a rule's text, where `what` comes once.
fn argument<'a>(text: &'a str, what: &str, then: &str) -> Option<&'a str> {
    let mut parts = text.split(what);
    let (_before, after) = (parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    after.strip_prefix(then)?.split(' ').next()
}
