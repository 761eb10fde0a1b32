//! A daemon starts: what its predecessor left is adopted if it lives, and ended if it does not.
//!
//! ```text
//! recorded as   its VMM lives                            its VMM is gone
//! Running       adopt: same boot id, same channel        release, Stopped
//! Paused        adopt, as its VMM says it is             release, Stopped
//! Starting      wait for ready as its start did          release, Stopped
//! Stopping      finish the stop by killing it            release, Stopped
//! Deleting      finish the delete                        finish the delete
//! ```
//! A VM whose session has ended with the old daemon (`ephemeral`) is deleted. Things that carry our mark and no row are
//! shown by `doctor`, and released only when somebody asks: the database may be the one that is wrong.

use std::collections::HashSet;
use std::sync::Arc;

use banger_api::vm::State;
use banger_api::{Code, Problem};
use banger_host::{Claim, Held};
use banger_store::VmRecord;
use banger_vmm::channel::Mux;
use banger_vmm::{AgentAddress, Channel, firecracker};
use tokio::time::Instant;

use crate::daemon::Daemon;
use crate::ledger;
use crate::operations::Operation;
use crate::problems;
use crate::readiness::VmmProcess;
use crate::vms::slot::Slot;
use crate::vms::start::agent_of;

/// A stray, and whether it is gone.
pub type ReleasedStray = (Held, Result<(), Problem>);

impl Daemon {
    /// Takes over, VM by VM, each in a task of its own: the API is served meanwhile, and waits for the VM's turn.
    ///
    /// # Errors
    /// When the database cannot be read or written.
    pub fn take_over(self: &Arc<Self>) -> Result<(), Problem> {
        let at = jiff::Timestamp::now();
        let ended = Problem::new(Code::Cancelled, "the daemon ended before this was done");
        self.store.end_unfinished_operations(at, &ended).map_err(problems::store)?;
        for vm in self.store.vms().map_err(problems::store)? {
            let rests = matches!(vm.state, State::Stopped | State::Error);
            if rests && !vm.ephemeral {
                continue;
            }
            let operation = self.operations.begin("vm adopt", vm.name.as_str())?;
            let daemon = Arc::clone(self);
            drop(tokio::spawn(async move {
                let outcome = daemon.take_over_one(vm, &operation).await;
                daemon
                    .operations
                    .end(&operation, outcome.as_ref().map(|()| &serde_json::Value::Null));
            }));
        }
        Ok(())
    }

    async fn take_over_one(
        self: &Arc<Self>,
        vm: VmRecord,
        operation: &Operation,
    ) -> Result<(), Problem> {
        if vm.ephemeral || vm.state == State::Deleting {
            return self.delete(&vm.id, operation).await;
        }
        let slot = self.slots.of(&vm.id);
        let _turn = slot.lock.lock().await;
        let mark = self.mark(&vm.id);
        let watched = self.watched(&mark).await?;
        match (vm.state, watched) {
            (State::Running | State::Paused | State::Starting, Some(watched)) => {
                operation.stage("adopt", format!("adopting {}", vm.name));
                self.guard_again(&vm, operation).await?;
                let agent = agent_of(&vm);
                if vm.state == State::Starting {
                    return match self.finish_start(&vm, &slot, watched, &agent, operation).await {
                        Ok(_) => {
                            self.open_again(&vm, &vm.published, &slot, operation);
                            Ok(())
                        }
                        Err(problem) => Err(self.failed_start(&vm, problem).await),
                    };
                }
                self.open_again(&vm, &vm.published, &slot, operation);
                let paused = self.is_paused(&vm).await;
                if let Err(problem) = &paused {
                    operation.note(format!("{} may be paused: {problem}", vm.name));
                }
                if paused.unwrap_or(false) {
                    // Its agent is asked when it goes on.
                    slot.paused.send_replace(true);
                    self.record_state(&vm.id, State::Paused).await?;
                    self.mind(vm.id.clone(), watched, agent);
                    return Ok(());
                }
                let within = self.config.deadlines.ready(self.translated().await);
                let connecting = async {
                    let stream = self.connect(&mark, agent.socket.clone()).await?;
                    Mux::connect(stream, agent.carrier, Instant::now() + within)
                        .await
                        .map_err(|e| Problem::from_error(Code::Guest, &e))
                };
                tokio::select! {
                    found = connecting => match found {
                        Ok((channel, ready)) => {
                            self.is_ready(&vm, &slot, watched, Channel::Mux(channel), &ready).await?;
                            Ok(())
                        }
                        Err(problem) => {
                            // It lives, so it is not ended; its agent may come back.
                            self.mind(vm.id.clone(), watched, agent);
                            Err(Problem::new(Code::Guest, format!("the agent of {} does not answer", vm.name)).cause(&problem))
                        }
                    },
                    () = slot.ending() => {
                        self.mind(vm.id.clone(), watched, agent);
                        Ok(())
                    }
                }
            }
            (State::Starting, None) => {
                let problem = Problem::new(
                    Code::Cancelled,
                    format!("the daemon ended while {} was starting", vm.name),
                );
                self.release_run(&vm.id, State::Stopped, Some(&problem)).await
            }
            (State::Running | State::Paused, None) => {
                let problem =
                    Problem::new(Code::Guest, format!("{} ended while no daemon ran", vm.name));
                self.release_run(&vm.id, State::Stopped, Some(&problem)).await
            }
            _ => self.release_run(&vm.id, State::Stopped, None).await,
        }
    }

