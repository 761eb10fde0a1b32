//! `banger vm …`

mod command;
mod create;
mod delete;
mod ending;
mod exec;
mod forward;
mod kill;
mod list;
mod logs;
mod ports;
mod proxy;
mod prune;
mod restart;
mod run;
mod set;
mod show;
mod spec;
mod ssh;
mod start;
mod stop;

use clap::Subcommand;

use crate::context::Context;
use crate::failure::Failure;

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    Run(run::Args),
    Exec(exec::Args),
    #[command(visible_alias = "ls")]
    List(list::Args),
    Show(show::Args),
    Set(set::Args),
    Create(create::Args),
    Start(start::Args),
    Stop(stop::Args),
    Restart(restart::Args),
    Kill(kill::Args),
    #[command(visible_alias = "rm")]
    Delete(delete::Args),
    Prune(prune::Args),
    Logs(logs::Args),
    Ports(ports::Args),
    Forward(forward::Args),
    Ssh(ssh::Args),
    Proxy(proxy::Args),
}

impl Verb {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, Failure> {
        match self {
            Verb::Run(args) => run::run(args, context).await,
            Verb::Exec(args) => exec::run(args, context).await,
            Verb::List(_) => list::run(context).await,
            Verb::Show(args) => show::run(args, context).await,
            Verb::Set(args) => set::run(args, context).await,
            Verb::Create(args) => create::run(args, context).await,
            Verb::Start(args) => start::run(args, context).await,
            Verb::Stop(args) => stop::run(args, context).await,
            Verb::Restart(args) => restart::run(args, context).await,
            Verb::Kill(args) => kill::run(args, context).await,
            Verb::Delete(args) => delete::run(args, context).await,
            Verb::Prune(args) => prune::run(args, context).await,
            Verb::Logs(args) => logs::run(args, context).await,
            Verb::Ports(args) => ports::run(args, context).await,
            Verb::Forward(args) => forward::run(args, context).await,
            Verb::Ssh(args) => ssh::run(args, context).await,
            Verb::Proxy(args) => proxy::run(args, context).await,
        }
    }
}
