//! `banger vm workspace …`

mod diff;
mod export;
mod patch;
mod prepare;
mod status;

use clap::Subcommand;

use crate::context::Context;
use crate::failure::Failure;

pub(crate) use prepare::again;

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    Prepare(prepare::Args),
    Status(status::Args),
    Diff(diff::Args),
    Export(export::Args),
}

impl Verb {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, Failure> {
        match self {
            Verb::Prepare(args) => prepare::run(args, context).await,
            Verb::Status(args) => status::run(args, context).await,
            Verb::Diff(args) => diff::run(args, context).await,
            Verb::Export(args) => export::run(args, context).await,
        }
    }
}
