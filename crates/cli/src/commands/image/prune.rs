//! `banger image prune`

use crate::commands::pruning::{self, Pruning};
use crate::context::Context;
use crate::failure::Failure;

/// Delete every image that no VM uses, but for the default one, after a question
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  banger image prune --dry-run
  banger image prune -f            no question, for scripts")]
pub(crate) struct Args {
    #[command(flatten)]
    pruning: Pruning,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let (lost, flag) = ("prune deletes images", "banger image prune -f");
    pruning::run(args.pruning, context, "/v1/images/prune", lost, flag).await
}
