//! Create: judge the request, see that image and kernel are there, record the VM, make what it holds for its life.

use std::sync::Arc;

use banger_api::until::Until;
use banger_api::vm::{CreateVm, Init, State};
use banger_api::{Code, Egress, Problem, Size, VmId, VmName};
use banger_host::{StateFile, root, space};
use banger_storage::{Able, Driver};
use banger_store::{ImageRecord, KernelRecord, StoreError, VmRecord};
use jiff::Timestamp;

use super::{expiry, labels, plan};
use crate::config::HostSize;
use crate::daemon::Daemon;
use crate::ledger::{self, Scope};
use crate::operations::Operation;
use crate::{exposed, names, networks, problems};

/// Firecracker's limit, which a VM that is to move between VMMs keeps.
const MOST_CPUS: u32 = 32;
/// Less does not boot a distribution's kernel with its initramfs.
const LEAST_MEMORY: Size = Size::mib(128);
const LEAST_DISK: Size = Size::mib(256);
/// ext4 with 4 KiB blocks and the layout that can be grown online.
const MOST_DISK: Size = Size::gib(16 * 1024);
/// A VM is not begun with less free space than this: it would fail soon in ways that are hard to read.
const LEAST_FREE: Size = Size::mib(256);

/// The sizes of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sizes {
    pub(super) cpus: u32,
    pub(super) memory: Size,
    pub(super) disk: Size,
}

/// What a new VM is made of.
struct Of {
    image: ImageRecord,
    kernel: KernelRecord,
    driver: &'static dyn Driver,
    image_file: StateFile,
}

impl Daemon {
    /// Makes the VM's record and disk. `made` is told its id as soon as it is recorded.
    ///
    /// # Errors
    /// What does not fit, or could not be made; then nothing is left.
    pub async fn create(
        self: &Arc<Self>,
        request: &CreateVm,
        operation: &Operation,
        made: impl FnOnce(&VmId),
    ) -> Result<VmRecord, Problem> {
        let egress = egress_of(request)?;
        exposed::judge(&request.exposed)?;
        labels::judge(&request.labels)?;
        let sizes = self.judge(request)?;
        operation.note(self.spec_line(request, sizes, &egress));
        if let Some(name) = &request.name {
            self.refuse_taken(name)?;
        }
        let networks = self.networks_work().await;
        let given =
            [("--network", request.network.is_some()), ("--expose", !request.exposed.is_empty())];
        for (flag, given) in given {
            if let (true, Err(why)) = (given, &networks) {
                return Err(networks::no_network(flag, why)
                    .remedy(format!("leave {flag} away; `banger doctor` shows what is missing")));
            }
        }
        if let Err(why) = &networks {
            let without = format!("leave {} away", networks::flag_of(&egress));
            self.judge_user_egress(&egress, why, &without).await?;
        }
        if let Some(network) = &request.network {
            self.refuse_unknown_network(network)?;
        }
        let published = self.ports_for_new(&request.published, request.start)?;
        let image = self.image_for(request.image.as_ref(), operation).await?;
        let kernel = self.kernel_for(request.kernel.as_ref(), operation).await?;
        operation.stage("record", "recording the VM");
        let image_file = self.state_file(&self.image_path(&image.digest))?;
        let driver = self.driver_for_new(&image_file).await?;
        let of = Of { image, kernel, driver, image_file: image_file.clone() };
        let request = CreateVm { published, ..request.clone() };
        let working = operation.clone();
        let with_network = networks.is_ok();
        let vm = self
            .blocking(move |daemon| {
                daemon.insert(&request, sizes, &of, with_network.then_some(&working))
            })
            .await??;
        made(&vm.id);
        if let Some(at) = vm.expires_at {
            self.expiries.send_replace(());
            operation.note(format!("{} and its disk are deleted at {at:.0}", vm.name));
        }
        let id = vm.id.clone();
        operation.stage("disk", "making its disk");
        let made = self.blocking(move |daemon| daemon.make_disk(&vm, &image_file)).await?;
        match made {
            Ok(()) => self.record(&id),
            Err(problem) => {
                self.delete(&id, operation).await?;
                Err(problem)
            }
        }
    }

    fn judge(&self, request: &CreateVm) -> Result<Sizes, Problem> {
        let invalid = |text: String| Err(Problem::new(Code::Invalid, text));
        let cpus = request.cpus.unwrap_or(self.config.cpus);
        let memory = request.memory_bytes.unwrap_or(self.config.memory);
        let disk = request.disk_bytes.unwrap_or(self.config.disk);
        if let Init::Path(path) = &request.init
            && !is_init_path(path)
        {
            return invalid(format!(
                "init: {path:?} is no absolute path without blanks, and neither auto nor none"
            ));
        }
        let sizes = Sizes { cpus, memory, disk };
        self.judge_sizes(sizes)?;
        Ok(sizes)
    }

