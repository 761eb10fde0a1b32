//! Rename: another name for the same VM. Nothing on the host is named by it: folders, devices and processes have the mark.

use std::sync::Arc;

use banger_api::vm::State;
use banger_api::{Problem, VmId, VmName};
use banger_store::{StoreError, VmRecord};

use super::create::taken;
use crate::agent;
use crate::daemon::Daemon;
use crate::operations::Operation;
use crate::problems;

impl Daemon {
    /// Its name in DNS is the new one at once, and so is the hostname of a guest that runs. A guest that cannot be told has its
    /// old hostname until its next start; that is noted and no error.
    ///
    /// # Errors
    /// When another VM has that name; then it is called as before.
    pub async fn rename(
        self: &Arc<Self>,
        id: &VmId,
        name: &VmName,
        operation: &Operation,
    ) -> Result<VmRecord, Problem> {
        let slot = self.slots.of(id);
        let _turn = slot.lock.lock().await;
        let vm = self.record(id)?;
        if vm.name == *name {
            return Ok(vm);
        }
        operation.stage("rename", format!("renaming {} to {name}", vm.name));
        let (id, new) = (vm.id.clone(), name.clone());
        let renamed = self.blocking(move |daemon| daemon.store.rename(&id, &new)).await?;
        renamed.map_err(|error| match error {
            StoreError::Taken { .. } => taken(name),
            other => problems::store(other),
        })?;
        self.publish_names();
        let vm = self.record(&vm.id)?;
        if vm.state == State::Running {
            let told = async { agent::put_name(&self.channel(&vm).await?, name).await };
            if let Err(problem) = told.await {
                let note =
                    format!("the guest has its old hostname until `banger vm restart {name}`");
                operation.note(format!("{note}: {problem}"));
            }
        }
        Ok(vm)
    }
}
