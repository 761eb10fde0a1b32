//! The programs that work for us: the only file of this crate that starts any. No shell; the program is looked for in a
//! fixed list of folders; the environment is empty but for what is listed here.
//!
//! A program is in a process group of its own and is killed with it when its deadline passes. Its stderr is kept in the
//! error and told line by line while it runs.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use crate::{Progress, Watch};

const FOLDERS: [&str; 4] = ["/usr/bin", "/usr/sbin", "/bin", "/sbin"];
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// Whose programs these are, in their environment and that of all they start: whoever finds them later, without us, can
/// tell.
pub const MARK_VARIABLE: &str = "BANGER_MAKING";

static MARK: OnceLock<String> = OnceLock::new();

/// Marks every program that is started from here on. The first call counts.
pub fn mark(value: &str) {
    MARK.get_or_init(|| value.to_owned());
}

/// What of our environment programs may see: how to reach a mirror, and where temporary files go.
const KEPT: [&str; 9] = [
    "http_proxy",
    "https_proxy",
    "ftp_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "APT_CONFIG",
    "HOME",
];

/// The error keeps this many lines of stderr, the last ones, each this long at most.
const KEPT_LINES: usize = 200;
const LONGEST_LINE: u64 = 4096;

/// No program whose stdout we keep has more to say.
const LARGEST_OUTPUT: u64 = 64 << 20;

#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    #[error("there is no {name} in {PATH} (Debian package {package})")]
    Absent { name: &'static str, package: &'static str },
    #[error("cannot start {program}")]
    Start {
        program: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("cannot talk with {program}")]
    Pipe {
        program: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("{program} ended with {status}{}{stderr}", if stderr.is_empty() { "" } else { ":\n" })]
    Failed { program: PathBuf, status: ExitStatus, stderr: String },
    #[error("{program} was not done after {} s and was killed{}{stderr}", deadline.as_secs(), if stderr.is_empty() { "" } else { ":\n" })]
    Deadline { program: PathBuf, deadline: Duration, stderr: String },
}

impl ProgramError {
    /// The program said ENOSPC, which it does in English since it runs in the C locale.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        self.stderr().contains("No space left on device")
            || self.stderr().contains("Disk quota exceeded")
    }

    pub(crate) fn stderr(&self) -> &str {
        match self {
            Self::Failed { stderr, .. } | Self::Deadline { stderr, .. } => stderr,
            _ => "",
        }
    }
}

/// A program that can be run, and in which Debian package it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Program {
    pub name: &'static str,
    pub package: &'static str,
}

pub(crate) const APT_CACHE: Program = Program { name: "apt-cache", package: "apt" };
pub(crate) const APT_CONFIG: Program = Program { name: "apt-config", package: "apt" };
pub(crate) const APT_GET: Program = Program { name: "apt-get", package: "apt" };
pub(crate) const BC: Program = Program { name: "bc", package: "bc" };
pub(crate) const BISON: Program = Program { name: "bison", package: "bison" };
pub(crate) const FAKEROOT: Program = Program { name: "fakeroot", package: "fakeroot" };
pub(crate) const FLEX: Program = Program { name: "flex", package: "flex" };
pub(crate) const GCC: Program = Program { name: "gcc", package: "gcc" };
pub(crate) const LD: Program = Program { name: "ld", package: "binutils" };
pub(crate) const MAKE: Program = Program { name: "make", package: "make" };
pub(crate) const MMDEBSTRAP: Program = Program { name: "mmdebstrap", package: "mmdebstrap" };
pub(crate) const PERL: Program = Program { name: "perl", package: "perl-base" };
pub(crate) const UNSHARE: Program = Program { name: "unshare", package: "util-linux" };

impl Program {
    pub(crate) fn path(self) -> Result<PathBuf, ProgramError> {
        FOLDERS
            .iter()
            .map(|folder| Path::new(folder).join(self.name))
            .find(|path| path.is_file())
            .ok_or(ProgramError::Absent { name: self.name, package: self.package })
    }

    pub(crate) fn exists(self) -> bool {
        self.path().is_ok()
    }
}

/// A program with its arguments.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    program: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    folder: Option<&'a Path>,
    deadline: Duration,
    watch: Watch2<'a>,
}

/// [`Watch`] with a Debug of its own.
#[derive(Clone, Copy)]
struct Watch2<'a>(Option<Watch<'a>>);

impl std::fmt::Debug for Watch2<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "watched" } else { "unwatched" })
    }
}

impl<'a> Call<'a> {
    pub(crate) fn new(program: Program, deadline: Duration) -> Result<Self, ProgramError> {
        Ok(Self::of(program.path()?, deadline))
    }

    /// A program of the user's own, by its absolute path.
    pub(crate) fn of(program: PathBuf, deadline: Duration) -> Self {
        Self {
            program,
            arguments: Vec::new(),
            environment: Vec::new(),
            folder: None,
            deadline,
            watch: Watch2(None),
        }
    }

    pub(crate) fn args<S: Into<OsString>>(
        mut self,
        arguments: impl IntoIterator<Item = S>,
    ) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    pub(crate) fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    pub(crate) fn in_folder(mut self, folder: &'a Path) -> Self {
        self.folder = Some(folder);
        self
    }

    /// Tells stderr line by line.
    pub(crate) fn watched(mut self, watch: Watch<'a>) -> Self {
        self.watch = Watch2(Some(watch));
        self
    }

    /// Runs it to its end and gives its stdout.
    pub(crate) fn output(self) -> Result<Vec<u8>, ProgramError> {
        let mut output = Ok(Vec::new());
        self.run(&mut |stdout| {
            let mut bytes = Vec::new();
            output = stdout.take(LARGEST_OUTPUT).read_to_end(&mut bytes).map(|_| bytes);
        })
        .and_then(|program| output.map_err(|cause| ProgramError::Pipe { program, cause }))
    }

