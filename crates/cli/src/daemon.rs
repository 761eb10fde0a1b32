//! Finds the daemon or starts it.
//!
//! A started daemon lives on its own: a session without a terminal, no inherited file but /dev/null and its log. It
//! says on a pipe (`BANGER_READY_FD`) how its start went: `ready`, `already running` when another one was quicker, or
//! a [`Problem`] as JSON. The pipe's end is an answer too, so a daemon that dies is noticed at once.

#![expect(
    unsafe_code,
    reason = "a child's setsid(2) and the flags of inherited descriptors have no safe interface"
)]

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use banger_api::client::{Client, connect_unix};
use banger_api::{Code, Folders, Problem};
use command_fds::{CommandFdExt, FdMapping};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

use crate::programs;
use crate::system::waiting::{self, Came};

/// How long a daemon may take to listen: it adopts running VMs before.
const START_DEADLINE: Duration = Duration::from_secs(30);

/// How long a daemon that systemd restarts may take.
const RESTART_DEADLINE: Duration = Duration::from_secs(2);

/// Where the daemon finds the pipe's end.
const READY_FD: i32 = 3;

/// A client of the daemon, which is started if nobody listens.
pub(crate) async fn connect_or_start(folders: &Folders) -> Result<Client, Problem> {
    match running(folders).await? {
        Some(client) => Ok(client),
        None if *folders == Folders::installed() => restarted(folders).await,
        None => start(folders).await,
    }
}

/// The daemon of an installation is systemd's to start. It may just be restarting.
async fn restarted(folders: &Folders) -> Result<Client, Problem> {
    let socket = folders.socket();
    let waited = tokio::task::spawn_blocking({
        let socket = socket.clone();
        move || waiting::for_socket(&socket, None, RESTART_DEADLINE)
    });
    match waited.await {
        Ok(Ok(Came::Listening)) => Ok(Client::new(socket)),
        // No folder for its socket: it has not run since the boot.
        _ => Err(Problem::new(Code::Daemon, "the daemon of this host's installation does not run")
            .because(format!("nobody listens at {}", socket.display()))
            .remedy("`sudo systemctl start bangerd`; `systemctl status bangerd` says why it does not run")),
    }
}

/// A client of the daemon if one listens.
pub(crate) async fn running(folders: &Folders) -> Result<Option<Client>, Problem> {
    let socket = folders.socket();
    match connect_unix(&socket).await {
        Ok(_) => Ok(Some(Client::new(socket))),
        // Never started, or its socket outlived it.
        Err(error)
            if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) =>
        {
            Ok(None)
        }
        Err(error) => Err(Problem::new(
            Code::Daemon,
            format!("cannot reach the daemon at {}", socket.display()),
        )
        .cause(&error)
        .remedy("BANGER_HOME and the XDG variables say where it listens: are they yours?")),
    }
}

/// Starts the daemon and waits until it listens.
async fn start(folders: &Folders) -> Result<Client, Problem> {
    let log_path = folders.daemon_log();
    let starting =
        turn_to_start(open_log(folders)?).await.map_err(|error| log_problem(folders, &error))?;
    // Whoever had the turn before us may have started it.
    if let Some(client) = running(folders).await? {
        return Ok(client);
    }
    let program = program()?;
    let mut log = open_log(folders)?;
    let log_begins = log.seek(SeekFrom::End(0)).map_err(|error| log_problem(folders, &error))?;
    let answer = spawn(&program, &log).map_err(|error| {
        Problem::new(Code::Missing, format!("cannot start the daemon {}", program.display()))
            .cause(&error)
    })?;
    let answer = wait(answer, START_DEADLINE).await?;
    drop(starting);
    match answer {
        Answer::Ready => Ok(Client::new(folders.socket())),
        Answer::AlreadyRunning => running(folders).await?.ok_or_else(|| {
            Problem::new(
                Code::Daemon,
                "another daemon is just starting or ending, and does not listen",
            )
            .remedy("repeat the command; see `banger daemon status`")
        }),
        Answer::Gone => Err(Problem::new(Code::Daemon, "the daemon ended while it started")
            .because(last_lines(&log_path, log_begins))
            .remedy(format!("see {}", log_path.display()))),
        Answer::Failed(problem) => Err(problem),
        Answer::Silent => Err(Problem::new(
            Code::Timeout,
            format!("the daemon did not say within {} s that it listens", START_DEADLINE.as_secs()),
        )
        .remedy(format!(
            "see {}; `banger daemon status` says whether it came up later",
            log_path.display()
        ))),
    }
}

/// Waits until no other CLI is starting the daemon: of many commands at once, one starts it and the others find it
/// listening. The turn ends when the file is closed. It is a lock on the log, opened once more for this: the daemon
/// inherits another opening, and so never the lock (flock(2)).
async fn turn_to_start(log: File) -> io::Result<File> {
    let (turn, mine) = oneshot::channel();
    // A thread, so that a Ctrl-C ends the waiting.
    std::thread::Builder::new().name("turn".to_owned()).spawn(move || {
        // Nobody to tell: the command has left at a signal.
        drop(turn.send(log.lock().map(|()| log)));
    })?;
    mine.await.map_err(io::Error::other)?
}

/// `bangerd` beside our own program or where its package has it, else in `PATH`.
fn program() -> Result<PathBuf, Problem> {
    let ours = programs::folders_of_ours().into_iter().flatten();
    let path = std::env::var_os("PATH").unwrap_or_default();
    ours.chain(std::env::split_paths(&path).filter(|folder| folder.is_absolute()))
        .map(|folder| folder.join("bangerd"))
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| {
            Problem::new(
                Code::Missing,
                "cannot start the daemon: no program `bangerd` beside `banger` or in PATH",
            )
            .remedy("install `bangerd` beside `banger`")
        })
}

