//! `banger vm exec`

use std::ffi::OsString;

use banger_api::Problem;
use banger_api::client::Client;
use banger_api::jobs::Job;
use banger_api::vm::{State, Vm};
use banger_api::workspace::Workspace;
use http::Method;

use crate::commands::DONE;
use crate::commands::duration::{self, Milliseconds};
use crate::commands::targets::vm_path;
use crate::commands::vm::command::Flags;
use crate::commands::vm::workspace::again;
use crate::context::Context;
use crate::failure::Failure;
use crate::signals::Signals;
use crate::workspace::host_moved;
use crate::{completion, exec};

/// Run a command or a shell in a running VM
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Words after -- are passed on as they are; no shell looks at them. Exits with the command's own status, 128+n if \
signal n ended it; 124 if its time was up, 125 if banger failed, 126 if the command cannot be executed, 127 if there \
is none of that name. The third Ctrl-C leaves a command that ignores the first two.

Examples:
  banger vm exec web                                 a shell
  banger vm exec web -- journalctl -f                one command
  banger vm exec -u nobody -w / web -- id
  banger vm exec -d web -- make -j8 world            goes on by itself: `banger vm jobs web`
  banger vm exec --timeout 30s web -- make test      ended after 30 seconds, with status 124
  banger vm exec web -- cat /etc/motd > motd         stdout, stderr and stdin are the command's
  banger vm exec --auto-prepare web -- make test     in its repository, brought up to date before")]
pub(crate) struct Args {
    /// Its name or id, or the beginning of one
    #[arg(add = completion::vm_names())]
    vm: String,
    #[command(flatten)]
    flags: Flags,
    /// Let it go on by itself in the guest, as a job, and print the job's number; -t gives it a terminal, -i a stdin for who attaches
    #[arg(short, long, help_heading = "The command")]
    detach: bool,
    /// End the command after this time, such as 30s or 5m
    #[arg(long, value_name = "TIME", value_parser = duration::parse, help_heading = "The command", allow_hyphen_values = true)]
    timeout: Option<Milliseconds>,
    /// Bring the VM's repository up to date first, if this host's has moved on
    #[arg(long, help_heading = "The command")]
    auto_prepare: bool,
    /// The command and its arguments, passed on word for word
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let Args { flags, timeout, vm, command, detach, auto_prepare } = args;
    let path = vm_path(&vm)?;
    let timeout = timeout.map(|time| time.0);
    if detach {
        let client = context.client().await?;
        let found: Vm = client.get(&path).await?;
        let flags = match &found.workspace {
            Some(workspace) if found.state == State::Running => {
                keep_up(context, &client, &found, workspace, auto_prepare).await?;
                in_workspace(flags, &found, workspace)
            }
            _ => flags,
        };
        let start = flags.job(command, timeout);
        let job: Job = client.json(Method::POST, &format!("{path}/jobs"), Some(&start)).await?;
        let number = job.number;
        context.hint(&format!(
            "`banger vm attach {vm} {number}`, `banger vm logs {vm} --job {number}`"
        ));
        context.print(&job, || format!("{number}\n"))?;
        return Ok(DONE);
    }
    let mut signals = Signals::listen()?;
    let connecting = async {
        let client = context.client().await?;
        let vm: Vm = client.get(&path).await?;
        let flags = match &vm.workspace {
            Some(workspace) if vm.state == State::Running => {
                keep_up(context, &client, &vm, workspace, auto_prepare).await?;
                in_workspace(flags, &vm, workspace)
            }
            _ => flags,
        };
        Ok((flags, client.websocket(&format!("{path}/exec")).await?))
    };
    let (flags, socket) = signals.unless(connecting).await?;
    exec::session(socket, flags.start(command, timeout), &mut signals).await
}

/// Says that the host's repository has moved on, or brings it there again.
async fn keep_up(
    context: &Context,
    client: &Client,
    vm: &Vm,
    workspace: &Workspace,
    auto_prepare: bool,
) -> Result<(), Problem> {
    let Some(head) = host_moved(workspace).await else { return Ok(()) };
    if auto_prepare {
        return again(context, client, vm, workspace).await;
    }
    context.hint(&format!(
        "{} is at {head:.12} now, {} got {:.12}: `banger vm workspace prepare {1}` brings it up to date",
        workspace.host_path, vm.name, workspace.host_head
    ));
    Ok(())
}

/// The command begins in the repository, if it runs as one who may enter it.
pub(super) fn in_workspace(flags: Flags, vm: &Vm, workspace: &Workspace) -> Flags {
    match vm.config.user.as_deref() {
        None | Some("" | "root" | "0") => flags.in_folder(&workspace.guest_path),
        Some(_) => flags,
    }
}
