//! The host's side of a session, as the tests of the agent speak it: the handshake, yamux, a command.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use banger_api::channel::{Line, LineFinder};
use banger_api::exec::{FromAgent, Start, ToAgent, Word};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};

pub(crate) async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), work)
        .await
        .expect("it happens before the deadline")
}

pub(crate) async fn shake_hands(host: &mut UnixStream, nonce: &str, hellos: usize) {
    for _ in 0..hellos {
        host.write_all(&Line::Hello { nonce: nonce.into() }.encode()).await.unwrap();
    }
    let mut finder = LineFinder::default();
    loop {
        let byte = within(host.read_u8()).await.unwrap();
        match finder.push(byte) {
            Some(Line::Ready { nonce: theirs, .. }) if theirs == nonce => break,
            _ => {}
        }
    }
    host.write_all(&Line::Go { nonce: nonce.into() }.encode()).await.unwrap();
}

pub(crate) type Opener = mpsc::UnboundedSender<oneshot::Sender<yamux::Stream>>;

/// The daemon's side of yamux. Answers to further HELLOs may come first: they hold no NUL, which is yamux's first byte.
pub(crate) fn drive(host: UnixStream) -> (Opener, tokio::task::JoinHandle<()>) {
    let host = SkipReady { host, begun: false };
    let (opener, mut wanted) = mpsc::unbounded_channel::<oneshot::Sender<yamux::Stream>>();
    let mut connection =
        yamux::Connection::new(host.compat(), yamux::Config::default(), yamux::Mode::Client);
    let mut next: Option<oneshot::Sender<yamux::Stream>> = None;
    let driver = poll_fn(move |context| {
        loop {
            if next.is_none()
                && let Poll::Ready(Some(want)) = wanted.poll_recv(context)
            {
                next = Some(want);
            }
            if next.is_some()
                && let Poll::Ready(stream) = connection.poll_new_outbound(context)
            {
                next.take().unwrap().send(stream.unwrap()).unwrap();
                continue;
            }
            match ready!(connection.poll_next_inbound(context)) {
                Some(Ok(stream)) => panic!("the agent opened {stream}"),
                _ => return Poll::Ready(()),
            }
        }
    });
    (opener, tokio::spawn(driver))
}

struct SkipReady {
    host: UnixStream,
    begun: bool,
}

impl AsyncRead for SkipReady {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while !self.begun {
            let mut byte = [1];
            let mut one = ReadBuf::new(&mut byte);
            ready!(Pin::new(&mut self.host).poll_read(context, &mut one))?;
            match one.filled() {
                [0] => {
                    self.begun = true;
                    buffer.put_slice(&[0]);
                    return Poll::Ready(Ok(()));
                }
                [] => return Poll::Ready(Ok(())),
                _ => {}
            }
        }
        Pin::new(&mut self.host).poll_read(context, buffer)
    }
}

impl AsyncWrite for SkipReady {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.host).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.host).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.host).poll_shutdown(context)
    }
}

async fn open(opener: &Opener) -> Compat<yamux::Stream> {
    let (want, stream) = oneshot::channel();
    opener.send(want).unwrap();
    within(stream).await.unwrap().compat()
}

pub(crate) async fn exec(opener: &Opener, script: &str) -> (Vec<u8>, u8) {
    let request = "ws://agent/v1/exec".into_client_request().unwrap();
    let handshake = tokio_tungstenite::client_async(request, open(opener).await);
    let (mut socket, _) = within(handshake).await.unwrap();
    let argv = ["sh", "-c", script].map(|text| Word::new(text).unwrap()).to_vec();
    let start = ToAgent::Start(Box::new(Start { argv, no_stdin: true, ..Start::default() }));
    socket.send(Message::Binary(start.encode())).await.unwrap();
    let mut stdout = Vec::new();
    loop {
        let Message::Binary(bytes) = within(socket.next()).await.unwrap().unwrap() else {
            panic!("no frame")
        };
        match FromAgent::decode(&bytes).unwrap() {
            FromAgent::Stdout(bytes) => stdout.extend(bytes),
            FromAgent::Exit(exit) => return (stdout, exit.status),
            other => panic!("{other:?}"),
        }
    }
}
