//! The table of names: what the daemon writes and every query reads. A change is seen by the next query.
//!
//! Names are kept in lower case and in wire format (RFC 1035, 3.1), which is what a query brings: labels, each after its
//! length. A label's length is at most 63, below every letter, so the whole of it can be put into lower case as text.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::SystemTime;

use crate::subnet::Subnet;

/// Where the reverse zones of IPv4 are (RFC 1035, 3.5).
const REVERSE: &[u8] = b"\x07in-addr\x04arpa\x00";

/// Where those of IPv6 are (RFC 3596, 2.5).
const REVERSE_IPV6: &[u8] = b"\x03ip6\x04arpa\x00";
/// The half bytes of a prefix of 64 bits, and of an address.
const PREFIX_NIBBLES: usize = 16;
const NIBBLES: usize = 32;

/// The longest name (RFC 1035, 2.3.4), its last dot included.
const LONGEST_NAME: usize = 255;
const LONGEST_LABEL: usize = 63;

/// A name that cannot be in the table.
#[derive(Debug, thiserror::Error)]
#[error("{name:?} is no name of a machine: {rule}")]
pub struct NameError {
    name: String,
    rule: &'static str,
}

/// The names of one zone and their addresses, and the reverse zones of their subnets. A clone is the same table.
#[derive(Clone)]
pub struct Names {
    zone: Arc<[u8]>,
    table: Arc<RwLock<Table>>,
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Names").field("count", &self.read().addresses.len()).finish_non_exhaustive()
    }
}

type Wire = Box<[u8]>;

/// A machine's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    pub ipv4: Ipv4Addr,
    pub ipv6: Option<Ipv6Addr>,
}

impl From<Ipv4Addr> for Addresses {
    fn from(ipv4: Ipv4Addr) -> Self {
        Self { ipv4, ipv6: None }
    }
}

#[derive(Default)]
struct Table {
    /// By the name without the zone.
    addresses: HashMap<Wire, Addresses>,
    /// How many names there are below each name that has some: such a name exists, if with nothing (RFC 8020).
    parents: HashMap<Wire, usize>,
    by_address: BTreeMap<Ipv4Addr, BTreeSet<Wire>>,
    subnets: Vec<Subnet>,
    /// Of the machines that have one, the other address by this one.
    by_ipv6: BTreeMap<Ipv6Addr, Ipv4Addr>,
    /// Of 64 bits each.
    prefixes: Vec<Ipv6Addr>,
    /// The SOA's: it grows with each change.
    serial: u32,
}

impl Names {
    /// An empty table.
    ///
    /// # Errors
    /// When `zone` is no name.
    pub fn new(zone: &str) -> Result<Self, NameError> {
        let mut wire = wire(zone, 1)?;
        wire.push(0);
        // Grows over restarts too: an RFC 1982 serial of seconds, as long as there is less than one change a second.
        let seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let serial = u32::try_from(seconds.as_secs() & u64::from(u32::MAX)).unwrap_or_default();
        let table = Table { serial, ..Table::default() };
        Ok(Self { zone: wire.into(), table: Arc::new(RwLock::new(table)) })
    }

    /// Gives `name`, without the zone, these addresses and no others.
    ///
    /// # Errors
    /// When it is no name.
    pub fn set(&self, name: &str, addresses: impl Into<Addresses>) -> Result<(), NameError> {
        let wire = self.relative(name)?;
        let mut table = self.write();
        table.insert(wire, addresses.into());
        table.changed();
        Ok(())
    }

    /// Forgets `name`, if it is known.
    pub fn remove(&self, name: &str) {
        let Ok(wire) = self.relative(name) else { return };
        let mut table = self.write();
        table.take(&wire);
        table.changed();
    }

