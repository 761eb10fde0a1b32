//! A host that exists in memory only, for failing on purpose.
//!
//! It holds what a real one would hold and can be told to fail at the Nth call: before it did anything, after it did
//! everything, or by dying, after which every call fails until it is revived, as if the daemon had been killed there.
//! It proves nothing about a machine: the tests that boot VMs do that.

use std::collections::BTreeSet;
use std::sync::Mutex;

use banger_host::{Claim, Held, Host, HostError, Mark, Watched};

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

#[derive(Debug, Default)]
struct World {
    held: BTreeSet<Held>,
    dead: bool,
    plan: Vec<(Call, usize, Fault)>,
    acquires: usize,
    releases: usize,
    log: Vec<String>,
}

/// A host in memory.
#[derive(Debug, Default)]
pub struct FakeHost(Mutex<World>);

impl FakeHost {
    /// The `nth` call (from 0) of this kind, counted from now, has this fault.
    pub fn fail_at(&self, call: Call, nth: usize, fault: Fault) {
        let mut world = self.world();
        let base = if call == Call::Acquire { world.acquires } else { world.releases };
        world.plan.push((call, base + nth, fault));
    }

    /// A new daemon on the same machine: what is held stays held, faults not yet met are forgotten.
    pub fn revive(&self) {
        let mut world = self.world();
        world.dead = false;
        world.plan.clear();
    }

    /// What is held now.
    #[must_use]
    pub fn held(&self) -> Vec<Held> {
        self.world().held.iter().cloned().collect()
    }

    /// Something goes away by itself, as a VMM that crashed.
    pub fn lose(&self, held: &Held) {
        self.world().held.remove(held);
    }

    /// Something is there that nobody recorded.
    pub fn put(&self, held: Held) {
        self.world().held.insert(held);
    }

    /// Every call so far: `acquire …` and `release …`, in their order.
    #[must_use]
    pub fn log(&self) -> Vec<String> {
        self.world().log.clone()
    }

    fn world(&self) -> std::sync::MutexGuard<'_, World> {
        self.0.lock().expect("no test panics while it holds the world")
    }
}

impl World {
    fn fault(&mut self, call: Call) -> Option<Fault> {
        let counter = if call == Call::Acquire { &mut self.acquires } else { &mut self.releases };
        let now = *counter;
        *counter += 1;
        self.plan
            .iter()
            .find(|(kind, nth, _)| *kind == call && *nth == now)
            .map(|(_, _, fault)| *fault)
    }

    fn call(
        &mut self,
        call: Call,
        held: &Held,
        act: impl FnOnce(&mut BTreeSet<Held>),
    ) -> Result<(), HostError> {
        let verb = if call == Call::Acquire { "acquire" } else { "release" };
        let failed = |cause: &str| Err(HostError::because(format!("{verb} {held}"), cause));
        if self.dead {
            return failed("the fake host is dead");
        }
        self.log.push(format!("{verb} {held}"));
        match self.fault(call) {
            None => {
                act(&mut self.held);
                Ok(())
            }
            Some(Fault::Refuse) => failed("refused on purpose"),
            Some(Fault::HalfDone) => {
                act(&mut self.held);
                failed("half done on purpose")
            }
            Some(Fault::DieBefore) => {
                self.dead = true;
                failed("died before, on purpose")
            }
            Some(Fault::DieAfter) => {
                act(&mut self.held);
                self.dead = true;
                failed("died after, on purpose")
            }
        }
    }
}

impl Host for FakeHost {
    fn acquire(&self, claim: &Claim) -> Result<(), HostError> {
        let held = claim.held();
        self.world().call(Call::Acquire, &held, |all| {
            all.insert(held.clone());
        })
    }

    fn release(&self, held: &Held) -> Result<(), HostError> {
        self.world().call(Call::Release, held, |all| {
            all.remove(held);
        })
    }

    fn list(&self) -> Result<Vec<Held>, HostError> {
        let world = self.world();
        if world.dead {
            return Err(HostError::because("look at the host", "the fake host is dead"));
        }
        Ok(world.held.iter().cloned().collect())
    }

    /// There are no processes here.
    fn watch(&self, _mark: &Mark) -> Result<Option<Watched>, HostError> {
        Ok(None)
    }
}
