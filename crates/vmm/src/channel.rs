//! The way to a guest's agent: one byte stream per request, whatever carries it.
//!
//! ```text
//! request ─► stream ─┐                              ┌─ virtio-serial port ─┐
//! request ─► stream ─┼─ yamux ─ unix socket ─ VMM ──┤                      ├─ agent     (Channel::Mux)
//! request ─► stream ─┘                              └─ vsock ──────────────┘
//! request ─► stream ─── unix socket ─── agent                                        (Channel::Direct)
//! ```
//! A multiplexed connection begins with the handshake of `banger_api::channel`; its READY is the guest's ready event. When
//! the connection ends, every stream on it ends and [`Channel::closed`] returns; the daemon then connects anew.
//!
//! Firecracker looks at its vsock socket only once the guest's driver has started the device, so a connection that is made
//! right after the guest was started waits there, and reaches an agent that listens before it loads the driver. A kernel
//! with the driver built in starts the device before there is an agent: that is [`ChannelError::NotListening`].

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use banger_api::channel::{Line, LineFinder, VSOCK_PORT};
use banger_api::client::connect_unix;
use futures_util::future::poll_fn;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::compat::{FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};

use crate::Carrier;

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
    /// The guest runs, but no agent listens there (or it did not answer within the 2 s that Firecracker gives it). One that
    /// begins to listen later says so on the console: whoever waits for it has begun to follow the log *before* the
    /// connection that ended in this, and connects anew when the log has grown. A VMM that ends shows itself so too.
    #[error("no agent listens in the guest")]
    NotListening,
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
    /// All requests share one connection to the VMM.
    Mux(Mux),
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
            Channel::Mux(mux) => Ok(Box::new(mux.open().await?)),
            Channel::Direct(path) => match connect_unix(path).await {
                Ok(stream) => Ok(Box::new(stream)),
                Err(cause) => Err(ChannelError::Connect { path: path.clone(), cause }),
            },
        }
    }

    /// Returns when the connection has ended. A direct channel has none and never returns.
    pub async fn closed(&self) {
        match self {
            Channel::Mux(mux) => mux.closed().await,
            Channel::Direct(_) => std::future::pending().await,
        }
    }
}

/// The multiplexed connection.
#[derive(Debug, Clone)]
pub struct Mux {
    requests: mpsc::Sender<oneshot::Sender<Result<yamux::Stream, ChannelError>>>,
    closed: watch::Receiver<bool>,
}

