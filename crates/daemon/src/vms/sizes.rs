//! How large a VM is: changed by set, for its next start. A disk only grows, since what is on it must fit.

use banger_api::vm::{SetVm, State};
use banger_api::{Code, Problem, Size};
use banger_host::{Claim, Disk};
use banger_store::{RecordedClaim, VmRecord};

use super::create::Sizes;
use crate::daemon::Daemon;
use crate::ledger;
use crate::operations::Operation;
use crate::problems;

impl Daemon {
    /// Records what is given. The disk of a VM that rests is grown at once, that of another at its next start.
    pub(super) fn set_sizes(
        &self,
        vm: &VmRecord,
        request: &SetVm,
        operation: &Operation,
    ) -> Result<(), Problem> {
        let sizes = Sizes {
            cpus: request.cpus.unwrap_or(vm.cpus),
            memory: request.memory_bytes.unwrap_or(vm.memory),
            disk: request.disk_bytes.unwrap_or(vm.disk),
        };
        if sizes == (Sizes { cpus: vm.cpus, memory: vm.memory, disk: vm.disk }) {
            return Ok(());
        }
        self.judge_sizes(sizes)?;
        if sizes.disk < vm.disk {
            let message = format!("the disk of VM {} has {} and does not shrink", vm.name, vm.disk);
            return Err(Problem::new(Code::Invalid, message)
                .remedy("make another VM with a smaller one, and copy what is needed"));
        }
        let grown = (sizes.disk > vm.disk).then(|| self.grown_disk(vm, sizes.disk)).transpose()?;
        let recorded = grown.as_ref().map(|row| (row.sequence, &row.claim));
        self.store
            .set_sizes(&vm.id, sizes.cpus, sizes.memory, sizes.disk, recorded)
            .map_err(problems::store)?;
        if !matches!(vm.state, State::Stopped | State::Error) {
            operation.note(format!("{0} has it after `banger vm restart {0}`", vm.name));
            return Ok(());
        }
        let claims: Vec<Claim> = grown.into_iter().map(|row| row.claim).collect();
        ledger::acquire(self.host.as_ref(), &claims).map_err(|e| problems::host(&e))
    }

    /// What the ledger is to say of its disk when that has `size`: grown from what it has now.
    fn grown_disk(&self, vm: &VmRecord, size: Size) -> Result<RecordedClaim, Problem> {
        let mark = self.mark(&vm.id);
        let path = self.places.disk(&mark);
        let has = std::fs::metadata(&path).map_err(|error| {
            let message = format!("cannot look at the disk {} of VM {}", path.display(), vm.name);
            Problem::new(Code::Damaged, message).cause(&error)
        })?;
        let image = self.state_file(&self.image_path(&vm.image_digest))?;
        let planned = self.driver(vm)?.disk(&mark, &self.places.state, &image, size.as_bytes());
        let rows = self.store.claims(&vm.id).map_err(problems::store)?;
        let row = rows.into_iter().find(|row| matches!(row.claim, Claim::Disk(_)));
        match (planned, row) {
            (Claim::Disk(disk), Some(row)) => {
                let claim = Claim::Disk(Disk { grown_from: Some(has.len()), ..disk });
                Ok(RecordedClaim { claim, ..row })
            }
            _ => {
                let message = format!("the ledger has no disk of VM {}", vm.name);
                Err(Problem::new(Code::Damaged, message))
            }
        }
    }

    /// A disk that was to grow while its VM ran, as the ledger has it.
    pub(super) fn disk_to_grow(&self, vm: &VmRecord) -> Result<Option<Claim>, Problem> {
        let rows = self.store.claims(&vm.id).map_err(problems::store)?;
        let grown = |claim: &Claim| matches!(claim, Claim::Disk(disk) if disk.grown_from.is_some());
        Ok(rows.into_iter().map(|row| row.claim).find(grown))
    }
}
