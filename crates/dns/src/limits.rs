//! How much may be under way, of all clients and of one, so that none of them can take it all.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Clients that are remembered with nothing under way.
const MOST_IDLE_CLIENTS: usize = 1024;

pub(crate) struct Limits {
    all: Arc<Semaphore>,
    per_client: usize,
    clients: Mutex<HashMap<IpAddr, Arc<Semaphore>>>,
}

/// One of those that are under way, as long as it lives.
pub(crate) struct Permit {
    _all: OwnedSemaphorePermit,
    _client: OwnedSemaphorePermit,
}

impl Limits {
    pub(crate) fn new(all: usize, per_client: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(all)), per_client, clients: Mutex::default() }
    }

    /// None when there is too much under way.
    pub(crate) fn admit(&self, client: IpAddr) -> Option<Permit> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if clients.len() >= MOST_IDLE_CLIENTS {
            clients.retain(|_, free| free.available_permits() < self.per_client);
        }
        let free =
            clients.entry(client).or_insert_with(|| Arc::new(Semaphore::new(self.per_client)));
        let client = Arc::clone(free).try_acquire_owned().ok()?;
        let all = Arc::clone(&self.all).try_acquire_owned().ok()?;
        Some(Permit { _all: all, _client: client })
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn client(number: u32) -> IpAddr {
        Ipv4Addr::from_bits(number).into()
    }

    #[test]
    fn one_client_leaves_something_for_another() {
        let limits = Limits::new(3, 2);
        let mine = [limits.admit(client(1)), limits.admit(client(1))];
        assert!(mine.iter().all(Option::is_some));
        assert!(limits.admit(client(1)).is_none());
        let others = limits.admit(client(2));
        assert!(others.is_some());
        assert!(limits.admit(client(2)).is_none(), "three are under way");
        drop(mine);
        assert!(limits.admit(client(2)).is_some());
    }

    #[test]
    fn clients_that_are_gone_are_forgotten_and_those_that_are_not_count() {
        let limits = Limits::new(10, 1);
        let mine = limits.admit(client(0));
        for number in 1..3000 {
            assert!(limits.admit(client(number)).is_some());
        }
        assert!(limits.clients.lock().unwrap().len() <= MOST_IDLE_CLIENTS);
        assert!(limits.admit(client(0)).is_none());
        drop(mine);
        assert!(limits.admit(client(0)).is_some());
    }
}
