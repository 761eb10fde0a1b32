//! What `banger bench` needs to boot and to start the same without banger.

use std::net::Ipv4Addr;
use std::sync::Arc;

use banger_api::vm::State;
use banger_api::{Code, Egress, Problem, VmId, Zone};
use banger_host::{Claim, DmSnapshot, Guard, Installation, Mac, Mark, Network, root};
use banger_storage::Driver;
use banger_store::VmRecord;
use banger_vmm::{Firecracker, NetworkDevice, Qemu, qemu};
use jiff::Timestamp;

use banger_api::bench::ApiRequest;
pub use banger_api::bench::{BootPlan, StartPlan};

use crate::daemon::Daemon;
use crate::operations::Operation;
use crate::vms::plan::{self, Boot};

/// The command line of a bare VMM for the default image, kernel and sizes. The agent's socket and the disk are `AGENT`
/// and `DISK`, which whoever runs it replaces by paths; the disk is made from `disk`.
///
/// # Errors
/// When image or kernel are not there yet.
pub async fn boot_plan(daemon: &Arc<Daemon>) -> Result<BootPlan, Problem> {
    let operation = daemon.operations.begin("bench plan", "boot")?;
    let planned = plan(daemon, &operation).await;
    daemon.operations.end(&operation, planned.as_ref());
    planned
}

/// How a VM of the default image, kernel and sizes is started in a jail, and what its VMM is told.
///
/// # Errors
/// When VMMs are not jailed here, or image or kernel are not there yet.
pub async fn start_plan(daemon: &Arc<Daemon>) -> Result<StartPlan, Problem> {
    let operation = daemon.operations.begin("bench plan", "start")?;
    let planned = plan_start(daemon, &operation).await;
    daemon.operations.end(&operation, planned.as_ref());
    planned
}

async fn plan_start(daemon: &Arc<Daemon>, operation: &Operation) -> Result<StartPlan, Problem> {
    let none = |what: &str| {
        Problem::new(Code::Missing, format!("there is no bare start to compare with: {what}"))
            .remedy("`banger doctor` shows what is missing")
    };
    let version = daemon.firecracker.clone().map_err(|why| none(&why))?;
    if !daemon.jails() || daemon.vmm().await?.api().is_none() {
        return Err(none("VMs do not start in jails here"));
    }
    let (mut vm, driver, boot) = default_vm(daemon, operation).await?;
    // The last user of the range: VMs take the first ones.
    vm.slot = daemon.uids.count - 1;
    let mark = Mark::new(Installation::random().map_err(|e| random(&e))?, vm.id.clone());
    let network = NetworkDevice {
        network: Network {
            number: 0,
            gateway: Ipv4Addr::new(10, 213, 0, 1),
            prefix: 22,
            mtu: 1500,
            peers: false,
            ipv6: None,
        },
        address: Ipv4Addr::new(10, 213, 0, 2),
        mac: Mac::of(&mark),
        egress: Egress::None,
        exposed: [].into(),
        zone: Zone::default(),
    };
    let machine = plan::machine(
        &vm,
        &mark,
        driver,
        &boot,
        &daemon.places,
        Some(daemon.uids),
        Some(network.clone()),
    );
    let firecracker = Firecracker::jailed(version);
    let (rules, no_rules) = root::rules_for_one(&Guard {
        mark: mark.clone(),
        network: network.network,
        address: network.address,
        mac: network.mac,
        exposed: [].into(),
    });
    let mut planned = StartPlan {
        rules,
        no_rules,
        bridge: network.network.bridge(mark.installation()),
        bridge_mac: Mac::of_bridge(mark.installation(), network.network.number).bytes(),
        gateway: network.network.gateway,
        prefix: network.network.prefix,
        mark: mark.to_string(),
        vmm: banger_vmm::Vmm::name(&firecracker),
        uid: machine.uid.unwrap_or_default(),
        memory_max_bytes: 0,
        cpu_percent: 0,
        pids_max: 0,
        state: daemon.places.state.clone(),
        image: boot.image.as_str().into(),
        disk_bytes: vm.disk.as_bytes(),
        cow_bytes: DmSnapshot::cow_bytes(vm.disk.as_bytes()),
        files: Vec::new(),
        jails: daemon.places.jails.clone(),
        firecracker: daemon.programs.firecracker.clone(),
        jailer: daemon.programs.jailer.clone(),
        requests: firecracker
            .requests(&machine)
            .into_iter()
            .map(|(path, body)| ApiRequest { path, body })
            .collect(),
    };
    let mut snapshot = false;
    for claim in banger_vmm::Vmm::claims(&firecracker, &machine) {
        match claim {
            Claim::Cgroup(cgroup) => {
                planned.memory_max_bytes = cgroup.memory_max_bytes.unwrap_or_default();
                planned.cpu_percent = cgroup.cpu_percent.unwrap_or_default();
                planned.pids_max = cgroup.pids_max.unwrap_or_default();
            }
            Claim::Jail(jail) => {
                let files = jail.files.into_iter();
                planned.files = files.map(|f| (f.name, f.source.as_str().into())).collect();
            }
            Claim::DmSnapshot(_) => snapshot = true,
            _ => {}
        }
    }
    if snapshot { Ok(planned) } else { Err(none("disks are no device-mapper snapshots here")) }
}

