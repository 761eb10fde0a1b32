//! Pause and resume: the guest's processors stand still, and go on. What it holds on the host stays as it is.
//!
//! The VMM is what knows: the record says what it was told last, and a daemon that finds the VM asks it.

use std::sync::Arc;

use banger_api::vm::State;
use banger_api::{Code, Problem, VmId};
use banger_store::VmRecord;
use banger_vmm::{VmmError, pause};

use super::slot::Slot;
use crate::agent;
use crate::daemon::Daemon;
use crate::operations::Operation;
use crate::problems;

impl Daemon {
    /// One that is paused already is left alone.
    ///
    /// # Errors
    /// When it does not run, or its VMM does not do it; then it goes on running.
    pub async fn pause(
        self: &Arc<Self>,
        id: &VmId,
        operation: &Operation,
    ) -> Result<VmRecord, Problem> {
        let slot = self.slots.of(id);
        let _turn = slot.lock.lock().await;
        let vm = self.record(id)?;
        match vm.state {
            State::Paused => {
                operation.note(format!("{} is paused already", vm.name));
                return Ok(vm);
            }
            State::Running => {}
            state => {
                let message = format!("VM {} is {state}, so there is nothing to pause", vm.name);
                return Err(Problem::new(Code::WrongState, message));
            }
        }
        operation.stage("pause", format!("pausing {}", vm.name));
        // Before: an agent that does not answer from now on is not to be called lost.
        slot.paused.send_replace(true);
        if let Err(problem) = self.set_paused(&vm, true).await {
            slot.paused.send_replace(false);
            return Err(problem);
        }
        self.record_state(id, State::Paused).await?;
        self.record(id)
    }

    /// Lets it go on, and gives it the time of now. One that runs is left alone.
    ///
    /// # Errors
    /// When it is not paused, or its VMM does not do it; then it stays paused.
    pub async fn resume(
        self: &Arc<Self>,
        id: &VmId,
        operation: &Operation,
    ) -> Result<VmRecord, Problem> {
        let slot = self.slots.of(id);
        let _turn = slot.lock.lock().await;
        let vm = self.record(id)?;
        match vm.state {
            State::Running => {
                operation.note(format!("{} is running already", vm.name));
                return Ok(vm);
            }
            State::Paused => {}
            state => {
                let message = format!("VM {} is {state}, and not paused", vm.name);
                return Err(Problem::new(Code::WrongState, message)
                    .remedy(format!("`banger vm start {}`", vm.name)));
            }
        }
        operation.stage("resume", format!("resuming {}", vm.name));
        self.let_go_on(&vm, &slot).await?;
        self.record_state(id, State::Running).await?;
        let vm = self.record(id)?;
        let told = async { agent::put_clock(&self.channel(&vm).await?).await };
        if let Err(problem) = told.await {
            operation.note(format!("the clock of {} may be late: {problem}", vm.name));
        }
        Ok(vm)
    }

    /// What is recorded stays.
    pub(super) async fn let_go_on(
        self: &Arc<Self>,
        vm: &VmRecord,
        slot: &Slot,
    ) -> Result<(), Problem> {
        self.set_paused(vm, false).await?;
        slot.paused.send_replace(false);
        Ok(())
    }

    /// Whether its guest stands still, as its VMM says. One of before there was a way to ask does not.
    pub(crate) async fn is_paused(self: &Arc<Self>, vm: &VmRecord) -> Result<bool, Problem> {
        let vmm = vm.vmm.as_deref().unwrap_or_default();
        let Ok(control) = self.connect(&self.mark(&vm.id), pause::control_of(vmm)).await else {
            return Ok(false);
        };
        pause::is_paused(vmm, control).await.map_err(|error| unwilling(vm, "say how it is", &error))
    }

    async fn set_paused(self: &Arc<Self>, vm: &VmRecord, paused: bool) -> Result<(), Problem> {
        let vmm = vm.vmm.as_deref().unwrap_or_default();
        let control = self.connect(&self.mark(&vm.id), pause::control_of(vmm)).await;
        let control = control.map_err(|problem| {
            problem.remedy(format!(
                "if an older banger started it, `banger vm restart {}` gives it what is missing",
                vm.name
            ))
        })?;
        let what = if paused { "pause its guest" } else { "let its guest go on" };
        let done = pause::set_paused(vmm, control, paused).await;
        done.map_err(|error| unwilling(vm, what, &error))
    }

    pub(crate) async fn record_state(
        self: &Arc<Self>,
        id: &VmId,
        state: State,
    ) -> Result<(), Problem> {
        let id = id.clone();
        let set = self.blocking(move |daemon| daemon.store.set_state(&id, state)).await?;
        set.map_err(problems::store)
    }
}

fn unwilling(vm: &VmRecord, what: &str, error: &VmmError) -> Problem {
    Problem::new(Code::Internal, format!("the VMM of {} did not {what}", vm.name))
        .cause(error)
        .remedy(format!("`banger vm kill {}` ends it", vm.name))
}
