//! `banger system …`: the installed daemon and root's helper, as systemd units.

mod install;
mod restart;
mod status;
mod uninstall;

use std::path::Path;
use std::time::Duration;

use banger_api::client::Client;
use banger_api::daemon::DaemonInfo;
use banger_api::install::units::DAEMON_UNIT;
use banger_api::{Code, Folders, Problem};
use clap::Subcommand;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::context::Context;
use crate::failure::Failure;
use crate::system::systemd;
use crate::system::waiting::{self, Came};

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    Install(install::Args),
    Status(status::Args),
    Restart(restart::Args),
    Uninstall(uninstall::Args),
}

impl Verb {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, Failure> {
        match self {
            Verb::Install(args) => install::run(args, context).await,
            Verb::Status(_) => status::run(context).await,
            Verb::Restart(_) => restart::run(context).await,
            Verb::Uninstall(args) => uninstall::run(args, context).await,
        }
    }
}

/// How long a daemon that was just started may take to listen: it finds running VMs again before.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// Waits until the daemon that systemd has started answers.
async fn daemon_answers() -> Result<(Client, DaemonInfo), Problem> {
    let socket = Folders::installed().socket();
    let failed =
        || Problem::new(Code::Daemon, "the daemon that systemd has started does not answer");
    let explain = |mut problem: Problem| {
        problem.causes.extend(systemd::last_words(DAEMON_UNIT));
        problem.remedy(format!("see `journalctl -u {DAEMON_UNIT}`"))
    };
    let pid = systemd::states()?.into_iter().find(|unit| unit.unit == DAEMON_UNIT);
    let pid = pid.and_then(|unit| Pid::from_raw(i32::try_from(unit.main_pid).ok()?));
    let Some(pid) = pid else { return Err(explain(failed().because("it has ended already"))) };
    // One that has ended meanwhile has ended.
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else {
        return Err(explain(failed().because("it has ended already")));
    };
    match waiting::for_socket(&socket, Some(&process), START_DEADLINE) {
        Ok(Came::Listening) => {}
        Ok(Came::Ended) => return Err(explain(failed().because("it has ended"))),
        Ok(Came::Deadline) => {
            let seconds = START_DEADLINE.as_secs();
            return Err(explain(failed().because(format!("it did not listen within {seconds} s"))));
        }
        Err(error) => return Err(explain(failed().cause(&error))),
    }
    let client = Client::new(socket);
    let info = client.get("/v1/daemon").await?;
    Ok((client, info))
}

/// `name       value` lines, the values under each other.
fn lines(fields: &[(&str, String)]) -> String {
    let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0) + 2;
    fields.iter().map(|(name, value)| format!("{name:width$}{value}\n")).collect()
}

fn shown(path: impl AsRef<Path>) -> String {
    path.as_ref().display().to_string()
}
