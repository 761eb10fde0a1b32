//! A session with the host, whatever carries its bytes: the handshake of `banger_api::channel`, then yamux, one HTTP
//! connection per stream.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;

use banger_api::channel::Line;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader, BufWriter};
use tokio_util::compat::{FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};

use crate::console;
use crate::server::{self, Guest};
use crate::wire::Lines;

/// A virtio-serial port takes no more at once (`port_fops_write` in drivers/char/virtio_console.c), and what a vsock packet
/// holds is as much or twice that.
const LARGEST_WRITE: usize = 32 * 1024;

/// A frame's header in yamux.
const HEADER: usize = 12;

/// Streams at once; each may have a window of 256 KiB, the least that yamux allows, so this bounds memory too.
const STREAMS: usize = 512;
const WINDOW: usize = 256 * 1024;

/// A byte stream with what is read ahead and what is not yet written.
pub(crate) type Buffered<S> = BufReader<BufWriter<S>>;

pub(crate) fn buffered<S: AsyncRead + AsyncWrite>(stream: S) -> Buffered<S> {
    BufReader::with_capacity(64 * 1024, BufWriter::with_capacity(LARGEST_WRITE, stream))
}

/// Until GO. Every HELLO is answered, since nobody knows which answer the daemon got. `heard` is a line that came before.
///
/// # Errors
/// When the stream fails or ends; see [`is_hang_up`].
pub(crate) async fn handshake<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut Buffered<S>,
    lines: &mut Lines,
    heard: Option<Line>,
    boot_id: &str,
) -> io::Result<()> {
    let mut answered = None;
    let mut heard = heard;
    loop {
        let line = match heard.take() {
            Some(line) => line,
            None => next_line(stream, lines).await?,
        };
        match line {
            Line::Hello { nonce } => {
                let version = banger_api::VERSION.to_owned();
                let ready =
                    Line::Ready { nonce: nonce.clone(), boot_id: boot_id.to_owned(), version };
                stream.write_all(&ready.encode()).await?;
                stream.flush().await?;
                answered = Some(nonce);
            }
            Line::Go { nonce } if answered.as_ref() == Some(&nonce) => return Ok(()),
            _ => {}
        }
    }
}

async fn next_line<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut Buffered<S>,
    lines: &mut Lines,
) -> io::Result<Line> {
    loop {
        let bytes = stream.fill_buf().await?;
        if bytes.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let (count, line) = lines.find(bytes);
        stream.consume(count);
        if let Some(line) = line {
            return Ok(line);
        }
    }
}

/// Serves yamux until it ends. All streams end with it.
pub(crate) async fn serve<S>(stream: S, guest: &Arc<Guest>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut config = yamux::Config::default();
    config.set_max_num_streams(STREAMS);
    config.set_max_connection_receive_window(Some(STREAMS * WINDOW));
    config.set_split_send_size(LARGEST_WRITE - HEADER);
    let mut connection = yamux::Connection::new(stream.compat(), config, yamux::Mode::Server);
    loop {
        match poll_fn(|context| connection.poll_next_inbound(context)).await {
            Some(Ok(stream)) => {
                drop(tokio::spawn(server::connection(stream.compat(), Arc::clone(guest))))
            }
            Some(Err(error)) => {
                if !comes_from_hang_up(&error) {
                    console::say(&format!("the connection to the host ended: {error}"));
                }
                break;
            }
            None => break,
        }
    }
}

/// Whether the other side has gone, which it may at any time.
pub(crate) fn is_hang_up(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected, UnexpectedEof};
    [UnexpectedEof, BrokenPipe, ConnectionReset, NotConnected].contains(&error.kind())
}

fn comes_from_hang_up(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |&error| error.source())
        .any(|error| error.downcast_ref().is_some_and(is_hang_up))
}
