//! VMs over HTTP.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, State};
use axum::response::Response;
use banger_api::channel::InitState;
use banger_api::stats::Stats;
use banger_api::vm::{
    CreateVm, KillVm, PruneVms, Refused, RenameVm, SetVm, State as VmState, StopVm, Vm,
};
use banger_api::{Code, Problem, VmId};
use rustix::process::Signal;
use serde::Deserialize;
use tokio::sync::watch;

use super::follow::{self, run, send, stream};
use super::{Answer, App, Body, Failure, Found};
use crate::agent;
use crate::bench::{self, BootPlan, StartPlan};
use crate::daemon::Daemon;
use crate::operations::Operation;
use crate::problems;
use crate::vms::shown;

pub(super) async fn list(State(daemon): App) -> Answer<Vec<Vm>> {
    let vms = daemon.store.vms().map_err(problems::store)?;
    Ok(Json(vms.into_iter().map(shown).collect()))
}

pub(super) async fn show(Found(vm): Found) -> Json<Vm> {
    Json(shown(vm))
}

pub(super) async fn refused(State(daemon): App, Found(vm): Found) -> Answer<Vec<Refused>> {
    Ok(Json(daemon.refused(&vm).await?))
}

/// Create, and start if asked. For an ephemeral VM the stream is the session: when it closes, the VM goes.
pub(super) async fn create(
    State(daemon): App,
    Body(request): Body<CreateVm>,
) -> Result<Response, Failure> {
    let subject = request.name.as_ref().map_or("(to be named)", |name| name.as_str()).to_owned();
    let kind = if request.start { "vm run" } else { "vm create" };
    let operation = daemon.operations.begin(kind, &subject)?;
    let (made, id) = watch::channel(None::<VmId>);
    let ephemeral = request.ephemeral;
    let working = operation.clone();
    let worker = Arc::clone(&daemon);
    let work = tokio::spawn(async move {
        let outcome = worker.create_and_start(&request, &working, &made).await;
        worker.operations.end(&working, outcome.as_ref());
    });
    let (sender, response) = stream();
    drop(tokio::spawn(async move {
        let sent = send(&operation, &sender).await;
        if !ephemeral {
            return;
        }
        if sent.is_ok() {
            // The session goes on until the client closes its end.
            sender.closed().await;
        }
        end_session(&daemon, id, work).await;
    }));
    Ok(response)
}

/// Deletes the VM of a session that has ended, as soon as there is one to delete.
async fn end_session(
    daemon: &Arc<Daemon>,
    mut id: watch::Receiver<Option<VmId>>,
    work: tokio::task::JoinHandle<()>,
) {
    let known = id.wait_for(Option::is_some).await.ok().and_then(|id| id.clone());
    // Without an id nothing was made and nothing will be: the work has ended.
    let Some(id) = known else { return };
    // A start that failed by itself has kept its VM to be looked at; one that is cancelled now has not.
    let kept = matches!(daemon.store.vm(&id), Ok(Some(vm)) if !vm.ephemeral)
        || matches!(daemon.store.vm(&id), Ok(None));
    if kept {
        return;
    }
    match daemon.operations.begin("vm delete", id.as_str()) {
        Ok(operation) => {
            let outcome = daemon.delete(&id, &operation).await;
            daemon.operations.end(&operation, outcome.as_ref().map(|()| &serde_json::Value::Null));
        }
        Err(problem) => {
            tracing::error!(vm = %id, %problem, "cannot delete the VM of an ended session")
        }
    }
    // It has been cancelled by the delete, or was done before.
    drop(work.await);
}

impl Daemon {
    async fn create_and_start(
        self: &Arc<Self>,
        request: &CreateVm,
        operation: &Operation,
        made: &watch::Sender<Option<VmId>>,
    ) -> Result<Vm, Problem> {
        let vm = self
            .create(request, operation, |id| {
                made.send_replace(Some(id.clone()));
            })
            .await?;
        if !request.start {
            return Ok(shown(vm));
        }
        match self.start(&vm.id, operation).await {
            Ok(vm) => Ok(shown(vm)),
            Err(problem) => {
                // To be looked at. A VM that is gone was deleted on purpose.
                if request.ephemeral && problem.code != Code::Cancelled {
                    self.store.keep(&vm.id).map_err(problems::store)?;
                    operation.note(format!("{} is kept, to be looked at", vm.name));
                }
                Err(problem)
            }
        }
    }
}

pub(super) async fn start(State(daemon): App, Found(vm): Found) -> Result<Response, Failure> {
    run(&daemon, "vm start", vm.name.as_str(), |daemon, operation| async move {
        daemon.start(&vm.id, &operation).await.map(shown)
    })
}

pub(super) async fn set(
    State(daemon): App,
    Found(vm): Found,
    Body(request): Body<SetVm>,
) -> Result<Response, Failure> {
    run(&daemon, "vm set", vm.name.as_str(), |daemon, operation| async move {
        daemon.set(&vm.id, &request, &operation).await.map(shown)
    })
}

pub(super) async fn rename(
    State(daemon): App,
    Found(vm): Found,
    Body(request): Body<RenameVm>,
) -> Result<Response, Failure> {
    run(&daemon, "vm rename", vm.name.as_str(), |daemon, operation| async move {
        daemon.rename(&vm.id, &request.name, &operation).await.map(shown)
    })
}

