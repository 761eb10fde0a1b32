//! `banger cache …`

use clap::Subcommand;

use crate::commands::pruning::{self, Pruning};
use crate::context::Context;
use crate::failure::Failure;

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    Prune(Args),
}

/// Remove what can be fetched or made again: layers of pulled images, old initramfs, disk templates
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Images, VMs and pulls that are under way do not need what goes.

Examples:
  banger cache prune --dry-run
  banger cache prune -f            no question, for scripts")]
pub(crate) struct Args {
    #[command(flatten)]
    pruning: Pruning,
}

impl Verb {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, Failure> {
        let Verb::Prune(args) = self;
        let (lost, flag) = ("prune removes what takes time to fetch", "banger cache prune -f");
        pruning::run(args.pruning, context, "/v1/cache/prune", lost, flag).await
    }
}
