//! `banger image export`

use std::path::PathBuf;

use banger_api::image::{ExportImage, ExportedImage};
use banger_api::{Code, ImageName, Problem, Size};
use http::Method;

use crate::commands::DONE;
use crate::completion;
use crate::context::Context;
use crate::failure::Failure;
use crate::operation;

/// Write an image into an OCI archive, which podman, skopeo and `banger image import` take
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The archive has one layer with everything as root would see it, and what the image says about its programs. The same image \
gives the same layer.

Examples:
  banger image export debian:bookworm bookworm.tar
  banger image export app:1 app.tar --uncompressed --force
  banger image export app:1 app.tar && podman load -i app.tar")]
pub(crate) struct Args {
    #[arg(value_name = "NAME", value_parser = ImageName::parse, add = completion::image_names())]
    name: ImageName,
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Leave the layer a plain tar: quicker, and larger
    #[arg(long)]
    uncompressed: bool,
    /// Replace the file if it is there
    #[arg(short, long)]
    force: bool,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let Args { name, file, uncompressed, force } = args;
    let path = std::path::absolute(&file).map_err(|error| {
        Problem::new(Code::Invalid, format!("cannot write {}", file.display())).cause(&error)
    })?;
    let request = ExportImage { name, path, compress: !uncompressed, replace: force };
    let client = context.client().await?;
    let exporting = async {
        let path = "/v1/images/export";
        let exported: ExportedImage =
            operation::follow(context, &client, None, Method::POST, path, Some(&request)).await?;
        Ok(exported)
    };
    let exported = operation::unless_interrupted(context, exporting).await?;
    context.print(&exported, || match context.quiet {
        true => format!("{}\n", exported.path.display()),
        false => format!(
            "{}: exported to {}, {}\n",
            exported.name,
            file.display(),
            Size::bytes(exported.size_bytes)
        ),
    })?;
    Ok(DONE)
}
