//! The control group (v2) of a VM's processes: its limits, and the name by which its processes are found and ended
//! (Documentation/admin-guide/cgroup-v2.rst).
//!
//! `<cgroup2>/banger/MARK`. A process is put there before it executes its program, so from its first instruction on it
//! carries the mark, whatever it calls itself later.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};

use super::pause;
use crate::error::HostError;
use crate::mark::{Installation, Mark};
use crate::process::Watched;
use crate::{Held, folder};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cgroup {
    pub mark: Mark,
    /// `memory.max`: what the guest has and what its VMM needs beside it. `None`, here and below, is no limit, and needs
    /// no controller.
    pub memory_max_bytes: Option<u64>,
    /// `cpu.max`, in hundredths of a processor: 200 is two.
    pub cpu_percent: Option<u32>,
    /// `pids.max`.
    pub pids_max: Option<u32>,
}

/// The group that all of ours are in, whichever installation's. None of systemd's: its units end without ours.
const TOP: &str = "banger";

/// How long killed processes have to be gone: freeing the memory of a large guest takes the kernel seconds.
const DEADLINE: Duration = Duration::from_secs(20);

pub(super) fn acquire(claim: &Cgroup) -> Result<(), HostError> {
    let act = || format!("make the cgroup of VM {}", claim.mark);
    let mount = mount().and_then(|found| found.ok_or_else(not_mounted));
    let mount = mount.map_err(|e| HostError::new(act(), e))?;
    // Somebody who releases the last other group removes the one above it: then once more from the start.
    let mut tries = 5;
    loop {
        match make(claim, &mount) {
            Err(error) if error.kind() == ErrorKind::NotFound && tries > 0 => tries -= 1,
            made => return made.map_err(|e| HostError::new(act(), e)),
        }
    }
}

pub(super) fn release(mark: &Mark) -> Result<(), HostError> {
    let act = || format!("remove the cgroup of VM {mark}");
    let Some(group) = place(mark).map_err(|e| HostError::new(act(), e))? else { return Ok(()) };
    let end = Instant::now() + DEADLINE;
    // Who forked while the group was killed may still enter it: then it is busy, and killed once more.
    let gone = loop {
        match end_all(&group, end).and_then(|()| remove(&group)) {
            Err(error) if error.kind() == ErrorKind::ResourceBusy && Instant::now() < end => {
                pause();
            }
            done => break done,
        }
    };
    gone.map_err(|e| HostError::new(act(), e))?;
    match group.parent().map(fs::remove_dir) {
        // Others are in it: ENOTEMPTY or EBUSY. Or another has removed it.
        Some(Err(error))
            if !is_gone(&error)
                && error.kind() != ErrorKind::ResourceBusy
                && error.kind() != ErrorKind::DirectoryNotEmpty =>
        {
            Err(HostError::new(format!("remove the cgroup {TOP}"), error))
        }
        _ => Ok(()),
    }
}

pub(super) fn list(installation: &Installation) -> Result<Vec<Held>, HostError> {
    Ok(marks(installation)?.into_iter().map(|mark| Held::Cgroup { mark }).collect())
}

/// The marks of this installation's groups.
pub(super) fn marks(installation: &Installation) -> Result<Vec<Mark>, HostError> {
    let mount = mount().map_err(|e| HostError::new("look for cgroups", e))?;
    let Some(mount) = mount else { return Ok(Vec::new()) };
    let mut marks = folder::marked(&mount.join(TOP))?;
    marks.retain(|mark| mark.installation() == installation);
    Ok(marks)
}

/// The living processes of the group, each looked at once more after it was got hold of. Not the threads that KVM makes in
/// the kernel for a VM, which are in its group too (`kvm_vm_create_worker_thread` of virt/kvm/kvm_main.c).
pub(super) fn processes(mark: &Mark) -> io::Result<Vec<Watched>> {
    let Some(group) = place(mark)? else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for pid in pids(&group)? {
        // Empty for a thread of the kernel, and for a process that has ended (proc_pid_cmdline(5)).
        let line = || fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero()));
        if let Some(process) = Watched::open(pid)?
            && pids(&group)?.contains(&pid)
            && line().is_ok_and(|line| !line.is_empty())
        {
            found.push(process);
        }
    }
    Ok(found)
}