    /// What this host can give a VM, and a guest can use.
    pub(super) fn judge_sizes(&self, sizes: Sizes) -> Result<(), Problem> {
        let invalid = |text: String| Err(Problem::new(Code::Invalid, text));
        let Sizes { cpus, memory, disk } = sizes;
        if cpus == 0 || cpus > MOST_CPUS {
            return invalid(format!("cpus: {cpus} is not from 1 to {MOST_CPUS}"));
        }
        if memory < LEAST_MEMORY {
            return invalid(format!(
                "memory: {memory} is less than a guest needs, which is {LEAST_MEMORY}"
            ));
        }
        let host = Size::bytes(HostSize::here().memory_bytes);
        if memory > host {
            return invalid(format!(
                "memory: {memory} is more than this host has, which is {host}"
            ));
        }
        if disk < LEAST_DISK || disk > MOST_DISK {
            return invalid(format!("disk: {disk} is not from {LEAST_DISK} to {MOST_DISK}"));
        }
        if !disk.as_bytes().is_multiple_of(4096) {
            return invalid(format!("disk: {disk} is not a whole number of 4 KiB blocks"));
        }
        let free = space::free_bytes(&self.folders.state).map_err(|e| problems::host(&e))?;
        if free < LEAST_FREE.as_bytes() {
            let message =
                format!("{} has only {} free", self.folders.state.display(), Size::bytes(free));
            return Err(Problem::new(Code::NoSpace, message).remedy(problems::FREE_SPACE));
        }
        Ok(())
    }

    /// What is about to be made, on one line.
    fn spec_line(&self, request: &CreateVm, sizes: Sizes, egress: &Egress) -> String {
        let mut parts: Vec<String> = request.name.iter().map(ToString::to_string).collect();
        parts.push(format!("image {}", request.image.as_ref().unwrap_or(&self.config.image)));
        parts.extend(request.kernel.iter().map(|kernel| format!("kernel {kernel}")));
        parts.push(if sizes.cpus == 1 {
            "1 CPU".to_owned()
        } else {
            format!("{} CPUs", sizes.cpus)
        });
        parts.push(format!("{} memory", sizes.memory));
        parts.push(format!("{} disk", sizes.disk));
        parts.extend(request.network.iter().map(|network| format!("network {network}")));
        match egress {
            Egress::None => {}
            Egress::All => parts.push("NAT".to_owned()),
            Egress::Allow(_) => parts.push(format!("egress {egress}")),
        }
        parts.extend(request.published.iter().map(|port| format!("port {port}")));
        parts.extend(request.exposed.iter().map(|port| format!("the host's port {port}")));
        if !request.labels.is_empty() {
            parts.push(format!("labels {}", banger_api::labels::shown(&request.labels)));
        }
        if request.ttl != Until::NEVER {
            parts.push(format!("deleted in {}", request.ttl));
        }
        match request.auto_stop.unwrap_or(self.config.auto_stop) {
            Until::NEVER => {}
            after => parts.push(format!("stopped after {after} without activity")),
        }
        if request.ephemeral {
            parts.push("deleted when its session ends".to_owned());
        }
        format!("spec: {}", parts.join(", "))
    }

    fn refuse_taken(&self, name: &VmName) -> Result<(), Problem> {
        let vms = self.store.vms().map_err(problems::store)?;
        if vms.iter().any(|vm| &vm.name == name) { Err(taken(name)) } else { Ok(()) }
    }

