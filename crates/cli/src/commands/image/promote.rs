//! `banger image promote`

use banger_api::ImageName;
use banger_api::image::{Image, PromoteVm};
use http::Method;

use crate::commands::DONE;
use crate::commands::targets::vm_path;
use crate::completion;
use crate::context::Context;
use crate::failure::Failure;
use crate::{operation, render};

/// Make an image of what a stopped VM has on its disk
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Everything is kept as it is, also what makes a machine itself: host keys, a machine id, logs. VMs of the new image share it \
as those of every image do; the VM stays as it is.

Examples:
  banger image promote web --name web:ready
  banger image promote web --name web:ready --replace")]
pub(crate) struct Args {
    #[arg(value_name = "VM", add = completion::vm_names())]
    vm: String,
    /// What to call it
    #[arg(long, value_name = "NAME", value_parser = ImageName::parse)]
    name: ImageName,
    /// Replace an image of that name
    #[arg(long)]
    replace: bool,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let Args { vm, name, replace } = args;
    let path = format!("{}/promote", vm_path(&vm)?);
    let request = PromoteVm { name, replace };
    let client = context.client().await?;
    let promoting = async {
        let image: Image =
            operation::follow(context, &client, None, Method::POST, &path, Some(&request)).await?;
        Ok(image)
    };
    let image = operation::unless_interrupted(context, promoting).await?;
    render::outcome(context, &image, format!("made of {vm}"))?;
    Ok(DONE)
}
