//! `banger vm …`

mod attach;
mod carry;
mod chosen;
mod command;
mod cp;
mod create;
mod delete;
mod ending;
mod exec;
mod forward;
mod jobs;
mod kill;
mod list;
mod logs;
mod pause;
mod ports;
mod proxy;
mod prune;
mod rename;
mod restart;
mod resume;
mod run;
mod set;
mod show;
mod spec;
mod ssh;
mod start;
mod stats;
mod stop;
mod workspace;

use clap::Subcommand;

use crate::context::Context;
use crate::failure::Failure;

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    Run(Box<run::Args>),
    Exec(exec::Args),
    Jobs(jobs::Args),
    Attach(attach::Args),
    Cp(cp::Args),
    #[command(visible_alias = "ls")]
    List(list::Args),
    Show(show::Args),
    Set(Box<set::Args>),
    Rename(rename::Args),
    Create(Box<create::Args>),
    Start(start::Args),
    Stop(stop::Args),
    Restart(restart::Args),
    Pause(pause::Args),
    Resume(resume::Args),
    Kill(kill::Args),
    #[command(visible_alias = "rm")]
    Delete(delete::Args),
    Prune(prune::Args),
    Logs(logs::Args),
    Ports(ports::Args),
    Forward(forward::Args),
    Stats(stats::Args),
    /// Git repositories in VMs: bring them there, and what was done there back
    #[command(subcommand)]
    Workspace(workspace::Verb),
    Ssh(ssh::Args),
    Proxy(proxy::Args),
}

impl Verb {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, Failure> {
        match self {
            Verb::Run(args) => run::run(*args, context).await,
            Verb::Exec(args) => exec::run(args, context).await,
            Verb::Jobs(args) => jobs::run(args, context).await,
            Verb::Attach(args) => attach::run(args, context).await,
            Verb::Cp(args) => cp::run(args, context).await,
            Verb::List(args) => list::run(args, context).await,
            Verb::Show(args) => show::run(args, context).await,
            Verb::Set(args) => set::run(*args, context).await,
            Verb::Rename(args) => rename::run(args, context).await,
            Verb::Create(args) => create::run(*args, context).await,
            Verb::Start(args) => start::run(args, context).await,
            Verb::Stop(args) => stop::run(args, context).await,
            Verb::Restart(args) => restart::run(args, context).await,
            Verb::Pause(args) => pause::run(args, context).await,
            Verb::Resume(args) => resume::run(args, context).await,
            Verb::Kill(args) => kill::run(args, context).await,
            Verb::Delete(args) => delete::run(args, context).await,
            Verb::Prune(args) => prune::run(args, context).await,
            Verb::Logs(args) => logs::run(args, context).await,
            Verb::Ports(args) => ports::run(args, context).await,
            Verb::Stats(args) => stats::run(args, context).await,
            Verb::Forward(args) => forward::run(args, context).await,
            Verb::Workspace(verb) => verb.run(context).await,
            Verb::Ssh(args) => ssh::run(args, context).await,
            Verb::Proxy(args) => proxy::run(args, context).await,
        }
    }
}