/// Where a process writes `0` to be in the group.
pub(super) fn entrance(mark: &Mark) -> Result<OwnedFd, HostError> {
    let act = || format!("enter the cgroup of VM {mark}");
    let group = place(mark).map_err(|e| HostError::new(act(), e))?;
    let group = group.ok_or_else(|| HostError::new(act(), not_mounted()))?;
    let procs = OpenOptions::new().write(true).open(group.join("cgroup.procs"));
    procs.map(OwnedFd::from).map_err(|e| HostError::new(act(), e))
}

/// Kills what is in the group, and waits until nothing is.
pub(super) fn end_processes(mark: &Mark) -> io::Result<()> {
    match place(mark)? {
        Some(group) => end_all(&group, Instant::now() + DEADLINE),
        None => Ok(()),
    }
}

/// Whether limits can be set here.
pub(super) fn ability() -> Result<(), String> {
    let mount = mount().map_err(|e| format!("the mounts cannot be read: {e}"))?;
    let mount = mount.ok_or_else(|| not_mounted().to_string())?;
    let there = fs::read_to_string(mount.join("cgroup.controllers"))
        .map_err(|e| format!("{} cannot be read: {e}", mount.display()))?;
    match ["memory", "cpu", "pids"].iter().find(|name| !has_word(&there, name)) {
        Some(missing) => Err(no_controller(missing)),
        None => Ok(()),
    }
}

fn make(claim: &Cgroup, mount: &Path) -> io::Result<()> {
    let top = mount.join(TOP);
    let group = top.join(claim.mark.to_string());
    let limits = [
        ("memory", "memory.max", claim.memory_max_bytes.map(|bytes| bytes.to_string())),
        // An idle guest may be swapped out as a whole, but no VMM can fill the swap.
        ("memory", "memory.swap.max", claim.memory_max_bytes.map(|bytes| bytes.to_string())),
        ("cpu", "cpu.max", claim.cpu_percent.map(cpu_max)),
        ("pids", "pids.max", claim.pids_max.map(|count| count.to_string())),
    ];
    make_group(&top)?;
    for (controller, _, _) in limits.iter().filter(|(_, _, value)| value.is_some()) {
        enable(mount, controller)?;
        enable(&top, controller)?;
    }
    make_group(&group)?;
    for (_, file, value) in &limits {
        let path = group.join(file);
        // A kernel without accounting of swap has no file for it.
        if (value.is_none() || *file == "memory.swap.max") && !path.exists() {
            continue;
        }
        let value = value.as_deref().unwrap_or("max");
        put(&path, value).map_err(|e| {
            let said = format!("{} does not take {value}: {e}", path.display());
            io::Error::new(e.kind(), said)
        })?;
    }
    Ok(())
}

/// Writes to one of the kernel's files, which cannot be made.
fn put(file: &Path, text: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(file)?.write_all(text.as_bytes())
}

/// `QUOTA PERIOD` in microseconds.
fn cpu_max(percent: u32) -> String {
    const PERIOD: u64 = 100_000;
    format!("{} {PERIOD}", u64::from(percent) * PERIOD / 100)
}

/// Everybody may look at it, whatever the umask: the daemon watches its VMs there.
fn make_group(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    fs::set_permissions(path, Permissions::from_mode(0o755))
}

/// Gives the groups below `group` this controller.
fn enable(group: &Path, controller: &str) -> io::Result<()> {
    let control = group.join("cgroup.subtree_control");
    if has_word(&fs::read_to_string(&control)?, controller) {
        return Ok(());
    }
    if !has_word(&fs::read_to_string(group.join("cgroup.controllers"))?, controller) {
        return Err(io::Error::new(ErrorKind::Unsupported, no_controller(controller)));
    }
    put(&control, &format!("+{controller}"))
}

fn no_controller(name: &str) -> String {
    format!("cgroup v2 has no {name} controller here")
}

fn not_mounted() -> io::Error {
    io::Error::new(ErrorKind::Unsupported, "cgroup v2 is not mounted here")
}