    /// Has these names and no others, in one step: no query sees a part of it.
    ///
    /// # Errors
    /// When one of them is no name; then nothing has changed.
    pub fn replace<'a>(
        &self,
        all: impl IntoIterator<Item = (&'a str, impl Into<Addresses>)>,
    ) -> Result<(), NameError> {
        let all: Result<Vec<_>, NameError> = all
            .into_iter()
            .map(|(name, addresses)| Ok((self.relative(name)?, addresses.into())))
            .collect();
        let mut fresh = Table::default();
        for (wire, addresses) in all? {
            fresh.insert(wire, addresses);
        }
        let mut table = self.write();
        fresh.subnets = std::mem::take(&mut table.subnets);
        fresh.prefixes = std::mem::take(&mut table.prefixes);
        fresh.serial = table.serial;
        *table = fresh;
        table.changed();
        Ok(())
    }

    /// Answers for the reverse zones of these subnets and no others.
    pub fn set_subnets(&self, subnets: Vec<Subnet>) {
        let mut table = self.write();
        table.subnets = subnets;
        table.changed();
    }

    /// Answers for the reverse zones of these IPv6 prefixes of 64 bits, and no others.
    pub fn set_prefixes(&self, prefixes: Vec<Ipv6Addr>) {
        let mut table = self.write();
        table.prefixes = prefixes;
        table.changed();
    }

    fn relative(&self, name: &str) -> Result<Wire, NameError> {
        Ok(wire(name, self.zone.len())?.into())
    }

    // A panic elsewhere leaves the table whole: each change of a map is made by the standard library.
    fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// What somebody is told of `name`, which is in wire format, lower case and absolute. None if it is in none of our zones.
    pub(crate) fn find(&self, name: &[u8], sees: Sees<'_>) -> Option<Found> {
        if let Some(apex) = suffix(name, &self.zone) {
            return Some(self.read().forward(name, apex, sees));
        }
        if let Some(end) = suffix(name, REVERSE_IPV6) {
            return self.read().reverse_ipv6(name, end, &self.zone, sees);
        }
        let end = suffix(name, REVERSE)?;
        self.read().reverse(name, end, &self.zone, sees)
    }
}

/// Which names somebody is told: all, or those whose address is in one of these subnets. What he is not told is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sees<'a> {
    All,
    Within(&'a [Subnet]),
}

impl Sees<'_> {
    fn sees(self, address: Ipv4Addr) -> bool {
        match self {
            Sees::All => true,
            Sees::Within(subnets) => subnets.iter().any(|subnet| subnet.contains(address)),
        }
    }
}

/// A name in one of our zones.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// Where in the name its zone begins.
    pub(crate) apex: usize,
    pub(crate) serial: u32,
    /// It has records, or names below it. A zone's own name always exists.
    pub(crate) exists: bool,
    pub(crate) address: Option<Ipv4Addr>,
    pub(crate) ipv6: Option<Ipv6Addr>,
    /// The names of a machine with this address, absolute.
    pub(crate) pointers: Vec<Vec<u8>>,
}

impl Found {
    /// A zone that is one name with this address, for ever.
    pub(crate) fn alone(address: Ipv4Addr) -> Self {
        let mut found = Self::nothing(0, 1);
        found.address = Some(address);
        found
    }

    /// What is below a zone without being there, or the zone itself.
    fn nothing(apex: usize, serial: u32) -> Self {
        let exists = apex == 0;
        Self { apex, serial, exists, address: None, ipv6: None, pointers: Vec::new() }
    }
}

impl Table {
    fn changed(&mut self) {
        self.serial = self.serial.wrapping_add(1);
    }

    fn insert(&mut self, name: Wire, addresses: Addresses) {
        self.take(&name);
        for parent in parents(&name) {
            *self.parents.entry(parent.into()).or_default() += 1;
        }
        let Addresses { ipv4, ipv6 } = addresses;
        self.by_address.entry(ipv4).or_default().insert(name.clone());
        self.by_ipv6.extend(ipv6.map(|ipv6| (ipv6, ipv4)));
        self.addresses.insert(name, addresses);
    }

