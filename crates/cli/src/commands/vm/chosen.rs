//! Which VMs a verb that takes several is about: those that are named, or those with labels.

use banger_api::client::Client;
use banger_api::labels::Selector;
use banger_api::vm::Vm;

use crate::completion;
use crate::context::Context;
use crate::failure::Failure;

#[derive(Debug, clap::Args)]
pub(super) struct Chosen {
    /// Names or ids, or the beginnings of some
    #[arg(value_name = "VM", required_unless_present = "label", add = completion::vm_names())]
    targets: Vec<String>,
    /// Instead of names: all with this label, KEY or KEY=VALUE; with several, those that have all
    #[arg(long, value_name = "LABEL", value_parser = Selector::parse, conflicts_with = "targets")]
    label: Vec<Selector>,
}

impl Chosen {
    /// What each is called. By labels it may be none, which is no failure.
    pub(super) async fn names(
        self,
        context: &Context,
        client: &Client,
    ) -> Result<Vec<String>, Failure> {
        let Self { targets, label } = self;
        if label.is_empty() {
            return Ok(targets);
        }
        let mut vms: Vec<Vm> = client.get("/v1/vms").await?;
        vms.retain(|vm| label.iter().all(|selector| selector.chooses(&vm.labels)));
        if vms.is_empty() {
            let labels: Vec<String> = label.iter().map(ToString::to_string).collect();
            let labels_are = if labels.len() == 1 { "label" } else { "labels" };
            context.hint(&format!("no VM has the {labels_are} {}", labels.join(" and ")));
        }
        Ok(vms.into_iter().map(|vm| vm.name.to_string()).collect())
    }
}
