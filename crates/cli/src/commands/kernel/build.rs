//! `banger kernel build`

use std::path::PathBuf;

use banger_api::image::Kernel;
use banger_api::kernel::BuildKernel;
use banger_api::{Code, KernelName, Problem};
use http::Method;

use crate::commands::DONE;
use crate::context::Context;
use crate::failure::Failure;
use crate::{operation, render};

/// Build a kernel for guests from the source package of the host's apt
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Everything that a guest needs is built in, so it loads no module; nothing is installed on this host. It needs gcc, make, \
flex, bison, bc, libelf-dev, 3 GiB of room for a while, and minutes of all processors. A fragment has lines as in a kernel's .config, \
which count more than banger's own; what cannot be as it asks is refused before anything is compiled.

Examples:
  banger kernel build --name guest
  banger kernel build --package linux-source-6.1 --config ./xfs.config --name xfs")]
pub(crate) struct Args {
    /// The package with the source; the newest of the distribution if not given
    #[arg(long, value_name = "PACKAGE")]
    package: Option<String>,
    /// A file with lines of a kernel's configuration, such as CONFIG_XFS_FS=y
    #[arg(long, value_name = "FRAGMENT")]
    config: Option<PathBuf>,
    /// What to call it; the kernel's release if not given
    #[arg(long, value_parser = KernelName::parse)]
    name: Option<KernelName>,
    /// Replace a kernel of that name
    #[arg(long)]
    replace: bool,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let Args { package, config, name, replace } = args;
    let fragment = match config {
        None => String::new(),
        Some(path) => std::fs::read_to_string(&path).map_err(|error| {
            Problem::new(Code::NotFound, format!("cannot read {}", path.display())).cause(&error)
        })?,
    };
    let request = BuildKernel { name, package, fragment, replace };
    let client = context.client().await?;
    let building = async {
        let path = "/v1/kernels/build";
        let kernel: Kernel =
            operation::follow(context, &client, None, Method::POST, path, Some(&request)).await?;
        Ok(kernel)
    };
    let kernel = operation::unless_interrupted(context, building).await?;
    render::outcome(context, &kernel, "built")?;
    Ok(DONE)
}