    fn take(&mut self, name: &[u8]) {
        let Some(Addresses { ipv4, ipv6 }) = self.addresses.remove(name) else { return };
        if let Some(names) = self.by_address.get_mut(&ipv4) {
            names.remove(name);
            if names.is_empty() {
                self.by_address.remove(&ipv4);
                ipv6.and_then(|ipv6| self.by_ipv6.remove(&ipv6));
            }
        }
        for parent in parents(name) {
            if let Some(count) = self.parents.get_mut(parent) {
                *count -= 1;
                if *count == 0 {
                    self.parents.remove(parent);
                }
            }
        }
    }

    fn forward(&self, name: &[u8], apex: usize, sees: Sees<'_>) -> Found {
        let relative = &name[..apex];
        let both = self.addresses.get(relative).filter(|both| sees.sees(both.ipv4));
        let mut found = Found::nothing(apex, self.serial);
        found.exists |= both.is_some() || self.parents.contains_key(relative);
        found.address = both.map(|both| both.ipv4);
        found.ipv6 = both.and_then(|both| both.ipv6);
        found
    }

    /// `end` is where `ip6.arpa` begins.
    fn reverse_ipv6(&self, name: &[u8], end: usize, zone: &[u8], sees: Sees<'_>) -> Option<Found> {
        let starts: Vec<usize> = label_starts(&name[..end]).collect();
        // From the address's first half byte on, which is the name's last.
        let known: Vec<u8> = starts.iter().rev().map_while(|start| nibble(name, *start)).collect();
        let first = address_of(known.get(..PREFIX_NIBBLES)?, 0);
        if !self.prefixes.contains(&first) {
            return None;
        }
        let mut found = Found::nothing(starts[starts.len() - PREFIX_NIBBLES], self.serial);
        if known.len() != starts.len() || known.len() > NIBBLES {
            return Some(found);
        }
        let within = address_of(&known, 0)..=address_of(&known, 0xf);
        let seen = |ipv4: &Ipv4Addr| sees.sees(*ipv4);
        found.exists |= self.by_ipv6.range(within).any(|(_, ipv4)| seen(ipv4));
        if known.len() == NIBBLES {
            let ipv4 = self.by_ipv6.get(&address_of(&known, 0)).filter(|ipv4| seen(ipv4));
            let names = ipv4.and_then(|ipv4| self.by_address.get(ipv4));
            found.pointers =
                names.into_iter().flatten().map(|name| [name, zone].concat()).collect();
        }
        Some(found)
    }

    /// `end` is where `in-addr.arpa` begins.
    fn reverse(&self, name: &[u8], end: usize, zone: &[u8], sees: Sees<'_>) -> Option<Found> {
        let starts: Vec<usize> = label_starts(&name[..end]).collect();
        // From the address's first octet on, which is the name's last.
        let known: Vec<u8> = starts.iter().rev().map_while(|start| octet(name, *start)).collect();
        let octets = self
            .subnets
            .iter()
            .filter(|subnet| {
                known.get(..subnet.zone_octets()).is_some_and(|o| subnet.contains(padded(o, 0)))
            })
            .map(|subnet| subnet.zone_octets())
            .min()?;
        let apex = starts[starts.len() - octets];
        let mut found = Found::nothing(apex, self.serial);
        if known.len() != starts.len() || known.len() > 4 {
            return Some(found);
        }
        let within = padded(&known, 0)..=padded(&known, 255);
        found.exists |= self.by_address.range(within).any(|(address, _)| sees.sees(*address));
        if known.len() == 4 {
            let address = padded(&known, 0);
            let names = self.by_address.get(&address).filter(|_| sees.sees(address));
            found.pointers =
                names.into_iter().flatten().map(|name| [name, zone].concat()).collect();
        }
        Some(found)
    }
}

