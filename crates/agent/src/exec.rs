//! One command: a WebSocket in, a process out, as `banger_api::exec` lays down.
//!
//! ```text
//!            ┌─ inbox: stdin, resize, signal ──► command ──► pumps ─┐
//! client ────┤                                                      ├──► outbox ──► client
//!            └─ gone: SIGHUP, 5 s later SIGKILL      exit, at last ─┘
//! ```
//!
//! All queues are short, so a client that does not read holds up the command and not this program's memory. Signals and
//! resizes overtake stdin: what the command has not read waits beside them, at most a window full.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use banger_api::exec::{
    Exit, FrameError, FromAgent, Refused, STDIN_WINDOW, Start, TerminalSize, ToAgent, Word,
};
use banger_api::image::Config;
use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use rustix::termios::Winsize;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, watch as broadcast};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{self, Message};

use crate::output::{self, Kind};
use crate::spawn::{self, Ends, NotFound, Program, StartError};
use crate::users::{self, User};
use crate::watched::watch;

/// Between the signal that asks and the one that does not.
const GRACE: Duration = Duration::from_secs(5);

/// How long a client may take to say goodbye after the last frame.
const GOODBYE: Duration = Duration::from_secs(5);

/// Why the client is no longer there.
#[derive(Debug, thiserror::Error)]
enum Gone {
    #[error("the client left")]
    Left,
    #[error("the client sent what is no frame")]
    Frame(#[from] FrameError),
    #[error("the client sent a frame out of its order")]
    Order,
    #[error("the client sent more stdin than the window allows")]
    Window,
    #[error("the connection to the client broke")]
    Broken(#[from] tungstenite::Error),
}

/// Serves one exec from its first frame to its last. What the request leaves open is as the image's `config` says.
pub(crate) async fn serve<S>(socket: WebSocketStream<S>, config: &Config)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut sink, mut frames) = socket.split();
    // A client that leaves before it has started anything leaves nothing to do.
    let Ok(ToAgent::Start(start)) = next(&mut frames).await else { return };
    match begin(&start, config) {
        Err(refused) => {
            if sink.send(Message::Binary(FromAgent::Refused(refused).encode())).await.is_ok() {
                say_goodbye(sink, frames).await;
            }
        }
        Ok(command) => command.serve(sink, frames, timeout(&start)).await,
    }
}

/// Starts what is asked for; what that leaves open is as the image's `config` says.
pub(crate) fn begin(start: &Start, config: &Config) -> Result<Command, Refused> {
    let begun = Instant::now();
    let program = prepare(start, config)?;
    let started = spawn::start(&program).map_err(|error| refuse_start(&error))?;
    Command::new(started, begun).map_err(|error| {
        crate::console::say_error(&error);
        refuse(125, error.to_string())
    })
}

/// Serves the client of a command that was begun.
pub(crate) async fn carry<S>(command: Command, start: &Start, socket: WebSocketStream<S>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (sink, frames) = socket.split();
    command.serve(sink, frames, timeout(start)).await;
}

fn timeout(start: &Start) -> Option<Duration> {
    start.timeout_ms.map(Duration::from_millis)
}

/// The last frame is out: waits until the client has it, which its own goodbye shows.
pub(crate) async fn say_goodbye<S>(
    mut sink: SplitSink<WebSocketStream<S>, Message>,
    mut frames: SplitStream<WebSocketStream<S>>,
) where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let goodbye = async {
        if sink.close().await.is_ok() {
            while let Some(Ok(_)) = frames.next().await {}
        }
    };
    // A client that does not answer gets no more time; its connection is closed either way.
    drop(tokio::time::timeout(GOODBYE, goodbye).await);
}

async fn next<S>(frames: &mut SplitStream<WebSocketStream<S>>) -> Result<ToAgent, Gone>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        match frames.next().await {
            None | Some(Ok(Message::Close(_))) => return Err(Gone::Left),
            Some(Ok(Message::Binary(bytes))) => return Ok(ToAgent::decode(&bytes)?),
            // Pings are answered by the library; texts are nobody's.
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(error.into()),
        }
    }
}

/// A command that runs.
pub(crate) struct Command {
    child: Child,
    pub(crate) pid: Pid,
    /// Readable when the command has ended; it can be asked without taking the end, so that the pid stays ours.
    process: AsyncFd<OwnedFd>,
    pub(crate) outputs: Outputs,
    pub(crate) input: Input,
    begun: Instant,
}