pub(super) async fn stop(
    State(daemon): App,
    Found(vm): Found,
    Body(request): Body<StopVm>,
) -> Result<Response, Failure> {
    run(&daemon, "vm stop", vm.name.as_str(), |daemon, operation| async move {
        daemon.stop(&vm.id, &request, &operation).await.map(shown)
    })
}

pub(super) async fn pause(State(daemon): App, Found(vm): Found) -> Result<Response, Failure> {
    run(&daemon, "vm pause", vm.name.as_str(), |daemon, operation| async move {
        daemon.pause(&vm.id, &operation).await.map(shown)
    })
}

pub(super) async fn resume(State(daemon): App, Found(vm): Found) -> Result<Response, Failure> {
    run(&daemon, "vm resume", vm.name.as_str(), |daemon, operation| async move {
        daemon.resume(&vm.id, &operation).await.map(shown)
    })
}

pub(super) async fn restart(
    State(daemon): App,
    Found(vm): Found,
    Body(request): Body<StopVm>,
) -> Result<Response, Failure> {
    run(&daemon, "vm restart", vm.name.as_str(), |daemon, operation| async move {
        daemon.restart(&vm.id, &request, &operation).await.map(shown)
    })
}

pub(super) async fn kill(
    State(daemon): App,
    Found(vm): Found,
    Body(request): Body<KillVm>,
) -> Result<Response, Failure> {
    let signal = match request.signal.as_deref() {
        None | Some("KILL") => Signal::KILL,
        Some("TERM") => Signal::TERM,
        Some("INT") => Signal::INT,
        Some("HUP") => Signal::HUP,
        Some("QUIT") => Signal::QUIT,
        Some(other) => {
            let message = format!("signal: {other:?} is none of KILL, TERM, INT, HUP, QUIT");
            return Err(Failure(Problem::new(Code::Invalid, message)));
        }
    };
    run(&daemon, "vm kill", vm.name.as_str(), move |daemon, operation| async move {
        daemon.kill(&vm.id, signal, &operation).await.map(shown)
    })
}

/// `?force=true` also when work would be lost that nobody has exported.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Delete {
    force: bool,
}

pub(super) async fn delete(
    State(daemon): App,
    Found(vm): Found,
    Query(Delete { force }): Query<Delete>,
) -> Result<Response, Failure> {
    let name = vm.name.clone();
    run(&daemon, "vm delete", name.as_str(), move |daemon, operation| async move {
        if !force {
            daemon.refuse_to_lose_work(&vm, &operation).await?;
        }
        daemon.delete(&vm.id, &operation).await.map(|()| serde_json::json!({}))
    })
}

pub(super) async fn prune(
    State(daemon): App,
    Body(request): Body<PruneVms>,
) -> Result<Response, Failure> {
    follow::run(&daemon, "vm prune", "VMs that do not run", move |daemon, operation| async move {
        daemon.prune(request, &operation).await
    })
}

pub(super) async fn stats(State(daemon): App, Found(vm): Found) -> Answer<Stats> {
    Ok(Json(daemon.stats(&vm).await?))
}

/// Waits until the guest's init has started everything.
pub(super) async fn init(State(daemon): App, Found(vm): Found) -> Answer<InitState> {
    let channel = daemon.channel(&vm).await?;
    let within = daemon.config.deadlines.ready(daemon.translated().await);
    Ok(Json(agent::init(&channel, within).await?))
}

/// What a bare VMM would be started with, for `banger bench boot`.
pub(super) async fn bench_boot(State(daemon): App) -> Answer<BootPlan> {
    Ok(Json(bench::boot_plan(&daemon).await?))
}

/// What is needed to start a VM without banger, for `banger bench start`.
pub(super) async fn bench_start(State(daemon): App) -> Answer<StartPlan> {
    Ok(Json(bench::start_plan(&daemon).await?))
}

impl Daemon {
    /// The way to a running VM's agent, waited for a little while it is being connected.
    pub(crate) async fn channel(
        &self,
        vm: &banger_store::VmRecord,
    ) -> Result<banger_vmm::Channel, Problem> {
        if vm.state != VmState::Running {
            let message = format!("VM {} is {}", vm.name, vm.state);
            return Err(Problem::new(Code::WrongState, message).remedy(format!(
                "`banger vm {} {}`",
                to_run(vm.state),
                vm.name
            )));
        }
        let slot = self.slots.of(&vm.id);
        slot.activity.touch();
        let mut channel = slot.channel.subscribe();
        let connected =
            tokio::time::timeout(CONNECT_DEADLINE, channel.wait_for(Option::is_some)).await;
        match connected {
            Ok(Ok(channel)) => Ok(channel.clone().expect("it was waited for")),
            _ => Err(Problem::new(
                Code::Guest,
                format!("the agent of VM {} does not answer", vm.name),
            )
            .remedy(format!(
                "`banger vm logs {0}` shows its console; `banger vm kill {0}` ends it",
                vm.name
            ))),
        }
    }
}

/// The verb after which a VM in this state runs.
fn to_run(state: VmState) -> &'static str {
    if state == VmState::Paused { "resume" } else { "start" }
}

/// How long a request waits for an agent that is being connected anew.
const CONNECT_DEADLINE: std::time::Duration = std::time::Duration::from_secs(10);