/// The first four octets of an address, those that are missing being `rest`.
fn padded(octets: &[u8], rest: u8) -> Ipv4Addr {
    let mut all = [rest; 4];
    for (place, octet) in all.iter_mut().zip(octets) {
        *place = *octet;
    }
    Ipv4Addr::from(all)
}

/// The address of at most 32 half bytes, those that are missing being `rest`.
fn address_of(nibbles: &[u8], rest: u8) -> Ipv6Addr {
    let all = nibbles.iter().chain(std::iter::repeat(&rest)).take(NIBBLES);
    Ipv6Addr::from_bits(all.fold(0, |bits, nibble| bits << 4 | u128::from(*nibble)))
}

/// The label at `start` as a half byte: one hexadecimal digit, in lower case as all of the name is.
fn nibble(name: &[u8], start: usize) -> Option<u8> {
    match name[start..] {
        [1, digit @ (b'0'..=b'9'), ..] => Some(digit - b'0'),
        [1, digit @ b'a'..=b'f', ..] => Some(digit - b'a' + 10),
        _ => None,
    }
}

/// The label at `start` as an octet, written as it has to be: decimal, without leading zeros.
fn octet(name: &[u8], start: usize) -> Option<u8> {
    let label = &name[start + 1..][..usize::from(name[start])];
    let value: u8 = std::str::from_utf8(label).ok()?.parse().ok()?;
    (value.to_string().as_bytes() == label).then_some(value)
}

/// Where the labels of a name without its root begin.
fn label_starts(relative: &[u8]) -> impl Iterator<Item = usize> {
    let mut next = 0;
    std::iter::from_fn(move || {
        let start = next;
        next = start + 1 + usize::from(*relative.get(start)?);
        Some(start)
    })
}

/// Where in `name` the labels of `zone` begin, if they end it.
fn suffix(name: &[u8], zone: &[u8]) -> Option<usize> {
    let start = name.len().checked_sub(zone.len())?;
    let at_a_label = start == 0 || label_starts(name).any(|label| label == start);
    (at_a_label && name[start..] == *zone).then_some(start)
}

/// The names above a name that are below its zone.
fn parents(relative: &[u8]) -> impl Iterator<Item = &[u8]> {
    label_starts(relative).skip(1).map(|start| &relative[start..])
}

