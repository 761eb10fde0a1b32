//! systemd's units by its own tool, systemctl(1).

use std::collections::BTreeMap;
use std::path::Path;

use banger_api::Problem;
use banger_api::install::units::{ALL, ENABLED};
use serde::Serialize;

use crate::programs;

/// Whether systemd runs this host (sd_booted(3)).
pub(crate) fn runs_here() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// Takes in the units as they are on disk, has them started at boot, and starts them anew. VMs are not theirs to stop.
///
/// # Errors
/// What systemd says.
pub(crate) fn start() -> Result<(), Problem> {
    systemctl(&["daemon-reload"], &[])?;
    systemctl(&["--quiet", "enable"], &ENABLED)?;
    restart()
}

/// Starts the units anew: who asks stops before who is asked, and starts after.
///
/// # Errors
/// What systemd says.
pub(crate) fn restart() -> Result<(), Problem> {
    systemctl(&["stop"], &ALL)?;
    // Whoever has given up after many failures may try again.
    systemctl(&["reset-failed"], &ALL).ok();
    systemctl(&["start"], &ENABLED)
}

/// Starts what is enabled, if it is there to be started.
///
/// # Errors
/// What systemd says.
pub(crate) fn start_again() -> Result<(), Problem> {
    systemctl(&["start"], &ENABLED)
}

/// Stops the units, and no longer has them started at boot. Units that are not there are fine.
///
/// # Errors
/// What systemd says.
pub(crate) fn stop() -> Result<(), Problem> {
    let states = states()?;
    let those = |units: &[&'static str], wanted: fn(&UnitState) -> bool| -> Vec<&'static str> {
        let is_wanted = |name: &str| states.iter().any(|unit| unit.unit == name && wanted(unit));
        units.iter().copied().filter(|name| is_wanted(name)).collect()
    };
    let there = those(&ALL, UnitState::is_there);
    if !there.is_empty() {
        systemctl(&["stop"], &there)?;
    }
    let with_file = those(&ENABLED, |unit| !unit.at_boot.is_empty());
    if !with_file.is_empty() {
        systemctl(&["--quiet", "disable"], &with_file)?;
    }
    Ok(())
}

/// Forgets units that are no longer on disk.
///
/// # Errors
/// What systemd says.
pub(crate) fn forget() -> Result<(), Problem> {
    systemctl(&["daemon-reload"], &[])?;
    // There may be nothing to forget.
    systemctl(&["reset-failed"], &ALL).ok();
    Ok(())
}

/// Loads kernel modules; gives the names of those that cannot be.
pub(crate) fn load_modules<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    names.filter(|name| programs::run("modprobe", &["--", name]).is_err()).collect()
}

/// The last lines that a unit wrote to the journal.
pub(crate) fn last_words(unit: &str) -> Vec<String> {
    let args = ["--no-pager", "--output=cat", "--lines=10", "--unit", unit];
    let said = programs::run("journalctl", &args).unwrap_or_default();
    said.lines().map(str::to_owned).collect()
}

/// What systemd says of a unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct UnitState {
    pub(crate) unit: String,
    /// `loaded`, `not-found`, …
    pub(crate) load: String,
    /// `active`, `failed`, …
    pub(crate) active: String,
    /// `running`, `listening`, `auto-restart`, …
    pub(crate) detail: String,
    /// `enabled`, `disabled`, `static`; empty when there is no such file.
    pub(crate) at_boot: String,
    /// 0: none.
    pub(crate) main_pid: u32,
    /// Below the root of all control groups; empty when it has none.
    #[serde(skip)]
    pub(crate) control_group: String,
}

impl UnitState {
    /// One whose file is gone may run still.
    fn is_there(&self) -> bool {
        self.load != "not-found" || self.active != "inactive"
    }
}

/// All units of ours, there or not.
///
/// # Errors
/// When systemd does not answer.
pub(crate) fn states() -> Result<Vec<UnitState>, Problem> {
    const SHOWN: &str =
        "--property=Id,LoadState,ActiveState,SubState,UnitFileState,MainPID,ControlGroup";
    let args: Vec<&str> = ["show", SHOWN].into_iter().chain(ALL).collect();
    Ok(parse(&programs::run("systemctl", &args)?))
}

/// `systemctl show`: `Name=value` a line, an empty line between units.
fn parse(text: &str) -> Vec<UnitState> {
    let unit = |block: &str| {
        let values: BTreeMap<&str, &str> =
            block.lines().filter_map(|line| line.split_once('=')).collect();
        let value = |name: &str| values.get(name).copied().unwrap_or_default().to_owned();
        UnitState {
            unit: value("Id"),
            load: value("LoadState"),
            active: value("ActiveState"),
            detail: value("SubState"),
            at_boot: value("UnitFileState"),
            main_pid: value("MainPID").parse().unwrap_or(0),
            control_group: value("ControlGroup"),
        }
    };
    text.split("\n\n").filter(|block| !block.trim().is_empty()).map(unit).collect()
}

fn systemctl(verb: &[&str], units: &[&str]) -> Result<(), Problem> {
    programs::run("systemctl", &[verb, units].concat()).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_read_from_what_systemctl_shows() {
        let text = "Id=bangerd.service\nMainPID=71\nLoadState=loaded\nActiveState=active\n\
                    SubState=running\nUnitFileState=enabled\nControlGroup=/system.slice/bangerd.service\n\n\
                    Id=banger-helper.socket\nLoadState=not-found\nActiveState=inactive\nSubState=dead\nUnitFileState=\n";
        let [daemon, socket] = &parse(text)[..] else { panic!("two units") };
        assert_eq!((daemon.unit.as_str(), daemon.main_pid), ("bangerd.service", 71));
        assert_eq!(daemon.control_group, "/system.slice/bangerd.service");
        assert_eq!((socket.active.as_str(), socket.main_pid), ("inactive", 0));
        assert!(daemon.is_there() && !socket.is_there());
    }
}
