//! One request of a VM's network, and one of the rest of it, at a time: a claim is not released while it is made. Requests of
//! different VMs do not wait for each other.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use banger_host::{Mark, Part};

/// The locks of the VMs that somebody asks about now.
#[derive(Debug, Default)]
pub(crate) struct Turns(Mutex<HashMap<(Mark, Part), Turn>>);

type Turn = Arc<Mutex<()>>;

impl Turns {
    /// Does it when nobody else does something for this part of the VM.
    pub(crate) fn alone<T>(&self, whose: &(Mark, Part), work: impl FnOnce() -> T) -> T {
        let turn = self.of(whose);
        // Whoever panicked has left the machine as a crash would have, which release can deal with.
        let _held = turn.lock().unwrap_or_else(PoisonError::into_inner);
        work()
    }

    fn of(&self, whose: &(Mark, Part)) -> Turn {
        let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that nobody waits for or holds.
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        Arc::clone(turns.entry(whose.clone()).or_default())
    }
}

/// How much is done at once: who comes when that is reached waits until something has ended.
#[derive(Debug)]
pub(crate) struct Places {
    free: Mutex<usize>,
    freed: std::sync::Condvar,
}

impl Places {
    pub(crate) fn new(count: usize) -> Self {
        Self { free: Mutex::new(count), freed: std::sync::Condvar::new() }
    }

    /// A place, as soon as one is free; given back when it is dropped, also by a panic.
    pub(crate) fn take(self: &Arc<Self>) -> Place {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free =
            self.freed.wait_while(free, |free| *free == 0).unwrap_or_else(PoisonError::into_inner);
        *free -= 1;
        Place(Arc::clone(self))
    }
}

#[derive(Debug)]
pub(crate) struct Place(Arc<Places>);

impl Drop for Place {
    fn drop(&mut self) {
        *self.0.free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.0.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use super::*;

    fn machine(vm: &str) -> (Mark, Part) {
        (Mark::parse(&format!("bg0000-0000000{vm}")).unwrap(), Part::Machine)
    }

    #[test]
    fn a_part_of_a_vm_waits_for_itself_and_for_no_other() {
        let turns = &Turns::default();
        let (say, heard) = mpsc::channel();
        thread::scope(|scope| {
            turns.alone(&machine("0"), || {
                let said = say.clone();
                scope.spawn(|| turns.alone(&machine("1"), move || said.send("another").unwrap()));
                assert_eq!(heard.recv_timeout(Duration::from_secs(10)).unwrap(), "another");
                let network = (machine("0").0, Part::Network);
                let said = say.clone();
                scope.spawn(move || {
                    turns.alone(&network, move || said.send("its network").unwrap())
                });
                assert_eq!(heard.recv_timeout(Duration::from_secs(10)).unwrap(), "its network");
                let said = say.clone();
                scope.spawn(|| turns.alone(&machine("0"), move || said.send("the same").unwrap()));
                assert!(heard.recv_timeout(Duration::from_millis(50)).is_err());
            });
            assert_eq!(heard.recv_timeout(Duration::from_secs(10)).unwrap(), "the same");
        });
    }

    #[test]
    fn nothing_is_kept_of_vms_that_nobody_asks_about() {
        let turns = Turns::default();
        for vm in ["0", "1", "2"] {
            turns.alone(&machine(vm), || ());
        }
        assert_eq!(turns.0.lock().unwrap().len(), 1);
    }

    #[test]
    fn a_panic_keeps_nobody_waiting() {
        let turns = Turns::default();
        let places = Arc::new(Places::new(1));
        let panicked = thread::scope(|scope| {
            let work = || {
                let _place = places.take();
                turns.alone(&machine("0"), || panic!("on purpose"));
            };
            scope.spawn(work).join()
        });
        assert!(panicked.is_err());
        let _place = places.take();
        turns.alone(&machine("0"), || ());
    }
}
