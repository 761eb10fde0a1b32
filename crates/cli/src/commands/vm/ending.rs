//! What `stop` and `restart` have in common: which VMs, and how long their guests may take.

use banger_api::vm::{StopVm, Vm};
use http::Method;

use crate::commands::duration::{self, Milliseconds};
use crate::commands::targets::{self, vm_path};
use crate::context::Context;
use crate::failure::Failure;
use crate::{completion, operation, render};

#[derive(Debug, clap::Args)]
pub(super) struct Ending {
    /// How long the guest may take to shut down before it is killed, such as 30s
    #[arg(long, value_name = "TIME", value_parser = duration::parse, allow_hyphen_values = true)]
    deadline: Option<Milliseconds>,
    /// Names or ids, or the beginnings of some
    #[arg(value_name = "VM", required = true, add = completion::vm_names())]
    targets: Vec<String>,
}

impl Ending {
    /// Asks the daemon for `verb` of each.
    pub(super) async fn run(self, verb: &str, context: &Context) -> Result<u8, Failure> {
        let request = StopVm { deadline_ms: self.deadline.map(|time| time.0) };
        let client = context.client().await?;
        targets::each(context, &self.targets, async |target, subject| {
            let path = format!("{}/{verb}", vm_path(target)?);
            let vm: Vm =
                operation::follow(context, &client, subject, Method::POST, &path, Some(&request))
                    .await?;
            render::outcome(context, &vm, vm.state)
        })
        .await
    }
}
