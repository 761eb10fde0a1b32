//! `banger vm list`

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
  banger vm list --format json")]
pub(crate) struct Args {}

pub(crate) async fn run(context: &Context) -> Result<u8, Failure> {
    let things: Vec<Vm> = context.client().await?.get("/v1/vms").await?;
    render::list(context, &things)?;
    Ok(DONE)
}
