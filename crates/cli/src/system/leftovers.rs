//! What VMs still hold when no daemon answers: found by their marks, ended by their control group.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use banger_api::install::JAILS;
use banger_api::{Code, Problem};

use super::waiting;

/// Where systemd has control groups of version 2: alone, or beside version 1.
const CGROUPS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// SIGKILL of a large guest takes seconds to free its memory.
const ENDING: Duration = Duration::from_secs(30);

/// Marks of the VMs that run: those with a VMM's process.
///
/// # Errors
/// When the processes cannot be looked at.
pub(crate) fn running(installation: &str) -> Result<Vec<String>, Problem> {
    let failed =
        |error: io::Error| Problem::new(Code::Internal, "cannot look which VMs run").cause(&error);
    let mut marks = Vec::new();
    for entry in fs::read_dir("/proc").map_err(failed)? {
        // One that ended meanwhile runs no more; one without a name is the kernel's.
        let Ok(command) = fs::read(entry.map_err(failed)?.path().join("cmdline")) else { continue };
        let first = command.split(|&byte| byte == 0).next().unwrap_or_default();
        marks.extend(mark_in(first, installation));
    }
    for group in groups().map(|root| root.join("banger")) {
        let populated = |mark: &String| {
            let events = fs::read_to_string(group.join(mark).join("cgroup.events"));
            events.is_ok_and(|text| text.lines().any(|line| line == "populated 1"))
        };
        marks.extend(names(&group).map_err(failed)?.into_iter().filter(populated));
    }
    marks.retain(|mark| is_mark_of(mark, installation));
    marks.sort();
    marks.dedup();
    Ok(marks)
}

/// Whether something of a VM's is there that only the helper can take away.
pub(crate) fn helper_is_needed(installation: &str) -> Result<bool, Problem> {
    let jails = names(&Path::new(JAILS).join("firecracker")).map_err(|error| {
        Problem::new(Code::Internal, format!("cannot look into {JAILS}")).cause(&error)
    })?;
    Ok(!jails.is_empty() || !running(installation)?.is_empty())
}

/// Ends every process in the control group that a stopped unit has left: QEMU's VMs, the writers of logs.
///
/// # Errors
/// When they are still there.
pub(crate) fn end_group(control_group: &str) -> Result<(), Problem> {
    if control_group.is_empty() || control_group == "/" {
        return Ok(());
    }
    let failed = |error: &io::Error| {
        Problem::new(Code::Leftover, format!("cannot end what runs in {control_group}"))
            .cause(error)
            .remedy(format!("`systemd-cgls {control_group}` shows it"))
    };
    for group in groups().map(|root| root.join(control_group.trim_start_matches('/'))) {
        match fs::write(group.join("cgroup.kill"), "1") {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            other => other.map_err(|error| failed(&error))?,
        }
        if !waiting::for_empty_group(&group, ENDING).map_err(|error| failed(&error))? {
            return Err(failed(&ErrorKind::TimedOut.into()));
        }
    }
    Ok(())
}

fn groups() -> impl Iterator<Item = PathBuf> {
    let here = |root: &Path| root.join("cgroup.procs").exists();
    CGROUPS.map(PathBuf::from).into_iter().filter(move |root| here(root))
}

/// A VMM of ours calls itself `banger-vmm:MARK`.
fn mark_in(name: &[u8], installation: &str) -> Option<String> {
    let mark = std::str::from_utf8(name).ok()?.strip_prefix("banger-vmm:")?;
    is_mark_of(mark, installation).then(|| mark.to_owned())
}

fn is_mark_of(mark: &str, installation: &str) -> bool {
    mark.strip_prefix("bg")
        .and_then(|rest| rest.strip_prefix(installation))
        .is_some_and(|rest| rest.starts_with('-'))
}

fn names(folder: &Path) -> io::Result<Vec<String>> {
    match fs::read_dir(folder) {
        Ok(entries) => entries
            .filter(|entry| entry.as_ref().is_ok_and(|entry| entry.path().is_dir()))
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect(),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_is_ours_by_the_mark_in_its_name() {
        assert_eq!(mark_in(b"banger-vmm:bg0a1b-00000001", "0a1b").unwrap(), "bg0a1b-00000001");
        for other in ["banger-vmm:bg0a1c-00000001", "banger-log:bg0a1b-00000001", "vim", ""] {
            assert_eq!(mark_in(other.as_bytes(), "0a1b"), None, "{other}");
        }
    }

    #[test]
    fn the_group_of_everything_is_never_ended() {
        end_group("").unwrap();
        end_group("/").unwrap();
    }
}
