//! Starts programs: the only file here that does. What a child must not inherit of the agent (its session, its out-of-memory
//! protection, its identity, its folder) is shed between fork and exec.
#![expect(unsafe_code, reason = "Command::pre_exec, and real-time signals by number")]
#![expect(
    clippy::disallowed_methods,
    reason = "this is the one file of the agent that starts programs"
)]

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::fs::{Mode, OFlags};
use rustix::io::FdFlags;
use rustix::process::{Gid, Signal, Uid};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use crate::ssh;
use crate::users::User;

/// Where programs are, when nobody says otherwise.
pub(crate) const DEFAULT_PATH: &str =
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// This program, also when its file is gone.
pub(crate) const OURSELVES: &str = "/proc/self/exe";

/// What PID 1 opened for the server.
#[derive(Debug)]
pub(crate) struct Inheritance {
    /// The folder of the kernel's modules.
    pub(crate) modules: Option<OwnedFd>,
    /// The vsock port that the host comes to; without one it comes to the virtio-serial port.
    pub(crate) listener: Option<OwnedFd>,
}

impl Inheritance {
    fn fds(&self) -> [Option<&OwnedFd>; 2] {
        [self.modules.as_ref(), self.listener.as_ref()]
    }

    /// As the server finds them among its arguments.
    pub(crate) fn from_arguments(modules: &OsStr, listener: &OsStr) -> Self {
        Self { modules: inherited(modules), listener: inherited(listener) }
    }
}

/// The guest's server: this program again, with a name that systemd-shutdown spares (systemd, "Storage Daemons for the
/// Root File System": argv[0] begins with `@`), in a session of its own.
pub(crate) fn server(init: &str, inheritance: &Inheritance) -> io::Result<Child> {
    let mut command = Command::new(OURSELVES);
    command
        .arg0("@banger-agent")
        .arg("guest")
        .arg(init)
        .args(
            inheritance.fds().map(|fd| fd.map_or("-".to_owned(), |fd| fd.as_raw_fd().to_string())),
        )
        .stdin(Stdio::null())
        .env_clear()
        .env("PATH", DEFAULT_PATH);
    for fd in inheritance.fds().into_iter().flatten() {
        rustix::io::fcntl_setfd(fd, FdFlags::empty())?;
    }
    // SAFETY: setsid is one system call, and allocates nothing.
    unsafe { command.pre_exec(|| Ok(rustix::process::setsid().map(drop)?)) };
    let child = command.spawn();
    for fd in inheritance.fds().into_iter().flatten() {
        rustix::io::fcntl_setfd(fd, FdFlags::CLOEXEC)?;
    }
    child
}

/// A descriptor as the server gets it: by number. From here on it is closed on exec.
fn inherited(argument: &OsStr) -> Option<OwnedFd> {
    let number: RawFd = argument.to_str()?.parse().ok().filter(|&number| number > 2)?;
    // SAFETY: the number is an argument from `server` above, which opened it for this process and nothing else here uses.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&fd, FdFlags::CLOEXEC).ok()?;
    Some(fd)
}

/// This program again, for one ssh connection: that is its stdin, and `errand` its stdout. It has no more of the agent's
/// protection than any program.
pub(crate) fn ssh(connection: OwnedFd, errand: OwnedFd) -> io::Result<tokio::process::Child> {
    let mut command = tokio::process::Command::new(OURSELVES);
    command.arg0("banger-ssh").arg("ssh").env_clear().env("PATH", DEFAULT_PATH);
    command.stdin(Stdio::from(connection)).stdout(Stdio::from(errand));
    // SAFETY: only system calls, and nothing is allocated.
    unsafe {
        command.pre_exec(|| {
            rustix::process::setsid().map(drop)?;
            shed_protection();
            Ok(())
        })
    };
    command.spawn()
}

/// Becomes that program. Returns only if it cannot be run.
pub(crate) fn replace_by(program: &Path, arguments: &[OsString]) -> io::Error {
    Command::new(program).args(arguments).exec()
}

