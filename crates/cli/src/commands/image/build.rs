//! `banger image build`

use banger_api::ImageName;
use banger_api::image::{BuildImage, Image};
use http::Method;

use crate::commands::DONE;
use crate::context::Context;
use crate::failure::Failure;
use crate::{operation, render};

/// Build an image of a distribution on this host, with mmdebstrap and the host's own apt sources
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  banger image build --debian bookworm
  banger image build --debian bookworm --include git,curl --name debian:tools")]
pub(crate) struct Args {
    /// The Debian release
    #[arg(long, value_name = "RELEASE", required = true)]
    debian: String,
    /// Packages on top of the base, separated by commas; the usual tools for development if not given
    #[arg(long, value_name = "PACKAGES", value_delimiter = ',')]
    include: Vec<String>,
    /// What to call it; debian:RELEASE if not given
    #[arg(long, value_parser = ImageName::parse)]
    name: Option<ImageName>,
    /// Replace an image of that name
    #[arg(long)]
    replace: bool,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let Args { debian, include, name, replace } = args;
    let request = BuildImage { name, debian, include, replace };
    let client = context.client().await?;
    let building = async {
        let path = "/v1/images/build";
        let image: Image =
            operation::follow(context, &client, None, Method::POST, path, Some(&request)).await?;
        Ok(image)
    };
    let image = operation::unless_interrupted(context, building).await?;
    render::outcome(context, &image, "built")?;
    Ok(DONE)
}
