//! `banger image register`

use std::path::PathBuf;

use banger_api::ImageName;
use banger_api::image::{Image, RegisterImage};
use http::Method;

use crate::commands::{DONE, absolute};
use crate::context::Context;
use crate::failure::Failure;
use crate::{operation, render};

/// Make an image of an ext4 file system of your own, and a kernel of your own with it
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The file is checked and copied; afterwards it may change or go. A kernel is imported under the same name, and taken with \
`vm run --image NAME --kernel NAME`. It must have what a guest needs built in, or be a .deb with its modules.

Examples:
  banger image register --rootfs ./rootfs.ext4 --name mine
  banger image register --rootfs ./rootfs.ext4 --kernel ./vmlinux --name mine")]
pub(crate) struct Args {
    /// The file with the file system, not mounted anywhere
    #[arg(long, value_name = "PATH")]
    rootfs: PathBuf,
    /// A kernel: a bzImage, a vmlinux or a .deb
    #[arg(long, value_name = "PATH")]
    kernel: Option<PathBuf>,
    /// What to call it
    #[arg(long, value_name = "NAME", value_parser = ImageName::parse)]
    name: ImageName,
    /// Replace an image and a kernel of that name
    #[arg(long)]
    replace: bool,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let Args { rootfs, kernel, name, replace } = args;
    let kernel = kernel.as_deref().map(absolute).transpose()?;
    let request = RegisterImage { name, rootfs: absolute(&rootfs)?, kernel, replace };
    let client = context.client().await?;
    let registering = async {
        let path = "/v1/images/register";
        let image: Image =
            operation::follow(context, &client, None, Method::POST, path, Some(&request)).await?;
        Ok(image)
    };
    let image = operation::unless_interrupted(context, registering).await?;
    render::outcome(context, &image, "registered")?;
    Ok(DONE)
}
