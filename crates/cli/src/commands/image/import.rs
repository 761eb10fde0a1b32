//! `banger image import`

use std::path::PathBuf;

use banger_api::ImageName;
use banger_api::image::{Image, ImportImage};
use http::Method;

use crate::commands::{DONE, absolute};
use crate::context::Context;
use crate::failure::Failure;
use crate::{operation, render};

/// Make an image of what is in a file or folder: the tar of a root filesystem, an archive of docker or podman, an OCI layout
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Tars may be plain or packed with gzip, xz or zstd. An archive of `docker save`, an OCI archive and an OCI layout folder hold \
images with what they say about their programs; where one holds several, --image says which.

Examples:
  banger image import ./alpine-minirootfs.tar.gz --name alpine:3.20
  docker save app:1 -o app.tar; banger image import app.tar --name app:1
  banger image import ./layout --image latest --name app:2")]
pub(crate) struct Args {
    /// The file or folder; an image holds all of it, with owners, modes and extended attributes
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// Which image of an archive or layout that holds several: its tag or name there
    #[arg(long, value_name = "TAG")]
    image: Option<String>,
    /// What to call it
    #[arg(long, value_name = "NAME", value_parser = ImageName::parse)]
    name: ImageName,
    /// Replace an image of that name
    #[arg(long)]
    replace: bool,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let Args { name, path, image, replace } = args;
    let request = ImportImage { name, path: absolute(&path)?, image, replace };
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
