//! `banger kernel import`

use std::path::PathBuf;

use banger_api::image::{ImportKernel, Kernel, KernelSource};
use banger_api::{Code, KernelName, Problem};
use http::Method;

use crate::commands::{DONE, absolute};
use crate::context::Context;
use crate::failure::Failure;
use crate::{operation, render};

/// Take a kernel from a file (a bzImage, a vmlinux, a .deb) or from a package of the host's apt
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  banger kernel import --from-apt linux-image-cloud-amd64
  banger kernel import ./linux-image-6.1.0-56-cloud-amd64.deb
  banger kernel import /boot/vmlinuz --name mine")]
pub(crate) struct Args {
    #[arg(value_name = "FILE", required_unless_present = "from_apt", conflicts_with = "from_apt")]
    file: Option<PathBuf>,
    /// A package, such as linux-image-cloud-amd64
    #[arg(long, value_name = "PACKAGE")]
    from_apt: Option<String>,
    /// What to call it; the kernel's release if not given
    #[arg(long, value_parser = KernelName::parse)]
    name: Option<KernelName>,
    /// Replace a kernel of that name
    #[arg(long)]
    replace: bool,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let source = match (args.file, args.from_apt) {
        (Some(file), _) => KernelSource::File(absolute(&file)?),
        (None, Some(package)) => KernelSource::Apt(package),
        (None, None) => {
            return Err(Problem::new(Code::Invalid, "name a FILE or --from-apt PACKAGE").into());
        }
    };
    let request = ImportKernel { name: args.name, source, replace: args.replace };
    let client = context.client().await?;
    let importing = async {
        let path = "/v1/kernels/import";
        let kernel: Kernel =
            operation::follow(context, &client, None, Method::POST, path, Some(&request)).await?;
        Ok(kernel)
    };
    let kernel = operation::unless_interrupted(context, importing).await?;
    render::outcome(context, &kernel, "imported")?;
    Ok(DONE)
}
