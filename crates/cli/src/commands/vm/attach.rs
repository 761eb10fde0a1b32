//! `banger vm attach`

use banger_api::exec::Start;
use banger_api::jobs::{Job, JobState};

use crate::commands::targets::vm_path;
use crate::commands::vm::command::USUAL_SIZE;
use crate::context::Context;
use crate::failure::Failure;
use crate::signals::Signals;
use crate::{completion, exec, terminal};

/// Be there for a job: see what it wrote and writes, and type for it
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Shows what is kept of what it wrote, then what it writes. Ctrl-] leaves a job that has a terminal; Ctrl-C is for the job, and of one
without a terminal the third leaves. Exits with the job's own status if it ends meanwhile.

Examples:
  banger vm attach web 1                      after `banger vm exec -d -t web`: a shell that outlives the connection
  banger vm attach web 1 < answers            to its stdin, if it was started with -i")]
pub(crate) struct Args {
    /// Its name or id, or the beginning of one
    #[arg(add = completion::vm_names())]
    vm: String,
    /// Its number, as `banger vm jobs` shows it
    #[arg(value_name = "JOB")]
    number: u32,
    /// Only watch: pass on no stdin
    #[arg(short = 'n', long)]
    no_stdin: bool,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let Args { vm, number, no_stdin } = args;
    let path = format!("{}/jobs", vm_path(&vm)?);
    let mut signals = Signals::listen()?;
    let connecting = async {
        let client = context.client().await?;
        let jobs: Vec<Job> = client.get(&path).await?;
        let has_terminal = jobs
            .iter()
            .any(|job| job.number == number && job.tty && job.state == JobState::Running);
        let socket = client.websocket(&format!("{path}/{number}/attach?follow=true")).await?;
        Ok((socket, has_terminal))
    };
    let (socket, has_terminal) = signals.unless(connecting).await?;
    let tty = has_terminal.then(|| terminal::size().unwrap_or(USUAL_SIZE));
    let start = Start { tty, no_stdin, ..Start::default() };
    let ended = exec::attach(socket, start, &mut signals).await?;
    if ended.is_none() {
        context.hint(&format!("\njob {number} goes on: `banger vm attach {vm} {number}`"));
    }
    Ok(ended.unwrap_or_default())
}
