//! `banger vm restart`

use super::ending::Ending;
use crate::context::Context;
use crate::failure::Failure;

/// Stop VMs and start them again
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  banger vm restart web")]
pub(crate) struct Args {
    #[command(flatten)]
    ending: Ending,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    args.ending.run("restart", context).await
}
