//! What the daemon keeps in memory of a VM: who may change it, who wants it to end, and the way to its agent.
//! All of it can be lost: it is made anew from the ledger and from what runs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use banger_api::VmId;
use banger_forward::MOST_CONNECTIONS;
use banger_vmm::Channel;
use tokio::sync::{Mutex as AsyncMutex, Semaphore, watch};

use super::activity::Activity;
use super::ports::OpenPort;

#[derive(Debug)]
pub struct Slot {
    /// Held by whoever changes the VM.
    pub lock: AsyncMutex<()>,
    /// How many want it to end: not 0 cancels a start, also one that has not begun.
    ends: watch::Sender<usize>,
    /// The connection to the agent, while there is one.
    pub channel: watch::Sender<Option<Channel>>,
    /// Whether its guest stands still: then its agent answers nobody.
    pub paused: watch::Sender<bool>,
    /// Whether anything goes on in it.
    pub activity: Arc<Activity>,
    /// Who comes to its ports, each with one of these.
    pub connections: Arc<Semaphore>,
    /// Its published ports, while it runs.
    ports: Mutex<Vec<OpenPort>>,
}

impl Slot {
    /// Says that the VM is to end, until the returned guard goes.
    #[must_use]
    pub fn end(self: &Arc<Self>) -> Ending {
        self.ends.send_modify(|ends| *ends += 1);
        Ending(Arc::clone(self))
    }

    /// Returns when somebody wants the VM to end; at once if so already.
    pub async fn ending(&self) {
        // The sender is in this very slot, so it cannot be gone.
        drop(self.ends.subscribe().wait_for(|ends| *ends > 0).await);
    }

    pub(super) fn ports(&self) -> MutexGuard<'_, Vec<OpenPort>> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[must_use]
    pub fn is_ending(&self) -> bool {
        *self.ends.borrow() > 0
    }
}

/// While it lives, starts of this VM are cancelled. A count in memory: nothing on the host depends on its end.
#[derive(Debug)]
pub struct Ending(Arc<Slot>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.ends.send_modify(|ends| *ends -= 1);
    }
}

#[derive(Debug, Default)]
pub struct Slots(Mutex<HashMap<VmId, Arc<Slot>>>);

impl Slots {
    #[must_use]
    pub fn of(&self, vm: &VmId) -> Arc<Slot> {
        let mut all = self.0.lock().expect("nothing panics while it holds the slots");
        Arc::clone(all.entry(vm.clone()).or_insert_with(|| {
            Arc::new(Slot {
                lock: AsyncMutex::new(()),
                ends: watch::channel(0).0,
                channel: watch::channel(None).0,
                paused: watch::channel(false).0,
                activity: Arc::default(),
                connections: Arc::new(Semaphore::new(MOST_CONNECTIONS)),
                ports: Mutex::default(),
            })
        }))
    }

    /// The VM is gone.
    pub fn forget(&self, vm: &VmId) {
        self.0.lock().expect("nothing panics while it holds the slots").remove(vm);
    }
}
