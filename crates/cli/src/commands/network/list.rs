//! `banger network list`

use banger_api::network::Network;

use crate::commands::DONE;
use crate::context::Context;
use crate::failure::Failure;
use crate::render;

/// List the networks there are; the first VM brings one
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  banger network list
  banger network list -q                names only
  banger network list --format json")]
pub(crate) struct Args {}

pub(crate) async fn run(context: &Context) -> Result<u8, Failure> {
    let things: Vec<Network> = context.client().await?.get("/v1/networks").await?;
    render::list(context, &things)?;
    Ok(DONE)
}
