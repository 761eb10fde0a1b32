//! Stop and kill: the guest ends, by itself or not, and what it held from start to stop is released.

use std::sync::Arc;
use std::time::Duration;

use banger_api::vm::{State, StopVm};
use banger_api::{Code, Problem, VmId};
use banger_store::VmRecord;
use rustix::process::Signal;
use tokio::time::{Instant, timeout, timeout_at};

use super::slot::Slot;
use crate::agent;
use crate::daemon::Daemon;
use crate::operations::Operation;
use crate::problems;

/// How long a VMM has to end after a signal that it may handle.
const SIGNAL_DEADLINE: Duration = Duration::from_secs(10);

impl Daemon {
    /// Asks the guest to shut down, kills it at the deadline, releases. A VM that does not run only releases leftovers.
    ///
    /// # Errors
    /// What could not be released.
    pub async fn stop(
        self: &Arc<Self>,
        id: &VmId,
        request: &StopVm,
        operation: &Operation,
    ) -> Result<VmRecord, Problem> {
        let slot = self.slots.of(id);
        let _ending = slot.end();
        let _turn = slot.lock.lock().await;
        let vm = self.record(id)?;
        self.stop_in_turn(&vm, &slot, request, operation).await
    }

    /// As [`Self::stop`], by whoever holds the VM's lock.
    pub(super) async fn stop_in_turn(
        self: &Arc<Self>,
        vm: &VmRecord,
        slot: &Arc<Slot>,
        request: &StopVm,
        operation: &Operation,
    ) -> Result<VmRecord, Problem> {
        if vm.state == State::Paused
            && let Err(problem) = self.to_shut_down(vm, slot).await
        {
            operation.note(format!(
                "{} cannot go on, so it cannot shut itself down: {problem}",
                vm.name
            ));
        }
        if vm.state.is_up() {
            let within = match request.deadline_ms {
                Some(milliseconds) => Duration::from_millis(milliseconds),
                None => self.config.deadlines.stop(self.translated().await),
            };
            self.record_work(vm, slot, within).await;
            self.set_state(&vm.id, State::Stopping).await?;
            operation.stage("shutdown", format!("shutting {} down", vm.name));
            if let Err(problem) = self.shut_down(vm, slot, Instant::now() + within).await {
                operation
                    .note(format!("{} did not shut itself down and is killed: {problem}", vm.name));
            }
        }
        self.release_stopped(vm, slot, operation).await
    }

    /// Lets a paused VM go on, until its agent is there.
    async fn to_shut_down(
        self: &Arc<Self>,
        vm: &VmRecord,
        slot: &Arc<Slot>,
    ) -> Result<(), Problem> {
        self.let_go_on(vm, slot).await?;
        self.record_state(&vm.id, State::Running).await?;
        self.channel(&self.record(&vm.id)?).await.map(drop)
    }

    /// Ends the VMM at once, or by `signal`.
    ///
    /// # Errors
    /// When it survives a signal other than KILL, or something could not be released.
    pub async fn kill(
        self: &Arc<Self>,
        id: &VmId,
        signal: Signal,
        operation: &Operation,
    ) -> Result<VmRecord, Problem> {
        let slot = self.slots.of(id);
        let _ending = slot.end();
        let _turn = slot.lock.lock().await;
        let vm = self.record(id)?;
        if signal != Signal::KILL
            && let Some(watched) = self.watched(&self.mark(id)).await?
        {
            operation.stage("signal", format!("signalling the VMM of {}", vm.name));
            let mark = self.mark(id);
            self.blocking(move |daemon| daemon.host.signal(&mark, signal))
                .await?
                .map_err(|e| problems::host(&e))?;
            if timeout(SIGNAL_DEADLINE, watched.ended()).await.is_err() {
                let message = format!(
                    "the VMM of {} still runs {} s after the signal",
                    vm.name,
                    SIGNAL_DEADLINE.as_secs()
                );
                return Err(Problem::new(Code::Timeout, message)
                    .remedy(format!("`banger vm kill {}` ends it", vm.name)));
            }
        }
        self.release_stopped(&vm, &slot, operation).await
    }

    /// Stops it, then starts it again.
    ///
    /// # Errors
    /// What went wrong with either.
    pub async fn restart(
        self: &Arc<Self>,
        id: &VmId,
        request: &StopVm,
        operation: &Operation,
    ) -> Result<VmRecord, Problem> {
        self.stop(id, request, operation).await?;
        self.start(id, operation).await
    }

    async fn release_stopped(
        self: &Arc<Self>,
        vm: &VmRecord,
        slot: &Slot,
        operation: &Operation,
    ) -> Result<VmRecord, Problem> {
        operation.stage("release", format!("releasing what {} holds", vm.name));
        self.release_run(&vm.id, State::Stopped, None).await?;
        slot.channel.send_replace(None);
        self.record(&vm.id)
    }

    /// Returns when the VMM has ended by the guest's own doing.
    async fn shut_down(
        self: &Arc<Self>,
        vm: &VmRecord,
        slot: &Slot,
        deadline: Instant,
    ) -> Result<(), Problem> {
        let Some(watched) = self.watched(&self.mark(&vm.id)).await? else { return Ok(()) };
        let channel = slot.channel.borrow().clone();
        let channel =
            channel.ok_or_else(|| Problem::new(Code::Guest, "its agent is not connected"))?;
        let asked = async {
            agent::shutdown(&channel).await?;
            watched
                .ended()
                .await
                .map_err(|e| Problem::new(Code::Internal, "cannot watch the VMM").cause(&e))?;
            Ok(())
        };
        let late = |_| Problem::new(Code::Timeout, "the deadline has passed");
        timeout_at(deadline, asked).await.map_err(late)?
    }

    async fn set_state(self: &Arc<Self>, id: &VmId, state: State) -> Result<(), Problem> {
        let id = id.clone();
        self.blocking(move |daemon| {
            let set = daemon.store.set_state(&id, state);
            // Who looks for its name from now on is not to come.
            daemon.publish_names();
            set
        })
        .await?
        .map_err(problems::store)
    }
}