pub(crate) enum Outputs {
    Terminal(Arc<AsyncFd<OwnedFd>>),
    Pipes { stdout: AsyncFd<OwnedFd>, stderr: AsyncFd<OwnedFd> },
}

/// Where stdin goes.
pub(crate) enum Input {
    /// `last`: what was written last, which decides how the terminal takes an end of file.
    Terminal {
        fd: Arc<AsyncFd<OwnedFd>>,
        last: u8,
    },
    Pipe(AsyncFd<OwnedFd>),
    /// The command reads no more, or never did: what comes is thrown away.
    Closed,
}

#[derive(Debug, thiserror::Error)]
#[error("cannot watch a command that was started")]
pub(crate) struct WatchError(#[source] io::Error);

impl Command {
    pub(crate) fn new(started: spawn::Started, begun: Instant) -> Result<Self, WatchError> {
        let pid = Pid::from_child(&started.child);
        let watched =
            pidfd_open(pid, PidfdFlags::empty()).map_err(io::Error::from).and_then(|process| {
                let (outputs, input) = match started.ends {
                    Ends::Terminal(terminal) => {
                        let terminal = Arc::new(watch(terminal)?);
                        (
                            Outputs::Terminal(Arc::clone(&terminal)),
                            Input::Terminal { fd: terminal, last: b'\n' },
                        )
                    }
                    Ends::Pipes { stdin, stdout, stderr } => (
                        Outputs::Pipes { stdout: watch(stdout)?, stderr: watch(stderr)? },
                        stdin.map_or(Ok(Input::Closed), |stdin| watch(stdin).map(Input::Pipe))?,
                    ),
                };
                Ok((watch(process)?, outputs, input))
            });
        match watched {
            Ok((process, outputs, input)) => {
                Ok(Self { child: started.child, pid, process, outputs, input, begun })
            }
            Err(cause) => {
                signal_group(pid, Signal::KILL);
                Err(WatchError(cause))
            }
        }
    }

    async fn serve<S>(
        mut self,
        mut sink: SplitSink<WebSocketStream<S>, Message>,
        mut frames: SplitStream<WebSocketStream<S>>,
        timeout: Option<Duration>,
    ) where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let (outbox, mut posted) = mpsc::channel::<FromAgent>(4);
        let under_way = AtomicUsize::new(0);
        let (queue, waiting) = mpsc::unbounded_channel();
        let stdin = StdinQueue { queue, under_way: &under_way };
        let post = async {
            while let Some(frame) = posted.recv().await {
                sink.send(Message::Binary(frame.encode())).await?;
            }
            Ok::<(), Gone>(())
        };
        let (pid, terminal) = (self.pid, self.outputs.terminal().cloned());
        let input = std::mem::replace(&mut self.input, Input::Closed);
        let work = async {
            let exit = tokio::select! {
                (exit, _) = self.run(&outbox, timeout) => exit,
                never = feed(input, waiting, &under_way, &outbox) => match never {},
            };
            // If this fails the post has failed before, and says why.
            drop(outbox.send(FromAgent::Exit(exit)).await);
            drop(outbox);
            Ok(())
        };
        let gone = tokio::select! {
            done = async { tokio::try_join!(work, post) } => done.err(),
            gone = inbox(&mut frames, pid, terminal.as_deref(), &stdin) => Some(gone),
        };
        drop(terminal);
        match gone {
            None => say_goodbye(sink, frames).await,
            Some(gone) => {
                if let Gone::Frame(_) | Gone::Order | Gone::Window = gone {
                    crate::console::say_error(&gone);
                }
                drop((sink, frames));
                self.hang_up().await;
            }
        }
    }

    /// Carries the output until the command has ended; how it did, in a frame and in the kernel's words.
    pub(crate) async fn run(
        &mut self,
        outbox: &mpsc::Sender<FromAgent>,
        timeout: Option<Duration>,
    ) -> (Exit, Option<ExitStatus>) {
        let (ended, when_ended) = broadcast::channel(false);
        let wait = async {
            let timed_out = end_of(&self.process, self.pid, timeout).await;
            let microseconds = u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX);
            // It has ended, so this takes its status and does not wait.
            let ended_with = self.child.wait().ok();
            let status = ended_with.map_or(255, exit_status);
            ended.send_replace(true);
            (Exit { status, timed_out, microseconds }, ended_with)
        };
        let pumps = async {
            let pump =
                |source, kind, frame| output::pump(source, kind, when_ended.clone(), outbox, frame);
            match &self.outputs {
                Outputs::Terminal(terminal) => {
                    pump(terminal, Kind::Terminal, FromAgent::Stdout).await
                }
                Outputs::Pipes { stdout, stderr } => {
                    let (stdout, stderr) = tokio::join!(
                        pump(stdout, Kind::Pipe, FromAgent::Stdout),
                        pump(stderr, Kind::Pipe, FromAgent::Stderr)
                    );
                    stdout.and(stderr)
                }
            }
        };
        let (exit, pumped) = tokio::join!(wait, pumps);
        if let Err(error) = pumped
            && error.kind() != io::ErrorKind::BrokenPipe
        {
            crate::console::say(&format!("cannot read a command's output: {error}"));
        }
        exit
    }

    /// Nobody looks at the command any more, which may go on if it does not mind (nohup): as sshd leaves one.
    pub(crate) async fn let_go(mut self) {
        drop((self.outputs, self.input));
        if matches!(self.child.try_wait(), Ok(None)) {
            signal_group(self.pid, Signal::HUP);
            signal_group(self.pid, Signal::CONT);
            drop(self.process.readable().await);
            drop(self.child.wait());
        }
    }

    /// Nobody looks at the command any more: what is in its group ends, now or after a time to end by itself.
    async fn hang_up(mut self) {
        // The end of a terminal tells the group in its foreground (SIGHUP from the kernel), the ends of pipes tell writers.
        let foreground =
            self.outputs.terminal().and_then(|terminal| rustix::termios::tcgetpgrp(terminal).ok());
        drop((self.outputs, self.input));
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        signal_group(self.pid, Signal::HUP);
        signal_group(self.pid, Signal::CONT);
        // The child is not waited for until then: so its pid, which is its group's name, cannot be another's.
        tokio::time::sleep(GRACE).await;
        signal_group(self.pid, Signal::KILL);
        if let Some(foreground) = foreground {
            signal_group(foreground, Signal::KILL);
        }
        drop(self.process.readable().await);
        drop(self.child.wait());
    }
}

