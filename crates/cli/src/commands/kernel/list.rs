//! `banger kernel list`

use banger_api::image::Kernel;

use crate::commands::DONE;
use crate::context::Context;
use crate::failure::Failure;
use crate::render;

/// List the kernels there are, and who uses them
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  banger kernel list
  banger kernel list -q                 names only
  banger kernel list --format json")]
pub(crate) struct Args {}

pub(crate) async fn run(context: &Context) -> Result<u8, Failure> {
    let things: Vec<Kernel> = context.client().await?.get("/v1/kernels").await?;
    render::list(context, &things)?;
    Ok(DONE)
}
