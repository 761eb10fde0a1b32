//! `banger network …`

mod list;
mod show;

use clap::Subcommand;

use crate::context::Context;
use crate::failure::Failure;

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    #[command(visible_alias = "ls")]
    List(list::Args),
    Show(show::Args),
}

impl Verb {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, Failure> {
        match self {
            Verb::List(_) => list::run(context).await,
            Verb::Show(args) => show::run(args, context).await,
        }
    }
}
