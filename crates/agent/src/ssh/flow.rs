//! What clients send on their channels, until it is taken: bounded, without one channel standing in the way of another.
//!
//! `russh` lets a client send on as soon as it has read what came, taken or not, and stops reading the connection when a
//! channel's queue is full. That would deadlock `cat`: its output cannot go before its input is read
//! (<https://github.com/Eugeny/russh/pull/730>). So the queues here have no bound, and a channel that is behind has its
//! window narrowed to a few bytes, which the client may refill only at [`PAUSE`] for as long as nothing is taken. What a
//! channel holds is so about [`WINDOW`] and [`BEHIND`], and output flows meanwhile.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use russh::server::Msg;
use russh::{Channel, ChannelId, ChannelWriteHalf};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep, sleep};

/// What a client may have under way on a channel.
pub(super) const WINDOW: u32 = 2 << 20;

/// A channel that has more waiting is behind.
const BEHIND: usize = 1 << 20;

/// What a channel that is behind may have under way: the least that `russh` refills (at half).
const NARROW: u32 = 2;

/// What others have meanwhile: `russh` has one width for all, which the next packet may use, whosever it is.
const BESIDE: u32 = 4096;

/// The connection is read again after this, for what others say.
const PAUSE: Duration = Duration::from_millis(20);

/// Something that came on a channel.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Said {
    Data(Bytes),
    /// Nothing more will come, and answers are still read.
    End,
}

/// The half by which a channel is written. The other goes: what comes is in an [`Inbox`], and `russh` would wait for whoever
/// does not read it.
pub(super) fn unread(channel: Channel<Msg>) -> ChannelWriteHalf<Msg> {
    let (_, writes) = channel.split();
    writes
}

/// The channels of one connection.
#[derive(Debug, Default)]
pub(super) struct Flow {
    lines: Mutex<HashMap<ChannelId, Line>>,
    pause: Mutex<Pause>,
}

#[derive(Debug)]
struct Line {
    queue: mpsc::UnboundedSender<Said>,
    waiting: Arc<AtomicUsize>,
}

#[derive(Debug, Default)]
struct Pause {
    wanted: bool,
    reader: Option<Waker>,
}

/// What came on one channel. Its end without [`Said::End`]: the client has closed the channel, or left.
#[derive(Debug)]
pub(super) struct Inbox {
    queue: mpsc::UnboundedReceiver<Said>,
    waiting: Arc<AtomicUsize>,
    flow: Arc<Flow>,
    given: usize,
}

impl Flow {
    fn lines(&self) -> MutexGuard<'_, HashMap<ChannelId, Line>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pause(&self) -> MutexGuard<'_, Pause> {
        self.pause.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps what comes on this channel from now on.
    pub(super) fn open(self: &Arc<Self>, channel: ChannelId) -> Inbox {
        let (queue, receiver) = mpsc::unbounded_channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        self.lines().insert(channel, Line { queue, waiting: Arc::clone(&waiting) });
        Inbox { queue: receiver, waiting, flow: Arc::clone(self), given: 0 }
    }

    /// Channels that are open.
    pub(super) fn count(&self) -> usize {
        self.lines().len()
    }

    pub(super) fn data(&self, channel: ChannelId, data: &[u8]) {
        let behind = match self.lines().get(&channel) {
            Some(line) if line.queue.send(Said::Data(Bytes::copy_from_slice(data))).is_ok() => {
                let before = line.waiting.fetch_add(data.len(), Ordering::Relaxed);
                before > BEHIND && data.len() <= NARROW as usize
            }
            // Nobody takes it: then nobody misses it.
            _ => false,
        };
        if behind {
            self.pause().wanted = true;
        }
    }

    pub(super) fn end(&self, channel: ChannelId) {
        if let Some(line) = self.lines().get(&channel) {
            drop(line.queue.send(Said::End));
        }
    }

    pub(super) fn close(&self, channel: ChannelId) {
        self.lines().remove(&channel);
        self.go_on();
    }

    /// All channels, when the connection has ended.
    pub(super) fn close_all(&self) {
        self.lines().clear();
    }

    /// How wide the next window is, which is that of whatever channel's packet comes next.
    pub(super) fn width(&self, channel: ChannelId) -> u32 {
        let lines = self.lines();
        let is_behind = |line: &Line| line.waiting.load(Ordering::Relaxed) > BEHIND;
        if lines.get(&channel).is_some_and(is_behind) {
            NARROW
        } else if lines.values().any(is_behind) {
            BESIDE
        } else {
            WINDOW
        }
    }

    fn go_on(&self) {
        let mut pause = self.pause();
        pause.wanted = false;
        if let Some(reader) = pause.reader.take() {
            reader.wake();
        }
    }
}

impl Inbox {
    /// The next thing that came; what was given before counts as taken.
    pub(super) async fn next(&mut self) -> Option<Said> {
        let given = std::mem::take(&mut self.given);
        let before = self.waiting.fetch_sub(given, Ordering::Relaxed);
        if before > BEHIND && before - given <= BEHIND {
            self.flow.go_on();
        }
        let said = self.queue.recv().await;
        if let Some(Said::Data(data)) = &said {
            self.given = data.len();
        }
        said
    }
}

impl Drop for Inbox {
    /// What nobody will take is behind no more.
    fn drop(&mut self) {
        self.waiting.store(0, Ordering::Relaxed);
        self.flow.go_on();
    }
}

/// The connection itself, which is not read during a pause.
pub(super) struct Paced<S> {
    stream: S,
    flow: Arc<Flow>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl<S> Paced<S> {
    pub(super) fn new(stream: S, flow: Arc<Flow>) -> Self {
        Self { stream, flow, timer: None }
    }

    fn poll_pause(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let mut pause = self.flow.pause();
        if !pause.wanted {
            self.timer = None;
            return Poll::Ready(());
        }
        pause.reader = Some(context.waker().clone());
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(PAUSE)));
        if timer.deadline() <= Instant::now() || timer.as_mut().poll(context).is_ready() {
            pause.wanted = false;
            drop(pause);
            self.timer = None;
            return Poll::Ready(());
        }
        Poll::Pending
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_pause(context));
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
