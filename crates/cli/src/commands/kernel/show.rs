//! `banger kernel show`

use banger_api::KernelName;
use banger_api::image::Kernel;

use crate::commands::DONE;
use crate::commands::targets::artifact_path;
use crate::completion;
use crate::context::Context;
use crate::failure::Failure;
use crate::render;

/// Show everything there is to know of a kernel
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  banger kernel show 6.1.0-56-cloud-amd64")]
pub(crate) struct Args {
    #[arg(value_parser = KernelName::parse, add = completion::kernel_names())]
    name: KernelName,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let path = artifact_path("kernels", args.name.as_str());
    let found: Kernel = context.client().await?.get(&path).await?;
    render::show(context, &found)?;
    Ok(DONE)
}
