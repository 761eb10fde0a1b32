//! A command in a guest whose input is ours to give and whose output is ours to read: an exec for programs, not for people.

use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::client::websocket_config;
use crate::exec::{FromAgent, STDIN_WINDOW, Start, ToAgent, Word};
use crate::{Code, Problem};

/// What is kept of a command's stderr: its end.
const KEPT_OF_STDERR: usize = 16 * 1024;

/// A command that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Captured {
    /// Its exit status, or 128 + the signal that ended it.
    pub status: u8,
    /// The end of what it wrote there.
    pub stderr: String,
}

/// A command of root's: these words, and nothing of what the image wants.
///
/// # Panics
/// When a word holds a NUL.
#[must_use]
pub fn as_root(words: &[String], timeout_ms: Option<u64>) -> Start {
    let word = |text: &String| Word::new(text.as_bytes()).expect("no word holds a NUL");
    Start {
        argv: words.iter().map(word).collect(),
        cwd: Some(Word::new("/").expect("it holds no NUL")),
        user: Some("0".to_owned()),
        timeout_ms,
        ..Start::default()
    }
}

/// The WebSocket of an exec, on a stream to the agent itself.
///
/// # Errors
/// When the agent refuses.
pub async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
) -> Result<WebSocketStream<S>, Problem> {
    let refused = |error: &dyn std::error::Error| {
        Problem::new(Code::Guest, "the guest's agent takes no command").because(error.to_string())
    };
    let request = "ws://agent/v1/exec".into_client_request().map_err(|e| refused(&e))?;
    let connected =
        tokio_tungstenite::client_async_with_config(request, stream, Some(websocket_config()));
    connected.await.map(|(socket, _)| socket).map_err(|e| refused(&e))
}

/// Runs the command to its end. It reads `input`, if there is some, in pieces of at most 64 KiB; `output` gets its stdout,
/// and ends it by an error.
///
/// # Errors
/// When it was not started, the connection broke, or `output` says so.
pub async fn run<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    socket: WebSocketStream<S>,
    start: Start,
    mut input: Option<mpsc::Receiver<Bytes>>,
    mut output: impl FnMut(&[u8]) -> Result<(), Problem>,
) -> Result<Captured, Problem> {
    let (sink, mut incoming) = socket.split();
    let (to_agent, queue) = mpsc::unbounded_channel();
    // A sender that has ended means a broken connection, which the reading side reports.
    drop(tokio::spawn(send(sink, queue)));
    let say = |frame: ToAgent| drop(to_agent.send(frame));
    say(ToAgent::Start(Box::new(Start { no_stdin: input.is_none(), tty: None, ..start })));
    let mut under_way = 0;
    let mut stderr = Vec::new();
    loop {
        let may_send = under_way + 64 * 1024 <= STDIN_WINDOW;
        tokio::select! {
            frame = next(&mut incoming) => match frame? {
                None => {}
                Some(FromAgent::Stdout(bytes)) => output(&bytes)?,
                Some(FromAgent::Stderr(bytes)) => {
                    stderr.extend(bytes);
                    let surplus = stderr.len().saturating_sub(KEPT_OF_STDERR);
                    drop(stderr.drain(..surplus));
                }
                Some(FromAgent::Taken(count)) => {
                    under_way = under_way.saturating_sub(usize::try_from(count).unwrap_or(usize::MAX));
                }
                Some(FromAgent::Exit(exit)) => {
                    let stderr = String::from_utf8_lossy(&stderr).into_owned();
                    return Ok(Captured { status: exit.status, stderr });
                }
                Some(FromAgent::Refused(refused)) => {
                    return Err(Problem::new(Code::Guest, refused.message));
                }
            },
            piece = more(input.as_mut()), if may_send => match piece {
                Some(bytes) => {
                    under_way += bytes.len();
                    say(ToAgent::Stdin(bytes));
                }
                None => {
                    input = None;
                    say(ToAgent::StdinEnd);
                }
            },
        }
    }
}

async fn more(input: Option<&mut mpsc::Receiver<Bytes>>) -> Option<Bytes> {
    match input {
        Some(input) => input.recv().await,
        None => std::future::pending().await,
    }
}

/// The frame in the next message; `None` for what WebSocket itself sends.
async fn next<S: AsyncRead + AsyncWrite + Unpin>(
    incoming: &mut SplitStream<WebSocketStream<S>>,
) -> Result<Option<FromAgent>, Problem> {
    let lost = || {
        Problem::new(Code::Guest, "the connection to the guest broke in the middle of a command")
            .remedy("`banger vm list` shows whether the VM still runs")
    };
    match incoming.next().await {
        Some(Ok(Message::Binary(bytes))) => FromAgent::decode(&bytes).map(Some).map_err(|error| {
            Problem::new(Code::Guest, "the guest's agent sent what is no frame").cause(&error)
        }),
        Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => Ok(None),
        Some(Ok(Message::Text(_) | Message::Close(_))) | None => Err(lost()),
        Some(Err(error)) => Err(lost().cause(&error)),
    }
}

async fn send<S: AsyncRead + AsyncWrite + Unpin>(
    mut sink: SplitSink<WebSocketStream<S>, Message>,
    mut queue: mpsc::UnboundedReceiver<ToAgent>,
) {
    while let Some(frame) = queue.recv().await {
        if sink.send(Message::Binary(frame.encode())).await.is_err() {
            return;
        }
    }
}
