//! `banger image list`

use banger_api::image::Image;

use crate::commands::DONE;
use crate::context::Context;
use crate::failure::Failure;
use crate::render;

/// List the images there are, and who uses them
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  banger image list
  banger image list -q                 names only
  banger image list --format json")]
pub(crate) struct Args {}

pub(crate) async fn run(context: &Context) -> Result<u8, Failure> {
    let things: Vec<Image> = context.client().await?.get("/v1/images").await?;
    render::list(context, &things)?;
    Ok(DONE)
}
