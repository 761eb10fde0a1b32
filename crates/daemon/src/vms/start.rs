//! Start: record the plan, acquire it, wait for the guest's ready event. Whatever fails on the way ends in one release.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use banger_api::image::GuestImage;
use banger_api::vm::State;
use banger_api::{Code, Egress, Problem, VmId};
use banger_host::{Mark, VmSocket};
use banger_store::VmRecord;
use banger_vmm::channel::Mux;
use banger_vmm::{AgentAddress, Channel, ChannelError, Machine, Ready, VmmError};
use jiff::Timestamp;
use tokio::time::{Instant, timeout};

use super::plan::{self, Boot};
use super::slot::Slot;
use crate::agent;
use crate::artifacts;
use crate::config::UidRange;
use crate::daemon::Daemon;
use crate::ledger::{self, Scope};
use crate::logs;
use crate::operations::Operation;
use crate::problems;
use crate::readiness::VmmProcess;

/// How long Firecracker gives a guest to answer a connection; one that is slower is asked again after as long.
const SLOW: Duration = Duration::from_secs(2);

impl Daemon {
    /// Starts the VM and returns when its guest is ready. One that runs already is left alone.
    ///
    /// # Errors
    /// What went wrong; the VM then holds nothing that runs and says the same in its record.
    pub async fn start(
        self: &Arc<Self>,
        id: &VmId,
        operation: &Operation,
    ) -> Result<VmRecord, Problem> {
        let slot = self.slots.of(id);
        let _turn = slot.lock.lock().await;
        let vm = self.record(id)?;
        if vm.state == State::Running {
            operation.note(format!("{} is running already", vm.name));
            return Ok(vm);
        }
        if vm.state == State::Paused {
            let message = format!("VM {} is paused, so it has started already", vm.name);
            return Err(Problem::new(Code::WrongState, message)
                .remedy(format!("`banger vm resume {}`", vm.name)));
        }
        self.release_run(id, State::Stopped, None).await?;
        match self.start_locked(&vm, &slot, operation).await {
            Ok(record) => Ok(record),
            Err(problem) => Err(self.failed_start(&vm, problem).await),
        }
    }

    async fn start_locked(
        self: &Arc<Self>,
        vm: &VmRecord,
        slot: &Arc<Slot>,
        operation: &Operation,
    ) -> Result<VmRecord, Problem> {
        let _boot = self.turn_to_boot(vm, slot, operation).await?;
        operation.stage("plan", "planning");
        let mark = self.mark(&vm.id);
        let vmm = self.vmm().await?;
        let boot = self.boot_files(vm).await?;
        let driver = self.driver(vm)?;
        let uids = (self.jails() && vmm.api().is_some()).then_some(self.uids);
        let network = self.network_device(vm, operation).await?;
        let user_network = self.user_network(vm).await?;
        if let Some(place) = vm.place {
            self.gates.begin(place.address, &mark, &vm.egress);
            let has_ipv6 = network.as_ref().is_some_and(|device| device.network.ipv6.is_some());
            self.gates.set_ipv6(place.address, has_ipv6);
        }
        let used = network.as_ref().map(|device| device.network);
        let leaving = network
            .as_ref()
            .filter(|device| device.egress != Egress::None)
            .map(|device| device.network);
        let machine = plan::machine(vm, &mark, driver, &boot, &self.places, uids, network);
        let machine = Machine { user_network, ..machine };
        if uids.is_some() && machine.uid.is_none() {
            return Err(no_uid(vm, self.uids));
        }
        let run = vmm.claims(&machine);
        let ports = self.bind_ports(&vm.published)?;
        let first = vm
            .started_at
            .is_none()
            .then(|| plan::record_claims(vm, &mark, driver, &boot.image, &self.places));
        let grown = self.disk_to_grow(vm)?.filter(|_| first.is_none());
        operation.stage("claims", "acquiring what it holds on the host");
        let (id, name) = (vm.id.clone(), vmm.name());
        self.blocking(move |daemon| {
            daemon.store.begin_start(&id, &name, &run).map_err(problems::store)?;
            // A VM that never ran may have been created by a daemon that died before its disk was made. One that ran
            // has its disk, or has lost it, which must not pass for a new one.
            let claims: Vec<_> = first.into_iter().flatten().chain(grown).chain(run).collect();
            ledger::acquire(daemon.host.as_ref(), &claims).map_err(|e| problems::host(&e))
        })
        .await??;
        let watched = self.watched(&mark).await?.ok_or_else(|| ended(vm))?;
        if let Some(api) = vmm.api() {
            operation.stage("machine", "telling the VMM what to run");
            let api = self.connect(&mark, api).await?;
            tokio::select! {
                booted = vmm.boot(&machine, api) => booted.map_err(|e| not_booted(vm, &e))?,
                _ = watched.ended() => return Err(ended(vm)),
                () = slot.ending() => return Err(cancelled(vm)),
            }
        }
        // While the guest boots: the name is not there before that.
        if let Some(network) = used {
            self.route_names(&network);
        }
        operation.stage("boot", format!("booting {} ({})", vm.name, vmm.name()));
        let agent = vmm.agent();
        let ready = self.await_ready(vm, slot, watched, &agent, operation);
        let record = match leaving {
            None => ready.await?,
            // The guest boots meanwhile, and is not waited for longer because of this.
            Some(network) => {
                tokio::pin!(ready);
                tokio::select! {
                    ready = &mut ready => ready?,
                    () = self.note_firewalls(vm, network, operation) => ready.await?,
                }
            }
        };
        self.serve_ports(&vm.id, slot, ports);
        Ok(record)
    }

