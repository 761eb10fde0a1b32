//! `banger image …`

mod build;
mod delete;
mod export;
mod import;
mod list;
mod promote;
mod prune;
mod pull;
mod register;
mod show;

use clap::Subcommand;

use crate::context::Context;
use crate::failure::Failure;

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    Pull(pull::Args),
    Build(build::Args),
    Import(import::Args),
    Register(register::Args),
    Promote(promote::Args),
    Export(export::Args),
    #[command(visible_alias = "ls")]
    List(list::Args),
    Show(show::Args),
    #[command(visible_alias = "rm")]
    Delete(delete::Args),
    Prune(prune::Args),
}

impl Verb {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, Failure> {
        match self {
            Verb::Pull(args) => pull::run(args, context).await,
            Verb::Build(args) => build::run(args, context).await,
            Verb::Import(args) => import::run(args, context).await,
            Verb::Register(args) => register::run(args, context).await,
            Verb::Promote(args) => promote::run(args, context).await,
            Verb::Export(args) => export::run(args, context).await,
            Verb::List(_) => list::run(context).await,
            Verb::Show(args) => show::run(args, context).await,
            Verb::Delete(args) => delete::run(args, context).await,
            Verb::Prune(args) => prune::run(args, context).await,
        }
    }
}
