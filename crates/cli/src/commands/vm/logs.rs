//! `banger vm logs`

use crate::commands::DONE;
use crate::commands::targets::vm_path;
use crate::context::Context;
use crate::failure::Failure;
use crate::printable::Printable;
use crate::{completion, out, terminal};

/// Print what a VM's kernel, init and agent wrote to its console
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  banger vm logs web
  banger vm logs -f web      and go on as it grows, until Ctrl-C")]
pub(crate) struct Args {
    /// Go on as the log grows
    #[arg(short, long)]
    follow: bool,
    /// Its name or id, or the beginning of one
    #[arg(add = completion::vm_names())]
    vm: String,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let path = vm_path(&args.vm)?;
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
