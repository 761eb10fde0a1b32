//! `banger vm list`

use banger_api::labels::Selector;
use banger_api::vm::Vm;

use crate::commands::DONE;
use crate::context::Context;
use crate::failure::Failure;
use crate::render;

/// List the VMs there are
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  banger vm list
  banger vm list -q                 names only
  banger vm list --label ci --label team=web   those that have both
  banger vm list --format json")]
pub(crate) struct Args {
    /// Only those with this label, KEY or KEY=VALUE; with several, those that have all
    #[arg(long, value_name = "LABEL", value_parser = Selector::parse)]
    label: Vec<Selector>,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let mut things: Vec<Vm> = context.client().await?.get("/v1/vms").await?;
    things.retain(|vm| args.label.iter().all(|selector| selector.chooses(&vm.labels)));
    render::list(context, &things)?;
    Ok(DONE)
}
