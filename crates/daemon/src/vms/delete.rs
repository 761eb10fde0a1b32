//! Delete: ends the VM in whatever state it is, releases all that it holds, and forgets it. Always wins.

use std::sync::Arc;

use banger_api::Problem;
use banger_api::VmId;
use banger_api::vm::{PruneVms, Pruned, State};
use banger_host::space;

use crate::daemon::Daemon;
use crate::operations::Operation;
use crate::problems;

impl Daemon {
    /// # Errors
    /// What could not be released; the VM is then in state `error`, and the next delete tries again.
    pub async fn delete(self: &Arc<Self>, id: &VmId, operation: &Operation) -> Result<(), Problem> {
        let slot = self.slots.of(id);
        let _ending = slot.end();
        let _turn = slot.lock.lock().await;
        let Some(vm) = self.store.vm(id).map_err(problems::store)? else {
            // Somebody else deleted it while this waited: that is what was asked for.
            return Ok(());
        };
        operation.stage("release", format!("deleting {}", vm.name));
        slot.close_ports(|_| true).await;
        let vm_id = id.clone();
        self.blocking(move |daemon| {
            daemon.store.set_state(&vm_id, State::Deleting).map_err(problems::store)?;
            daemon.publish_names();
            if let Some(place) = vm.place {
                daemon.exposures.end_of(place.address);
            }
            daemon.release_all(&vm_id)
        })
        .await??;
        slot.channel.send_replace(None);
        self.slots.forget(id);
        self.gates.forget(&self.mark(id));
        Ok(())
    }

    /// Deletes every VM that does not run; those that cannot be deleted are noted and stay.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn prune(
        self: &Arc<Self>,
        request: PruneVms,
        operation: &Operation,
    ) -> Result<Pruned, Problem> {
        let mut pruned = Pruned::default();
        for vm in self.store.vms().map_err(problems::store)? {
            if !matches!(vm.state, State::Stopped | State::Error) {
                continue;
            }
            if !request.force
                && let Err(problem) = self.refuse_to_lose_work(&vm, operation).await
            {
                operation.note(format!("{} stays: {problem}", vm.name));
                continue;
            }
            let bytes = space::allocated_bytes(&self.places.disk(&self.mark(&vm.id)));
            match self.delete(&vm.id, operation).await {
                Ok(()) => {
                    pruned.deleted.push(vm.name);
                    pruned.freed_bytes += bytes;
                }
                Err(problem) => operation.note(format!("{} stays: {problem}", vm.name)),
            }
        }
        Ok(pruned)
    }
}