    /// Waits for the guest's ready event, for its VMM's end, for the deadline, or for somebody who wants it to end.
    pub(crate) async fn await_ready(
        self: &Arc<Self>,
        vm: &VmRecord,
        slot: &Arc<Slot>,
        watched: VmmProcess,
        agent: &AgentAddress,
        operation: &Operation,
    ) -> Result<VmRecord, Problem> {
        let within = self.config.deadlines.ready(self.translated().await);
        let deadline = Instant::now() + within;
        let mark = self.mark(&vm.id);
        let connecting = async {
            let said = logs::Changes::watch(&self.places.log(&mark))?;
            let mut again = false;
            loop {
                let stream = match self.connect(&mark, agent.socket.clone()).await {
                    // It was there before: the VMM is ending, and whoever waits for its end says so.
                    Err(_) if again => std::future::pending().await,
                    stream => stream?,
                };
                again = true;
                match Mux::connect(stream, agent.carrier, deadline).await {
                    // A kernel with the transport built in refuses until the agent listens, which it says on the console.
                    // One that listens already and was too slow to answer has no more to say: it is asked again, too.
                    Err(ChannelError::NotListening)
                        if timeout(SLOW, said.wait()).await.unwrap_or(true) => {}
                    connected => return connected.map_err(|e| not_ready(vm, &e, within)),
                }
            }
        };
        let (channel, ready) = tokio::select! {
            connected = tokio::time::timeout_at(deadline, connecting) => {
                connected.map_err(|_| not_ready(vm, &ChannelError::NotReady, within))??
            }
            _ = watched.ended() => return Err(ended(vm)),
            () = slot.ending() => return Err(cancelled(vm)),
        };
        let channel = Channel::Mux(channel);
        tokio::select! {
            () = self.sync_files(vm, &channel, operation) => {}
            _ = watched.ended() => return Err(ended(vm)),
            () = slot.ending() => return Err(cancelled(vm)),
        }
        operation.stage("finish", "recording that it runs");
        self.is_ready(vm, slot, watched, channel, &ready).await
    }

    /// A connection to a socket of the VM's VMM.
    pub(crate) async fn connect(
        self: &Arc<Self>,
        mark: &Mark,
        socket: VmSocket,
    ) -> Result<UnixStream, Problem> {
        let mark = mark.clone();
        let connected = self.blocking(move |daemon| daemon.host.connect(&mark, &socket)).await?;
        connected.map_err(|e| problems::host(&e))
    }