fn random(error: &std::io::Error) -> Problem {
    Problem::new(Code::Internal, "no randomness").cause(error)
}

/// A VM of the defaults that nobody records, and what it boots.
async fn default_vm(
    daemon: &Arc<Daemon>,
    operation: &Operation,
) -> Result<(VmRecord, &'static dyn Driver, Boot), Problem> {
    let image = daemon.image_for(None, operation).await?;
    let kernel = daemon.kernel_for(None, operation).await?;
    let image_file = daemon.state_file(&daemon.image_path(&image.digest))?;
    let driver = daemon.driver_for_new(&image_file).await?;
    let vm = VmRecord {
        id: VmId::random().map_err(|e| random(&e))?,
        name: crate::names::random().map_err(|e| random(&e))?,
        state: State::Stopped,
        image: image.name,
        image_digest: image.digest,
        init: image.init,
        kernel: kernel.name,
        kernel_digest: kernel.digest.clone(),
        cpus: daemon.config.cpus,
        memory: daemon.config.memory,
        disk: daemon.config.disk,
        disk_driver: driver.name().to_owned(),
        ephemeral: false,
        created_at: Timestamp::now(),
        started_at: None,
        boot_id: None,
        vmm: None,
        problem: None,
        slot: 0,
        config: Default::default(),
        entrypoint: false,
        place: None,
        ipv6: None,
        network: None,
        egress: Egress::None,
        published: Vec::new(),
        exposed: [].into(),
        labels: [].into(),
        expires_at: None,
        auto_stop: Default::default(),
        workspace: None,
    };
    let boot = Boot {
        image: image_file,
        kernel: daemon.state_file(&daemon.kernel_path(&kernel.digest))?,
        initramfs: daemon.state_file(&daemon.initramfs(&kernel.digest).await?)?,
    };
    Ok((vm, driver, boot))
}

async fn plan(daemon: &Arc<Daemon>, operation: &Operation) -> Result<BootPlan, Problem> {
    let (vm, driver, boot) = default_vm(daemon, operation).await?;
    let mark = daemon.mark(&vm.id);
    let machine = plan::machine(&vm, &mark, driver, &boot, &daemon.places, None, None);
    let disk = daemon.places.disk(&mark).to_string_lossy().into_owned();
    let vmm = Qemu { accelerator: daemon.facts().await.accelerator() };
    let template = daemon.places.templates.join(format!("empty-{}.ext4", vm.disk.as_bytes()));
    let image_path = boot.image.below(&daemon.places.state);
    Ok(BootPlan {
        program: qemu::PROGRAM.to_owned(),
        args: vmm
            .arguments(&machine, "path=AGENT")
            .iter()
            .map(|argument| argument.replace(&disk, "DISK"))
            .collect(),
        disk: if driver.name() == "reflink" { image_path } else { template },
        disk_bytes: vm.disk.as_bytes(),
        vmm: banger_vmm::Vmm::name(&vmm),
        image: vm.image,
        kernel: vm.kernel,
        disk_driver: driver.name().to_owned(),
        filesystem: daemon.folders.state.clone(),
    })
}
