//! `banger image pull`

use banger_api::ImageName;
use banger_api::image::{Image, PullImage};
use http::Method;

use crate::commands::DONE;
use crate::context::Context;
use crate::failure::Failure;
use crate::{operation, render};

/// Fetch an image from a registry
#[derive(Debug, clap::Args)]
#[command(after_help = "\
References are docker's: HOST[:PORT]/PATH[:TAG][@sha256:DIGEST], from Docker Hub without a host. Credentials are those of \
`docker login` and `podman login`. What was fetched before is not fetched again, and an interrupted pull goes on where it \
was. `vm run --image REFERENCE` pulls what is missing by itself.

Examples:
  banger image pull alpine:3.20
  banger image pull ghcr.io/me/app:1 --name app
  banger image pull 127.0.0.1:5000/app@sha256:…")]
pub(crate) struct Args {
    /// What the registry calls it
    #[arg(value_name = "REFERENCE")]
    reference: String,
    /// What to call it; the reference in its shortest form if not given
    #[arg(long, value_parser = ImageName::parse)]
    name: Option<ImageName>,
    /// The platform to take of an image for several, such as linux/amd64; this host's if not given
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<String>,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let Args { reference, name, platform } = args;
    let request = PullImage { reference, name, platform };
    let client = context.client().await?;
    let pulling = async {
        let path = "/v1/images/pull";
        let image: Image =
            operation::follow(context, &client, None, Method::POST, path, Some(&request)).await?;
        Ok(image)
    };
    let image = operation::unless_interrupted(context, pulling).await?;
    render::outcome(context, &image, "pulled")?;
    Ok(DONE)
}
