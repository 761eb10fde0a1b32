//! Labels of VMs: given with create, changed by set.

use banger_api::labels::{Labels, MOST_LABELS};
use banger_api::vm::SetVm;
use banger_api::{Code, Problem};
use banger_store::VmRecord;

use crate::daemon::Daemon;
use crate::problems;

/// # Errors
/// When a VM cannot have as many.
pub(super) fn judge(labels: &Labels) -> Result<(), Problem> {
    if labels.len() <= MOST_LABELS {
        return Ok(());
    }
    let message = format!("{} labels are more than a VM has, which is {MOST_LABELS}", labels.len());
    Err(Problem::new(Code::Invalid, message)
        .remedy("take some away with `banger vm set --unlabel`"))
}

/// What a VM has when this is done.
pub(super) fn after(vm: &VmRecord, request: &SetVm) -> Labels {
    let mut labels = vm.labels.clone();
    labels.retain(|key, _| !request.unlabel.contains(key));
    labels.extend(request.label.clone());
    labels
}

impl Daemon {
    /// Takes labels away and gives others; all of it, or nothing.
    pub(super) fn set_labels(&self, vm: &VmRecord, request: &SetVm) -> Result<(), Problem> {
        let SetVm { label, unlabel, .. } = request;
        self.store.label(&vm.id, unlabel, label).map_err(problems::store)
    }
}
