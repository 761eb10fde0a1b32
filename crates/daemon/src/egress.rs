//! Which names a guest may ask for, and what it reaches by them. The DNS server asks here before it asks anybody, and tells what
//! it found before the guest learns it: then the addresses are opened to that guest on the host.
//!
//! In memory only. A daemon that starts knows no address: what was opened goes on for its time, and the next question for a name
//! opens it anew.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use banger_api::Egress;
use banger_api::egress::is_public;
use banger_dns::{Gate, Judgement};
use banger_host::{Host, Mark};
use futures_util::future::{BoxFuture, FutureExt as _};
use jiff::Timestamp;

/// How long an address is open at least, in seconds: a program connects some time after it asked.
const LEAST_S: u32 = 60;
/// An address that is open for so much longer is not opened anew, in seconds.
const ENOUGH_S: u32 = 30;
const LONGEST_S: u32 = banger_dns::LONGEST_S;
/// Addresses that are opened at once: what the host takes.
const MOST_AT_ONCE: usize = 256;
/// Addresses that are remembered of one guest.
const MOST_OPENED: usize = 1024;
/// Names that are remembered for one address.
const MOST_NAMES: usize = 8;
/// Refused names that are remembered of one guest, the last ones.
const MOST_REFUSED: usize = 256;

/// The gate of all networks.
pub struct Gates {
    host: Arc<dyn Host>,
    guests: Mutex<HashMap<Ipv4Addr, Guest>>,
}

struct Guest {
    mark: Mark,
    egress: Egress,
    /// Its run has IPv6.
    ipv6: bool,
    /// Held while its policy changes, and while an address is opened by the policy that it has.
    turn: Arc<tokio::sync::Mutex<()>>,
    opened: HashMap<Ipv4Addr, Opened>,
    refused: VecDeque<(Timestamp, String)>,
}

/// Kept after its time, since connections go on.
struct Opened {
    names: BTreeSet<String>,
    until: Instant,
}

impl Gates {
    #[must_use]
    pub fn new(host: Arc<dyn Host>) -> Self {
        Self { host, guests: Mutex::default() }
    }

    /// What the guest at this address may ask for from now on. What it was refused, and what was opened to it, is remembered as
    /// long as it is the same VM.
    pub(crate) fn learn(&self, address: Ipv4Addr, mark: &Mark, egress: &Egress) {
        let mut guests = self.guests();
        match guests.get_mut(&address).filter(|guest| guest.mark == *mark) {
            Some(guest) => guest.egress = egress.clone(),
            None => drop(guests.insert(address, Guest::new(mark, egress))),
        }
    }

    /// As [`Self::learn`], of a VM that starts.
    pub(crate) fn begin(&self, address: Ipv4Addr, mark: &Mark, egress: &Egress) {
        self.guests().insert(address, Guest::new(mark, egress));
    }

    /// Whether the run of the VM at this address has IPv6.
    pub(crate) fn set_ipv6(&self, address: Ipv4Addr, ipv6: bool) {
        if let Some(guest) = self.guests().get_mut(&address) {
            guest.ipv6 = ipv6;
        }
    }

    /// The VM is gone.
    pub(crate) fn forget(&self, mark: &Mark) {
        self.guests().retain(|_, guest| guest.mark != *mark);
    }

    /// Changes a guest's policy with `change`, while no answer opens anything by the old one; then opens what was opened before
    /// and is still on its list, so that connections to that go on. Blocking.
    ///
    /// # Errors
    /// Those of `change`.
    pub(crate) fn changing<E>(
        &self,
        address: Ipv4Addr,
        mark: &Mark,
        egress: &Egress,
        change: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        self.learn(address, mark, egress);
        let Some(turn) = self.turn(address) else { return change() };
        let _held = turn.blocking_lock();
        change()?;
        let kept = self.still_allowed(address);
        let most = kept.iter().map(|(_, seconds)| *seconds).max().unwrap_or(LEAST_S);
        for some in kept.chunks(MOST_AT_ONCE) {
            let since = Instant::now();
            let addresses = some.iter().map(|(address, _)| *address).collect();
            if let Err(error) = self.host.open(mark, &addresses, most) {
                tracing::warn!(vm = %mark, error = %chain(&error), "connections of names may have ended");
                break;
            }
            let opening = ToOpen { mark: mark.clone(), addresses, seconds: most };
            self.note(address, &opening, None, since);
        }
        Ok(())
    }