    /// Records a guest that is ready and minds it from now on.
    pub(crate) async fn is_ready(
        self: &Arc<Self>,
        vm: &VmRecord,
        slot: &Arc<Slot>,
        watched: VmmProcess,
        channel: Channel,
        ready: &Ready,
    ) -> Result<VmRecord, Problem> {
        self.tell_image(vm, &channel).await?;
        let (id, boot_id) = (vm.id.clone(), ready.boot_id.clone());
        let at = vm.boot_id.as_ref().filter(|known| **known == boot_id).and(vm.started_at);
        let at = at.unwrap_or_else(Timestamp::now);
        self.blocking(move |daemon| {
            daemon.store.set_running(&id, &boot_id, at).map_err(problems::store)
        })
        .await??;
        self.publish_names();
        self.tell_ssh_meanwhile(vm, channel.clone());
        slot.channel.send_replace(Some(channel));
        let record = self.record(&vm.id)?;
        self.mind(vm.id.clone(), watched, agent_of(&record));
        Ok(record)
    }

    /// Before the first command comes, the agent learns what the image says about commands. Most images say nothing.
    async fn tell_image(&self, vm: &VmRecord, channel: &Channel) -> Result<(), Problem> {
        let image = GuestImage { config: vm.config.clone(), run: vm.entrypoint };
        if image == GuestImage::default() {
            return Ok(());
        }
        agent::put_image(channel, &image).await.map_err(|problem| {
            let message = format!("the guest of VM {} cannot run as its image says", vm.name);
            Problem { message, causes: [vec![problem.message], problem.causes].concat(), ..problem }
        })
    }

    /// A start that went wrong: releases what was made, then says why, with the console's last words.
    pub(crate) async fn failed_start(self: &Arc<Self>, vm: &VmRecord, problem: Problem) -> Problem {
        let (id, mark) = (vm.id.clone(), self.mark(&vm.id));
        // First the VMM's end, so that its log is whole.
        let left = self.release_run(&vm.id, State::Stopped, Some(&problem)).await;
        let mut problem = match problem.code {
            Code::Guest | Code::Timeout => logs::explain(problem, &self.places.log(&mark)),
            _ => problem,
        };
        if let Err(left) = left {
            return left.cause(&problem);
        }
        // The record keeps the explanation too. If that fails, the reader of this problem has it nevertheless.
        let kept = problem.clone();
        let recorded = self
            .blocking(move |daemon| {
                daemon.store.end_release(&id, &[], &[], State::Stopped, Some(&kept))
            })
            .await;
        match recorded {
            Ok(Ok(())) => {}
            Ok(Err(error)) => problem = problem.cause(&error),
            Err(error) => problem = problem.cause(&error),
        }
        problem
    }

    /// Releases what the VM holds from start to stop; nothing to release is fine.
    pub(crate) async fn release_run(
        self: &Arc<Self>,
        id: &VmId,
        state: State,
        outcome: Option<&Problem>,
    ) -> Result<(), Problem> {
        let slot = self.slots.of(id);
        slot.close_ports(|_| true).await;
        slot.paused.send_replace(false);
        let (id, outcome) = (id.clone(), outcome.cloned());
        let left = self
            .blocking(move |daemon| {
                let left = ledger::release(
                    daemon.host.as_ref(),
                    &daemon.store,
                    &id,
                    Scope::Run,
                    state,
                    outcome.as_ref(),
                );
                daemon.publish_names();
                if let Ok(Some(VmRecord { place: Some(place), .. })) = daemon.store.vm(&id) {
                    daemon.exposures.end_of(place.address);
                }
                left
            })
            .await?
            .map_err(problems::store)?;
        left.map_or(Ok(()), Err)
    }

