//! `banger kernel …`

mod build;
mod catalog;
mod delete;
mod import;
mod list;
mod pull;
mod show;

use clap::Subcommand;

use crate::context::Context;
use crate::failure::Failure;

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    Import(import::Args),
    Pull(pull::Args),
    Build(build::Args),
    Catalog(catalog::Args),
    #[command(visible_alias = "ls")]
    List(list::Args),
    Show(show::Args),
    #[command(visible_alias = "rm")]
    Delete(delete::Args),
}

impl Verb {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, Failure> {
        match self {
            Verb::Import(args) => import::run(args, context).await,
            Verb::Pull(args) => pull::run(args, context).await,
            Verb::Build(args) => build::run(args, context).await,
            Verb::Catalog(_) => catalog::run(context).await,
            Verb::List(_) => list::run(context).await,
            Verb::Show(args) => show::run(args, context).await,
            Verb::Delete(args) => delete::run(args, context).await,
        }
    }
}
