//! VMs: their lives, from create to delete.
//!
//! ```text
//!            create            start              ready
//!   (nothing) ──► Stopped ───────────► Starting ───────► Running
//!                   ▲                     │ fails,          │ stop, kill,
//!                   │                     │ cancelled       │ guest powers off
//!                   ├─────────────────────┴──── Stopping ◄──┘
//!                   │ all released           │ something is left
//!   (nothing) ◄── Deleting ◄── delete     Error ──► start, stop, delete try again
//! ```
//! One lock per VM orders its changes; whoever wants it to end says so first, which cancels a start that holds the lock.

pub mod activity;
pub mod create;
pub mod delete;
mod expiry;
mod labels;
pub mod pause;
pub mod plan;
pub mod ports;
pub mod rename;
pub mod set;
mod sizes;
pub mod slot;
pub mod start;
mod stats;
pub mod stop;
pub mod watch;
pub mod work;

use banger_api::vm::Vm;
use banger_api::{Code, Egress, Problem, VmId, VmName};
use banger_host::ipv6_below;
use banger_store::VmRecord;

use crate::daemon::Daemon;
use crate::problems;

/// A record as the API shows it.
#[must_use]
pub fn shown(record: VmRecord) -> Vm {
    Vm {
        id: record.id,
        name: record.name,
        state: record.state,
        image: record.image,
        init: record.init,
        config: record.config,
        entrypoint: record.entrypoint,
        kernel: record.kernel,
        cpus: record.cpus,
        memory_bytes: record.memory,
        disk_bytes: record.disk,
        network: record.network,
        address: record.place.map(|place| place.address),
        ipv6: record
            .place
            .zip(record.ipv6)
            .map(|(place, prefix)| ipv6_below(prefix, place.address)),
        nat: record.egress == Egress::All,
        egress: record.egress,
        published: record.published,
        exposed: record.exposed,
        labels: record.labels,
        expires_at: record.expires_at,
        auto_stop: record.auto_stop,
        workspace: record.workspace,
        ephemeral: record.ephemeral,
        created_at: record.created_at,
        started_at: record.started_at,
        boot_id: record.boot_id,
        vmm: record.vmm,
        problem: record.problem,
    }
}

impl Daemon {
    /// The VM of that name, id, or unique beginning of either.
    ///
    /// # Errors
    /// When there is none, or several begin so.
    pub fn find(&self, reference: &str) -> Result<VmRecord, Problem> {
        let vms = self.store.vms().map_err(problems::store)?;
        pick(vms, reference)
    }

    /// The VM's record as it is now.
    ///
    /// # Errors
    /// When it is gone.
    pub fn record(&self, id: &VmId) -> Result<VmRecord, Problem> {
        self.store.vm(id).map_err(problems::store)?.ok_or_else(|| problems::no_vm(id.as_str()))
    }
}

fn pick(vms: Vec<VmRecord>, reference: &str) -> Result<VmRecord, Problem> {
    if let Some(exact) =
        vms.iter().find(|vm| vm.name.as_str() == reference || vm.id.as_str() == reference)
    {
        return Ok(exact.clone());
    }
    let begins = |vm: &VmRecord| {
        vm.name.as_str().starts_with(reference) || vm.id.as_str().starts_with(reference)
    };
    let mut found: Vec<VmRecord> =
        vms.into_iter().filter(|vm| !reference.is_empty() && begins(vm)).collect();
    match (found.pop(), found.is_empty()) {
        (Some(only), true) => Ok(only),
        (Some(last), false) => {
            found.push(last);
            let names: Vec<&str> =
                found.iter().map(|vm: &VmRecord| VmName::as_str(&vm.name)).collect();
            Err(Problem::new(
                Code::Invalid,
                format!("several VMs begin with {reference:?}: {}", names.join(", ")),
            ))
        }
        (None, _) => Err(problems::no_vm(reference)),
    }
}
