//! `banger bench …`: figures that anyone can reproduce. Ratios of runs that alternate, since machines are noisy.

mod bare;
mod boot;
mod exec;
mod figures;
mod image;
mod start;

use clap::Subcommand;

use crate::context::Context;
use crate::failure::Failure;

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    Boot(boot::Args),
    Exec(exec::Args),
    Image(image::Args),
    Start(start::Args),
}

impl Verb {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, Failure> {
        match self {
            Verb::Boot(args) => boot::run(args, context).await,
            Verb::Exec(args) => exec::run(args, context).await,
            Verb::Image(args) => image::run(args, context).await,
            Verb::Start(args) => start::run(args, context).await,
        }
    }
}
