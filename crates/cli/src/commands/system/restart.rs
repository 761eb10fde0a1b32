//! `banger system restart`

use serde_json::json;

use super::daemon_answers;
use crate::commands::DONE;
use crate::context::Context;
use crate::failure::Failure;
use crate::system::{self, systemd};

/// Restart the installed daemon and helper; VMs run on
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  sudo banger system restart        after a change of /etc/banger/config.toml")]
pub(crate) struct Args {}

pub(crate) async fn run(context: &Context) -> Result<u8, Failure> {
    system::may_change("restart")?;
    system::installed()?;
    systemd::restart()?;
    let (_, info) = daemon_answers().await?;
    context.print(&json!({ "restarted": true, "running": info.running }), || {
        format!("restarted; {} VMs run\n", info.running)
    })?;
    Ok(DONE)
}
