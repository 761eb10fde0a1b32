//! One command in a guest, with the user's stdin, stdout, stderr and signals at its own.
//!
//! ```text
//! stdin ── reader thread ──► session ──► sender task ──► WebSocket (frames of banger_api::exec)
//! stdout, stderr ◄── writer thread ◄── session ◄──────── WebSocket
//!                            ▲
//!                 signals, resizes of the terminal
//! ```
//!
//! Reads and writes of the user's files block, in threads of their own: O_NONBLOCK belongs to the open file, which we
//! share with our shell, and is never set here. A slow reader of our stdout stops the reading of the WebSocket, so
//! memory stays bounded, and a command that does not read its stdin stops the reading of ours; signals pass meanwhile.

use std::io;
use std::os::fd::BorrowedFd;

use banger_api::client::ExecSocket;
use banger_api::exec::{Exit, FromAgent, Refused, STDIN_WINDOW, Start, ToAgent};
use banger_api::{Code, Problem};
use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::stdio;
use tokio::signal::unix::SignalKind;
use tokio::sync::{mpsc, oneshot};
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

use crate::failure::{Failure, STDOUT_CLOSED};
use crate::signals::{Signals, listen};
use crate::{out, terminal};

/// What is read of stdin at once.
const CHUNK: usize = 64 * 1024;

/// Frames of output that wait for the writer thread: enough that neither waits for the other at each frame.
const OUTPUT_QUEUE: usize = 8;

/// At this signal we stop passing them on and leave: whoever presses Ctrl-C so often wants his shell back.
const LAST_SIGNAL: u32 = 3;

/// What the CLI exits with when the command was ended by its timeout.
const TIMED_OUT: u8 = 124;

/// With a terminal it leaves a job to itself: Ctrl-], as of telnet(1).
pub(crate) const DETACH_KEY: u8 = 0x1d;

/// Runs the command that `start` describes to its end; the exit status for our caller.
pub(crate) async fn session(
    socket: ExecSocket,
    start: Start,
    signals: &mut Signals,
) -> Result<u8, Failure> {
    Ok(carry(socket, start, signals, false).await?.unwrap_or_default())
}

/// Is there for a job until that ends or the user leaves it; the exit status if it ended. Of `start`, only the terminal and
/// whether there is stdin count.
pub(crate) async fn attach(
    socket: ExecSocket,
    start: Start,
    signals: &mut Signals,
) -> Result<Option<u8>, Failure> {
    carry(socket, start, signals, true).await
}

/// Shows what a job wrote, however that ended.
pub(crate) async fn watch(
    socket: ExecSocket,
    start: Start,
    signals: &mut Signals,
) -> Result<(), Failure> {
    carry(socket, start, signals, true).await.map(drop)
}

async fn carry(
    socket: ExecSocket,
    start: Start,
    signals: &mut Signals,
    may_detach: bool,
) -> Result<Option<u8>, Failure> {
    let has_terminal = start.tty.is_some();
    let reads_stdin = !start.no_stdin;
    let (sink, incoming) = socket.split();
    let (to_agent, queue) = mpsc::unbounded_channel();
    drop(tokio::spawn(send(sink, queue)));
    let session = Session { to_agent, incoming, may_detach };
    session.say(ToAgent::Start(Box::new(start)));

    let raw = has_terminal && terminal::stdin_is_terminal();
    if raw {
        terminal::raw().map_err(|error| cannot("set the terminal to raw mode", &error))?;
    }
    let ended = session.follow(signals, reads_stdin, has_terminal, raw).await;
    terminal::restore();
    match ended? {
        End::Exited(exit) if exit.timed_out => Ok(Some(TIMED_OUT)),
        End::Exited(exit) => Ok(Some(exit.status)),
        End::Refused(refused) => {
            out::stderr(&format!("banger: {}\n", refused.message));
            Ok(Some(refused.status))
        }
        End::StdoutClosed => Ok(Some(STDOUT_CLOSED)),
        End::Detached => Ok(None),
        End::Left(signal) => Err(Failure::Signal(signal)),
    }
}

/// How a session ends, but for problems.
#[derive(Debug)]
enum End {
    Exited(Exit),
    Refused(Refused),
    /// Nobody reads our stdout or stderr: the agent hangs up on the command when we are gone.
    StdoutClosed,
    /// The user has left a job to itself.
    Detached,
    /// We go at this signal, and leave the command to the agent.
    Left(u8),
}

struct Session {
    to_agent: mpsc::UnboundedSender<ToAgent>,
    incoming: SplitStream<ExecSocket>,
    may_detach: bool,
}

