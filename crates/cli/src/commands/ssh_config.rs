//! `banger ssh-config`: what ssh needs to reach VMs by name; shown, or included in the user's own configuration.

use std::path::PathBuf;

use serde::Serialize;

use crate::commands::DONE;
use crate::context::Context;
use crate::failure::Failure;
use crate::ssh_files::{self, SshFiles};

/// Show or install what ssh, scp, rsync and git need to reach VMs by name
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Without an option the block is printed and nothing is changed. It is for all VMs, and need not be renewed when VMs come and go.

Examples:
  banger ssh-config                  the block, as for ~/.ssh/config
  banger ssh-config --install        one line at the top of ~/.ssh/config that includes it
  ssh web.vm                         afterwards; also scp, sftp, rsync, git clone ssh://web.vm/path
  banger ssh-config --uninstall      takes that line away")]
pub(crate) struct Args {
    /// Include it in ~/.ssh/config, by one line at the top
    #[arg(long, conflicts_with = "uninstall")]
    install: bool,
    /// Take that line out of ~/.ssh/config
    #[arg(long)]
    uninstall: bool,
}

#[derive(Debug, Serialize)]
struct Outcome {
    file: PathBuf,
    line: String,
    changed: bool,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let files = SshFiles::of(&context.client().await?).await?;
    if !args.install && !args.uninstall {
        let text = files.text()?;
        context.print(&text, || text.clone())?;
        return Ok(DONE);
    }
    let file = ssh_files::users_config()?;
    let line = files.include_line()?;
    let changed = if args.install {
        files.write()?;
        ssh_files::include(&file, &line)?
    } else {
        ssh_files::exclude(&file, &line)?
    };
    let outcome = Outcome { file, line, changed };
    context.print(&outcome, || {
        let Outcome { file, line, .. } = &outcome;
        let what = match (args.install, changed) {
            (true, true) => "now begins with",
            (true, false) => "has already",
            (false, true) => "no longer has",
            (false, false) => "has no line",
        };
        let mut text = format!("{} {what}: {line}\n", file.display());
        if args.install {
            let zone = &files.access.zone;
            text.push_str(&format!("VMs are reached as NAME.{zone}: ssh NAME.{zone}\n"));
        }
        text
    })?;
    Ok(DONE)
}
