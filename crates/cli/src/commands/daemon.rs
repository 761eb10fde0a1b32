//! `banger daemon …`: every other command starts the daemon by itself, so these are for looking and for upgrades.

mod start;
mod status;
mod stop;

use std::path::Path;

use banger_api::daemon::DaemonInfo;
use clap::Subcommand;
use jiff::Timestamp;

use crate::context::Context;
use crate::failure::Failure;
use crate::render::moment;

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    Status(status::Args),
    Start(start::Args),
    Stop(stop::Args),
}

impl Verb {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, Failure> {
        match self {
            Verb::Status(_) => status::run(context).await,
            Verb::Start(_) => start::run(context).await,
            Verb::Stop(_) => stop::run(context).await,
        }
    }
}

fn print(context: &Context, daemon: &DaemonInfo, socket: &Path) -> Result<(), Failure> {
    context.print(daemon, || {
        format!(
            "running       {} of {} VMs
version       {} (API {})
pid           {}
started       {}
socket        {}
state         {}
cache         {}
installation  {}
",
            daemon.running,
            daemon.vms,
            daemon.version,
            daemon.api,
            daemon.pid,
            moment(daemon.started_at, Timestamp::now()),
            socket.display(),
            daemon.state_folder.display(),
            daemon.cache_folder.display(),
            daemon.installation,
        )
    })
}
