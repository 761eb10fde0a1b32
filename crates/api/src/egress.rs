//! What a VM may reach beyond its host: nothing, all, or what a list names. As people write it: `none`, `all`,
//! `allow:github.com,*.debian.org,203.0.113.0/24`.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The most items of a list.
pub const MOST_ITEMS: usize = 64;

/// What a VM may reach beyond its host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Egress {
    #[default]
    None,
    /// What the host reaches.
    All,
    Allow(AllowList),
}

/// Names whose addresses may be reached, and addresses, as they were written: one of them at least, [`MOST_ITEMS`] at most.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowList(Vec<Item>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Item {
    Name(String),
    /// All names below it, and not itself.
    Below(String),
    Subnet(Cidr),
}

/// An address or a subnet of addresses, each by its first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    first: Ipv4Addr,
    prefix: u8,
}

/// A text that says no policy: which part, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct EgressError(String);

/// What no list can name: this host, loopback, link-local, multicast and what is reserved (RFC 6890).
const NEVER: [(Cidr, &str); 5] = [
    (Cidr::of([0, 0, 0, 0], 8), "of this host (0.0.0.0/8)"),
    (Cidr::of([127, 0, 0, 0], 8), "loopback (127.0.0.0/8)"),
    (Cidr::of([169, 254, 0, 0], 16), "link-local (169.254.0.0/16)"),
    (Cidr::of([224, 0, 0, 0], 4), "multicast (224.0.0.0/4)"),
    (Cidr::of([240, 0, 0, 0], 4), "reserved (240.0.0.0/4)"),
];

/// What a name does not lead to, since it is in networks of somebody's own (RFC 1918, RFC 6598, RFC 2544): a list has to name
/// it by its address.
const PRIVATE: [Cidr; 5] = [
    Cidr::of([10, 0, 0, 0], 8),
    Cidr::of([100, 64, 0, 0], 10),
    Cidr::of([172, 16, 0, 0], 12),
    Cidr::of([192, 168, 0, 0], 16),
    Cidr::of([198, 18, 0, 0], 15),
];

/// Whether a name of a list may lead there: a public address of one machine.
#[must_use]
pub fn is_public(address: Ipv4Addr) -> bool {
    let there = |cidr: &Cidr| cidr.contains(address);
    !NEVER.iter().any(|(cidr, _)| there(cidr)) && !PRIVATE.iter().any(there)
}

impl Egress {
    /// From the words `none`, `all`, and `allow:` with items between commas.
    ///
    /// # Errors
    /// The item that is none, and the rule.
    pub fn parse(text: &str) -> Result<Self, EgressError> {
        match (text, text.strip_prefix("allow:")) {
            ("none", _) => Ok(Self::None),
            ("all", _) => Ok(Self::All),
            (_, Some(items)) => AllowList::parse(items).map(Self::Allow),
            _ => refuse(format!("{text:?} is none of none, all, and allow:ITEM,ITEM,…")),
        }
    }

    /// What `--nat` and `--egress` say together; `None` when neither is given.
    ///
    /// # Errors
    /// When they contradict each other.
    pub fn of(nat: Option<bool>, egress: Option<Self>) -> Result<Option<Self>, EgressError> {
        match (nat, egress) {
            (Some(true), Some(other)) if other != Self::All => {
                refuse(format!("--nat is the same as --egress all, which is not --egress {other}"))
            }
            (Some(false), Some(other)) if other != Self::None => refuse(format!(
                "--nat off is the same as --egress none, which is not --egress {other}"
            )),
            (_, Some(egress)) => Ok(Some(egress)),
            (Some(true), None) => Ok(Some(Self::All)),
            (Some(false), None) => Ok(Some(Self::None)),
            (None, None) => Ok(None),
        }
    }
}

impl AllowList {
    fn parse(text: &str) -> Result<Self, EgressError> {
        let items: Vec<&str> = text.split(',').collect();
        if items.len() > MOST_ITEMS {
            return refuse(format!("{} items are more than {MOST_ITEMS}", items.len()));
        }
        items.into_iter().map(Item::parse).collect::<Result<_, _>>().map(Self)
    }

    /// The addresses that it names by themselves.
    pub fn subnets(&self) -> impl Iterator<Item = Cidr> {
        self.0.iter().filter_map(|item| match item {
            Item::Subnet(cidr) => Some(*cidr),
            Item::Name(_) | Item::Below(_) => None,
        })
    }