fn has_word(text: &str, word: &str) -> bool {
    text.split_whitespace().any(|found| found == word)
}

/// Where cgroup v2 is mounted, if it is.
fn mount() -> io::Result<Option<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    Ok(mounts.lines().find_map(cgroup2_of))
}

/// The mount's place in a line of /proc/self/mounts (proc_mounts(5)) if it is of cgroup v2.
fn cgroup2_of(line: &str) -> Option<PathBuf> {
    let mut words = line.split(' ').skip(1);
    let (place, kind) = (words.next()?, words.next()?);
    // Blanks are written as octal numbers (fstab(5)); nobody mounts cgroups at other strange characters.
    (kind == "cgroup2").then(|| PathBuf::from(place.replace("\\040", " ")))
}

/// Where the group of this mark is or would be; `None` where there are no groups.
fn place(mark: &Mark) -> io::Result<Option<PathBuf>> {
    Ok(mount()?.map(|mount| mount.join(TOP).join(mark.to_string())))
}

/// The processes in the group itself; none when it is not there.
fn pids(group: &Path) -> io::Result<Vec<Pid>> {
    match fs::read_to_string(group.join("cgroup.procs")) {
        // 0 is a process of another pid namespace.
        Ok(text) => Ok(text.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)).collect()),
        Err(error) if is_gone(&error) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn end_all(group: &Path, end: Instant) -> io::Result<()> {
    let mut events = match File::open(group.join("cgroup.events")) {
        Ok(events) => events,
        Err(error) if is_gone(&error) => return Ok(()),
        Err(error) => return Err(error),
    };
    loop {
        kill(group)?;
        // Without `cgroup.kill` a process can fork away from being killed: so once more after a while.
        let again = (Instant::now() + Duration::from_millis(500)).min(end);
        if wait_until_empty(&mut events, again)? {
            return Ok(());
        }
        if Instant::now() >= end {
            let still =
                pids(group)?.iter().map(|pid| pid.as_raw_nonzero().to_string()).collect::<Vec<_>>();
            let said = format!("processes in it do not end: {}", still.join(", "));
            return Err(io::Error::new(ErrorKind::TimedOut, said));
        }
    }
}

/// Kills what is in the group and in those below it.
fn kill(group: &Path) -> io::Result<()> {
    match put(&group.join("cgroup.kill"), "1") {
        // Kernels before 5.14 have no such file.
        Err(error) if error.kind() == ErrorKind::NotFound => kill_each(group),
        Err(error) if is_gone(&error) => Ok(()),
        done => done,
    }
}

fn kill_each(group: &Path) -> io::Result<()> {
    for below in groups_in(group)? {
        kill_each(&below)?;
    }
    for pid in pids(group)? {
        if let Some(process) = Watched::open(pid)?
            && pids(group)?.contains(&pid)
        {
            process.signal(Signal::KILL)?;
        }
    }
    Ok(())
}

