//! One making of a thing at a time: two requests for one image do the work once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

/// Locks by name, which exist while somebody holds or awaits them.
#[derive(Debug, Default)]
pub struct Making(Mutex<HashMap<String, Weak<AsyncMutex<()>>>>);

impl Making {
    /// Waits for its turn. Whoever has it looks again whether the thing is there by now.
    pub async fn turn(&self, name: &str) -> OwnedMutexGuard<()> {
        let lock = {
            let mut all = self.0.lock().expect("nothing panics while it holds the names");
            all.retain(|_, lock| lock.strong_count() > 0);
            let found = all.get(name).and_then(Weak::upgrade);
            found.unwrap_or_else(|| {
                let lock = Arc::new(AsyncMutex::new(()));
                all.insert(name.to_owned(), Arc::downgrade(&lock));
                lock
            })
        };
        lock.lock_owned().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_name_has_one_turn_and_another_name_does_not_wait() {
        let making = Making::default();
        let first = making.turn("a").await;
        drop(making.turn("b").await);
        let second = making.turn("a");
        tokio::pin!(second);
        assert!(futures_util::poll!(&mut second).is_pending());
        drop(first);
        drop(second.await);
    }
}
