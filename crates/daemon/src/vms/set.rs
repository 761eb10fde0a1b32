//! Set: what can be changed of a VM while it runs.

use std::sync::Arc;

use banger_api::vm::{SetVm, State};
use banger_api::{Code, Problem, VmId};
use banger_host::{Claim, Nat};
use banger_store::VmRecord;

use crate::daemon::Daemon;
use crate::ledger;
use crate::operations::Operation;
use crate::problems;

impl Daemon {
    /// Changes what is given, at once if it runs.
    ///
    /// # Errors
    /// What cannot be changed, and why; then it is as before.
    pub async fn set(
        self: &Arc<Self>,
        id: &VmId,
        request: &SetVm,
        operation: &Operation,
    ) -> Result<VmRecord, Problem> {
        let slot = self.slots.of(id);
        let _turn = slot.lock.lock().await;
        let vm = self.record(id)?;
        if let Some(nat) = request.nat {
            let what = if nat { "letting it out" } else { "keeping it in" };
            operation.stage("nat", format!("{}: {what}", vm.name));
            let (place, running) = (vm.place, vm.state == State::Running);
            self.blocking({
                let vm = vm.clone();
                move |daemon| daemon.set_nat(&vm, nat)
            })
            .await??;
            if let Some(place) = place.filter(|_| nat && running) {
                self.note_firewalls(&vm, self.network_of(place)?, operation).await;
            }
        }
        self.record(id)
    }

    fn set_nat(&self, vm: &VmRecord, nat: bool) -> Result<(), Problem> {
        let Some(place) = vm.place else { return Err(no_device(vm)) };
        let is_nat = |claim: &Claim| matches!(claim, Claim::Nat(_));
        if vm.state != State::Running {
            return self.store.set_nat(&vm.id, nat, None).map_err(problems::store);
        }
        let host = self.host.as_ref();
        if !nat {
            self.store.set_nat(&vm.id, false, None).map_err(problems::store)?;
            let left = ledger::release_some(host, &self.store, &vm.id, is_nat);
            return left.map_err(problems::store)?.map_or(Ok(()), Err);
        }
        let claims = self.store.claims(&vm.id).map_err(problems::store)?;
        if claims.iter().any(|row| is_nat(&row.claim) && row.problem.is_none()) {
            return Ok(());
        }
        if !claims.iter().any(|row| matches!(row.claim, Claim::Guard(_))) {
            return Err(no_device(vm).remedy(format!("`banger vm restart {}`", vm.name)));
        }
        let network = self.network_of(place)?;
        let claim = Claim::Nat(Nat { mark: self.mark(&vm.id), network, address: place.address });
        self.store.set_nat(&vm.id, true, Some(&claim)).map_err(problems::store)?;
        let Err(error) = ledger::acquire(host, &[claim]) else { return Ok(()) };
        let problem = problems::host(&error);
        self.store.set_nat(&vm.id, false, None).map_err(problems::store)?;
        let left = ledger::release_some(host, &self.store, &vm.id, is_nat);
        Err(match left.map_err(problems::store)? {
            Some(left) => left.cause(&problem),
            None => problem,
        })
    }
}

fn no_device(vm: &VmRecord) -> Problem {
    Problem::new(Code::Conflict, format!("VM {} has no network device", vm.name))
        .remedy("`banger doctor` shows why VMs have none here")
}