    /// Whether a name is on it: lower case, labels between dots, without a last dot. One with anything but letters, digits, `-`
    /// and `_` in its labels is not.
    #[must_use]
    pub fn names(&self, name: &str) -> bool {
        name.bytes().all(|b| is_of_a_label(b) || b == b'.')
            && self.0.iter().any(|item| match item {
                Item::Name(one) => one == name,
                Item::Below(base) => {
                    let rest = name.strip_suffix(base.as_str());
                    rest.is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
                }
                Item::Subnet(_) => false,
            })
    }
}

impl Item {
    fn parse(text: &str) -> Result<Self, EgressError> {
        if text.is_empty() {
            return refuse("an item of the list is empty");
        }
        if text.bytes().all(|b| b.is_ascii_digit() || b == b'.' || b == b'/') {
            return Cidr::parse(text).map(Self::Subnet);
        }
        let (name, below) = match text.strip_prefix("*.") {
            Some(base) => (base, true),
            None => (text, false),
        };
        if text.contains(':') {
            return refuse(format!("{text:?} is an IPv6 address, which guests have none of"));
        }
        let is_label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(is_of_a_label)
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        let is_number = |label: &str| label.bytes().all(|b| b.is_ascii_digit());
        let last = name.rsplit('.').next().unwrap_or_default();
        if name.len() > 253 || !name.split('.').all(is_label) || is_number(last) {
            return refuse(format!(
                "{text:?} is no domain (lower-case letters, digits, `-` and `_` between dots, `*.` before it for all names \
                 below), no address and no subnet"
            ));
        }
        let name = name.to_owned();
        Ok(if below { Self::Below(name) } else { Self::Name(name) })
    }
}

/// Of a name as people write one, in lower case.
fn is_of_a_label(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'_'
}

impl Cidr {
    const fn of(octets: [u8; 4], prefix: u8) -> Self {
        let [a, b, c, d] = octets;
        Self { first: Ipv4Addr::new(a, b, c, d), prefix }
    }

    /// `203.0.113.0/24`, or one address.
    ///
    /// # Errors
    /// When it is none, its address is not the first of its subnet, or it has a part that no list can name.
    pub fn parse(text: &str) -> Result<Self, EgressError> {
        let (address, prefix) = text.split_once('/').unwrap_or((text, "32"));
        let (Ok(first), Ok(prefix)) = (address.parse::<Ipv4Addr>(), prefix.parse::<u8>()) else {
            return refuse(format!("{text:?} is no address and no subnet such as 203.0.113.0/24"));
        };
        let cidr = Self { first, prefix };
        if prefix > 32 {
            return refuse(format!("{text:?} has a prefix of more than 32 bits"));
        }
        let right = Ipv4Addr::from_bits(first.to_bits() & cidr.mask());
        if right != first {
            return refuse(format!("{text:?} begins at {right}: {right}/{prefix}"));
        }
        if prefix == 0 {
            return refuse(format!("{text:?} is everything: that is `all`"));
        }
        match NEVER.iter().find(|(never, _)| never.overlaps(&cidr)) {
            Some((_, what)) => refuse(format!("{text:?} has addresses that are {what}")),
            None => Ok(cidr),
        }
    }

    /// Its first address.
    #[must_use]
    pub fn first(&self) -> Ipv4Addr {
        self.first
    }

    /// The length of its prefix in bits, 1 to 32.
    #[must_use]
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    #[must_use]
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        address.to_bits() & self.mask() == self.first.to_bits()
    }

    /// Whether all of another is in it.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        self.prefix <= other.prefix && self.contains(other.first)
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.covers(other) || other.covers(self)
    }

    const fn mask(&self) -> u32 {
        // A shift by 32, of a prefix of no bits, has no result.
        match u32::MAX.checked_shl(32_u32.saturating_sub(self.prefix as u32)) {
            Some(mask) => mask,
            None => 0,
        }
    }
}

fn refuse<T>(why: impl Into<String>) -> Result<T, EgressError> {
    Err(EgressError(why.into()))
}

impl fmt::Display for Egress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.pad("none"),
            Self::All => f.pad("all"),
            Self::Allow(list) => f.pad(&format!("allow:{list}")),
        }
    }
}

impl fmt::Display for AllowList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.0.iter().map(|item| match item {
            Item::Name(name) => name.clone(),
            Item::Below(base) => format!("*.{base}"),
            Item::Subnet(cidr) => cidr.to_string(),
        });
        let all: Vec<String> = all.collect();
        f.write_str(&all.join(","))
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.prefix {
            32 => write!(f, "{}", self.first),
            prefix => write!(f, "{}/{prefix}", self.first),
        }
    }
}

impl FromStr for Egress {
    type Err = EgressError;

    fn from_str(text: &str) -> Result<Self, EgressError> {
        Self::parse(text)
    }
}