impl Outputs {
    pub(crate) fn terminal(&self) -> Option<&Arc<AsyncFd<OwnedFd>>> {
        match self {
            Outputs::Terminal(terminal) => Some(terminal),
            Outputs::Pipes { .. } => None,
        }
    }
}

/// Waits for the end, and sees to it when the time is over; tells whether it was.
async fn end_of(process: &AsyncFd<OwnedFd>, pid: Pid, timeout: Option<Duration>) -> bool {
    let ended = async { drop(process.readable().await) };
    let Some(timeout) = timeout else {
        ended.await;
        return false;
    };
    tokio::pin!(ended);
    if tokio::time::timeout(timeout, &mut ended).await.is_ok() {
        return false;
    }
    signal_group(pid, Signal::TERM);
    signal_group(pid, Signal::CONT);
    if tokio::time::timeout(GRACE, &mut ended).await.is_err() {
        signal_group(pid, Signal::KILL);
        ended.await;
    }
    true
}

/// A group that is gone needs no signal.
pub(crate) fn signal_group(group: Pid, signal: Signal) {
    kill_process_group(group, signal).ok();
}

fn exit_status(status: ExitStatus) -> u8 {
    let number = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    number.and_then(|number| u8::try_from(number).ok()).unwrap_or(255)
}

/// What the client sends, until it is gone.
async fn inbox<S>(
    frames: &mut SplitStream<WebSocketStream<S>>,
    pid: Pid,
    terminal: Option<&AsyncFd<OwnedFd>>,
    stdin: &StdinQueue<'_>,
) -> Gone
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        let done = match next(frames).await {
            Ok(ToAgent::Stdin(bytes)) => stdin.push(bytes),
            Ok(ToAgent::StdinEnd) => {
                stdin.send(Stdin::End);
                Ok(())
            }
            Ok(ToAgent::Resize(size)) => {
                if let Some(terminal) = terminal {
                    // A terminal that is gone needs no size.
                    rustix::termios::tcsetwinsize(terminal, winsize(size)).ok();
                }
                Ok(())
            }
            Ok(ToAgent::Signal(number)) => {
                if let Ok(signal) = spawn::signal(i32::from(number)) {
                    signal_group(pid, signal);
                }
                Ok(())
            }
            Ok(ToAgent::Start(_)) => Err(Gone::Order),
            Err(gone) => Err(gone),
        };
        if let Err(gone) = done {
            return gone;
        }
    }
}