    /// The names that were refused to the VM at this address, and when.
    pub(crate) fn refused(&self, address: Ipv4Addr, mark: &Mark) -> Vec<(Timestamp, String)> {
        let guests = self.guests();
        let guest = guests.get(&address).filter(|guest| guest.mark == *mark);
        guest.map(|guest| guest.refused.iter().cloned().collect()).unwrap_or_default()
    }

    fn guests(&self) -> MutexGuard<'_, HashMap<Ipv4Addr, Guest>> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turn(&self, address: Ipv4Addr) -> Option<Arc<tokio::sync::Mutex<()>>> {
        self.guests().get(&address).map(|guest| Arc::clone(&guest.turn))
    }

    /// What was opened by names that are on the list now, and for how long it is to be, in seconds; the rest is forgotten.
    fn still_allowed(&self, address: Ipv4Addr) -> Vec<(Ipv4Addr, u32)> {
        let mut guests = self.guests();
        let Some(Guest { egress, opened, .. }) = guests.get_mut(&address) else {
            return Vec::new();
        };
        let Egress::Allow(list) = egress else {
            opened.clear();
            return Vec::new();
        };
        let now = Instant::now();
        opened.retain(|_, opened| {
            opened.names.retain(|name| list.names(name));
            !opened.names.is_empty()
        });
        let kept = opened.iter().map(|(to, opened)| (*to, seconds_left(opened.until, now)));
        kept.map(|(to, seconds)| (to, seconds.clamp(LEAST_S, LONGEST_S))).collect()
    }

    /// Who it is and which of these are to be opened to it, for how long; `None` when it may not have the answer.
    fn to_open(&self, address: Ipv4Addr, name: &str, found: &[(Ipv4Addr, u32)]) -> Option<ToOpen> {
        let mut guests = self.guests();
        let Guest { mark, egress, opened, .. } = guests.get_mut(&address)?;
        // The policy may have changed since it asked.
        let Egress::Allow(list) = egress else { return None };
        if !list.names(name) {
            return None;
        }
        let now = Instant::now();
        let is_open = |to: &Ipv4Addr, ttl: u32| {
            opened.get(to).is_some_and(|open| seconds_left(open.until, now) >= ttl.max(ENOUGH_S))
        };
        // Of a private address a list says so by itself: a name is its owner's to point anywhere.
        let public = found.iter().filter(|(to, _)| is_public(*to));
        let closed: Vec<_> = public.filter(|(to, ttl)| !is_open(to, *ttl)).collect();
        let addresses: BTreeSet<Ipv4Addr> = closed.iter().map(|(to, _)| *to).collect();
        let longest = closed.iter().map(|(_, ttl)| *ttl).max().unwrap_or_default();
        let more = addresses.iter().filter(|to| !opened.contains_key(to)).count();
        if opened.len() + more > MOST_OPENED {
            opened.retain(|_, open| open.until > now);
        }
        if addresses.len() > MOST_AT_ONCE || opened.len() + more > MOST_OPENED {
            tracing::warn!(vm = %mark, name, "a name leads to too many addresses");
            return None;
        }
        Some(ToOpen { mark: mark.clone(), addresses, seconds: longest.clamp(LEAST_S, LONGEST_S) })
    }

    /// It was done, `since` then at the earliest.
    fn note(&self, address: Ipv4Addr, done: &ToOpen, name: Option<&str>, since: Instant) {
        let ToOpen { mark, addresses, seconds } = done;
        let mut guests = self.guests();
        let Some(guest) = guests.get_mut(&address).filter(|guest| guest.mark == *mark) else {
            return;
        };
        let until = since + Duration::from_secs(u64::from(*seconds));
        for to in addresses {
            let opened = guest.opened.entry(*to);
            let opened = opened.or_insert(Opened { names: BTreeSet::new(), until });
            opened.until = opened.until.max(until);
            if let Some(name) = name.filter(|_| opened.names.len() < MOST_NAMES) {
                opened.names.insert(name.to_owned());
            }
        }
    }
}

