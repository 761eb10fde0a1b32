//! VMs with a time to live: deleted at a time of the wall clock that is in their record, by whichever daemon runs then, or by
//! the next one.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;

use banger_api::until::Until;
use banger_api::{Problem, VmId};
use banger_store::VmRecord;
use jiff::Timestamp;

use crate::daemon::Daemon;
use crate::operations::Operation;
use crate::problems;
use crate::wall_clock::WallClock;

/// When what is to live so long from now on is over. The wire allows no time that is too long for this.
pub(super) fn end_of(until: Until) -> Option<Timestamp> {
    until.duration().and_then(|duration| Timestamp::now().checked_add(duration).ok())
}

impl Daemon {
    /// Deletes VMs whose time is over from now on, in a task of its own.
    pub fn delete_expired(self: &Arc<Self>) {
        let daemon = Arc::clone(self);
        drop(tokio::spawn(async move {
            if let Err(error) = daemon.delete_each_in_time().await {
                tracing::error!(%error, "VMs are not deleted when their time is over");
            }
        }));
    }

    /// Returns only when the clock cannot be waited for, or the daemon ends.
    async fn delete_each_in_time(self: &Arc<Self>) -> io::Result<()> {
        let mut clock = WallClock::new()?;
        let mut changed = self.expiries.subscribe();
        // One that could not be deleted is in state error, and says why. The next daemon tries again.
        let mut tried = HashSet::new();
        loop {
            changed.mark_unchanged();
            let all = self.store.expiries().map_err(io::Error::other)?;
            let now = Timestamp::now();
            let mut next = None;
            for (id, at) in all {
                if at > now {
                    next = next.or(Some(at));
                } else if tried.insert((id.clone(), at)) {
                    let daemon = Arc::clone(self);
                    drop(tokio::spawn(async move { daemon.delete_one_expired(&id, at).await }));
                }
            }
            tokio::select! {
                () = async { drop(changed.changed().await) } => {}
                waited = clock.until(next.unwrap_or(Timestamp::MAX)) => waited?,
            }
        }
    }

    async fn delete_one_expired(self: &Arc<Self>, id: &VmId, at: Timestamp) {
        let Ok(Some(vm)) = self.store.vm(id) else { return };
        // Somebody has given it more time.
        if vm.expires_at != Some(at) {
            return;
        }
        match self.operations.begin("vm expire", vm.name.as_str()) {
            Ok(operation) => {
                operation.note(format!("the time of {} was over at {at:.0}", vm.name));
                let outcome = self.delete(id, &operation).await;
                let ended = outcome.as_ref().map(|()| &serde_json::Value::Null);
                self.operations.end(&operation, ended);
            }
            Err(problem) => tracing::error!(vm = %id, %problem, "its time is over, and it stays"),
        }
    }

    /// Gives it that long from now on.
    pub(super) fn set_expiry(
        &self,
        vm: &VmRecord,
        until: Until,
        operation: &Operation,
    ) -> Result<(), Problem> {
        let at = end_of(until);
        self.store.set_expiry(&vm.id, at).map_err(problems::store)?;
        self.expiries.send_replace(());
        operation.note(match at {
            Some(at) => format!("{} and its disk are deleted at {at:.0}", vm.name),
            None => format!("{} lives until somebody deletes it", vm.name),
        });
        Ok(())
    }
}
