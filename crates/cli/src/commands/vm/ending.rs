//! What `stop` and `restart` have in common: which VMs, and how long their guests may take.

use banger_api::vm::{StopVm, Vm};
use http::Method;

use super::chosen::Chosen;
use crate::commands::duration::{self, Milliseconds};
use crate::commands::targets::{self, vm_path};
use crate::context::Context;
use crate::failure::Failure;
use crate::{operation, render};

#[derive(Debug, clap::Args)]
pub(super) struct Ending {
    /// How long the guest may take to shut down before it is killed, such as 30s
    #[arg(long, value_name = "TIME", value_parser = duration::parse, allow_hyphen_values = true)]
    deadline: Option<Milliseconds>,
    #[command(flatten)]
    chosen: Chosen,
}

impl Ending {
    /// Asks the daemon for `verb` of each.
    pub(super) async fn run(self, verb: &str, context: &Context) -> Result<u8, Failure> {
        let request = StopVm { deadline_ms: self.deadline.map(|time| time.0) };
        let client = context.client().await?;
        let chosen = self.chosen.names(context, &client).await?;
        targets::each(context, &chosen, async |target, subject| {
            let path = format!("{}/{verb}", vm_path(target)?);
            let vm: Vm =
                operation::follow(context, &client, subject, Method::POST, &path, Some(&request))
                    .await?;
            render::outcome(context, &vm, vm.state)
        })
        .await
    }
}