/// What one answer opens.
struct ToOpen {
    mark: Mark,
    addresses: BTreeSet<Ipv4Addr>,
    seconds: u32,
}

impl Guest {
    fn new(mark: &Mark, egress: &Egress) -> Self {
        Self {
            mark: mark.clone(),
            egress: egress.clone(),
            ipv6: false,
            turn: Arc::default(),
            opened: HashMap::new(),
            refused: VecDeque::new(),
        }
    }

    fn refuse(&mut self, name: &str) {
        self.refused.retain(|(_, refused)| refused != name);
        if self.refused.len() == MOST_REFUSED {
            self.refused.pop_front();
        }
        self.refused.push_back((Timestamp::now(), name.to_owned()));
    }
}

impl Gate for Gates {
    fn judge(&self, guest: Ipv4Addr, name: &str) -> Judgement {
        let mut guests = self.guests();
        // An address that no VM has is nobody's, and what it asks is not answered.
        let Some(guest) = guests.get_mut(&guest) else { return Judgement::Refused };
        match &guest.egress {
            Egress::All => Judgement::Free,
            Egress::Allow(list) if list.names(name) => Judgement::Watched,
            // A question that is passed on says something to whoever runs the name's zone.
            Egress::None | Egress::Allow(_) => {
                guest.refuse(name);
                Judgement::Refused
            }
        }
    }

    fn reaches_ipv6(&self, guest: Ipv4Addr) -> bool {
        // What lists open is IPv4.
        let leaves =
            self.guests().get(&guest).is_some_and(|it| it.ipv6 && it.egress == Egress::All);
        leaves && host_reaches_ipv6()
    }

    fn answered<'a>(
        &'a self,
        guest: Ipv4Addr,
        name: &'a str,
        addresses: &'a [(Ipv4Addr, u32)],
    ) -> BoxFuture<'a, bool> {
        async move {
            let Some(turn) = self.turn(guest) else { return false };
            let _held = turn.lock().await;
            let Some(opening) = self.to_open(guest, name, addresses) else { return false };
            if opening.addresses.is_empty() {
                return true;
            }
            let (host, since) = (Arc::clone(&self.host), Instant::now());
            let open = move || {
                let done = host.open(&opening.mark, &opening.addresses, opening.seconds);
                done.map(|()| opening)
            };
            let why = match tokio::task::spawn_blocking(open).await {
                Ok(Ok(done)) => {
                    self.note(guest, &done, Some(name), since);
                    return true;
                }
                Ok(Err(error)) => chain(&error),
                Err(error) => error.to_string(),
            };
            tracing::error!(%guest, name, %why, "the addresses of a name were not opened");
            false
        }
        .boxed()
    }
}

impl fmt::Debug for Gates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gates").finish_non_exhaustive()
    }
}

/// Whether the host has a way to IPv6 addresses of the world, as of now. Nothing is sent: a UDP socket that is connected only asks
/// for the route (connect(2)).
fn host_reaches_ipv6() -> bool {
    /// The first of all global unicast addresses (RFC 4291, 2.4), which is nobody's; and a port that does not matter.
    const WORLD: (Ipv6Addr, u16) = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 1), 9);
    UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).is_ok_and(|socket| socket.connect(WORLD).is_ok())
}