/// Runs a program of the guest and gives what it wrote to stdout; it ends when nobody waits for it any more.
pub(crate) async fn output(program: &str, arguments: &[&str]) -> io::Result<Vec<u8>> {
    let mut command = tokio::process::Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    // SAFETY: only system calls, and nothing is allocated.
    unsafe {
        command.pre_exec(|| {
            shed_protection();
            Ok(())
        })
    };
    Ok(command.output().await?.stdout)
}

/// What to start for an exec.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) path: PathBuf,
    pub(crate) arg0: OsString,
    pub(crate) arguments: Vec<OsString>,
    pub(crate) environment: Vec<(OsString, OsString)>,
    pub(crate) folder: PathBuf,
    pub(crate) user: User,
    pub(crate) terminal: Option<Winsize>,
    /// What the terminal is set to, beside what the kernel gives it.
    pub(crate) modes: Vec<(russh::Pty, u32)>,
    pub(crate) no_stdin: bool,
}

/// A started program and our ends of what it reads and writes; all of them are non-blocking.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) child: Child,
    pub(crate) ends: Ends,
}

#[derive(Debug)]
pub(crate) enum Ends {
    Terminal(OwnedFd),
    Pipes { stdin: Option<OwnedFd>, stdout: OwnedFd, stderr: OwnedFd },
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("cannot make the command's {what}")]
    Make {
        what: &'static str,
        #[source]
        cause: io::Error,
    },
    #[error("cannot {step} for the command")]
    Prepare {
        step: &'static str,
        #[source]
        cause: io::Error,
    },
    #[error("cannot enter the folder {}", folder.display())]
    Folder {
        folder: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("cannot run {}", path.display())]
    Run {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
}

pub(crate) fn start(program: &Program) -> Result<Started, StartError> {
    let mut command = Command::new(&program.path);
    command.arg0(&program.arg0).args(&program.arguments).env_clear();
    command.envs(program.environment.iter().map(|(name, value)| (name, value)));
    let ends = match program.terminal {
        Some(size) => terminal(&mut command, size, program)
            .map_err(|cause| StartError::Make { what: "terminal", cause })?,
        None => pipes(&mut command, program.no_stdin)
            .map_err(|cause| StartError::Make { what: "pipes", cause })?,
    };
    shed(&mut command, program)?;
    let child = command.spawn().map_err(|error| explain(&error, program))?;
    // The command holds copies of the other ends; ours would keep them open.
    drop(command);
    Ok(Started { child, ends })
}

/// Starts a program without stdin, whose output goes where the agent's own words do: to the console.
pub(crate) fn start_on_console(program: &Program) -> Result<Child, StartError> {
    let mut command = Command::new(&program.path);
    command.arg0(&program.arg0).args(&program.arguments).env_clear().stdin(Stdio::null());
    command.envs(program.environment.iter().map(|(name, value)| (name, value)));
    let console = std::io::stderr();
    let console = rustix::io::dup(&console)
        .map_err(|errno| StartError::Make { what: "output", cause: errno.into() })?;
    command.stdout(Stdio::from(console));
    shed(&mut command, program)?;
    command.spawn().map_err(|error| explain(&error, program))
}

fn pipes(command: &mut Command, no_stdin: bool) -> io::Result<Ends> {
    let stdin = if no_stdin {
        command.stdin(Stdio::null());
        None
    } else {
        let (theirs, ours) = std::io::pipe()?;
        command.stdin(Stdio::from(OwnedFd::from(theirs)));
        Some(OwnedFd::from(ours))
    };
    let (stdout, theirs) = std::io::pipe()?;
    command.stdout(Stdio::from(OwnedFd::from(theirs)));
    let (stderr, theirs) = std::io::pipe()?;
    command.stderr(Stdio::from(OwnedFd::from(theirs)));
    let (stdout, stderr) = (OwnedFd::from(stdout), OwnedFd::from(stderr));
    for end in [Some(&stdout), Some(&stderr), stdin.as_ref()].into_iter().flatten() {
        rustix::io::ioctl_fionbio(end, true)?;
    }
    Ok(Ends::Pipes { stdin, stdout, stderr })
}