    /// Makes the rules for the VM's device anew, if somebody has flushed them: those that are there are left as they are.
    async fn guard_again(
        self: &Arc<Self>,
        vm: &VmRecord,
        operation: &Operation,
    ) -> Result<(), Problem> {
        if let Some(Ok(network)) = vm.place.map(|place| self.network_of(place)) {
            self.route_names(&network);
        }
        let vm_now = vm.clone();
        let made = self.blocking(move |daemon| {
            let recorded = daemon.store.claims(&vm_now.id).map_err(problems::store)?;
            let rules =
                recorded.into_iter().map(|row| row.claim).filter(|c| matches!(c, Claim::Guard(_)));
            let rules: Vec<Claim> = rules.collect();
            ledger::acquire(daemon.host.as_ref(), &rules).map_err(|e| problems::host(&e))?;
            daemon.egress_again(&vm_now)
        });
        // Without them it reaches nothing; that is no reason to leave it unadopted.
        if let Err(problem) = made.await? {
            operation.note(format!("{} may be without a network: {problem}", vm.name));
        }
        Ok(())
    }

    /// The rest of a start whose daemon died after the VMM's process was there.
    async fn finish_start(
        self: &Arc<Self>,
        vm: &VmRecord,
        slot: &Arc<Slot>,
        watched: VmmProcess,
        agent: &AgentAddress,
        operation: &Operation,
    ) -> Result<VmRecord, Problem> {
        // A VMM that is told what to run by its API may have been told nothing, or not all.
        if let Some(api) = banger_vmm::api_of(vm.vmm.as_deref().unwrap_or_default()) {
            let api = self.connect(&self.mark(&vm.id), api).await?;
            let state = firecracker::state(api)
                .await
                .map_err(|e| Problem::from_error(Code::Internal, &e))?;
            if state != firecracker::InstanceState::Running {
                let message = format!("the daemon ended while {} was starting", vm.name);
                return Err(Problem::new(Code::Cancelled, message));
            }
        }
        self.await_ready(vm, slot, watched, agent, operation).await
    }

    /// What carries our mark on this host and is in no ledger.
    ///
    /// # Errors
    /// When the host or the database cannot be read.
    pub fn strays(&self) -> Result<Vec<Held>, Problem> {
        // The ledger second: what is recorded is recorded before it is made.
        let held = self.host.list().map_err(|e| problems::host(&e))?;
        let recorded: HashSet<Held> = self
            .store
            .all_claims()
            .map_err(problems::store)?
            .iter()
            .map(banger_host::Claim::held)
            .collect();
        Ok(held.into_iter().filter(|held| !recorded.contains(held)).collect())
    }

    /// Releases the strays, the processes first; says which are gone and which are not.
    ///
    /// # Errors
    /// When the host or the database cannot be read.
    pub fn release_strays(&self) -> Result<Vec<ReleasedStray>, Problem> {
        let mut strays = self.strays()?;
        // The kinds are declared in the order in which they are made.
        strays.sort();
        strays.reverse();
        let release = |held: Held| {
            let released = self.host.release(&held).map_err(|e| problems::host(&e));
            (held, released)
        };
        Ok(strays.into_iter().map(release).collect())
    }
}