fn seconds_left(until: Instant, now: Instant) -> u32 {
    u32::try_from(until.saturating_duration_since(now).as_secs()).unwrap_or(u32::MAX)
}

fn chain(error: &banger_host::HostError) -> String {
    crate::problems::host(error).to_string()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use banger_host::{Claim, Denied, Held, HostError, VmSocket, Watched};
    use banger_testing::MemoryHost;
    use rustix::process::Signal;

    use super::*;

    const GUEST: Ipv4Addr = Ipv4Addr::new(10, 213, 0, 2);
    const SITE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);
    const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 1);

    /// Notes what is opened, and fails if it is `broken`.
    #[derive(Default)]
    struct Noted {
        behind: MemoryHost,
        broken: bool,
        opened: Mutex<Vec<(BTreeSet<Ipv4Addr>, u32)>>,
    }

    impl Host for Noted {
        fn acquire(&self, claim: &Claim) -> Result<(), HostError> {
            self.behind.acquire(claim)
        }

        fn release(&self, held: &Held) -> Result<(), HostError> {
            self.behind.release(held)
        }

        fn list(&self) -> Result<Vec<Held>, HostError> {
            self.behind.list()
        }

        fn watch(&self, mark: &Mark) -> Result<Option<Watched>, HostError> {
            self.behind.watch(mark)
        }

        fn signal(&self, mark: &Mark, signal: Signal) -> Result<(), HostError> {
            self.behind.signal(mark, signal)
        }

        fn connect(&self, mark: &Mark, socket: &VmSocket) -> Result<UnixStream, HostError> {
            self.behind.connect(mark, socket)
        }

        fn open(
            &self,
            mark: &Mark,
            addresses: &BTreeSet<Ipv4Addr>,
            seconds: u32,
        ) -> Result<(), HostError> {
            self.opened.lock().unwrap().push((addresses.clone(), seconds));
            match self.broken {
                true => Err(HostError::because(format!("open to {mark}"), "it is broken")),
                false => Ok(()),
            }
        }

        fn denied(&self, mark: &Mark) -> Result<Vec<Denied>, HostError> {
            self.behind.denied(mark)
        }
    }

    fn mark() -> Mark {
        Mark::parse("bg0000-00000000").unwrap()
    }

    fn policy(text: &str) -> Egress {
        Egress::parse(text).unwrap()
    }

    fn gates(broken: bool) -> (Arc<Noted>, Gates) {
        let host = Arc::new(Noted { broken, ..Noted::default() });
        let shared: Arc<dyn Host> = host.clone();
        let gates = Gates::new(shared);
        gates.begin(GUEST, &mark(), &policy("allow:a.example,*.b.example"));
        (host, gates)
    }

    #[test]
    fn a_name_is_judged_by_the_list_of_who_asks_and_noted_when_it_is_refused() {
        let (_, gates) = gates(false);
        assert_eq!(gates.judge(GUEST, "a.example"), Judgement::Watched);
        assert_eq!(gates.judge(GUEST, "x.b.example"), Judgement::Watched);
        for name in ["evil.example", "b.example", "evil.example"] {
            assert_eq!(gates.judge(GUEST, name), Judgement::Refused);
        }
        let refused = gates.refused(GUEST, &mark());
        assert_eq!(
            refused.iter().map(|(_, name)| name.as_str()).collect::<Vec<_>>(),
            ["b.example", "evil.example"]
        );
        for number in 0..1000 {
            gates.judge(GUEST, &format!("{number}.evil.example"));
        }
        assert_eq!(gates.refused(GUEST, &mark()).len(), MOST_REFUSED);
        assert_eq!(
            gates.judge(Ipv4Addr::new(10, 213, 0, 3), "a.example"),
            Judgement::Refused,
            "that is nobody"
        );
        gates.learn(GUEST, &mark(), &Egress::None);
        assert_eq!(gates.judge(GUEST, "a.example"), Judgement::Refused);
        gates.learn(GUEST, &mark(), &Egress::All);
        assert_eq!(gates.judge(GUEST, "evil.example"), Judgement::Free);
    }

    #[test]
    fn ipv6_addresses_of_the_world_are_for_guests_that_leave_by_it_and_while_the_host_does() {
        let (_, gates) = gates(false);
        gates.set_ipv6(GUEST, true);
        assert!(!gates.reaches_ipv6(GUEST), "with a list");
        gates.learn(GUEST, &mark(), &Egress::All);
        assert_eq!(gates.reaches_ipv6(GUEST), host_reaches_ipv6());
        gates.set_ipv6(GUEST, false);
        assert!(!gates.reaches_ipv6(GUEST), "its run has none");
        assert!(!gates.reaches_ipv6(Ipv4Addr::new(10, 213, 0, 3)), "that is nobody");
    }

    #[tokio::test]
    async fn what_a_name_leads_to_is_opened_once_for_its_time_and_what_is_private_is_not() {
        let (host, gates) = gates(false);
        let found = [(SITE, 5), (ROUTER, 600)];
        for _twice in 0..2 {
            assert!(gates.answered(GUEST, "a.example", &found).await);
        }
        assert!(gates.answered(GUEST, "x.b.example", &[(SITE, 300)]).await);
        assert!(gates.answered(GUEST, "a.example", &[(ROUTER, 300)]).await);
        let opened = host.opened.lock().unwrap().clone();
        assert_eq!(opened, [([SITE].into(), LEAST_S), ([SITE].into(), 300)]);
    }

    #[tokio::test]
    async fn nothing_is_answered_that_was_not_opened() {
        let (host, broken) = gates(true);
        assert!(!broken.answered(GUEST, "a.example", &[(SITE, 60)]).await);
        assert!(!broken.answered(GUEST, "a.example", &[(SITE, 60)]).await);
        assert_eq!(host.opened.lock().unwrap().len(), 2, "what failed is tried again");

        let (host, gates) = gates(false);
        gates.learn(GUEST, &mark(), &policy("allow:other.example"));
        assert!(
            !gates.answered(GUEST, "a.example", &[(SITE, 60)]).await,
            "the list has changed since it asked"
        );
        let many: Vec<_> = (0..257).map(|n| (Ipv4Addr::from_bits(0x0808_0000 + n), 60)).collect();
        assert!(!gates.answered(GUEST, "other.example", &many).await);
        assert_eq!(host.opened.lock().unwrap().len(), 0);
    }

    #[tokio::test]
    async fn a_name_that_leads_to_ever_more_addresses_comes_to_an_end() {
        let (host, gates) = gates(false);
        let mut answered = 0;
        for part in 0..10 {
            let first = 0x0808_0000 + part * 200;
            let some: Vec<_> = (first..first + 200).map(|n| (Ipv4Addr::from_bits(n), 60)).collect();
            answered += u32::from(gates.answered(GUEST, "a.example", &some).await);
        }
        assert_eq!(answered, 5, "1024 addresses are the most");
        assert_eq!(host.opened.lock().unwrap().len(), 5);
    }

    #[tokio::test]
    async fn a_change_opens_again_what_is_still_on_the_list() {
        let (host, gates) = gates(false);
        let other = Ipv4Addr::new(203, 0, 113, 8);
        assert!(gates.answered(GUEST, "a.example", &[(SITE, 60)]).await);
        assert!(gates.answered(GUEST, "x.b.example", &[(other, 60)]).await);
        let gates = Arc::new(gates);
        let working = Arc::clone(&gates);
        let change = move || {
            working.changing(GUEST, &mark(), &policy("allow:a.example"), || Ok::<(), ()>(()))
        };
        tokio::task::spawn_blocking(change).await.unwrap().unwrap();
        let opened = host.opened.lock().unwrap().clone();
        assert_eq!(opened[2..], [([SITE].into(), LEAST_S)]);
    }
}
