//! `banger kernel pull`

use banger_api::KernelName;
use banger_api::image::Kernel;
use banger_api::kernel::PullKernel;
use http::Method;

use crate::commands::DONE;
use crate::context::Context;
use crate::failure::Failure;
use crate::{operation, render};

/// Fetch a kernel of the configured catalog
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The catalog and its publisher's key are named in config.toml, under [catalog]. Only what the key has signed is taken, and \
only a file of the size and the digest that the catalog says. An interrupted pull goes on where it was.

Examples:
  banger kernel pull guest-6.1
  banger kernel pull guest-6.1 --name guest")]
pub(crate) struct Args {
    /// Its name in the catalog: see `banger kernel catalog`
    #[arg(value_name = "NAME", value_parser = KernelName::parse)]
    kernel: KernelName,
    /// What to call it here; its name in the catalog if not given
    #[arg(long, value_parser = KernelName::parse)]
    name: Option<KernelName>,
    /// Replace another kernel of that name
    #[arg(long)]
    replace: bool,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let Args { kernel, name, replace } = args;
    let request = PullKernel { kernel, name, replace };
    let client = context.client().await?;
    let pulling = async {
        let path = "/v1/kernels/pull";
        let kernel: Kernel =
            operation::follow(context, &client, None, Method::POST, path, Some(&request)).await?;
        Ok(kernel)
    };
    let kernel = operation::unless_interrupted(context, pulling).await?;
    render::outcome(context, &kernel, "pulled")?;
    Ok(DONE)
}
