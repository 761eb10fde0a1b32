//! `banger daemon status`

use crate::commands::{DONE, FAILED};
use crate::context::{self, Context, Format};
use crate::failure::Failure;
use crate::{daemon, out};

/// Say whether the daemon runs, since when and for which folders; starts nothing
#[derive(Debug, clap::Args)]
#[command(after_help = "Exits with 1 if it does not run.

Examples:
  banger daemon status
  banger daemon status --format json")]
pub(crate) struct Args {}

pub(crate) async fn run(context: &Context) -> Result<u8, Failure> {
    let folders = context::folders()?;
    match daemon::running(&folders).await? {
        Some(client) => {
            let status = client.get("/v1/daemon").await?;
            super::print(context, &status, client.socket())?;
            Ok(DONE)
        }
        None => {
            let text = format!("not running (nobody listens at {})\n", folders.socket().display());
            match context.format {
                Format::Human => out::stdout(text.as_bytes())?,
                Format::Json => out::stdout(b"null\n")?,
            }
            Ok(FAILED)
        }
    }
}
