//! The way to a guest's agent: one byte stream per request, whatever carries it.
//!
//! ```text
//! request ─► stream ─┐
//! request ─► stream ─┼─ yamux ─ unix socket ─ VMM ─ virtio-serial port ─ agent     (Channel::Serial)
//! request ─► stream ─┘
//! request ─► stream ─── unix socket ─── agent                                      (Channel::Direct)
//! ```
//! A serial channel begins with the handshake of `banger_api::channel`; its READY is the guest's ready event. When the
//! connection ends, every stream on it ends and [`Channel::closed`] returns; the daemon then connects anew.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use banger_api::channel::{Line, LineFinder};
use banger_api::client::connect_unix;
use futures_util::future::poll_fn;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::compat::{FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};

/// How long an agent that runs has to answer a HELLO before it is said again.
const HELLO_AGAIN: Duration = Duration::from_secs(1);
/// How long an agent has to take a new stream.
const OPEN_DEADLINE: Duration = Duration::from_secs(10);

/// What the agent says of itself when it is ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ready {
    /// The guest kernel's `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// The agent's version.
    pub version: String,
}

#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    #[error("cannot connect to the agent's socket {}", path.display())]
    Connect {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("the connection to the agent broke")]
    Broken(#[source] io::Error),
    #[error("the agent's connection is closed")]
    Closed,
    #[error("the agent took no new stream within {} s", OPEN_DEADLINE.as_secs())]
    Stalled,
    #[error("the agent was not ready in time")]
    NotReady,
}

/// A byte stream to the agent, on which one HTTP/1.1 connection is spoken.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A connection to an agent. Cheap to clone; all clones share it.
#[derive(Debug, Clone)]
pub enum Channel {
    Serial(Serial),
    /// Each request has a connection of its own: an agent on a unix socket.
    Direct(PathBuf),
}

impl Channel {
    /// Opens a stream.
    ///
    /// # Errors
    /// When the connection is gone or the agent does not answer.
    pub async fn open(&self) -> Result<Box<dyn Stream>, ChannelError> {
        match self {
            Channel::Serial(serial) => Ok(Box::new(serial.open().await?)),
            Channel::Direct(path) => match connect_unix(path).await {
                Ok(stream) => Ok(Box::new(stream)),
                Err(cause) => Err(ChannelError::Connect { path: path.clone(), cause }),
            },
        }
    }

    /// Returns when the connection has ended. A direct channel has none and never returns.
    pub async fn closed(&self) {
        match self {
            Channel::Serial(serial) => serial.closed().await,
            Channel::Direct(_) => std::future::pending().await,
        }
    }
}

/// The multiplexed connection over a virtio-serial port.
#[derive(Debug, Clone)]
pub struct Serial {
    requests: mpsc::Sender<oneshot::Sender<Result<yamux::Stream, ChannelError>>>,
    closed: watch::Receiver<bool>,
}

impl Serial {
    /// Connects to the VMM's socket and waits until the agent is ready, for as long as `deadline` allows.
    ///
    /// # Errors
    /// When nobody listens, the connection breaks, or the time is up.
    pub async fn connect(path: &Path, deadline: Instant) -> Result<(Self, Ready), ChannelError> {
        let stream = connect_unix(path)
            .await
            .map_err(|cause| ChannelError::Connect { path: path.to_owned(), cause })?;
        let begun =
            timeout_at(deadline, handshake(stream)).await.map_err(|_| ChannelError::NotReady)?;
        let (stream, ready) = begun.map_err(ChannelError::Broken)?;
        let (requests, asked) = mpsc::channel(16);
        let (closing, closed) = watch::channel(false);
        drop(tokio::spawn(carry(stream, asked, closing)));
        Ok((Self { requests, closed }, ready))
    }

    async fn open(&self) -> Result<impl Stream + use<>, ChannelError> {
        let (answer, stream) = oneshot::channel();
        self.requests.send(answer).await.map_err(|_| ChannelError::Closed)?;
        let stream = timeout(OPEN_DEADLINE, stream).await.map_err(|_| ChannelError::Stalled)?;
        Ok(stream.map_err(|_| ChannelError::Closed)??.compat())
    }

    async fn closed(&self) {
        let mut closed = self.closed.clone();
        // An error means that the task is gone, which is closed too.
        drop(closed.wait_for(|closed| *closed).await);
    }
}

