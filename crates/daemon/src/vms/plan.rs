//! From a VM's record to what it holds on the host. Pure: the same record gives the same claims.

use banger_host::{Claim, Mark, Places, StateFile};
use banger_storage::Driver;
use banger_store::VmRecord;
use banger_vmm::{Machine, NetworkDevice};

use crate::config::UidRange;

/// How much of a guest's console is kept, in bytes.
const LOG_LIMIT_BYTES: u64 = 4 << 20;

/// Where the files that a VM boots from are.
#[derive(Debug, Clone)]
pub struct Boot {
    pub image: StateFile,
    pub kernel: StateFile,
    pub initramfs: StateFile,
}

/// What a VM holds from create to delete.
#[must_use]
pub fn record_claims(
    vm: &VmRecord,
    mark: &Mark,
    driver: &dyn Driver,
    image: &StateFile,
    places: &Places,
) -> Vec<Claim> {
    let disk = driver.disk(mark, &places.state, image, vm.disk.as_bytes());
    vec![Claim::VmFolder { mark: mark.clone() }, disk]
}

/// What the VMM is to run. What a VM holds from start to stop is what the VMM claims for it. `uids` is where VMMs are
/// jailed, each under a user of its own; `network` is the device by which it is in a network.
#[must_use]
pub fn machine(
    vm: &VmRecord,
    mark: &Mark,
    driver: &dyn Driver,
    boot: &Boot,
    places: &Places,
    uids: Option<UidRange>,
    network: Option<NetworkDevice>,
) -> Machine {
    Machine {
        mark: mark.clone(),
        cpus: vm.cpus,
        memory_mib: vm.memory.as_mib(),
        state: places.state.clone(),
        kernel: boot.kernel.clone(),
        initramfs: boot.initramfs.clone(),
        agent_words: vec![
            format!("banger.root={}", driver.root()),
            format!("banger.name={}", vm.name),
            format!("banger.init={}", vm.init.as_deref().unwrap_or("agent")),
        ],
        drives: driver.drives(mark, &boot.image),
        storage: driver.run_claims(mark, &boot.image, vm.disk.as_bytes()),
        network,
        user_network: None,
        uid: uids.and_then(|uids| uids.of(vm.slot)),
        log_limit_bytes: LOG_LIMIT_BYTES,
    }
}