fn terminal(command: &mut Command, size: Winsize, program: &Program) -> io::Result<Ends> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let ours = rustix::pty::openpt(flags)?;
    rustix::pty::grantpt(&ours)?;
    rustix::pty::unlockpt(&ours)?;
    // By descriptor, not by name: /dev/pts of the guest may be another one.
    let theirs = rustix::pty::ioctl_tiocgptpeer(&ours, flags)?;
    rustix::termios::tcsetwinsize(&ours, size)?;
    ssh::set_modes(&ours, &program.modes);
    // Its user opens it by name too (gpg, screen). Where that is refused, the terminal works all the same.
    rustix::fs::fchown(&theirs, Some(Uid::from_raw(program.user.uid)), None).ok();
    if program.no_stdin {
        command.stdin(Stdio::null());
    } else {
        command.stdin(Stdio::from(theirs.try_clone()?));
    }
    command.stdout(Stdio::from(theirs.try_clone()?)).stderr(Stdio::from(theirs));
    rustix::io::ioctl_fionbio(&ours, true)?;
    Ok(Ends::Terminal(ours))
}

/// The steps between fork and exec, as they are named in errors. `Command` carries only an error number from there,
/// so a step's number times [`STEP`] is added to it.
const STEPS: [&str; 5] =
    ["begin a session", "take the terminal", "set the groups", "set the user", "enter the folder"];
const STEP: i32 = 10_000;

/// Adds the steps to the command. They run in the forked child, where only system calls are safe (fork(2), signal-safety(7)):
/// all memory that they use is allocated here.
fn shed(command: &mut Command, program: &Program) -> Result<(), StartError> {
    let folder = CString::new(program.folder.as_os_str().as_bytes()).map_err(|cause| {
        StartError::Folder { folder: program.folder.clone(), cause: cause.into() }
    })?;
    let (uid, gid) = (Uid::from_raw(program.user.uid), Gid::from_raw(program.user.gid));
    let groups: Vec<Gid> = program.user.groups.iter().copied().map(Gid::from_raw).collect();
    let has_terminal = program.terminal.is_some();
    // Who is not root can be nobody else, and needs to change nothing to be itself.
    let is_ourselves =
        !uid.is_root() && rustix::process::geteuid() == uid && rustix::process::getegid() == gid;
    let steps = move || {
        step(0, rustix::process::setsid().map(drop))?;
        if has_terminal {
            step(1, rustix::process::ioctl_tiocsctty(rustix::stdio::stdout()))?;
        }
        shed_protection();
        if !is_ourselves {
            step(2, rustix::thread::set_thread_groups(&groups))?;
            step(2, rustix::thread::set_thread_gid(gid))?;
            step(3, rustix::thread::set_thread_uid(uid))?;
        }
        step(4, rustix::process::chdir(&folder))
    };
    // SAFETY: the steps only make system calls; they neither allocate nor take locks.
    unsafe { command.pre_exec(steps) };
    Ok(())
}

fn step(number: i32, result: rustix::io::Result<()>) -> io::Result<()> {
    result.map_err(|errno| io::Error::from_raw_os_error((number + 1) * STEP + errno.raw_os_error()))
}

/// The file mode mask and the OOM score of any program; the agent's own score is lower. Before the user changes, since
/// /proc/self is root's alone afterwards.
fn shed_protection() {
    rustix::process::setpriority_process(None, 0).ok();
    rustix::process::umask(Mode::from_raw_mode(0o022));
    if let Ok(file) = rustix::fs::open(
        c"/proc/self/oom_score_adj",
        OFlags::WRONLY | OFlags::CLOEXEC,
        Mode::empty(),
    ) {
        rustix::io::write(&file, b"0").ok();
    }
}