/// HELLO until READY, then GO. See `banger_api::channel`.
async fn handshake(mut stream: UnixStream) -> io::Result<(UnixStream, Ready)> {
    let nonce = banger_api::ids::random_text(16)?;
    let hello = Line::Hello { nonce: nonce.clone() }.encode();
    let mut finder = LineFinder::default();
    loop {
        stream.write_all(&hello).await?;
        match timeout(HELLO_AGAIN, ready_line(&mut stream, &mut finder, &nonce)).await {
            Err(_) => {}
            Ok(Err(error)) => return Err(error),
            Ok(Ok(ready)) => {
                stream.write_all(&Line::Go { nonce }.encode()).await?;
                return Ok((stream, ready));
            }
        }
    }
}

async fn ready_line(
    stream: &mut UnixStream,
    finder: &mut LineFinder,
    wanted: &str,
) -> io::Result<Ready> {
    loop {
        // Byte by byte: what follows the line belongs to yamux.
        let byte = stream.read_u8().await?;
        if let Some(Line::Ready { nonce, boot_id, version }) = finder.push(byte)
            && nonce == wanted
        {
            return Ok(Ready { boot_id, version });
        }
    }
}

/// Drives the connection until it ends.
async fn carry(
    stream: UnixStream,
    mut asked: mpsc::Receiver<oneshot::Sender<Result<yamux::Stream, ChannelError>>>,
    closing: watch::Sender<bool>,
) {
    let skipping = SkipReady::new(stream);
    let mut connection =
        yamux::Connection::new(skipping.compat(), yamux_config(), yamux::Mode::Client);
    let mut waiting = None;
    poll_fn(|cx: &mut Context<'_>| {
        loop {
            if waiting.is_none() {
                match asked.poll_recv(cx) {
                    Poll::Ready(Some(answer)) => waiting = Some(answer),
                    // Nobody can ask any more.
                    Poll::Ready(None) => return Poll::Ready(()),
                    Poll::Pending => {}
                }
            }
            if waiting.is_some()
                && let Poll::Ready(opened) = connection.poll_new_outbound(cx)
                && let Some(answer) = waiting.take()
            {
                let opened = opened.map_err(|e| ChannelError::Broken(io::Error::other(e)));
                // Whoever asked may be gone: then the stream is dropped here, which closes it.
                drop(answer.send(opened));
                continue;
            }
            match ready!(connection.poll_next_inbound(cx)) {
                // An agent opens no streams: one that does is not answered.
                Some(Ok(stream)) => drop(stream),
                Some(Err(_)) | None => return Poll::Ready(()),
            }
        }
    })
    .await;
    closing.send_replace(true);
}

fn yamux_config() -> yamux::Config {
    let mut config = yamux::Config::default();
    config.set_max_num_streams(MAX_STREAMS);
    config.set_max_connection_receive_window(Some(MAX_STREAMS * 256 * 1024));
    config.set_split_send_size(64 * 1024);
    config
}

/// Streams at once: execs, copies and forwards of one VM.
const MAX_STREAMS: usize = 256;

/// A stream whose first bytes may be further READY lines: answers to HELLOs that were said more than once.
///
/// The agent answers every HELLO that it meets before GO, and a slow guest meets several. Each answer begins and ends
/// with a newline, and no yamux frame begins with one (its first byte is the version, 0), so the answers are recognised
/// and thrown away until the first byte that is none of theirs.
struct SkipReady {
    stream: UnixStream,
    skipping: Option<bool>,
}

impl SkipReady {
    fn new(stream: UnixStream) -> Self {
        Self { stream, skipping: Some(false) }
    }
}

impl AsyncRead for SkipReady {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while let Some(in_line) = self.skipping {
            let mut byte = [0];
            let mut one = tokio::io::ReadBuf::new(&mut byte);
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut one))?;
            let Some(&byte) = one.filled().first() else { return Poll::Ready(Ok(())) };
            match (in_line, byte) {
                // A newline begins a line, or ends one; a line that was only a newline stays "in".
                (false, b'\n') => self.skipping = Some(true),
                (true, b'\n') => self.skipping = Some(false),
                (true, 0) | (false, _) => {
                    self.skipping = None;
                    buffer.put_slice(&[byte]);
                    return Poll::Ready(Ok(()));
                }
                (true, _) => {}
            }
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for SkipReady {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