    /// Runs it to its end while `drain` reads its stdout.
    pub(crate) fn drained_by(self, drain: Drain<'_>) -> Result<(), ProgramError> {
        self.run(drain).map(drop)
    }

    /// Runs it to its end and tells stdout line by line too.
    pub(crate) fn told(self) -> Result<(), ProgramError> {
        let watch = self.watch.0;
        self.drained_by(&mut |stdout| keep_lines(stdout, &Mutex::default(), watch))
    }

    fn run(self, drain: Drain<'_>) -> Result<PathBuf, ProgramError> {
        let mut child = self
            .command()
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|cause| ProgramError::Start { program: self.program.clone(), cause })?;
        let stdout = child.stdout.take().expect("stdout is piped");
        let stderr = child.stderr.take().expect("stderr is piped");
        let kept = Mutex::new(VecDeque::new());
        let ended = std::thread::scope(|scope| {
            scope.spawn(|| keep_lines(stderr, &kept, self.watch.0));
            scope.spawn(move || drain(stdout));
            wait(&mut child, self.deadline)
        });
        let stderr =
            Vec::from(kept.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner))
                .join("\n");
        match ended {
            Ok(Some(status)) if status.success() => Ok(self.program),
            Ok(Some(status)) => Err(ProgramError::Failed { program: self.program, status, stderr }),
            Ok(None) => Err(ProgramError::Deadline {
                program: self.program,
                deadline: self.deadline,
                stderr,
            }),
            Err(cause) => Err(ProgramError::Pipe { program: self.program, cause }),
        }
    }

    fn command(&self) -> Command {
        let mut command = new_command(&self.program);
        command
            .args(&self.arguments)
            .process_group(0)
            .env_clear()
            .env("PATH", PATH)
            .env("LC_ALL", "C.UTF-8");
        if let Some(mark) = MARK.get() {
            command.env(MARK_VARIABLE, mark);
        }
        for name in KEPT {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        if let Some(folder) = self.folder {
            command.current_dir(folder);
        }
        command
    }
}

/// Reads a program's stdout. Runs on a thread of its own.
pub(crate) type Drain<'f> = &'f mut (dyn FnMut(ChildStdout) + Send);

#[expect(clippy::disallowed_methods, reason = "the one place of this crate that starts programs")]
fn new_command(program: &Path) -> Command {
    Command::new(program)
}

fn keep_lines(stderr: impl Read, kept: &Mutex<VecDeque<String>>, watch: Option<Watch<'_>>) {
    let mut stderr = BufReader::new(stderr);
    let mut line = Vec::new();
    loop {
        line.clear();
        // A broken pipe ends the lines as the program's end does; how it ended is told by its status.
        if !matches!((&mut stderr).take(LONGEST_LINE).read_until(b'\n', &mut line), Ok(1..)) {
            return;
        }
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end();
        if let Some(watch) = watch {
            watch(Progress::Line(text));
        }
        if let Ok(mut kept) = kept.lock() {
            if kept.len() == KEPT_LINES {
                kept.pop_front();
            }
            kept.push_back(text.to_owned());
        }
    }
}

/// How it ended; `None` when it had to be killed at the deadline.
fn wait(child: &mut Child, deadline: Duration) -> io::Result<Option<ExitStatus>> {
    let pid = Pid::from_child(child);
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    let end = Instant::now() + deadline;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout)) {
            Ok(0) if Instant::now() >= end => {
                kill_process_group(pid, Signal::KILL)?;
                child.wait()?;
                return Ok(None);
            }
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return child.wait().map(Some),
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// For tests that need a program as their oracle.
    pub(crate) fn command(name: &str) -> Command {
        let mut command = new_command(Path::new("/usr/bin/env"));
        command.arg(name).env("LC_ALL", "C.UTF-8").env("PATH", PATH);
        command
    }

    const SH: Program = Program { name: "sh", package: "dash" };

    fn shell(script: &str) -> Call<'static> {
        Call::new(SH, Duration::from_secs(20)).unwrap().args(["-c", script])
    }

    #[test]
    fn stdout_is_given_back_and_the_environment_is_ours() {
        let output = shell("echo $PATH:$LC_ALL:$CARGO").output().unwrap();
        assert_eq!(String::from_utf8(output).unwrap(), format!("{PATH}:C.UTF-8:\n"));
    }

    #[test]
    fn a_failure_keeps_what_the_program_said() {
        let error = shell("echo one >&2; echo two >&2; exit 3").output().unwrap_err();
        assert!(error.to_string().ends_with("exit status: 3:\none\ntwo"), "{error}");
    }

    #[test]
    fn of_endless_complaints_the_last_are_kept() {
        let error =
            shell("i=0; while [ $i -lt 1000 ]; do echo line $i >&2; i=$((i+1)); done; exit 1")
                .output()
                .unwrap_err();
        assert_eq!(error.stderr().lines().count(), KEPT_LINES);
        assert!(error.stderr().ends_with("line 999"));
    }

    #[test]
    fn a_program_that_hangs_is_killed_with_its_children_at_the_deadline() {
        let started = Instant::now();
        let error = Call::new(SH, Duration::from_millis(200))
            .unwrap()
            .args(["-c", "sleep 60 & sleep 60"])
            .output()
            .unwrap_err();
        assert!(matches!(error, ProgramError::Deadline { .. }));
        assert!(started.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn a_program_that_is_absent_is_named_with_its_package() {
        let error =
            Call::new(Program { name: "no-such", package: "some" }, Duration::ZERO).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("there is no no-such in {PATH} (Debian package some)")
        );
    }
}