fn explain(error: &io::Error, program: &Program) -> StartError {
    let code = error.raw_os_error().unwrap_or_default();
    let cause = io::Error::from_raw_os_error(code % STEP);
    match usize::try_from(code / STEP).ok().and_then(|number| number.checked_sub(1)) {
        None => StartError::Run { path: program.path.clone(), cause },
        Some(4) => StartError::Folder { folder: program.folder.clone(), cause },
        Some(number) => {
            StartError::Prepare { step: STEPS.get(number).copied().unwrap_or("prepare"), cause }
        }
    }
}

/// Why no program has that name: nothing there, or something that is no program.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NotFound {
    Absent,
    NotExecutable(PathBuf),
}

/// Where the program `name` is, as execvp(3) would look for it from `folder`.
pub(crate) fn look_up(name: &OsStr, path: &OsStr, folder: &Path) -> Result<PathBuf, NotFound> {
    if name.as_bytes().contains(&b'/') {
        return check(Path::new(name), folder);
    }
    let mut not_found = NotFound::Absent;
    for place in path.as_bytes().split(|&byte| byte == b':') {
        let place = if place.is_empty() { b"." } else { place };
        match check(&Path::new(OsStr::from_bytes(place)).join(name), folder) {
            Ok(found) => return Ok(found),
            Err(NotFound::Absent) => {}
            Err(worse) => not_found = worse,
        }
    }
    Err(not_found)
}

fn check(program: &Path, folder: &Path) -> Result<PathBuf, NotFound> {
    use std::os::unix::fs::PermissionsExt;
    match std::fs::metadata(folder.join(program)) {
        Ok(found) if found.is_file() && found.permissions().mode() & 0o111 != 0 => {
            Ok(program.to_owned())
        }
        Ok(_) => Err(NotFound::NotExecutable(program.to_owned())),
        Err(_) => Err(NotFound::Absent),
    }
}

/// The signal of that number, as the kernel counts; real-time signals too.
pub(crate) fn signal(number: i32) -> io::Result<Signal> {
    match Signal::from_named_raw(number) {
        Some(signal) => Ok(signal),
        // SAFETY: the kernel knows signals up to 64, and the C library keeps 32 and 33 for itself.
        None if (34..=64).contains(&number) => Ok(unsafe { Signal::from_raw_unchecked(number) }),
        None => Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{number} is no signal"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_program_is_looked_for_as_execvp_does() {
        let folder = tempfile::tempdir().unwrap();
        for (name, mode) in [("a/tool", 0o644), ("b/tool", 0o755), ("c/dir", 0)] {
            let file = folder.path().join(name);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            if mode == 0 {
                std::fs::create_dir(&file).unwrap();
            } else {
                std::fs::write(&file, "").unwrap();
                std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
            }
        }
        let look =
            |name: &str, path: &str| look_up(OsStr::new(name), OsStr::new(path), folder.path());
        assert_eq!(look("tool", "a:b"), Ok("b/tool".into()));
        assert_eq!(look("tool", "a"), Err(NotFound::NotExecutable("a/tool".into())));
        assert_eq!(look("dir", "c"), Err(NotFound::NotExecutable("c/dir".into())));
        assert_eq!(look("./b/tool", ""), Ok("./b/tool".into()));
        assert_eq!(look("b/other", "b"), Err(NotFound::Absent));
        assert_eq!(look("", "b"), Err(NotFound::NotExecutable("b/".into())));
    }

    #[test]
    fn only_numbers_of_signals_are_signals() {
        for number in [1, 9, 15, 34, 38, 64] {
            assert_eq!(signal(number).unwrap().as_raw(), number);
        }
        for number in [-1, 0, 32, 33, 65, 255] {
            assert!(signal(number).is_err(), "{number}");
        }
    }
}
