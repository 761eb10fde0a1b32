//! Set: what can be changed of a VM while it runs.

use std::sync::Arc;

use banger_api::vm::{Refused, RefusedWhat, SetVm};
use banger_api::{Code, Egress, Problem, VmId};
use banger_host::{Claim, Denied, Nat, Network};
use banger_store::{Place, VmRecord};
use jiff::{SignedDuration, Timestamp};

use super::labels;
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
        let wanted = Egress::of(request.nat, request.egress.clone());
        let wanted = wanted.map_err(|e| problems::egress(&e))?;
        labels::judge(&labels::after(&vm, request))?;
        if [request.cpus.is_some(), request.memory_bytes.is_some(), request.disk_bytes.is_some()]
            .contains(&true)
        {
            operation.stage("sizes", format!("{}: changing its sizes", vm.name));
            let (vm, request, operation) = (vm.clone(), request.clone(), operation.clone());
            self.blocking(move |daemon| daemon.set_sizes(&vm, &request, &operation)).await??;
        }
        if let Some(ttl) = request.ttl {
            self.set_expiry(&vm, ttl, operation)?;
        }
        if let Some(after) = request.auto_stop {
            self.store.set_auto_stop(&vm.id, after).map_err(problems::store)?;
            slot.activity.allow(after.duration());
        }
        if !request.label.is_empty() || !request.unlabel.is_empty() {
            operation.stage("labels", format!("{}: changing its labels", vm.name));
            self.set_labels(&vm, request)?;
        }
        if let Some(egress) = wanted {
            operation.stage("egress", format!("{}: egress {egress}", vm.name));
            if vm.place.is_none() {
                self.set_user_egress(&vm, &egress, operation).await?;
            }
            let leaves = egress != Egress::None && vm.state.is_up();
            self.blocking({
                let vm = vm.clone();
                move |daemon| daemon.set_egress(&vm, &egress)
            })
            .await??;
            if let Some(place) = vm.place.filter(|_| leaves) {
                self.note_firewalls(&vm, self.network_of(place)?, operation).await;
            }
        }
        if !request.publish.is_empty() || !request.unpublish.is_empty() {
            operation.stage("ports", format!("{}: changing what it publishes", vm.name));
            let SetVm { publish, unpublish, .. } = request;
            self.set_ports(&vm, &slot, unpublish, publish, operation).await?;
        }
        self.record(id)
    }

    fn set_egress(&self, vm: &VmRecord, egress: &Egress) -> Result<(), Problem> {
        // What has no place has no device to make rules for.
        let Some(place) = vm.place else { return Ok(()) };
        let mark = self.mark(&vm.id);
        if !vm.state.is_up() {
            self.store.set_egress(&vm.id, egress, None).map_err(problems::store)?;
            self.gates.learn(place.address, &mark, egress);
            return Ok(());
        }
        let (claim, is_made) = self.way_out(vm, place, egress)?;
        if vm.egress == *egress && is_made {
            return Ok(());
        }
        let claims = self.store.claims(&vm.id).map_err(problems::store)?;
        if claim.is_some() && !claims.iter().any(|row| matches!(row.claim, Claim::Guard(_))) {
            return Err(no_device(vm).remedy(format!("`banger vm restart {}`", vm.name)));
        }
        let change = || self.change_egress(vm, egress, claim.as_ref());
        let changed = self.gates.changing(place.address, &mark, egress, change);
        if changed.is_err() {
            self.gates.learn(place.address, &mark, &Egress::None);
        }
        changed
    }

    /// The old way out goes before the new one is there: in between it reaches nothing, and afterwards no connection that only the
    /// old one allowed. What fails leaves it with none.
    fn change_egress(
        &self,
        vm: &VmRecord,
        egress: &Egress,
        claim: Option<&Claim>,
    ) -> Result<(), Problem> {
        let host = self.host.as_ref();
        let release = || {
            let left = ledger::release_some(host, &self.store, &vm.id, is_way_out);
            left.map_err(problems::store)
        };
        let nothing =
            || self.store.set_egress(&vm.id, &Egress::None, None).map_err(problems::store);
        self.store.set_egress(&vm.id, egress, None).map_err(problems::store)?;
        if let Some(left) = release()? {
            return Err(left);
        }
        self.store.set_egress(&vm.id, egress, claim).map_err(problems::store)?;
        let Some(claim) = claim else { return Ok(()) };
        let Err(error) = ledger::acquire(host, std::slice::from_ref(claim)) else { return Ok(()) };
        let problem = problems::host(&error);
        nothing()?;
        Err(match release()? {
            Some(left) => left.cause(&problem),
            None => problem,
        })
    }

    /// Makes the way out of a VM that runs what its record says, as a daemon does that finds it: one that is right stays as it is,
    /// with what is open by it.
    ///
    /// # Errors
    /// What could not be made.
    pub(crate) fn egress_again(&self, vm: &VmRecord) -> Result<(), Problem> {
        let Some(place) = vm.place else { return Ok(()) };
        let (claim, is_made) = self.way_out(vm, place, &vm.egress)?;
        if is_made || !vm.state.is_up() {
            let claims: Vec<Claim> = claim.into_iter().filter(|_| is_made).collect();
            return ledger::acquire(self.host.as_ref(), &claims).map_err(|e| problems::host(&e));
        }
        self.set_egress(vm, &vm.egress)
    }

    /// What it holds for this policy, and whether the ledger says that it does.
    fn way_out(
        &self,
        vm: &VmRecord,
        place: Place,
        egress: &Egress,
    ) -> Result<(Option<Claim>, bool), Problem> {
        // As its run has it, whatever the host has got or lost since.
        let network = Network { ipv6: vm.ipv6, ..self.network_of(place)? };
        let claim = Nat::of(&self.mark(&vm.id), network, place.address, egress).map(Claim::Nat);
        let rows = self.store.claims(&vm.id).map_err(problems::store)?;
        let mut recorded = rows.iter().filter(|row| is_way_out(&row.claim));
        let is_made = match (&claim, recorded.next(), recorded.next()) {
            (None, None, _) => true,
            (Some(claim), Some(row), None) => row.claim == *claim && row.problem.is_none(),
            _ => false,
        };
        Ok((claim, is_made))
    }

    /// What was refused to a VM beyond its host, the earliest first: names since its start, addresses within the last hour.
    ///
    /// # Errors
    /// When the host cannot be looked at.
    pub async fn refused(self: &Arc<Self>, vm: &VmRecord) -> Result<Vec<Refused>, Problem> {
        let Some(place) = vm.place else { return Ok(Vec::new()) };
        let mark = self.mark(&vm.id);
        let names = self.gates.refused(place.address, &mark).into_iter();
        let mut all: Vec<Refused> =
            names.map(|(at, name)| Refused { at, what: RefusedWhat::Name(name) }).collect();
        if vm.state.is_up() && self.privileged {
            let denied = self.blocking(move |daemon| daemon.host.denied(&mark)).await?;
            let now = Timestamp::now();
            for Denied { ago_s, address, is_udp, port } in denied.map_err(|e| problems::host(&e))? {
                let at = now - SignedDuration::from_secs(ago_s.into());
                let what = match is_udp {
                    true => RefusedWhat::Udp { address, port },
                    false => RefusedWhat::Tcp { address, port },
                };
                all.push(Refused { at, what });
            }
        }
        all.sort_by_key(|refused| refused.at);
        Ok(all)
    }
}

fn is_way_out(claim: &Claim) -> bool {
    matches!(claim, Claim::Nat(_))
}

fn no_device(vm: &VmRecord) -> Problem {
    Problem::new(Code::Conflict, format!("VM {} has no network device", vm.name))
        .remedy("`banger doctor` shows why VMs have none here")
}
