//! What is known of a test host in which tests failed, kept for people: what its kernel, its services and its tests said,
//! what it held, and the records of an installation.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::machine::Machine;
use crate::failure::Failure;
use crate::log::Log;
use crate::programs::Call;

/// File, and the line for the host's shell whose words it gets.
const QUESTIONS: [(&str, &str); 3] = [
    ("dmesg", "dmesg"),
    ("journal", "journalctl --boot --no-pager"),
    (
        "held",
        "for line in 'ps -ef --forest' 'cat /proc/mounts' 'dmsetup ls --tree' 'losetup --list' 'ip -details link' \
         'find /sys/fs/cgroup/banger -maxdepth 2' 'find /var/lib/banger /run/banger /cache/tmp -xdev -maxdepth 4' \
         'systemctl --failed' 'df -h' 'free -m'; \
         do echo \"\\$ $line\"; $line 2>&1; done",
    ),
];
/// The records of an installation, which may not be there.
const RECORDS: &str = "cd / && tar --create --file /cache/records.tar --ignore-failed-read etc/banger \
     var/lib/banger/state/banger.db var/lib/banger/state/banger.db-wal var/lib/banger/state/bangerd.log 2> /dev/null; \
     test -s /cache/records.tar";
/// What one answer may take of a host that may be half dead.
const ANSWER: Duration = Duration::from_secs(30);
/// How many failures are kept.
const KEPT: usize = 20;

/// Keeps it in a new folder whose name begins with `place`, which it gives.
pub(super) fn keep(
    machine: &mut Machine,
    folder: &Path,
    place: &Path,
    output: &[String],
) -> Result<PathBuf, Failure> {
    let now = Call::new("date").args(["--utc", "+%Y-%m-%dT%H-%M-%S"]).output()?;
    let name = place.file_name().unwrap_or_default().to_string_lossy();
    let kept = place.with_file_name(format!("{}-{name}", now.trim()));
    let written = fs::create_dir_all(&kept)
        .and_then(|()| fs::write(kept.join("output"), output.join("\n") + "\n"));
    written
        .map_err(|error| Failure::new(format!("cannot write {}", kept.display())).cause(&error))?;
    for name in ["console.log", "qemu.err"] {
        // It may have said nothing.
        drop(fs::copy(folder.join(name), kept.join(name)));
    }
    if !machine.is_gone(Duration::ZERO) {
        ask(machine, &kept)?;
    }
    forget(&kept)?;
    Ok(kept)
}

/// What the host itself can tell. One that does not answer in time is asked nothing more.
fn ask(machine: &Machine, kept: &Path) -> Result<(), Failure> {
    for (name, line) in QUESTIONS {
        let mut lines = Log::at(&kept.join(name))?;
        let told = machine.ssh().call(line).silent_for(ANSWER).watch(&mut lines, |_| {});
        if let Err(failure) = told {
            lines.line(&failure.to_string());
            return Ok(());
        }
    }
    if machine.ssh().ask(RECORDS).is_ok() {
        machine.ssh().fetch("/cache/records.tar", &kept.join("records.tar"))?;
    }
    Ok(())
}

/// Removes the oldest beside `newest`, by their names, which begin with their times.
fn forget(newest: &Path) -> Result<(), Failure> {
    let all = newest.parent().and_then(|folder| fs::read_dir(folder).ok()).into_iter().flatten();
    let mut all: Vec<PathBuf> = all.flatten().map(|entry| entry.path()).collect();
    all.sort();
    let old = all.len().saturating_sub(KEPT);
    all[..old].iter().try_for_each(|path| super::remove(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_failures_are_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let path = |n: usize| folder.path().join(format!("2026-01-01T00-00-{n:02}-exec"));
        (0..KEPT + 2).for_each(|n| fs::create_dir(path(n)).unwrap());
        forget(&path(KEPT + 1)).unwrap();
        assert!(!path(0).exists() && !path(1).exists() && path(2).exists());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), KEPT);
    }
}