fn open_log(folders: &Folders) -> Result<File, Problem> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(&folders.state);
    made.and_then(|()| {
        OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .open(folders.daemon_log())
    })
    .map_err(|error| log_problem(folders, &error))
}

fn log_problem(folders: &Folders, error: &io::Error) -> Problem {
    Problem::new(
        Code::Missing,
        format!("cannot write the daemon's log {}", folders.daemon_log().display()),
    )
    .cause(error)
    .remedy("make the folder writable, or set BANGER_HOME to one that is")
}

/// The reading end of the pipe on which the new daemon answers.
fn spawn(program: &Path, log: &File) -> io::Result<OwnedFd> {
    keep_inherited_files_from_the_daemon()?;
    let (answer, ready) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let mut command = programs::new(program);
    command
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log.try_clone()?)
        .env("BANGER_READY_FD", READY_FD.to_string())
        .fd_mappings(vec![FdMapping { parent_fd: ready, child_fd: READY_FD }])
        .expect("one mapping cannot collide");
    // SAFETY: between fork and exec only async-signal-safe calls are allowed (signal-safety(7)); setsid(2) is one, and
    // the closure allocates nothing.
    unsafe {
        command.pre_exec(|| {
            rustix::process::setsid()?;
            Ok(())
        });
    }
    // It outlives us; init reaps it.
    drop(command.spawn()?);
    // Dropping the command closes our copy of the pipe's writing end, so that the daemon's end is the pipe's end.
    drop(command);
    Ok(answer)
}

/// A shell may have given us a lock (`flock 9`) or a pipe that somebody reads to its end: the daemon, which lives on,
/// must not hold it. Only our own descriptors' close-on-exec flags change.
fn keep_inherited_files_from_the_daemon() -> io::Result<()> {
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let Some(number) = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok())
        else {
            continue;
        };
        if number > 2 {
            // SAFETY: it was open when it was listed, and it is only borrowed for this one call. The listing's own
            // descriptor is among them and is close-on-exec already.
            let fd = unsafe { BorrowedFd::borrow_raw(number) };
            // A descriptor that another thread closed meanwhile is nobody's.
            rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::CLOEXEC).ok();
        }
    }
    Ok(())
}

#[derive(Debug)]
enum Answer {
    Ready,
    AlreadyRunning,
    Failed(Problem),
    /// The pipe ended without a word.
    Gone,
    Silent,
}

async fn wait(answer: OwnedFd, deadline: Duration) -> Result<Answer, Problem> {
    let broken = |error: io::Error| {
        Problem::new(Code::Daemon, "cannot read what the starting daemon says").cause(&error)
    };
    let mut pipe = pipe::Receiver::from_owned_fd(answer).map_err(broken)?;
    let mut said = Vec::new();
    let reading = async {
        // The first line is the answer; the daemon may keep the pipe open after it.
        while !said.contains(&b'\n') && pipe.read_buf(&mut said).await? > 0 {}
        Ok(())
    };
    match tokio::time::timeout(deadline, reading).await {
        Err(_) => return Ok(Answer::Silent),
        Ok(read) => read.map_err(broken)?,
    }
    Ok(match said.trim_ascii() {
        b"ready" => Answer::Ready,
        b"already running" => Answer::AlreadyRunning,
        b"" => Answer::Gone,
        json => match serde_json::from_slice(json) {
            Ok(problem) => Answer::Failed(problem),
            Err(error) => Answer::Failed(
                Problem::new(Code::Daemon, "the starting daemon said something that is no answer")
                    .because(String::from_utf8_lossy(json))
                    .cause(&error),
            ),
        },
    })
}

/// What the log got since `begins`, its last lines only.
fn last_lines(log: &Path, begins: u64) -> String {
    let read = || -> io::Result<String> {
        let mut file = File::open(log)?;
        file.seek(SeekFrom::Start(begins))?;
        let mut bytes = Vec::new();
        file.take(64 * 1024).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    match read() {
        Ok(text) if text.trim().is_empty() => "it wrote nothing to its log".to_owned(),
        Ok(text) => {
            let lines: Vec<&str> = text.lines().collect();
            lines[lines.len().saturating_sub(10)..].join("\n")
        }
        Err(error) => format!("its log cannot be read: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    async fn answer_to(words: &str) -> Answer {
        let (read, write) = rustix::pipe::pipe().unwrap();
        File::from(write).write_all(words.as_bytes()).unwrap();
        wait(read, Duration::from_secs(5)).await.unwrap()
    }

    #[tokio::test]
    async fn the_daemons_first_line_is_its_answer() {
        assert!(matches!(answer_to("ready\n").await, Answer::Ready));
        assert!(matches!(answer_to("already running\n").await, Answer::AlreadyRunning));
        assert!(matches!(answer_to("").await, Answer::Gone));
        let problem = Problem::new(Code::Damaged, "the database is newer than this daemon");
        let json = serde_json::to_string(&problem).unwrap();
        assert!(matches!(answer_to(&json).await, Answer::Failed(found) if found == problem));
        assert!(matches!(answer_to("Segmentation fault\n").await, Answer::Failed(found)
            if found.causes[0] == "Segmentation fault"));
    }

    #[tokio::test]
    async fn a_daemon_that_keeps_the_pipe_open_after_its_answer_is_not_waited_for() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let mut write = File::from(write);
        write.write_all(b"ready\n").unwrap();
        assert!(matches!(wait(read, Duration::from_secs(60)).await.unwrap(), Answer::Ready));
        drop(write);
    }

    #[tokio::test]
    async fn a_silent_daemon_is_waited_for_until_the_deadline_only() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        assert!(matches!(wait(read, Duration::from_millis(10)).await.unwrap(), Answer::Silent));
        drop(write);
    }
}