    /// The VM's VMM if it lives, as something whose end can be awaited.
    pub(crate) async fn watched(
        self: &Arc<Self>,
        mark: &Mark,
    ) -> Result<Option<VmmProcess>, Problem> {
        let mark = mark.clone();
        let found = self
            .blocking(move |daemon| daemon.host.watch(&mark))
            .await?
            .map_err(|e| problems::host(&e))?;
        found
            .map(VmmProcess::new)
            .transpose()
            .map_err(|e| Problem::new(Code::Internal, "cannot watch the VMM").cause(&e))
    }

    async fn turn_to_boot(
        &self,
        vm: &VmRecord,
        slot: &Slot,
        operation: &Operation,
    ) -> Result<tokio::sync::SemaphorePermit<'_>, Problem> {
        if slot.is_ending() {
            return Err(cancelled(vm));
        }
        if let Ok(permit) = self.boots.try_acquire() {
            return Ok(permit);
        }
        operation
            .stage("queue", format!("waiting: {} VMs boot at once", self.config.boots_at_once));
        tokio::select! {
            permit = self.boots.acquire() => permit.map_err(|e| Problem::new(Code::Internal, "no boot queue").cause(&e)),
            () = slot.ending() => Err(cancelled(vm)),
        }
    }

    async fn boot_files(self: &Arc<Self>, vm: &VmRecord) -> Result<Boot, Problem> {
        let image = self.image_path(&vm.image_digest);
        let kernel = self.kernel_path(&vm.kernel_digest);
        for (what, name, path) in
            [("image", vm.image.as_str(), &image), ("kernel", vm.kernel.as_str(), &kernel)]
        {
            if !path.exists() {
                let message = format!(
                    "the {what} {name} of VM {} is gone: {} is missing",
                    vm.name,
                    path.display()
                );
                return Err(Problem::new(Code::Damaged, message)
                    .remedy(format!("make the {what} anew and create the VM again")));
            }
        }
        let initramfs = self.initramfs(&vm.kernel_digest).await?;
        let file = |path: &Path| {
            artifacts::readable(path)?;
            self.state_file(path)
        };
        Ok(Boot { image: file(&image)?, kernel: file(&kernel)?, initramfs: file(&initramfs)? })
    }
}

/// Where the agent of a VM that runs is reached: it depends on the VMM that runs it, not on today's choice.
pub(crate) fn agent_of(vm: &VmRecord) -> AgentAddress {
    banger_vmm::agent_of(vm.vmm.as_deref().unwrap_or_default())
}

fn ended(vm: &VmRecord) -> Problem {
    Problem::new(Code::Guest, format!("VM {} ended before its guest was ready", vm.name))
        .remedy(format!("`banger vm logs {}` shows all that it said", vm.name))
}

fn not_booted(vm: &VmRecord, error: &VmmError) -> Problem {
    Problem::new(Code::Internal, format!("the VMM of {} did not take its machine", vm.name))
        .cause(error)
        .remedy(format!("`banger vm logs {}` shows what the VMM said", vm.name))
}

fn no_uid(vm: &VmRecord, uids: UidRange) -> Problem {
    let message = format!(
        "there is no user left for the VMM of {}: {} are configured, from {}",
        vm.name, uids.count, uids.first
    );
    Problem::new(Code::Invalid, message)
        .remedy("delete VMs that are no longer needed, or raise uid_count in config.toml")
}

fn cancelled(vm: &VmRecord) -> Problem {
    Problem::new(Code::Cancelled, format!("the start of VM {} was cancelled", vm.name))
}

fn not_ready(vm: &VmRecord, error: &ChannelError, within: Duration) -> Problem {
    match error {
        ChannelError::NotReady => {
            let message =
                format!("the guest of VM {} was not ready within {} s", vm.name, within.as_secs());
            Problem::new(Code::Timeout, message)
                .remedy(format!("`banger vm logs {}` shows how far it came", vm.name))
        }
        // The VMM's end closes its socket, and whichever is seen first.
        ChannelError::Broken(_) => ended(vm),
        _ => ended(vm).cause(error),
    }
}
