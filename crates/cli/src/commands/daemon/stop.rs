//! `banger daemon stop`: also of a daemon of another version, since this is how one changes versions.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use banger_api::client::connect_unix;
use banger_api::{Code, Folders, Problem};
use http::Method;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::json;

use crate::commands::DONE;
use crate::context::{self, Context};
use crate::daemon;
use crate::failure::Failure;

/// How long a daemon may take to end after it was asked: it waits for nothing but its own files.
const DEADLINE: Duration = Duration::from_secs(30);

/// Stop the daemon; running VMs live on, and the next daemon finds them
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  banger daemon stop       for an upgrade: the next command starts the new daemon")]
pub(crate) struct Args {}

pub(crate) async fn run(context: &Context) -> Result<u8, Failure> {
    let folders = context::folders()?;
    if folders == Folders::installed() {
        return Err(Problem::new(Code::WrongState, "cannot stop the daemon of an installation")
            .because("systemd would start it again at once")
            .remedy("`sudo systemctl stop bangerd`; for an upgrade `sudo banger system install`")
            .into());
    }
    let Some(client) = daemon::running(&folders).await? else {
        context.print(&json!({ "stopped": false }), || "not running\n".to_owned())?;
        return Ok(DONE);
    };
    let cannot =
        |error: io::Error| Problem::new(Code::Daemon, "cannot watch the daemon end").cause(&error);
    // Who listens is known from the socket itself, whatever version it is of and whether or not it answers.
    let listener = connect_unix(client.socket())
        .await
        .and_then(|socket| socket.peer_cred())
        .map_err(cannot)?;
    let pid = listener.pid().and_then(Pid::from_raw).ok_or_else(|| {
        Problem::new(
            Code::Daemon,
            "the daemon is in another PID namespace and cannot be stopped from here",
        )
    })?;
    let process = pidfd_open(pid, PidfdFlags::empty()).map_err(|error| cannot(error.into()))?;

    let asked: Result<serde_json::Value, Problem> =
        client.json(Method::POST, "/v1/daemon/stop", None::<&()>).await;
    if asked.is_err() {
        // Another version may not understand; every one understands SIGTERM. If it has gone, so much the better.
        pidfd_send_signal(&process, Signal::TERM).ok();
    }
    if !ends(&process).map_err(cannot)? {
        return Err(Problem::new(
            Code::Timeout,
            format!("the daemon (pid {pid}) did not end within {} s", DEADLINE.as_secs()),
        )
        .remedy(format!("see {}", folders.daemon_log().display()))
        .into());
    }
    context.print(&json!({ "stopped": true }), || "stopped; VMs that run live on\n".to_owned())?;
    Ok(DONE)
}

/// Whether the process ended before the deadline: a pidfd becomes readable when it does (pidfd_open(2)). Blocks, since
/// there is nothing else to do, and a Ctrl-C ends us as it ends any program.
fn ends(process: &OwnedFd) -> io::Result<bool> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&timeout)) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
