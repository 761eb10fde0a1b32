//! What `banger bench boot` needs to boot the same kernel, initramfs and disk without banger.

use std::sync::Arc;

use banger_api::vm::State;
use banger_api::{Problem, VmId};
use banger_store::VmRecord;
use banger_vmm::{Qemu, qemu};
use jiff::Timestamp;

pub use banger_api::bench::BootPlan;

use crate::daemon::Daemon;
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

async fn plan(
    daemon: &Arc<Daemon>,
    operation: &crate::operations::Operation,
) -> Result<BootPlan, Problem> {
    let image = daemon.image_for(None, operation).await?;
    let kernel = daemon.kernel_for(None, operation).await?;
    let random =
        |e: std::io::Error| Problem::new(banger_api::Code::Internal, "no randomness").cause(&e);
    let image_path = daemon.image_path(&image.digest);
    let image_file = daemon.state_file(&image_path)?;
    let driver = daemon.driver_for_new(&image_file).await?;
    let vm = VmRecord {
        id: VmId::random().map_err(random)?,
        name: crate::names::random().map_err(random)?,
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
    };
    let boot = Boot {
        image: image_file,
        kernel: daemon.state_file(&daemon.kernel_path(&kernel.digest))?,
        initramfs: daemon.state_file(&daemon.initramfs(&kernel.digest).await?)?,
    };
    let mark = daemon.mark(&vm.id);
    let machine = plan::machine(&vm, &mark, driver, &boot, &daemon.places, None);
    let disk = daemon.places.disk(&mark).to_string_lossy().into_owned();
    let vmm = Qemu { accelerator: daemon.facts().await.accelerator() };
    let template = daemon.places.templates.join(format!("empty-{}.ext4", vm.disk.as_bytes()));
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
