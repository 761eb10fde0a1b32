//! `banger image show`

use banger_api::ImageName;
use banger_api::image::Image;

use crate::commands::DONE;
use crate::commands::targets::artifact_path;
use crate::completion;
use crate::context::Context;
use crate::failure::Failure;
use crate::render;

/// Show everything there is to know of an image
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  banger image show debian:bookworm")]
pub(crate) struct Args {
    #[arg(value_parser = ImageName::parse, add = completion::image_names())]
    name: ImageName,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let path = artifact_path("images", args.name.as_str());
    let found: Image = context.client().await?.get(&path).await?;
    render::show(context, &found)?;
    Ok(DONE)
}