/// Stdin that the command has not taken yet. The client keeps to the window, so the queue needs no bound of its own.
struct StdinQueue<'a> {
    queue: mpsc::UnboundedSender<Stdin>,
    under_way: &'a AtomicUsize,
}

enum Stdin {
    Bytes(Bytes),
    End,
}

impl StdinQueue<'_> {
    fn push(&self, bytes: Bytes) -> Result<(), Gone> {
        let before = self.under_way.fetch_add(bytes.len(), Ordering::Relaxed);
        if before + bytes.len() > STDIN_WINDOW {
            return Err(Gone::Window);
        }
        self.send(Stdin::Bytes(bytes));
        Ok(())
    }

    /// Nobody takes it when the command has ended meanwhile, and then nobody misses it.
    fn send(&self, stdin: Stdin) {
        drop(self.queue.send(stdin));
    }
}

/// Writes stdin to the command, and reports what it took. It goes on for as long as it is asked to.
async fn feed(
    mut input: Input,
    mut waiting: mpsc::UnboundedReceiver<Stdin>,
    under_way: &AtomicUsize,
    outbox: &mpsc::Sender<FromAgent>,
) -> std::convert::Infallible {
    while let Some(stdin) = waiting.recv().await {
        match stdin {
            Stdin::Bytes(bytes) => {
                input.write(&bytes).await;
                under_way.fetch_sub(bytes.len(), Ordering::Relaxed);
                let count = u32::try_from(bytes.len()).expect("a frame is smaller than the window");
                // Without a client there is nobody to tell, and `serve` knows it already.
                drop(outbox.send(FromAgent::Taken(count)).await);
            }
            Stdin::End => input.end().await,
        }
    }
    std::future::pending().await
}

impl Input {
    /// Returns when the command has it all, or reads no more.
    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        let (fd, last) = match self {
            Input::Terminal { fd, last } => (&**fd, Some(last)),
            Input::Pipe(fd) => (&*fd, None),
            Input::Closed => return,
        };
        match (write_all(fd, bytes).await, last, bytes.last()) {
            (Ok(()), Some(last), Some(&byte)) => *last = byte,
            (Ok(()), ..) => {}
            // EPIPE: it has closed its stdin. EIO: nobody has the terminal open.
            (Err(_), ..) => *self = Input::Closed,
        }
    }

    /// A pipe is closed; at a terminal somebody types ^D, twice if the line is not empty (termios(3), VEOF).
    pub(crate) async fn end(&mut self) {
        if let Input::Terminal { last, .. } = self {
            const END_OF_FILE: &[u8] = &[4, 4];
            let count = if *last == b'\n' { 1 } else { 2 };
            self.write(&END_OF_FILE[..count]).await;
        } else {
            *self = Input::Closed;
        }
    }
}

async fn write_all(fd: &AsyncFd<OwnedFd>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let mut ready = fd.writable().await?;
        match ready.try_io(|fd| Ok(rustix::io::write(fd, bytes)?)) {
            Ok(Ok(count)) => bytes = &bytes[count..],
            Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(Err(error)) => return Err(error),
            Err(_would_block) => {}
        }
    }
    Ok(())
}

pub(crate) fn winsize(size: TerminalSize) -> Winsize {
    Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 }
}

/// Makes of a request what can be started, or says why not.
pub(crate) fn prepare(start: &Start, config: &Config) -> Result<Program, Refused> {
    let user = start.user.as_deref().or(config.user.as_deref().filter(|user| !user.is_empty()));
    let user = users::find(user).map_err(|error| refuse(125, error.to_string()))?;
    let environment = environment(start, config, &user)?;
    let folder = folder(start, config, &user)?;
    let (wanted, arg0) = match start.argv.first() {
        Some(word) => (os(word).to_owned(), os(word).to_owned()),
        None => login_shell(&user, &folder)?,
    };
    let path = environment
        .iter()
        .rev()
        .find(|(name, _)| name == "PATH")
        .map(|(_, value)| value.as_os_str());
    let path = path.unwrap_or_default();
    let program =
        spawn::look_up(&wanted, path, &folder).map_err(|why| refuse_lookup(&why, &wanted, path))?;
    Ok(Program {
        path: program,
        arg0,
        arguments: start.argv.iter().skip(1).map(|word| os(word).to_owned()).collect(),
        environment,
        folder,
        user,
        terminal: start.tty.map(winsize),
        modes: Vec::new(),
        no_stdin: start.no_stdin,
    })
}

