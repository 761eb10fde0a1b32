//! From a VM's record to what it holds on the host. Pure: the same record gives the same claims.

use std::path::PathBuf;

use banger_host::{Claim, Mark, Places};
use banger_storage::Driver;
use banger_store::VmRecord;
use banger_vmm::{Machine, Vmm};

/// How much of a guest's console is kept, in bytes.
const LOG_LIMIT_BYTES: u64 = 4 << 20;

/// Where the files that a VM boots from are.
#[derive(Debug, Clone)]
pub struct Boot {
    pub image: PathBuf,
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
}

/// What a VM holds from create to delete.
#[must_use]
pub fn record_claims(
    vm: &VmRecord,
    mark: &Mark,
    driver: &dyn Driver,
    image: &std::path::Path,
) -> Vec<Claim> {
    vec![Claim::VmFolder { mark: mark.clone() }, driver.disk(mark, image, vm.disk.as_bytes())]
}

/// What a VM holds from start to stop.
#[must_use]
pub fn run_claims(
    vm: &VmRecord,
    mark: &Mark,
    driver: &dyn Driver,
    boot: &Boot,
    places: &Places,
    vmm: &dyn Vmm,
) -> Vec<Claim> {
    vmm.claims(&machine(vm, mark, driver, boot, places))
}

/// What the VMM is to run.
#[must_use]
pub fn machine(
    vm: &VmRecord,
    mark: &Mark,
    driver: &dyn Driver,
    boot: &Boot,
    places: &Places,
) -> Machine {
    Machine {
        mark: mark.clone(),
        cpus: vm.cpus,
        memory_mib: vm.memory.as_mib(),
        kernel: boot.kernel.clone(),
        initramfs: boot.initramfs.clone(),
        agent_words: vec![
            format!("banger.root={}", driver.root()),
            format!("banger.name={}", vm.name),
            format!("banger.init={}", vm.init.as_deref().unwrap_or("agent")),
        ],
        drives: driver.drives(&boot.image, &places.disk(mark)),
        log_limit_bytes: LOG_LIMIT_BYTES,
    }
}