/// `cgroup.events` can be polled: POLLPRI when it has changed since it was last read.
fn wait_until_empty(events: &mut File, end: Instant) -> io::Result<bool> {
    loop {
        let mut text = String::new();
        events.seek(SeekFrom::Start(0))?;
        match events.read_to_string(&mut text) {
            Err(error) if is_gone(&error) => return Ok(true),
            read => read?,
        };
        if text.lines().any(|line| line == "populated 0") {
            return Ok(true);
        }
        let left = end.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(events, PollFlags::PRI)], Some(&timeout)) {
            Ok(0) => return Ok(false),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Whether a process is in the group or below it.
pub(super) fn is_populated(mark: &Mark) -> io::Result<bool> {
    let Some(group) = place(mark)? else { return Ok(false) };
    match fs::read_to_string(group.join("cgroup.events")) {
        Ok(text) => Ok(text.lines().any(|line| line == "populated 1")),
        Err(error) if is_gone(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes the group and those below it.
fn remove(group: &Path) -> io::Result<()> {
    for below in groups_in(group)? {
        remove(&below)?;
    }
    match fs::remove_dir(group) {
        Err(error) if !is_gone(&error) => Err(error),
        _ => Ok(()),
    }
}

fn groups_in(group: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(group) {
        Ok(entries) => entries,
        Err(error) if is_gone(&error) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// Not there, or removed while it was open.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == ErrorKind::NotFound || Errno::from_io_error(error) == Some(Errno::NODEV)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::tests::sleeper_in;
    use crate::root::test_mark;

    fn unlimited(mark: &Mark) -> Cgroup {
        Cgroup { mark: mark.clone(), memory_max_bytes: None, cpu_percent: None, pids_max: None }
    }

    #[test]
    fn a_group_with_processes_and_groups_in_it_is_ended_and_removed() {
        let mark = test_mark();
        release(&mark).unwrap();
        acquire(&unlimited(&mark)).unwrap();
        acquire(&unlimited(&mark)).unwrap();
        assert!(marks(mark.installation()).unwrap().contains(&mark));
        assert!(!is_populated(&mark).unwrap());

        let nested = place(&mark).unwrap().unwrap().join("nested");
        fs::create_dir(&nested).unwrap();
        let one = sleeper_in(entrance(&mark).unwrap());
        let procs = OpenOptions::new().write(true).open(nested.join("cgroup.procs")).unwrap();
        let two = sleeper_in(procs.into());
        assert!(is_populated(&mark).unwrap());
        let found = processes(&mark).unwrap();
        assert_eq!(found.len(), 1, "the nested one is not the VMM");
        assert_eq!(found[0].pid(), one.id().cast_signed());

        end_processes(&mark).unwrap();
        assert!(!is_populated(&mark).unwrap());
        assert!(processes(&mark).unwrap().is_empty());
        release(&mark).unwrap();
        release(&mark).unwrap();
        assert!(marks(mark.installation()).unwrap().is_empty());
        for mut child in [one, two] {
            use std::os::unix::process::ExitStatusExt;
            assert_eq!(child.wait().unwrap().signal(), Some(9));
        }
    }

    #[test]
    fn a_kernel_that_cannot_kill_a_group_kills_each_process() {
        let mark = test_mark();
        acquire(&unlimited(&mark)).unwrap();
        let group = place(&mark).unwrap().unwrap();
        let nested = group.join("nested");
        fs::create_dir(&nested).unwrap();
        let procs = OpenOptions::new().write(true).open(nested.join("cgroup.procs")).unwrap();
        let mut child = sleeper_in(procs.into());
        kill_each(&group).unwrap();
        child.wait().unwrap();
        release(&mark).unwrap();
    }

    #[test]
    fn limits_are_set_where_the_kernel_has_the_controllers_and_refused_by_name_where_not() {
        let mark = test_mark();
        let limits = Cgroup {
            mark: mark.clone(),
            memory_max_bytes: Some(256 << 20),
            cpu_percent: Some(150),
            pids_max: Some(64),
        };
        let made = acquire(&limits);
        match ability() {
            Ok(()) => {
                made.unwrap();
                let group = place(&mark).unwrap().unwrap();
                let read = |file: &str| fs::read_to_string(group.join(file)).unwrap();
                assert_eq!(read("memory.max"), format!("{}\n", 256 << 20));
                assert_eq!(read("cpu.max"), "150000 100000\n");
                assert_eq!(read("pids.max"), "64\n");
            }
            Err(missing) => {
                let error = made.unwrap_err();
                let cause = std::error::Error::source(&error).unwrap().to_string();
                assert_eq!(cause, missing);
                assert!(cause.contains("controller"), "{cause}");
            }
        }
        release(&mark).unwrap();
    }

    #[test]
    fn a_group_of_a_mark_that_has_none_is_empty_and_can_be_released() {
        let mark = test_mark();
        assert!(processes(&mark).unwrap().is_empty());
        assert!(!is_populated(&mark).unwrap());
        assert!(entrance(&mark).is_err());
        end_processes(&mark).unwrap();
        release(&mark).unwrap();
    }

    #[test]
    fn the_mount_of_version_2_is_found_among_others() {
        assert_eq!(cgroup2_of("cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0"), None);
        assert_eq!(
            cgroup2_of("cgroup2 /sys/fs/cgroup/uni\\040fied cgroup2 rw 0 0"),
            Some(PathBuf::from("/sys/fs/cgroup/uni fied"))
        );
    }
}