fn os(word: &Word) -> &OsStr {
    OsStr::from_bytes(word.as_bytes())
}

/// The guest's own, then the image's, then the request's; a later one of the same name wins.
fn environment(
    start: &Start,
    config: &Config,
    user: &User,
) -> Result<Vec<(OsString, OsString)>, Refused> {
    let own = [
        ("PATH", spawn::DEFAULT_PATH),
        ("HOME", &user.home),
        ("USER", &user.name),
        ("LOGNAME", &user.name),
        ("SHELL", user.shell.as_deref().unwrap_or(DEFAULT_SHELL)),
    ];
    let terminal = start.tty.map(|_| ("TERM", "xterm-256color"));
    let mut environment: Vec<(OsString, OsString)> =
        own.into_iter().chain(terminal).map(|(name, value)| (name.into(), value.into())).collect();
    let of_image = config.env.iter().filter_map(|line| line.split_once('='));
    environment.extend(
        of_image
            .filter(|(name, _)| !name.is_empty())
            .map(|(name, value)| (name.into(), value.into())),
    );
    for (name, value) in &start.env {
        if name.as_bytes().is_empty() || name.as_bytes().contains(&b'=') {
            return Err(refuse(
                125,
                format!("{name:?} cannot be the name of an environment variable"),
            ));
        }
        environment.push((os(name).to_owned(), os(value).to_owned()));
    }
    Ok(environment)
}

fn folder(start: &Start, config: &Config, user: &User) -> Result<PathBuf, Refused> {
    match &start.cwd {
        Some(word) => match std::fs::metadata(os(word)) {
            Ok(found) if found.is_dir() => Ok(Path::new("/").join(os(word))),
            Ok(_) => Err(refuse(125, format!("{word:?} is no folder in the guest"))),
            Err(_) => Err(refuse(125, format!("there is no folder {word:?} in the guest"))),
        },
        None if config.working_dir.as_ref().is_some_and(|folder| Path::new(folder).is_dir()) => {
            Ok(Path::new("/").join(config.working_dir.as_deref().unwrap_or_default()))
        }
        None if Path::new(&user.home).is_dir() => Ok(PathBuf::from(&user.home)),
        None => Ok(PathBuf::from("/")),
    }
}

const DEFAULT_SHELL: &str = "/bin/sh";

/// The user's shell and its name as a login shell, `-bash`; /bin/sh when the user has none or the image lacks it.
pub(crate) fn login_shell(user: &User, folder: &Path) -> Result<(OsString, OsString), Refused> {
    let candidates = user.shell.as_deref().into_iter().chain([DEFAULT_SHELL]);
    for shell in candidates {
        if spawn::look_up(shell.as_ref(), OsStr::new(""), folder).is_ok() {
            let name = Path::new(shell).file_name().unwrap_or_default().to_string_lossy();
            return Ok((shell.into(), format!("-{name}").into()));
        }
    }
    Err(refuse(127, format!("this image has no shell ({DEFAULT_SHELL}): name a program to run")))
}

fn refuse(status: u8, message: impl Into<String>) -> Refused {
    Refused { status, message: message.into() }
}

fn refuse_lookup(why: &NotFound, wanted: &OsStr, path: &OsStr) -> Refused {
    match why {
        NotFound::NotExecutable(found) => {
            refuse(126, format!("{} in the guest is not executable", found.display()))
        }
        NotFound::Absent if wanted.as_bytes().contains(&b'/') => {
            refuse(127, format!("there is no {wanted:?} in the guest"))
        }
        NotFound::Absent => refuse(
            127,
            format!("there is no program {wanted:?} in the guest's PATH ({})", path.display()),
        ),
    }
}

/// Errors that execve(2) gives for a file that was found.
pub(crate) fn refuse_start(error: &StartError) -> Refused {
    let text = banger_api::problem::chain(Some(error)).join(": ");
    match error {
        StartError::Run { path, cause } if cause.kind() == io::ErrorKind::NotFound => refuse(
            126,
            format!("cannot run {}: the guest lacks its interpreter or its loader", path.display()),
        ),
        StartError::Run { .. } => refuse(126, text),
        _ => refuse(125, text),
    }
}