impl Mux {
    /// Waits until the agent behind a connection to the VMM's socket is ready, for as long as `deadline` allows.
    ///
    /// # Errors
    /// When the connection breaks, nobody listens behind it, or the time is up.
    pub async fn connect(
        stream: std::os::unix::net::UnixStream,
        carrier: Carrier,
        deadline: Instant,
    ) -> Result<(Self, Ready), ChannelError> {
        let mut stream = stream
            .set_nonblocking(true)
            .and_then(|()| UnixStream::from_std(stream))
            .map_err(ChannelError::Broken)?;
        let begin = async {
            if carrier == Carrier::Vsock {
                ask_for_port(&mut stream).await?;
            }
            handshake(stream).await.map_err(ChannelError::Broken)
        };
        let (stream, ready) =
            timeout_at(deadline, begin).await.map_err(|_| ChannelError::NotReady)??;
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

/// Firecracker's own handshake: `CONNECT port`, then `OK` and a port of the host's, which tells us nothing. It closes the
/// connection without a word when nobody listens (docs/vsock.md of Firecracker).
async fn ask_for_port(stream: &mut UnixStream) -> Result<(), ChannelError> {
    let asked = format!("CONNECT {VSOCK_PORT}\n");
    stream.write_all(asked.as_bytes()).await.map_err(ChannelError::Broken)?;
    let mut answer = Vec::new();
    loop {
        // Byte by byte: what follows the line belongs to the agent.
        match stream.read_u8().await {
            Ok(b'\n') if answer.starts_with(b"OK ") => return Ok(()),
            // "OK ", and at most the ten digits of a port.
            Ok(byte) if byte != b'\n' && answer.len() < 13 => answer.push(byte),
            Ok(_) => {
                let said = format!("it answered {:?}", String::from_utf8_lossy(&answer));
                return Err(ChannelError::Broken(io::Error::new(io::ErrorKind::InvalidData, said)));
            }
            // A reset is what is left of our line that nobody read.
            Err(error)
                if [io::ErrorKind::UnexpectedEof, io::ErrorKind::ConnectionReset]
                    .contains(&error.kind()) =>
            {
                return Err(ChannelError::NotListening);
            }
            Err(error) => return Err(ChannelError::Broken(error)),
        }
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

/// Streams at once of one VM, as many as its agent takes: half are left to execs when all connections to ports are taken.
const MAX_STREAMS: usize = 512;

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

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream as StdStream;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

    /// Reads `CONNECT`, then answers with these bytes and hangs up.
    fn vsock(answer: &'static [u8]) -> StdStream {
        let (ours, mut theirs) = StdStream::pair().unwrap();
        std::thread::spawn(move || {
            let mut asked = [0; 13];
            theirs.read_exact(&mut asked).unwrap();
            assert_eq!(&asked, b"CONNECT 1024\n");
            theirs.write_all(answer).unwrap();
        });
        ours
    }

    #[tokio::test]
    async fn a_vsock_that_closes_without_a_word_has_no_listener() {
        for answer in [&b""[..], b"OK 10"] {
            let error = Mux::connect(vsock(answer), Carrier::Vsock, soon()).await.unwrap_err();
            assert!(matches!(error, ChannelError::NotListening), "{error}");
        }
    }

    #[tokio::test]
    async fn an_agent_that_is_lost_before_it_is_ready_is_another_matter() {
        let error =
            Mux::connect(vsock(b"OK 1073741824\n"), Carrier::Vsock, soon()).await.unwrap_err();
        assert!(matches!(error, ChannelError::Broken(_)), "{error}");
    }

    #[tokio::test]
    async fn an_answer_that_is_no_ok_is_not_taken_for_one() {
        for answer in [&b"NO 1\n"[..], b"\n", b"OK 12345678901234567890\n"] {
            let error = Mux::connect(vsock(answer), Carrier::Vsock, soon()).await.unwrap_err();
            assert!(matches!(error, ChannelError::Broken(_)), "{error}");
        }
    }

    #[tokio::test]
    async fn a_guest_that_never_answers_is_waited_for_until_the_deadline() {
        for carrier in [Carrier::Serial, Carrier::Vsock] {
            let (ours, _theirs) = StdStream::pair().unwrap();
            let deadline = Instant::now() + Duration::from_millis(50);
            let error = Mux::connect(ours, carrier, deadline).await.unwrap_err();
            assert!(matches!(error, ChannelError::NotReady), "{error}");
        }
    }

    /// What an agent says: READY to the first HELLO, and nothing more.
    #[tokio::test]
    async fn ready_comes_over_either_carrier() {
        for carrier in [Carrier::Serial, Carrier::Vsock] {
            let (ours, mut theirs) = StdStream::pair().unwrap();
            let agent = std::thread::spawn(move || {
                let mut bytes = [0];
                if carrier == Carrier::Vsock {
                    while bytes != *b"\n" {
                        theirs.read_exact(&mut bytes).unwrap();
                    }
                    theirs.write_all(b"OK 1073741824\n").unwrap();
                }
                let mut finder = LineFinder::default();
                loop {
                    theirs.read_exact(&mut bytes).unwrap();
                    match finder.push(bytes[0]) {
                        Some(Line::Hello { nonce }) => {
                            let (boot_id, version) = ("boot".to_owned(), "1".to_owned());
                            let ready = Line::Ready { nonce, boot_id, version };
                            theirs.write_all(&ready.encode()).unwrap();
                        }
                        Some(Line::Go { .. }) => break,
                        _ => {}
                    }
                }
            });
            let (mux, ready) = Mux::connect(ours, carrier, soon()).await.unwrap();
            assert_eq!(ready, Ready { boot_id: "boot".into(), version: "1".into() });
            tokio::task::spawn_blocking(|| agent.join().unwrap()).await.unwrap();
            // The agent has gone with its end of the stream.
            timeout(Duration::from_secs(30), Channel::Mux(mux).closed()).await.unwrap();
        }
    }
}
