//! What this host is: does its KVM run guests, how fast does its counter tick. Looked at once per boot of the host.

use std::fs;
use std::path::Path;

use banger_host::{kvm_probe, tsc};
use banger_vmm::qemu::Accelerator;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFacts {
    /// The host's boot, for which the rest is true.
    boot_id: String,
    /// Why KVM runs no guest here, if it does not.
    pub kvm: Result<(), String>,
    pub tsc_khz: u64,
}

impl HostFacts {
    #[must_use]
    pub fn accelerator(&self) -> Accelerator {
        match self.kvm {
            Ok(()) => Accelerator::Kvm,
            Err(_) => Accelerator::Tcg { tsc_khz: self.tsc_khz },
        }
    }
}

/// The facts from the cache if they are of this boot, else looked at; cached where KVM runs guests.
pub async fn look(cache: &Path) -> HostFacts {
    let file = cache.join("host-facts.json");
    let boot_id =
        fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
    let cached =
        fs::read(&file).ok().and_then(|json| serde_json::from_slice::<HostFacts>(&json).ok());
    if let Some(facts) = cached.filter(|facts| facts.boot_id == boot_id) {
        return facts;
    }
    let looked = tokio::task::spawn_blocking(move || HostFacts {
        boot_id,
        kvm: kvm_probe::in_own_process(),
        tsc_khz: tsc::measure_khz(),
    });
    let facts = looked.await.expect("looking at the host does not panic");
    // A no may be of this moment: rights that come later, a machine too busy for the probe.
    if facts.kvm.is_err() {
        return facts;
    }
    let json = serde_json::to_vec(&facts).expect("facts are plain data");
    if let Err(error) = fs::write(&file, json) {
        tracing::warn!(file = %file.display(), %error, "the host's facts are not cached");
    }
    facts
}
