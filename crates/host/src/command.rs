//! The one place of this crate where programs are started: by absolute path, without a shell, their stderr kept.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, getppid, pidfd_open, set_parent_process_death_signal,
};

use crate::error::HostError;

/// Where programs are looked for. The caller's PATH is not asked: what we run must not depend on a user's shell.
const FOLDERS: [&str; 6] =
    ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// The absolute path of a program.
#[must_use]
pub fn find(name: &str) -> Option<PathBuf> {
    FOLDERS.iter().map(|folder| Path::new(folder).join(name)).find(|path| path.is_file())
}

/// Runs a program to its end and gives its stdout.
///
/// # Errors
/// When it is not there, cannot be started, or ends with another status than 0 (then with its stderr).
pub fn run(name: &str, args: &[&str]) -> Result<String, HostError> {
    let act = || format!("run {name} {}", args.join(" "));
    let program = find(name)
        .ok_or_else(|| HostError::new(act(), io::Error::from(io::ErrorKind::NotFound)))?;
    let output = new(&program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .map_err(|e| HostError::new(act(), e))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(HostError::because(act(), format!("{}: {}", output.status, said.trim())))
}

/// Runs one of root's programs to its end, without an environment, with this on its stdin, and gives its stdout.
///
/// # Errors
/// When it cannot be started, or ends with another status than 0 (then with its stderr).
pub(crate) fn run_with_input(program: &Path, args: &[&str], input: &[u8]) -> io::Result<String> {
    let mut child = new(program)
        .args(args)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    // What it reads is all that it reads before it says anything, and closed after this.
    let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(input));
    let output = child.wait_with_output()?;
    if output.status.success() {
        return written.map(|()| String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{}: {}", output.status, said.trim())))
}

/// Runs a program to its end, or kills it at the deadline; gives whether its status was 0, and its stdout, which must fit
/// a pipe (64 KiB).
///
/// # Errors
/// When it cannot be started, or `TimedOut`.
#[cfg(feature = "kvm-probe")]
pub(crate) fn run_within(
    program: &Path,
    args: &[&str],
    deadline: Duration,
) -> io::Result<(bool, String)> {
    let mut child = new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let pid = i32::try_from(child.id())
        .ok()
        .and_then(rustix::process::Pid::from_raw)
        .ok_or(io::ErrorKind::InvalidData)?;
    let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?;
    let timeout = Timespec::try_from(deadline).map_err(io::Error::other)?;
    let ended = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout))?;
    if ended == 0 {
        child.kill()?;
    }
    let output = child.wait_with_output()?;
    if ended == 0 {
        return Err(io::ErrorKind::TimedOut.into());
    }
    Ok((output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned()))
}

/// Makes an ext4 filesystem of the whole file, which must be new: its holes are taken for zeroes.
pub(crate) fn mke2fs(file: &Path) -> Result<(), HostError> {
    let file = file
        .to_str()
        .ok_or_else(|| HostError::because("format a disk", "its path is not UTF-8"))?;
    // `-m 0`: no blocks kept for root, who is everyone in here. `assume_storage_prezeroed` (e2fsprogs 1.47): without it
    // the guest's kernel would write zeroes over all inode tables in the background, and the file would not stay sparse.
    let options = "assume_storage_prezeroed=1,lazy_journal_init=1,nodiscard,root_owner=0:0";
    run("mke2fs", &["-q", "-F", "-t", "ext4", "-L", "banger-disk", "-m", "0", "-E", options, file])
        .map(drop)
}

/// A process that lives on when this one ends.
#[derive(Debug)]
pub(crate) struct Detached<'a> {
    pub(crate) program: &'a Path,
    /// What it is called in /proc/PID/cmdline: the name that we find it by.
    pub(crate) argv0: &'a str,
    pub(crate) args: &'a [String],
    pub(crate) stdin: Stdio,
    pub(crate) stdout: Stdio,
    pub(crate) stderr: Stdio,
    /// Become fds `first_fd`, `first_fd + 1`, …
    pub(crate) fds: Vec<OwnedFd>,
    pub(crate) first_fd: i32,
    /// The opened `cgroup.procs` of the group that it is to be in from its first instruction on. Such a program is root's:
    /// it gets no environment, and is killed with the thread that has started it, unless it has given up being root by
    /// then (PR_SET_PDEATHSIG(2const)): nobody else knows of it before.
    pub(crate) confined: Option<OwnedFd>,
}