/// A name's labels in wire format and lower case, without the root. `beside` is what else the whole name holds, in octets.
fn wire(name: &str, beside: usize) -> Result<Vec<u8>, NameError> {
    let refuse = |rule| NameError { name: name.to_owned(), rule };
    let mut wire = Vec::new();
    for label in name.split('.') {
        let length = u8::try_from(label.len()).unwrap_or(u8::MAX);
        if label.is_empty() || usize::from(length) > LONGEST_LABEL {
            return Err(refuse("between dots it has 1 to 63 characters"));
        }
        let allowed = |c: u8| c.is_ascii_alphanumeric() || c == b'-' || c == b'_';
        if !label.bytes().all(allowed) {
            return Err(refuse("it has letters, digits, - and _ only"));
        }
        wire.push(length);
        wire.extend(label.bytes().map(|c| c.to_ascii_lowercase()));
    }
    if wire.len() + beside > LONGEST_NAME {
        return Err(refuse("with its zone it has at most 253 characters"));
    }
    Ok(wire)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEB: Ipv4Addr = Ipv4Addr::new(10, 213, 0, 2);

    fn names() -> Names {
        let names = Names::new("vm").unwrap();
        names.set_subnets(vec![Subnet::new(Ipv4Addr::new(10, 213, 0, 1), 22).unwrap()]);
        names.set("Web", WEB).unwrap();
        names.set("db.prod", Ipv4Addr::new(10, 213, 1, 3)).unwrap();
        names
    }

    fn find(names: &Names, text: &str) -> Option<Found> {
        let mut name = wire(text, 1).unwrap();
        name.push(0);
        names.find(&name, Sees::All)
    }

    #[test]
    fn a_name_is_found_and_what_is_not_there_is_absent() {
        let names = names();
        assert_eq!(find(&names, "web.vm").unwrap().address, Some(WEB));
        assert!(!find(&names, "x.web.vm").unwrap().exists);
        assert!(!find(&names, "other.vm").unwrap().exists);
        assert!(find(&names, "vm").unwrap().exists);
        assert_eq!(find(&names, "web.vmx"), None);
        assert_eq!(find(&names, "xvm"), None);
        // Octets of a label that look like the zone.
        assert_eq!(names.find(b"\x04a\x02vm\x00", Sees::All), None);
    }

    #[test]
    fn a_name_with_names_below_it_exists_as_long_as_they_do() {
        let names = names();
        let prod = find(&names, "prod.vm").unwrap();
        assert!(prod.exists && prod.address.is_none());
        names.set("db.prod", WEB).unwrap();
        assert!(find(&names, "prod.vm").unwrap().exists);
        names.remove("DB.prod");
        assert!(!find(&names, "prod.vm").unwrap().exists);
    }

    #[test]
    fn an_address_has_the_names_that_have_it_now() {
        let names = names();
        let of = |address: &str| {
            find(&names, &format!("{address}.in-addr.arpa")).map(|found| found.pointers)
        };
        assert_eq!(of("2.0.213.10").unwrap(), [b"\x03web\x02vm\x00"]);
        names.set("web", Ipv4Addr::new(10, 213, 0, 9)).unwrap();
        names.set("www", Ipv4Addr::new(10, 213, 0, 9)).unwrap();
        assert_eq!(of("2.0.213.10").unwrap(), [b""; 0]);
        assert_eq!(of("9.0.213.10").unwrap().len(), 2);
    }

    #[test]
    fn reverse_zones_are_those_of_the_subnets() {
        let names = names();
        let apex = find(&names, "0.213.10.in-addr.arpa").unwrap();
        assert!(apex.exists && apex.apex == 0);
        assert_eq!(find(&names, "213.10.in-addr.arpa"), None);
        assert_eq!(find(&names, "1.4.213.10.in-addr.arpa"), None);
        assert_eq!(find(&names, "in-addr.arpa"), None);
        for absent in ["77.0.213.10", "02.0.213.10", "x.0.213.10", "1.2.0.213.10", "300.0.213.10"] {
            let found = find(&names, &format!("{absent}.in-addr.arpa")).unwrap();
            assert!(!found.exists && found.pointers.is_empty(), "{absent}");
        }
        assert_eq!(find(&names, "2.x.213.10.in-addr.arpa"), None);
    }

    #[test]
    fn a_reverse_zone_of_two_octets_has_empty_names_where_addresses_are() {
        let names = names();
        names.set_subnets(vec![Subnet::new(Ipv4Addr::new(10, 213, 0, 0), 16).unwrap()]);
        assert!(find(&names, "213.10.in-addr.arpa").unwrap().exists);
        assert!(find(&names, "1.213.10.in-addr.arpa").unwrap().exists);
        assert!(!find(&names, "2.213.10.in-addr.arpa").unwrap().exists);
    }

    #[test]
    fn who_sees_some_subnets_is_told_nothing_of_others_not_even_that_it_is_there() {
        let names = names();
        names.set_subnets(vec![Subnet::new(Ipv4Addr::new(10, 213, 0, 0), 16).unwrap()]);
        let own = [Subnet::new(Ipv4Addr::new(10, 213, 1, 1), 24).unwrap()];
        let find = |text: &str| {
            let mut name = wire(text, 1).unwrap();
            name.push(0);
            names.find(&name, Sees::Within(&own)).unwrap()
        };
        assert_eq!(find("db.prod.vm").address, Some(Ipv4Addr::new(10, 213, 1, 3)));
        assert_eq!(find("3.1.213.10.in-addr.arpa").pointers.len(), 1);
        for hidden in ["web.vm", "2.0.213.10.in-addr.arpa", "0.213.10.in-addr.arpa"] {
            let found = find(hidden);
            assert!(!found.exists && found.address.is_none() && found.pointers.is_empty());
        }
        assert!(find("vm").exists && find("1.213.10.in-addr.arpa").exists);
    }

    #[test]
    fn a_machine_with_ipv6_has_that_address_and_its_name_by_it_and_another_has_none() {
        let names = names();
        let prefix: Ipv6Addr = "fd12:3456:789a::".parse().unwrap();
        let ipv6: Ipv6Addr = "fd12:3456:789a::ad5:2".parse().unwrap();
        names.set_prefixes(vec![prefix]);
        names.replace([("web", Addresses { ipv4: WEB, ipv6: Some(ipv6) })]).unwrap();
        assert_eq!(find(&names, "web.vm").unwrap().ipv6, Some(ipv6));
        let reverse = |address: Ipv6Addr, digits: usize| {
            let hex = format!("{:032x}", address.to_bits());
            let labels: Vec<String> = hex.chars().take(digits).map(String::from).collect();
            labels.into_iter().rev().collect::<Vec<_>>().join(".") + ".ip6.arpa"
        };
        assert_eq!(find(&names, &reverse(ipv6, 32)).unwrap().pointers, [b"\x03web\x02vm\x00"]);
        let apex = find(&names, &reverse(prefix, 16)).unwrap();
        assert!(apex.exists && apex.apex == 0);
        // Empty, with something below it.
        assert!(find(&names, &reverse(ipv6, 20)).unwrap().exists);
        let other: Ipv6Addr = "fd12:3456:789a:1::ad5:2".parse().unwrap();
        assert_eq!(find(&names, &reverse(other, 32)), None);
        assert_eq!(find(&names, &reverse(prefix, 15)), None);
        let absent = "fd12:3456:789a::ad5:3".parse().unwrap();
        for absent in [
            reverse(absent, 32),
            format!("x.{}", reverse(prefix, 16)),
            format!("0.{}", reverse(ipv6, 32)),
        ] {
            let found = find(&names, &absent).unwrap();
            assert!(!found.exists && found.pointers.is_empty(), "{absent}");
        }
        let own = [Subnet::new(Ipv4Addr::new(10, 213, 1, 1), 24).unwrap()];
        let mut name = wire(&reverse(ipv6, 32), 1).unwrap();
        name.push(0);
        assert!(!names.find(&name, Sees::Within(&own)).unwrap().exists);
        names.set("web", WEB).unwrap();
        assert_eq!(find(&names, "web.vm").unwrap().ipv6, None);
        assert!(!find(&names, &reverse(ipv6, 32)).unwrap().exists);
    }

    #[test]
    fn all_names_are_replaced_or_none() {
        let names = names();
        let serial = find(&names, "vm").unwrap().serial;
        assert!(names.replace([("new", WEB), ("not a name", WEB)]).is_err());
        assert!(find(&names, "web.vm").unwrap().exists);
        names.replace([("new", WEB)]).unwrap();
        assert!(!find(&names, "web.vm").unwrap().exists);
        assert!(!find(&names, "prod.vm").unwrap().exists);
        assert_eq!(find(&names, "2.0.213.10.in-addr.arpa").unwrap().pointers.len(), 1);
        assert!(find(&names, "vm").unwrap().serial > serial);
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let names = names();
        let long = "a".repeat(64);
        for name in ["", ".", "a..b", "a b", "é", &long, "a."] {
            assert!(names.set(name, WEB).is_err(), "{name}");
        }
        let label = "a".repeat(61);
        assert!(names.set(&[&*label; 4].join("."), WEB).is_ok());
        assert!(names.set(&format!("{}.bcdef", [&*label; 4].join(".")), WEB).is_err());
        assert!(Names::new("a b").is_err());
    }
}
