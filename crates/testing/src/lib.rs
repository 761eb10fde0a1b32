//! Hosts that fail on purpose.
//!
//! [`Faulty`] stands before any host and makes its Nth call fail: before it did anything, after it did everything, or by
//! dying, after which every call fails until it is revived, as if the daemon had been killed there. Behind it is the real
//! machine, or [`MemoryHost`], which proves nothing about a machine and is quick.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard};

use banger_api::Zone;
use banger_host::root::{Firewalls, Routed};
use banger_host::{Claim, Denied, Held, Host, HostError, Mark, Network, VmSocket, Watched};
use rustix::process::Signal;

/// What goes wrong at a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing is done, an error is returned.
    Refuse,
    /// All is done, and an error is returned nevertheless: a step that failed half-way.
    HalfDone,
    /// The caller dies before the call has done anything.
    DieBefore,
    /// The caller dies after the call has done its work.
    DieAfter,
}

/// Which calls count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    Acquire,
    Release,
}

/// A host whose calls fail where a test says so.
#[derive(Debug)]
pub struct Faulty<H> {
    host: H,
    plan: Mutex<Plan>,
}

#[derive(Debug, Default)]
struct Plan {
    dead: bool,
    faults: Vec<(Call, usize, Fault)>,
    acquires: usize,
    releases: usize,
    log: Vec<String>,
}

impl<H: Host> Faulty<H> {
    #[must_use]
    pub fn new(host: H) -> Self {
        Self { host, plan: Mutex::default() }
    }

    /// The `nth` call (from 0) of this kind, counted from now, has this fault.
    pub fn fail_at(&self, call: Call, nth: usize, fault: Fault) {
        let mut plan = self.plan();
        let base = if call == Call::Acquire { plan.acquires } else { plan.releases };
        plan.faults.push((call, base + nth, fault));
    }

    /// A new daemon on the same machine: what is held stays held, faults not yet met are forgotten.
    pub fn revive(&self) {
        let mut plan = self.plan();
        plan.dead = false;
        plan.faults.clear();
    }

    /// Every call so far: `acquire …` and `release …`, in their order.
    #[must_use]
    pub fn log(&self) -> Vec<String> {
        self.plan().log.clone()
    }

    fn call(
        &self,
        call: Call,
        held: &Held,
        act: impl FnOnce() -> Result<(), HostError>,
    ) -> Result<(), HostError> {
        let verb = if call == Call::Acquire { "acquire" } else { "release" };
        let failed = |cause: &str| Err(HostError::because(format!("{verb} {held}"), cause));
        if self.plan().dead {
            return failed("the daemon is dead");
        }
        // Not in the match itself: its guard would live as long as the arms do.
        let fault = self.plan().next(call, format!("{verb} {held}"));
        match fault {
            None => act(),
            Some(Fault::Refuse) => failed("refused on purpose"),
            Some(Fault::HalfDone) => act().and(failed("half done on purpose")),
            Some(Fault::DieBefore) => {
                self.plan().dead = true;
                failed("died before, on purpose")
            }
            Some(Fault::DieAfter) => {
                let done = act();
                self.plan().dead = true;
                done.and(failed("died after, on purpose"))
            }
        }
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().expect("no test panics while it holds the plan")
    }
}

impl Plan {
    /// Counts and logs a call; the fault that it is to have.
    fn next(&mut self, call: Call, line: String) -> Option<Fault> {
        self.log.push(line);
        let counter = if call == Call::Acquire { &mut self.acquires } else { &mut self.releases };
        let now = *counter;
        *counter += 1;
        self.faults
            .iter()
            .find(|(kind, nth, _)| *kind == call && *nth == now)
            .map(|(_, _, fault)| *fault)
    }
}

impl<H: Host> Host for Faulty<H> {
    fn acquire(&self, claim: &Claim) -> Result<(), HostError> {
        self.call(Call::Acquire, &claim.held(), || self.host.acquire(claim))
    }

    fn release(&self, held: &Held) -> Result<(), HostError> {
        self.call(Call::Release, held, || self.host.release(held))
    }

    fn list(&self) -> Result<Vec<Held>, HostError> {
        self.host.list()
    }

    fn firewalls(&self, network: &Network) -> Result<Firewalls, HostError> {
        self.host.firewalls(network)
    }

    fn route_names(&self, number: u8, zone: &Zone) -> Result<Routed, HostError> {
        self.host.route_names(number, zone)
    }

    fn watch(&self, mark: &Mark) -> Result<Option<Watched>, HostError> {
        self.host.watch(mark)
    }

    fn signal(&self, mark: &Mark, signal: Signal) -> Result<(), HostError> {
        self.host.signal(mark, signal)
    }

    fn connect(&self, mark: &Mark, socket: &VmSocket) -> Result<UnixStream, HostError> {
        self.host.connect(mark, socket)
    }

    fn open(
        &self,
        mark: &Mark,
        addresses: &BTreeSet<Ipv4Addr>,
        seconds: u32,
    ) -> Result<(), HostError> {
        self.host.open(mark, addresses, seconds)
    }

    fn denied(&self, mark: &Mark) -> Result<Vec<Denied>, HostError> {
        self.host.denied(mark)
    }
}

/// A host that exists in memory only.
#[derive(Debug, Default)]
pub struct MemoryHost(Mutex<BTreeSet<Held>>);

impl MemoryHost {
    fn held(&self) -> MutexGuard<'_, BTreeSet<Held>> {
        self.0.lock().expect("nothing panics while it holds the set")
    }
}

impl Host for MemoryHost {
    fn acquire(&self, claim: &Claim) -> Result<(), HostError> {
        self.held().insert(claim.held());
        Ok(())
    }

    fn release(&self, held: &Held) -> Result<(), HostError> {
        self.held().remove(held);
        Ok(())
    }

    fn list(&self) -> Result<Vec<Held>, HostError> {
        Ok(self.held().iter().cloned().collect())
    }

    /// There are no processes here.
    fn watch(&self, _mark: &Mark) -> Result<Option<Watched>, HostError> {
        Ok(None)
    }

    fn signal(&self, _mark: &Mark, _signal: Signal) -> Result<(), HostError> {
        Ok(())
    }

    fn connect(&self, mark: &Mark, _socket: &VmSocket) -> Result<UnixStream, HostError> {
        Err(HostError::because(format!("connect to the VMM of {mark}"), "there are no processes"))
    }

    fn open(&self, _mark: &Mark, _: &BTreeSet<Ipv4Addr>, _seconds: u32) -> Result<(), HostError> {
        Ok(())
    }

    fn denied(&self, _mark: &Mark) -> Result<Vec<Denied>, HostError> {
        Ok(Vec::new())
    }
}
