//! Minding a VM that runs: notice its VMM's end, and keep the way to its agent open.

use std::sync::Arc;
use std::time::Duration;

use banger_api::VmId;
use banger_api::vm::State;
use banger_vmm::channel::Mux;
use banger_vmm::{AgentAddress, Channel};
use tokio::time::Instant;

use super::slot::Slot;
use crate::daemon::Daemon;
use crate::logs;
use crate::readiness::VmmProcess;

/// How long an agent whose connection broke may stay away before the next connection is tried.
const REDIAL_DEADLINE: Duration = Duration::from_secs(3600);

impl Daemon {
    /// Minds the VM until its VMM ends, in a task of its own.
    pub(crate) fn mind(self: &Arc<Self>, id: VmId, watched: VmmProcess, agent: AgentAddress) {
        let daemon = Arc::clone(self);
        drop(tokio::spawn(async move {
            let slot = daemon.slots.of(&id);
            if let Ok(Some(vm)) = daemon.store.vm(&id) {
                slot.activity.allow(vm.auto_stop.duration());
            }
            let minding = async {
                tokio::select! {
                    _ = watched.ended() => {}
                    () = daemon.keep_connected(&id, &slot, &agent) => {}
                }
                daemon.has_ended(&id, &slot, &watched).await;
            };
            tokio::select! {
                () = minding => {}
                never = daemon.stop_when_idle(&id, &slot) => match never {},
            }
        }));
    }

    /// Connects anew whenever the connection has ended. Returns only when the socket is gone.
    async fn keep_connected(self: &Arc<Self>, id: &VmId, slot: &Slot, agent: &AgentAddress) {
        loop {
            let channel = slot.channel.borrow().clone();
            if let Some(channel) = channel {
                channel.closed().await;
                slot.channel.send_replace(None);
                tracing::warn!(vm = %id, "the connection to the agent has ended; connecting anew");
            }
            // The sender is in this very slot, so it cannot be gone.
            drop(slot.paused.subscribe().wait_for(|paused| !paused).await);
            let stream = match self.connect(&self.mark(id), agent.socket.clone()).await {
                Ok(stream) => stream,
                Err(problem) => {
                    tracing::warn!(vm = %id, %problem, "cannot connect to the agent's socket");
                    return;
                }
            };
            match Mux::connect(stream, agent.carrier, Instant::now() + REDIAL_DEADLINE).await {
                Ok((channel, _)) => {
                    slot.channel.send_replace(Some(Channel::Mux(channel)));
                }
                Err(_) if *slot.paused.borrow() => {}
                Err(error) => {
                    tracing::warn!(vm = %id, %error, "cannot connect to the agent");
                    return;
                }
            }
        }
    }

    /// Waits for the VMM's end, then releases what it held, unless somebody else has done so.
    async fn has_ended(self: &Arc<Self>, id: &VmId, slot: &Slot, watched: &VmmProcess) {
        if let Err(error) = watched.ended().await {
            tracing::error!(vm = %id, %error, "cannot watch the VMM");
            return;
        }
        watched.process().reap();
        let _turn = slot.lock.lock().await;
        let still_ours = matches!(self.store.vm(id), Ok(Some(vm)) if vm.state.is_up());
        if !still_ours || matches!(self.watched(&self.mark(id)).await, Ok(Some(_))) {
            return;
        }
        tracing::info!(vm = %id, "the VM has ended by itself");
        if let Err(problem) = self.release_run(id, State::Stopped, None).await {
            tracing::error!(vm = %id, %problem, "not everything could be released");
        } else if let Some(problem) = logs::panicked(&self.places.log(&self.mark(id)))
            && let Err(error) = self.store.end_release(id, &[], &[], State::Stopped, Some(&problem))
        {
            tracing::error!(vm = %id, %error, "its panic is not recorded");
        }
        slot.channel.send_replace(None);
    }
}
