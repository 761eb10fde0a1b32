//! `banger vm logs`

use banger_api::exec::Start;
use banger_api::vm::{Refused, RefusedWhat};

use crate::commands::DONE;
use crate::commands::targets::vm_path;
use crate::context::Context;
use crate::failure::Failure;
use crate::printable::Printable;
use crate::signals::Signals;
use crate::{completion, exec, out, terminal};

/// Print what a VM's kernel, init and agent wrote to its console
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  banger vm logs web
  banger vm logs -f web      and go on as it grows, until Ctrl-C
  banger vm logs web --job 1     what a job of `banger vm exec -d` wrote, to stdout and stderr
  banger vm logs --network web   what it was refused beyond the host")]
pub(crate) struct Args {
    /// Go on as the log grows
    #[arg(short, long)]
    follow: bool,
    /// Print what it was refused beyond the host instead, and when: names since its start, addresses within the last hour
    #[arg(long, conflicts_with = "follow")]
    network: bool,
    /// Print what the job of this number wrote instead
    #[arg(long, value_name = "NUMBER", conflicts_with = "network")]
    job: Option<u32>,
    /// Its name or id, or the beginning of one
    #[arg(add = completion::vm_names())]
    vm: String,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let path = vm_path(&args.vm)?;
    if args.network {
        let refused: Vec<Refused> = context.client().await?.get(&format!("{path}/refused")).await?;
        context.print(&refused, || refused.iter().map(line).collect())?;
        return Ok(DONE);
    }
    if let Some(number) = args.job {
        let mut signals = Signals::listen()?;
        let path = format!("{path}/jobs/{number}/attach?follow={}", args.follow);
        let connecting = async { Ok(context.client().await?.websocket(&path).await?) };
        let socket = signals.unless(connecting).await?;
        let watched = Start { no_stdin: true, ..Start::default() };
        // How the job ended is not how this did.
        return exec::watch(socket, watched, &mut signals).await.map(|()| DONE);
    }
    let follow = if args.follow { "?follow=true" } else { "" };
    let mut log = context.client().await?.text(&format!("{path}/logs{follow}")).await?;
    let mut printable = terminal::stdout_is_terminal().then(Printable::default);
    while let Some(piece) = log.next().await? {
        match &mut printable {
            Some(printable) => out::stdout(&printable.filter(&piece))?,
            None => out::stdout(&piece)?,
        }
    }
    Ok(DONE)
}

/// `2026-01-31T12:03:11Z  refused  tcp   203.0.113.9:443`
fn line(refused: &Refused) -> String {
    let (kind, what) = match &refused.what {
        RefusedWhat::Name(name) => ("name", name.clone()),
        RefusedWhat::Tcp { address, port } => ("tcp", format!("{address}:{port}")),
        RefusedWhat::Udp { address, port } => ("udp", format!("{address}:{port}")),
    };
    format!("{:.0}  refused  {kind:4}  {what}\n", refused.at)
}
