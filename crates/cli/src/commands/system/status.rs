//! `banger system status`

use std::path::PathBuf;

use banger_api::client::Client;
use banger_api::daemon::DaemonInfo;
use banger_api::install::units::{DAEMON_UNIT, HELPER_SOCKET_UNIT};
use banger_api::install::{self, Install};
use banger_api::{Code, Folders, Problem};
use serde::Serialize;

use super::{lines, shown};
use crate::commands::{DONE, FAILED};
use crate::context::{Context, Format};
use crate::failure::Failure;
use crate::system::systemd::{self, UnitState};
use crate::{daemon, out};

/// Show the installed services, their versions and their owner; changes nothing
#[derive(Debug, clap::Args)]
#[command(after_help = "Exits with 1 if banger is not installed as a service, or does not run.

Examples:
  banger system status
  banger system status --format json")]
pub(crate) struct Args {}

#[derive(Debug, Serialize)]
struct Status {
    /// That wrote the installation.
    version: String,
    owner: String,
    owner_uid: u32,
    installation: String,
    programs: PathBuf,
    folders: [&'static str; 4],
    units: Vec<UnitState>,
    /// What the daemon says, if it answers us.
    daemon: Option<DaemonInfo>,
}

pub(crate) async fn run(context: &Context) -> Result<u8, Failure> {
    let installed = install::read().map_err(|error| Problem::from_error(Code::Damaged, &error))?;
    let Some(installed) = installed else {
        match context.format {
            Format::Human => out::stdout(b"not installed as a service\n")?,
            Format::Json => out::stdout(b"null\n")?,
        }
        return Ok(FAILED);
    };
    let units = systemd::states()?;
    let daemon = answer().await;
    let runs = |name: &str| units.iter().any(|unit| unit.unit == name && unit.active == "active");
    // Who is neither the owner nor root is not told by the daemon, but by systemd.
    let all_run = runs(DAEMON_UNIT) && runs(HELPER_SOCKET_UNIT);
    let status = Status::new(installed, units, daemon.as_ref().ok().cloned());
    context.print(&status, || human(&status))?;
    if let Err(problem) = daemon {
        context.hint(&format!("the daemon does not answer: {problem}"));
    }
    Ok(if all_run { DONE } else { FAILED })
}

async fn answer() -> Result<DaemonInfo, Problem> {
    let folders = Folders::installed();
    let client: Option<Client> = daemon::running(&folders).await?;
    let nobody =
        || Problem::new(Code::Daemon, format!("nobody listens at {}", shown(folders.socket())));
    client.ok_or_else(nobody)?.get("/v1/daemon").await
}

impl Status {
    fn new(installed: Install, units: Vec<UnitState>, daemon: Option<DaemonInfo>) -> Self {
        Self {
            version: installed.version,
            owner: installed.owner_name,
            owner_uid: installed.owner_uid,
            installation: installed.installation,
            programs: installed.programs,
            folders: [install::STATE, install::CACHE, install::JAILS, install::RUN],
            units,
            daemon,
        }
    }
}

fn human(status: &Status) -> String {
    let mut fields = vec![("installed", format!("banger {}", status.version))];
    if let Some(daemon) = &status.daemon {
        fields.push(("running", format!("banger {} (pid {})", daemon.version, daemon.pid)));
        fields.push(("vms", format!("{} of {} run", daemon.running, daemon.vms)));
    }
    fields.push(("owner", format!("{} (uid {})", status.owner, status.owner_uid)));
    fields.push(("programs", shown(&status.programs)));
    fields.push(("folders", status.folders.join(" ")));
    fields.push(("installation", status.installation.clone()));
    let units = status.units.iter().map(|unit| match unit.load.as_str() {
        "loaded" => {
            (unit.unit.as_str(), format!("{} ({}), {}", unit.active, unit.detail, unit.at_boot))
        }
        other => (unit.unit.as_str(), other.to_owned()),
    });
    fields.extend(units);
    lines(&fields)
}

#[cfg(test)]
mod tests {
    use snapbox::{assert_data_eq, str};

    use super::*;

    #[test]
    fn a_status_names_versions_owner_and_units() {
        let unit = |name: &str, load: &str, active: &str, detail: &str, at_boot: &str| UnitState {
            unit: name.to_owned(),
            load: load.to_owned(),
            active: active.to_owned(),
            detail: detail.to_owned(),
            at_boot: at_boot.to_owned(),
            main_pid: 71,
            control_group: String::new(),
        };
        let status = Status {
            version: "0.2.0".to_owned(),
            owner: "alice".to_owned(),
            owner_uid: 1000,
            installation: "0a1b".to_owned(),
            programs: "/usr/local/lib/banger".into(),
            folders: [install::STATE, install::CACHE, install::JAILS, install::RUN],
            units: vec![
                unit("bangerd.service", "loaded", "active", "running", "enabled"),
                unit("banger-helper.service", "not-found", "inactive", "dead", ""),
            ],
            daemon: Some(DaemonInfo {
                version: "0.1.0".to_owned(),
                api: 1,
                pid: 71,
                started_at: jiff::Timestamp::UNIX_EPOCH,
                installation: "0a1b".to_owned(),
                state_folder: install::STATE.into(),
                cache_folder: install::CACHE.into(),
                run_folder: install::RUN.into(),
                vms: 3,
                running: 2,
            }),
        };
        assert_data_eq!(
            human(&status),
            str![[r#"
installed              banger 0.2.0
running                banger 0.1.0 (pid 71)
vms                    2 of 3 run
owner                  alice (uid 1000)
programs               /usr/local/lib/banger
folders                /var/lib/banger/state /var/lib/banger/cache /var/lib/banger/jails /run/banger
installation           0a1b
bangerd.service        active (running), enabled
banger-helper.service  not-found

"#]]
        );
    }
}