    fn insert(
        &self,
        request: &CreateVm,
        sizes: Sizes,
        of: &Of,
        network: Option<&Operation>,
    ) -> Result<VmRecord, Problem> {
        let Of { image, kernel, driver, image_file } = of;
        if driver.begins_as_image() {
            let path = image_file.below(&self.places.state);
            let least = std::fs::metadata(path).map_or(0, |data| data.len());
            if sizes.disk.as_bytes() < least {
                let message = format!(
                    "disk: {} is smaller than the image, which is {}",
                    sizes.disk,
                    Size::bytes(least)
                );
                return Err(Problem::new(Code::Invalid, message));
            }
        }
        let _artifacts = self.artifacts();
        for (what, name, path) in [
            ("image", image.name.as_str(), self.image_path(&image.digest)),
            ("kernel", kernel.name.as_str(), self.kernel_path(&kernel.digest)),
        ] {
            if !path.exists() {
                let message = format!("the {what} {name} was deleted meanwhile");
                return Err(Problem::new(Code::Conflict, message).remedy("repeat the command"));
            }
        }
        let network = network
            .map(|operation| self.network_for_new(request.network.as_ref(), operation))
            .transpose()?;
        // An id or a made-up name that is there already is drawn again; a given name is the user's to change.
        for _ in 0..20 {
            let random =
                |e: std::io::Error| Problem::new(Code::Internal, "no randomness").cause(&e);
            let name = match &request.name {
                Some(name) => name.clone(),
                None => names::random().map_err(random)?,
            };
            let init = match &request.init {
                Init::Auto => image.init.clone(),
                Init::None => None,
                Init::Path(path) => Some(path.clone()),
            };
            let runs = !image.config.program().is_empty() && !image.config.is_only_a_shell();
            let entrypoint = request.entrypoint && init.is_none() && runs;
            let vm = VmRecord {
                id: VmId::random().map_err(random)?,
                name: name.clone(),
                state: State::Stopped,
                image: image.name.clone(),
                image_digest: image.digest.clone(),
                init,
                kernel: kernel.name.clone(),
                kernel_digest: kernel.digest.clone(),
                cpus: sizes.cpus,
                memory: sizes.memory,
                disk: sizes.disk,
                disk_driver: driver.name().to_owned(),
                ephemeral: request.ephemeral,
                created_at: Timestamp::now(),
                started_at: None,
                boot_id: None,
                vmm: None,
                problem: None,
                slot: 0,
                config: image.config.clone(),
                entrypoint,
                place: None,
                ipv6: None,
                network: None,
                egress: egress_of(request)?,
                published: request.published.clone(),
                exposed: request.exposed.clone(),
                labels: request.labels.clone(),
                expires_at: expiry::end_of(request.ttl),
                auto_stop: request.auto_stop.unwrap_or(self.config.auto_stop),
                workspace: None,
            };
            let mark = self.mark(&vm.id);
            let claims = plan::record_claims(&vm, &mark, *driver, image_file, &self.places);
            match self.store.insert_vm(&vm, network.as_ref(), &claims) {
                Ok(()) => return Ok(vm),
                Err(StoreError::Taken { .. }) if request.name.is_some() => {
                    self.refuse_taken(&name)?
                }
                Err(StoreError::Taken { .. }) => {}
                Err(StoreError::NoAddress) => return Err(no_address()),
                Err(error) => return Err(problems::store(error)),
            }
        }
        Err(Problem::new(Code::Internal, "found no free name for the VM")
            .remedy("give it one with --name"))
    }

    fn make_disk(&self, vm: &VmRecord, image: &StateFile) -> Result<(), Problem> {
        let driver = self.driver(vm)?;
        let mark = self.mark(&vm.id);
        let claims = plan::record_claims(vm, &mark, driver, image, &self.places);
        ledger::acquire(self.host.as_ref(), &claims).map_err(|e| problems::host(&e))
    }

    /// The storage driver for a VM of this image: the configured one, or the first that works here.
    pub(crate) async fn driver_for_new(
        self: &Arc<Self>,
        image: &StateFile,
    ) -> Result<&'static dyn Driver, Problem> {
        if let Some(driver) = self.config.storage {
            return Ok(driver);
        }
        // QEMU runs as the daemon's user, who may not open a device-mapper device.
        let jailed = self.jails() && self.vmm().await?.api().is_some();
        let image = image.below(&self.places.state);
        self.blocking(move |daemon| {
            banger_storage::auto(Able {
                reflink: banger_host::reflink_works(&image, &daemon.places.vms),
                dm_snapshot: jailed && root::abilities().dm_snapshot.is_ok(),
            })
        })
        .await
    }

    /// The storage driver that the VM was created with.
    pub(super) fn driver(&self, vm: &VmRecord) -> Result<&'static dyn Driver, Problem> {
        banger_storage::named(&vm.disk_driver).ok_or_else(|| {
            let message = format!(
                "VM {} has a disk of kind {:?}, which this banger does not know",
                vm.name, vm.disk_driver
            );
            Problem::new(Code::Damaged, message)
        })
    }

    /// Everything that the VM holds goes, and its record.
    pub(super) fn release_all(&self, id: &VmId) -> Result<(), Problem> {
        let left =
            ledger::release(self.host.as_ref(), &self.store, id, Scope::All, State::Deleting, None);
        match left.map_err(problems::store)? {
            Some(problem) => Err(problem),
            None => self.store.delete_vm(id).map_err(problems::store),
        }
    }
}

fn egress_of(request: &CreateVm) -> Result<Egress, Problem> {
    let nat = request.nat.then_some(true);
    let egress = Egress::of(nat, request.egress.clone()).map_err(|e| problems::egress(&e))?;
    Ok(egress.unwrap_or_default())
}

/// It becomes a word of the kernel's command line.
fn is_init_path(path: &str) -> bool {
    path.starts_with('/')
        && path.len() <= 256
        && path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"')
}

fn no_address() -> Problem {
    Problem::new(Code::Conflict, "every address of the network has its VM")
        .remedy("delete VMs that are no longer needed, or make a network with a larger subnet (`banger network create`)")
}

pub(super) fn taken(name: &VmName) -> Problem {
    Problem::new(Code::Conflict, format!("there is already a VM named {name}"))
        .remedy(format!("use another name, or `banger vm delete {name}`"))
}