impl Detached<'_> {
    /// Returns when the program has been executed, or could not be. It has a session of its own, so that no terminal's
    /// Ctrl-C reaches it.
    #[expect(
        unsafe_code,
        reason = "pre_exec is unsafe: between fork and exec only async-signal-safe calls are allowed"
    )]
    pub(crate) fn spawn(self) -> io::Result<Child> {
        let mut command = new(self.program);
        command.arg0(OsStr::new(self.argv0)).args(self.args);
        command.stdin(self.stdin).stdout(self.stdout).stderr(self.stderr).current_dir("/");
        let mappings = (self.first_fd..)
            .zip(self.fds)
            .map(|(child_fd, parent_fd)| FdMapping { parent_fd, child_fd })
            .collect();
        command.fd_mappings(mappings).map_err(io::Error::other)?;
        if self.confined.is_some() {
            command.env_clear();
        }
        let (confined, starter) = (self.confined, rustix::process::getpid());
        // SAFETY: setsid(2), prctl(2), getppid(2) and write(2) are async-signal-safe (signal-safety(7)), or system calls
        // without a wrapper's state, and the closure neither allocates nor locks.
        unsafe {
            command.pre_exec(move || {
                rustix::process::setsid()?;
                if let Some(cgroup) = &confined {
                    set_parent_process_death_signal(Some(Signal::KILL))?;
                    // It died before it could be told apart.
                    if getppid() != Some(starter) {
                        return Err(Errno::SRCH.into());
                    }
                    rustix::io::write(cgroup, b"0")?;
                }
                Ok(())
            });
        }
        command.spawn()
    }

    /// As [`Self::spawn`], of a program that ends when another, which it has started, does its work: returns then. Its stderr is a
    /// pipe.
    ///
    /// # Errors
    /// When it cannot be started, ends with another status than 0 (then with what it said), or `TimedOut`.
    pub(crate) fn run(self, most: Duration) -> io::Result<()> {
        let mut child = self.spawn()?;
        let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
        let timeout = Timespec::try_from(most).map_err(io::Error::other)?;
        if poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout))? == 0 {
            child.kill()?;
            child.wait()?;
            let said = format!("it was not ready after {} s", most.as_secs());
            return Err(io::Error::new(io::ErrorKind::TimedOut, said));
        }
        let status = child.wait()?;
        if status.success() {
            return Ok(());
        }
        let mut said = String::new();
        if let Some(mut stderr) = child.stderr.take() {
            stderr.read_to_string(&mut said)?;
        }
        let said: Vec<&str> = said.split('\n').map(str::trim).filter(|l| !l.is_empty()).collect();
        Err(io::Error::other(format!("{status}: {}", said.join("; "))))
    }
}

#[expect(clippy::disallowed_methods, reason = "this file is where this crate starts programs")]
fn new(program: &Path) -> Command {
    Command::new(program)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A process that does nothing for a minute, in this cgroup.
    pub(crate) fn sleeper_in(cgroup: OwnedFd) -> Child {
        Detached { confined: Some(cgroup), ..sleeper() }.spawn().unwrap()
    }

    fn sleeper() -> Detached<'static> {
        static MINUTE: std::sync::LazyLock<[String; 1]> =
            std::sync::LazyLock::new(|| ["60".to_owned()]);
        Detached {
            program: Path::new("/bin/sleep"),
            argv0: "sleep",
            args: &*MINUTE,
            stdin: Stdio::null(),
            stdout: Stdio::null(),
            stderr: Stdio::null(),
            fds: Vec::new(),
            first_fd: 3,
            confined: None,
        }
    }

    /// A process that runs a line of shell.
    pub(crate) fn shell(line: &str, stdin: Stdio) -> Child {
        new(Path::new("/bin/sh")).args(["-c", line]).stdin(stdin).spawn().unwrap()
    }

    #[test]
    fn a_confined_program_ends_with_the_thread_that_started_it() {
        use std::os::unix::process::ExitStatusExt;

        let anywhere = || std::fs::OpenOptions::new().write(true).open("/dev/null").unwrap().into();
        let mut child =
            std::thread::scope(|scope| scope.spawn(|| sleeper_in(anywhere())).join()).unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(9));
    }

    #[test]
    fn a_program_that_cannot_enter_its_cgroup_is_not_executed() {
        let read_only = std::fs::File::open("/dev/null").unwrap();
        let sleeper = Detached { confined: Some(read_only.into()), ..sleeper() };
        assert!(sleeper.spawn().is_err());
    }
}
