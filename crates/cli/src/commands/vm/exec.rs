//! `banger vm exec`

use std::ffi::OsString;

use banger_api::jobs::Job;
use http::Method;

use crate::commands::DONE;
use crate::commands::duration::{self, Milliseconds};
use crate::commands::targets::vm_path;
use crate::commands::vm::command::Flags;
use crate::context::Context;
use crate::failure::Failure;
use crate::signals::Signals;
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
  banger vm exec web -- cat /etc/motd > motd         stdout, stderr and stdin are the command's")]
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
    /// The command and its arguments, passed on word for word
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let Args { flags, timeout, vm, command, detach } = args;
    let path = vm_path(&vm)?;
    let timeout = timeout.map(|time| time.0);
    if detach {
        let start = flags.job(command, timeout);
        let client = context.client().await?;
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
        Ok(client.websocket(&format!("{path}/exec")).await?)
    };
    let socket = signals.unless(connecting).await?;
    exec::session(socket, flags.start(command, timeout), &mut signals).await
}
