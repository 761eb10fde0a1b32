//! `banger vm stop`

use super::ending::Ending;
use crate::context::Context;
use crate::failure::Failure;

/// Shut VMs down; their disks stay
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The guest shuts itself down and loses no write; at the deadline it is killed.

Examples:
  banger vm stop web
  banger vm stop --deadline 30s web db"
)]
pub(crate) struct Args {
    #[command(flatten)]
    ending: Ending,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    args.ending.run("stop", context).await
}
