//! `banger image import`

use std::path::PathBuf;

use banger_api::ImageName;
use banger_api::image::{Image, ImportImage};
use http::Method;

use crate::commands::{DONE, absolute};
use crate::context::Context;
use crate::failure::Failure;
use crate::{operation, render};

/// Make an image of a root filesystem in a tar: plain, gzip, xz or zstd
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  banger image import ./alpine-minirootfs.tar.gz --name alpine:3.20")]
pub(crate) struct Args {
    /// The tar; an image holds all of it, with owners, modes and extended attributes
    #[arg(value_name = "TAR")]
    path: PathBuf,
    /// What to call it
    #[arg(long, value_name = "NAME", value_parser = ImageName::parse)]
    name: ImageName,
    /// Replace an image of that name
    #[arg(long)]
    replace: bool,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let Args { name, path, replace } = args;
    let request = ImportImage { name, path: absolute(&path)?, replace };
    let client = context.client().await?;
    let importing = async {
        let path = "/v1/images/import";
        let image: Image =
            operation::follow(context, &client, None, Method::POST, path, Some(&request)).await?;
        Ok(image)
    };
    let image = operation::unless_interrupted(context, importing).await?;
    render::outcome(context, &image, "imported")?;
    Ok(DONE)
}
