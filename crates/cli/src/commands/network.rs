//! `banger network …`

mod create;
mod delete;
mod list;
mod show;

use clap::Subcommand;

use crate::context::Context;
use crate::failure::Failure;

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    Create(create::Args),
    #[command(visible_alias = "rm")]
    Delete(delete::Args),
    #[command(visible_alias = "ls")]
    List(list::Args),
    Show(show::Args),
}

impl Verb {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, Failure> {
        match self {
            Verb::Create(args) => create::run(args, context).await,
            Verb::Delete(args) => delete::run(args, context).await,
            Verb::List(_) => list::run(context).await,
            Verb::Show(args) => show::run(args, context).await,
        }
    }
}
