//! `banger daemon start`

use crate::commands::DONE;
use crate::context::Context;
use crate::failure::Failure;

/// Start the daemon if it does not run; any other command would, too
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  banger daemon start")]
pub(crate) struct Args {}

pub(crate) async fn run(context: &Context) -> Result<u8, Failure> {
    let client = context.client().await?;
    let status = client.get("/v1/daemon").await?;
    super::print(context, &status, client.socket())?;
    Ok(DONE)
}
