//! A VMM's process and the one that keeps its log bounded. Both outlive the daemon; both are found by their `argv[0]`.
//!
//! ```text
//! banger-vmm:MARK  (QEMU)  stdout, stderr ──pipe──► banger-log:MARK ──► console.log
//! ```
//! The log's process ends by itself when the pipe does. The VMM gets its listening sockets as open fds, so they can be
//! connected to as soon as it is started and nobody waits for a file to appear.

use std::fs::{self, File};
use std::io::{self, PipeWriter};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};

use crate::awaited::{Awaited, DEADLINE};
use crate::command::Detached;
use crate::error::HostError;
use crate::mark::Mark;
use crate::process::{self, Children, Watched};
use crate::{Places, command, socket};

const VMM: &str = "banger-vmm:";
pub(crate) const LOG: &str = "banger-log:";
/// The log of a jailed VMM, which is another kind of claim.
pub(crate) const JAIL_LOG: &str = "banger-jail-log:";

/// The first fd at which a VMM finds its listening sockets, in the order of [`Vmm::sockets`].
pub const VMM_FIRST_FD: i32 = 3;

/// How long a killed VMM has to be gone: freeing the memory of a large guest takes the kernel seconds.
const KILL_DEADLINE: Duration = Duration::from_secs(20);
/// How long the log's process has to write down the rest.
const LOG_DEADLINE: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vmm {
    pub mark: Mark,
    /// A program's name, looked for in the system's folders, or an absolute path.
    pub program: PathBuf,
    pub args: Vec<String>,
    /// Names of listening unix sockets in the run folder; the program gets them as open fds.
    pub sockets: Vec<String>,
    /// Names of unix sockets in the run folder on which somebody listens; the program gets connections to them as open fds, after
    /// those that it listens on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub connects: Vec<String>,
    /// A socket in the run folder that the program makes itself, and that must be there before it counts as started.
    #[serde(default)]
    pub makes: Option<String>,
    /// The log is at most this long, in bytes: the newer half in the log, the older half beside it.
    pub log_limit_bytes: u64,
}

/// The process that keeps the log of this VM, reading what is written to the returned end of its pipe.
pub(crate) fn start_log(
    (prefix, mark): (&str, &Mark),
    limit_bytes: u64,
    places: &Places,
    log_writer: &(PathBuf, Vec<String>),
    children: &Children,
) -> Result<PipeWriter, HostError> {
    let failed = |cause: io::Error| HostError::new(format!("keep a log of VM {mark}"), cause);
    let (read_end, write_end) = io::pipe().map_err(failed)?;
    let (program, args) = log_writer;
    let mut args = args.clone();
    args.push(places.log(mark).to_string_lossy().into_owned());
    args.push(limit_bytes.to_string());
    let log = Detached {
        program,
        argv0: &format!("{prefix}{mark}"),
        args: &args,
        stdin: read_end.into(),
        stdout: Stdio::null(),
        stderr: Stdio::null(),
        fds: Vec::new(),
        first_fd: VMM_FIRST_FD,
        confined: None,
    };
    children.add(&log.spawn().map_err(failed)?).map_err(failed)?;
    Ok(write_end)
}

pub(crate) fn acquire(
    vmm: &Vmm,
    places: &Places,
    console: PipeWriter,
    children: &Children,
) -> Result<(), HostError> {
    let program = program(&vmm.program)?;
    let failed = |cause: io::Error| HostError::new(format!("start {}", program.display()), cause);
    let run_folder = places.run_folder(&vmm.mark);
    let mut fds = Vec::new();
    for name in &vmm.sockets {
        fds.push(socket::listen(&run_folder, name)?);
    }
    for name in &vmm.connects {
        fds.push(socket::connect(&run_folder, name)?.into());
    }
    let made = vmm.makes.as_deref().map(|name| Ok((name, awaited(&run_folder, name)?)));
    let made = made.transpose().map_err(failed)?;
    let started = Detached {
        program: &program,
        argv0: &format!("{VMM}{}", vmm.mark),
        args: &vmm.args,
        stdin: Stdio::null(),
        stdout: console.try_clone().map_err(failed)?.into(),
        stderr: console.into(),
        fds,
        first_fd: VMM_FIRST_FD,
        confined: None,
    };
    let child = started.spawn().map_err(failed)?;
    // Nobody has reaped it yet, so the number is still its own.
    let process = Watched::open(Pid::from_child(&child)).map_err(failed)?;
    children.add(&child).map_err(failed)?;
    let Some((name, made)) = made else { return Ok(()) };
    let process = process.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
    made.wait(name, &process, DEADLINE).map_err(failed)
}

/// To wait for a socket in this folder; one of that name from before is removed.
fn awaited(folder: &Path, name: &str) -> io::Result<Awaited> {
    match fs::remove_file(folder.join(name)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    Awaited::in_folder(File::open(folder)?.into())
}

pub(crate) fn release(mark: &Mark, children: &Children) -> Result<(), HostError> {
    let vmm = end(mark, VMM, KILL_DEADLINE, true);
    vmm.and(release_log(LOG, mark, children))
}

/// The log's process, which ends when the VMM has.
pub(crate) fn release_log(prefix: &str, mark: &Mark, children: &Children) -> Result<(), HostError> {
    let log = end(mark, prefix, LOG_DEADLINE, false);
    children.reap();
    log
}

/// Ends every process of this name: at once if `kill`, else when it has not ended by itself by the deadline.
pub(crate) fn end(
    mark: &Mark,
    prefix: &str,
    deadline: Duration,
    kill: bool,
) -> Result<(), HostError> {
    let name = format!("{prefix}{mark}");
    let failed = |cause: io::Error| HostError::new(format!("end the process {name}"), cause);
    for found in process::find(&name).map_err(failed)? {
        if !kill && found.wait(deadline).is_ok() {
            continue;
        }
        found.signal(Signal::KILL).map_err(failed)?;
        found.wait(deadline).map_err(failed)?;
    }
    Ok(())
}

pub(crate) fn watch(mark: &Mark) -> Result<Option<Watched>, HostError> {
    let name = format!("{VMM}{mark}");
    let found = process::find(&name)
        .map_err(|e| HostError::new(format!("look for the process {name}"), e))?;
    Ok(found.into_iter().next())
}

/// The marks of all VMMs that are not jailed, and of their logs.
pub(crate) fn marked() -> Result<Vec<Mark>, HostError> {
    let mut marks = named(VMM)?;
    marks.extend(named(LOG)?);
    Ok(marks)
}

/// The marks of all processes whose name begins so.
pub(crate) fn named(prefix: &str) -> Result<Vec<Mark>, HostError> {
    let names = process::names(prefix).map_err(|e| HostError::new("look for processes", e))?;
    Ok(names.iter().filter_map(|name| Mark::parse(&name[prefix.len()..])).collect())
}

fn program(wanted: &Path) -> Result<PathBuf, HostError> {
    if wanted.is_absolute() {
        return Ok(wanted.to_owned());
    }
    wanted.to_str().and_then(command::find).ok_or_else(|| {
        HostError::new(
            format!("start {}", wanted.display()),
            io::Error::from(io::ErrorKind::NotFound),
        )
    })
}