impl Session {
    /// Unbounded is bounded here: stdin by its window, the rest by how fast people press keys. A sender that has ended
    /// means a broken connection, which the reading side reports.
    fn say(&self, frame: ToAgent) {
        drop(self.to_agent.send(frame));
    }

    async fn follow(
        mut self,
        signals: &mut Signals,
        reads_stdin: bool,
        has_terminal: bool,
        raw: bool,
    ) -> Result<End, Problem> {
        let mut resized = listen(SignalKind::window_change())?;
        let mut continued = listen(SignalKind::from_raw(rustix::process::Signal::CONT.as_raw()))?;
        let mut stdin = if reads_stdin { Some(read_stdin()?) } else { None };
        let (output, mut written) = write_output()?;
        let mut output = Some(output);
        // Bytes of stdin that the command has not taken yet.
        let mut under_way = 0;
        // Output that the writer thread has no room for yet.
        let mut waiting: Option<Output> = None;
        let mut end: Option<End> = None;
        let mut signals_seen = 0;
        loop {
            let may_send_stdin = under_way + CHUNK <= STDIN_WINDOW && end.is_none();
            tokio::select! {
                biased;
                number = signals.next() => {
                    signals_seen += 1;
                    // With a raw terminal the keys go to the guest as they are: a signal is for us alone.
                    if raw || end.is_some() || signals_seen >= LAST_SIGNAL {
                        return Ok(End::Left(number));
                    }
                    self.say(ToAgent::Signal(number));
                }
                Some(()) = resized.recv(), if has_terminal => {
                    if let Some(size) = terminal::size() {
                        self.say(ToAgent::Resize(size));
                    }
                }
                Some(()) = continued.recv(), if raw => {
                    // The shell took the terminal back while we were stopped.
                    terminal::raw().map_err(|error| cannot("set the terminal to raw mode again", &error))?;
                    if let Some(size) = terminal::size() {
                        self.say(ToAgent::Resize(size));
                    }
                }
                result = &mut written => {
                    match result {
                        Ok(Ok(())) => return end.ok_or_else(|| {
                            Problem::new(Code::Internal, "the writer of the command's output ended before the command")
                        }),
                        Ok(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(End::StdoutClosed),
                        Ok(Err(error)) => return Err(cannot("write the command's output", &error)),
                        Err(_) => return Err(Problem::new(Code::Internal, "the writer of the command's output died")),
                    }
                }
                alive = give(output.as_ref(), &mut waiting), if waiting.is_some() && output.is_some() => {
                    if !alive {
                        // `written` says why.
                        output = None;
                    }
                }
                frame = self.incoming.next(), if waiting.is_none() && end.is_none() => {
                    match decode(frame)? {
                        None => {}
                        Some(FromAgent::Stdout(bytes)) => waiting = Some(Output::Stdout(bytes)),
                        Some(FromAgent::Stderr(bytes)) => waiting = Some(Output::Stderr(bytes)),
                        Some(FromAgent::Taken(count)) => {
                            under_way = under_way.saturating_sub(usize::try_from(count).unwrap_or(usize::MAX));
                        }
                        Some(FromAgent::Exit(exit)) => {
                            end = Some(End::Exited(exit));
                            // The writer thread writes what it has, then ends.
                            output = None;
                        }
                        Some(FromAgent::Refused(refused)) => {
                            end = Some(End::Refused(refused));
                            output = None;
                        }
                    }
                }
                chunk = next_chunk(stdin.as_mut()), if may_send_stdin => {
                    match chunk {
                        Some(Ok(bytes)) if raw && self.may_detach && bytes.contains(&DETACH_KEY) => {
                            return Ok(End::Detached);
                        }
                        Some(Ok(bytes)) => {
                            under_way += bytes.len();
                            self.say(ToAgent::Stdin(bytes));
                        }
                        Some(Err(error)) => return Err(cannot("read stdin", &error)),
                        None => {
                            stdin = None;
                            self.say(ToAgent::StdinEnd);
                        }
                    }
                }
            }
        }
    }
}

/// Hands what waits to the writer as soon as that has room; `false` when it has ended. Loses nothing when dropped.
async fn give(output: Option<&mpsc::Sender<Output>>, waiting: &mut Option<Output>) -> bool {
    let Some(output) = output else { return false };
    match output.reserve().await {
        Ok(room) => {
            if let Some(piece) = waiting.take() {
                room.send(piece);
            }
            true
        }
        Err(_) => false,
    }
}

/// The next chunk of stdin; never, when it has ended.
async fn next_chunk(
    stdin: Option<&mut mpsc::Receiver<io::Result<Bytes>>>,
) -> Option<io::Result<Bytes>> {
    match stdin {
        Some(stdin) => stdin.recv().await,
        None => std::future::pending().await,
    }
}

/// The frame in a message; `None` for what WebSocket itself sends.
fn decode(message: Option<Result<Message, WsError>>) -> Result<Option<FromAgent>, Problem> {
    let lost = || {
        Problem::new(Code::Guest, "the connection to the command broke before it said how it ended")
            .remedy("`banger vm list` shows whether the VM still runs")
    };
    match message {
        Some(Ok(Message::Binary(bytes))) => FromAgent::decode(&bytes).map(Some).map_err(|error| {
            Problem::new(Code::Guest, "the guest's agent sent what is no frame").cause(&error)
        }),
        Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => Ok(None),
        Some(Ok(Message::Text(_))) => {
            Err(Problem::new(Code::Guest, "the guest's agent sent text where frames belong"))
        }
        Some(Ok(Message::Close(None))) | None => Err(lost()),
        Some(Ok(Message::Close(Some(reason)))) => Err(lost().because(reason.reason.to_string())),
        Some(Err(error)) => Err(lost().cause(&error)),
    }
}

async fn send(
    mut sink: SplitSink<ExecSocket, Message>,
    mut queue: mpsc::UnboundedReceiver<ToAgent>,
) {
    while let Some(frame) = queue.recv().await {
        if sink.send(Message::Binary(frame.encode())).await.is_err() {
            return;
        }
    }
}

fn cannot(what: &str, error: &io::Error) -> Problem {
    Problem::new(Code::Internal, format!("cannot {what}")).cause(error)
}

/// Chunks of stdin until its end. The thread reads ahead by two chunks at most, and may stay in read(2) until the
/// process ends, which does not wait for it.
pub(crate) fn read_stdin() -> Result<mpsc::Receiver<io::Result<Bytes>>, Problem> {
    let (chunks, receiver) = mpsc::channel(1);
    let read = move || {
        let mut buffer = vec![0; CHUNK];
        loop {
            let chunk = match rustix::io::read(stdio::stdin(), &mut buffer[..]) {
                Ok(0) => return,
                Ok(length) => Ok(Bytes::copy_from_slice(&buffer[..length])),
                Err(rustix::io::Errno::INTR) => continue,
                // Somebody else who shares this open file made it non-blocking.
                Err(rustix::io::Errno::AGAIN) => match wait_for(stdio::stdin(), PollFlags::IN) {
                    Ok(()) => continue,
                    Err(error) => Err(error),
                },
                // The terminal has gone: as good as the end.
                Err(rustix::io::Errno::IO) => return,
                Err(error) => Err(error.into()),
            };
            let failed = chunk.is_err();
            if chunks.blocking_send(chunk).is_err() || failed {
                return;
            }
        }
    };
    std::thread::Builder::new()
        .name("stdin".to_owned())
        .spawn(read)
        .map_err(|error| cannot("start a thread", &error))?;
    Ok(receiver)
}

#[derive(Debug)]
enum Output {
    Stdout(Bytes),
    Stderr(Bytes),
}

/// A queue whose content is written in its order, and what came of it when the queue has ended.
fn write_output() -> Result<(mpsc::Sender<Output>, oneshot::Receiver<io::Result<()>>), Problem> {
    let (sender, mut queue) = mpsc::channel(OUTPUT_QUEUE);
    let (done, written) = oneshot::channel();
    let write = move || {
        let mut result = Ok(());
        while let Some(output) = queue.blocking_recv() {
            result = match output {
                Output::Stdout(bytes) => write_all(stdio::stdout(), &bytes),
                Output::Stderr(bytes) => write_all(stdio::stderr(), &bytes),
            };
            if result.is_err() {
                break;
            }
        }
        // Nobody to tell: the session has left at a signal.
        drop(done.send(result));
    };
    std::thread::Builder::new()
        .name("output".to_owned())
        .spawn(write)
        .map_err(|error| cannot("start a thread", &error))?;
    Ok((sender, written))
}

pub(crate) fn write_all(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(fd, bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => wait_for(fd, PollFlags::OUT)?,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn wait_for(fd: BorrowedFd<'_>, what: PollFlags) -> io::Result<()> {
    match poll(&mut [PollFd::from_borrowed_fd(fd, what)], None) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