impl TryFrom<String> for Egress {
    type Error = EgressError;

    fn try_from(text: String) -> Result<Self, EgressError> {
        Self::parse(&text)
    }
}

impl From<Egress> for String {
    fn from(egress: Egress) -> String {
        egress.to_string()
    }
}

impl TryFrom<String> for Cidr {
    type Error = EgressError;

    fn try_from(text: String) -> Result<Self, EgressError> {
        Self::parse(&text)
    }
}

impl From<Cidr> for String {
    fn from(cidr: Cidr) -> String {
        cidr.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> AllowList {
        match Egress::parse(text).unwrap() {
            Egress::Allow(list) => list,
            other => panic!("{other} is no list"),
        }
    }

    #[test]
    fn a_policy_comes_back_as_it_was_written() {
        for text in [
            "none",
            "all",
            "allow:github.com",
            "allow:*.debian.org,10.0.0.0/8,_dmarc.a-1.example,203.0.113.7",
        ] {
            assert_eq!(Egress::parse(text).unwrap().to_string(), text);
            let json = serde_json::to_string(&Egress::parse(text).unwrap()).unwrap();
            assert_eq!(json, format!("{text:?}"));
        }
    }

    #[test]
    fn what_is_no_policy_is_refused_with_the_item_and_the_rule() {
        let long = format!("allow:{}", vec!["a.example"; MOST_ITEMS + 1].join(","));
        for (text, said) in [
            ("", "is none of none, all, and allow:"),
            ("ALL", "is none of none, all, and allow:"),
            ("allow:", "is empty"),
            ("allow:a.example,,b.example", "is empty"),
            ("allow:GitHub.com", "is no domain"),
            ("allow:github.com.", "is no domain"),
            ("allow:*", "is no domain"),
            ("allow:*.", "is no domain"),
            ("allow:a.*.example", "is no domain"),
            ("allow:-a.example", "is no domain"),
            ("allow:https://github.com", "IPv6"),
            ("allow:example.1", "is no domain"),
            ("allow:2001:db8::1", "IPv6"),
            ("allow:203.0.113.256", "is no address"),
            ("allow:203.0.113.0/33", "more than 32"),
            ("allow:203.0.113.5/24", "begins at 203.0.113.0"),
            ("allow:0.0.0.0/0", "that is `all`"),
            ("allow:0.0.0.0/1", "of this host"),
            ("allow:126.0.0.0/7", "loopback"),
            ("allow:169.254.169.254", "link-local"),
            ("allow:128.0.0.0/1", "link-local"),
            ("allow:224.0.0.1", "multicast"),
            ("allow:255.255.255.255", "reserved"),
            (&long, "65 items are more than 64"),
        ] {
            let error = Egress::parse(text).expect_err(text).to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn a_name_is_that_name_and_a_star_is_all_below_it_and_not_itself() {
        let list = list("allow:github.com,*.debian.org");
        for name in ["github.com", "deb.debian.org", "a.b.debian.org"] {
            assert!(list.names(name), "{name}");
        }
        for name in [
            "www.github.com",
            "hub.com",
            "debian.org",
            ".debian.org",
            "evildebian.org",
            "debian.org.evil",
            "",
            // A label with a dot in it is another name.
            "evil\\.debian.org",
            "GITHUB.com",
        ] {
            assert!(!list.names(name), "{name}");
        }
    }

    #[test]
    fn a_name_leads_to_public_addresses_only() {
        for address in ["203.0.113.7", "8.8.8.8", "172.32.0.1", "100.128.0.1"] {
            assert!(is_public(address.parse().unwrap()), "{address}");
        }
        for address in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "127.0.0.1",
            "169.254.169.254",
            "172.31.0.1",
            "192.168.1.1",
            "198.19.0.1",
            "224.0.0.1",
            "255.255.255.255",
        ] {
            assert!(!is_public(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn nat_and_egress_may_say_the_same_and_nothing_else() {
        let allow = || Egress::parse("allow:a.example").unwrap();
        assert_eq!(Egress::of(None, None), Ok(None));
        assert_eq!(Egress::of(Some(true), None), Ok(Some(Egress::All)));
        assert_eq!(Egress::of(Some(true), Some(Egress::All)), Ok(Some(Egress::All)));
        assert_eq!(Egress::of(Some(false), None), Ok(Some(Egress::None)));
        assert_eq!(Egress::of(None, Some(allow())), Ok(Some(allow())));
        assert!(Egress::of(Some(true), Some(allow())).is_err());
        assert!(Egress::of(Some(true), Some(Egress::None)).is_err());
        assert!(Egress::of(Some(false), Some(Egress::All)).is_err());
    }
}
