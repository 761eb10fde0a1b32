//! The virtio-serial port to the host: one session (session.rs) after the other over a stream that does not say where one
//! ends.
//!
//! ```text
//!   ┌──► no host ── it connects ──► handshake ── GO ──► session ─┐
//!   │        ▲                          │                        │ its end, an error, or a daemon that begins anew
//!   │        └──────── it left (HUP) ───┴────────────────────────┤
//!   └────────────────────────────────────────────────────────────┘ (still connected: straight to the handshake)
//! ```
//!
//! The port can be opened only once (EBUSY), so its descriptor lives as long as the agent. tokio remembers a hang-up of a
//! descriptor for ever, so each connection registers it anew, and an edge-triggered epoll of our own waits for the host.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use banger_api::channel::{Line, PORT_NAME};
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::fs::{Mode, OFlags};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::server::Guest;
use crate::session::{self, Buffered};
use crate::uevents::Uevents;
use crate::watched::watch;
use crate::wire::{Lines, Watch};

#[derive(Debug, thiserror::Error)]
pub(crate) enum PortError {
    #[error("cannot wait for the port {PORT_NAME}")]
    Wait(#[source] io::Error),
    #[error("cannot open {device}")]
    Open {
        device: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("cannot wait for the host at the port {PORT_NAME}")]
    Host(#[source] io::Error),
    #[error("the port {PORT_NAME} failed")]
    Io(#[source] io::Error),
}

/// Waits until the port is there, and opens it.
pub(crate) fn open() -> Result<OwnedFd, PortError> {
    let uevents = Uevents::listen().map_err(PortError::Wait)?;
    let found = uevents
        .wait_for(None, || find(Path::new("/sys/class/virtio-ports")))
        .map_err(PortError::Wait)?;
    let device = found.expect("a wait without a deadline ends by finding");
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    rustix::fs::open(&device, flags, Mode::empty())
        .map_err(|errno| PortError::Open { device, cause: errno.into() })
}

/// By its name: its number depends on the machine.
fn find(ports: &Path) -> io::Result<Option<PathBuf>> {
    let entries = match std::fs::read_dir(ports) {
        // The driver is not there yet.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        // The name comes after the port, with an event of its own.
        let name = std::fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if name.trim_end() == PORT_NAME {
            return Ok(Some(Path::new("/dev").join(entry.file_name())));
        }
    }
    Ok(None)
}

/// Serves one host after the other, for ever. `ready` is told of the first that was answered.
pub(crate) async fn serve(
    port: OwnedFd,
    guest: Arc<Guest>,
    boot_id: &str,
    ready: tokio::sync::oneshot::Sender<()>,
) -> Result<std::convert::Infallible, PortError> {
    let port = Arc::new(port);
    let mut ready = Some(ready);
    let mut before: Option<Wire> = None;
    loop {
        // Across a hang-up nothing of the stream is worth keeping; without one it may hold the beginning of a HELLO.
        let kept = before.take();
        let mut wire = match kept {
            Some(wire) if host_is_there(&port).map_err(PortError::Host)? => wire.renew(&port),
            gone => {
                drop(gone);
                host_connected(&port).await.map_err(PortError::Host)?;
                Wire::new(&port)
            }
        }
        .map_err(PortError::Host)?;
        let heard = wire.heard.take();
        match session::handshake(&mut wire.io, &mut wire.lines, heard, boot_id).await {
            Ok(()) => {}
            Err(error) if session::is_hang_up(&error) => continue,
            Err(error) => return Err(PortError::Io(error)),
        }
        if let Some(ready) = ready.take() {
            ready.send(()).ok();
        }
        before = Some(session(wire, &guest).await);
    }
}

/// Serves until the session ends, and gives back what is left of the stream.
async fn session(wire: Wire, guest: &Arc<Guest>) -> Wire {
    let wire = SharedWire(Arc::new(Mutex::new(Some(wire))));
    session::serve(wire.clone(), guest).await;
    let mut held = wire.0.lock().unwrap_or_else(PoisonError::into_inner);
    held.take().expect("only this function takes it, and at its end")
}

/// The port's bytes, with what is read ahead and what is not yet written.
struct Wire {
    io: Buffered<Link>,
    lines: Lines,
    watch: Watch,
    /// The HELLO that ended the connection before.
    heard: Option<Line>,
}

impl Wire {
    fn new(port: &Arc<OwnedFd>) -> io::Result<Self> {
        let link = Link(Some(watch(Arc::clone(port))?));
        let io = session::buffered(link);
        Ok(Self { io, lines: Lines::new(), watch: Watch::new(), heard: None })
    }

    /// The same stream for the next handshake. What was not yet written is harmless: the daemon waits for a READY.
    fn renew(mut self, port: &Arc<OwnedFd>) -> io::Result<Self> {
        let link = self.io.get_mut().get_mut();
        // First the old registration: a descriptor cannot have two.
        link.0 = None;
        link.0 = Some(watch(Arc::clone(port))?);
        self.lines = std::mem::replace(&mut self.watch, Watch::new()).into_lines();
        Ok(self)
    }
}

/// The wire as yamux has it, watched for a daemon that begins anew.
#[derive(Clone)]
struct SharedWire(Arc<Mutex<Option<Wire>>>);

impl SharedWire {
    fn with<T>(&self, act: impl FnOnce(&mut Wire) -> T) -> T {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        act(held.as_mut().expect("it is taken only after yamux has ended"))
    }
}

impl AsyncRead for SharedWire {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.with(|wire| {
            let before = buffer.filled().len();
            ready!(Pin::new(&mut wire.io).poll_read(context, buffer))?;
            if let Some(hello) = wire.watch.begins_anew(&buffer.filled()[before..]) {
                wire.heard = Some(hello);
                return Poll::Ready(Err(io::Error::new(
                    io::ErrorKind::BrokenPipe,
                    "the daemon began anew",
                )));
            }
            Poll::Ready(Ok(()))
        })
    }
}

impl AsyncWrite for SharedWire {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.with(|wire| Pin::new(&mut wire.io).poll_write(context, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|wire| Pin::new(&mut wire.io).poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(context)
    }
}

/// The port for one connection. A hang-up ends it at once, whatever bytes are left.
struct Link(Option<AsyncFd<Arc<OwnedFd>>>);

impl Link {
    fn port(&self) -> &AsyncFd<Arc<OwnedFd>> {
        self.0.as_ref().expect("it is without only inside `renew`")
    }
}

impl AsyncRead for Link {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.port().poll_read_ready(context))?;
            if ready.ready().is_read_closed() {
                return Poll::Ready(Ok(()));
            }
            match ready
                .try_io(|port| Ok(rustix::io::read(port.get_ref(), buffer.initialize_unfilled())?))
            {
                Ok(Ok(count)) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Link {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.port().poll_write_ready(context))?;
            if ready.ready().is_write_closed() {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            match ready.try_io(|port| Ok(rustix::io::write(port.get_ref(), bytes)?)) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(result) => return Poll::Ready(result),
                Err(_would_block) => {}
            }
        }
    }

    /// The driver has no buffer of ours.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Whether the host has the other end open.
fn host_is_there(port: &OwnedFd) -> io::Result<bool> {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut fds = [PollFd::new(port, PollFlags::OUT)];
    poll(&mut fds, Some(&now))?;
    Ok(!fds[0].revents().contains(PollFlags::HUP))
}

/// Returns when the host has the other end open.
///
/// This epoll must be gone before tokio watches the port: when virtio_console is polled it takes what has come off the
/// queue, and the interrupt for it, finding the queue empty, wakes nobody (`vring_interrupt`). With two pollers, one
/// takes what the other then waits for in vain.
async fn host_connected(port: &OwnedFd) -> io::Result<()> {
    let changes = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    // HUP needs no asking for; OUT comes with the host.
    let events = epoll::EventFlags::OUT | epoll::EventFlags::ET;
    epoll::add(&changes, port, epoll::EventData::new_u64(0), events)?;
    let changes = watch(changes)?;
    while !host_is_there(port)? {
        let mut ready = changes.readable().await?;
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut events = Vec::with_capacity(1);
        epoll::wait(changes.get_ref(), rustix::buffer::spare_capacity(&mut events), Some(&now))?;
        ready.clear_ready();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    use tokio::io::AsyncWriteExt;
    use tokio::net::UnixStream;
    use tokio::sync::oneshot;

    use crate::host::{drive, exec, shake_hands};
    use crate::init::Init;

    #[test]
    fn the_port_is_found_by_its_name_whatever_its_number() {
        let sys = tempfile::tempdir().unwrap();
        for (port, name) in [("vport1p0", "org.qemu.guest_agent.0"), ("vport3p1", PORT_NAME)] {
            std::fs::create_dir(sys.path().join(port)).unwrap();
            std::fs::write(sys.path().join(port).join("name"), format!("{name}\n")).unwrap();
        }
        std::fs::create_dir(sys.path().join("vport0p0")).unwrap();
        assert_eq!(find(sys.path()).unwrap(), Some("/dev/vport3p1".into()));
        assert_eq!(find(&sys.path().join("absent")).unwrap(), None);
    }

    /// The host's end of a port that a socket pair plays.
    fn port() -> UnixStream {
        let (host, guest) = std::os::unix::net::UnixStream::pair().unwrap();
        host.set_nonblocking(true).unwrap();
        guest.set_nonblocking(true).unwrap();
        let guest_of = Arc::new(Guest::new(Init::None));
        drop(tokio::spawn(async move {
            serve(guest.into(), guest_of, "boot", oneshot::channel().0).await
        }));
        UnixStream::from_std(host).unwrap()
    }

    #[tokio::test]
    async fn a_host_that_shook_hands_runs_commands() {
        let mut host = port();
        shake_hands(&mut host, "one", 1).await;
        let (opener, _driver) = drive(host);
        for status in 0..20 {
            assert_eq!(
                exec(&opener, &format!("echo hello; exit {status}")).await,
                (b"hello\n".to_vec(), status)
            );
        }
        let (stdout, status) = exec(&opener, "head -c 20000000 /dev/zero").await;
        assert_eq!((stdout.len(), status), (20_000_000, 0));
    }

    #[tokio::test]
    async fn every_hello_is_answered() {
        let mut host = port();
        shake_hands(&mut host, "one", 3).await;
        let (opener, _driver) = drive(host);
        assert_eq!(exec(&opener, "exit 4").await.1, 4);
    }

    #[tokio::test]
    async fn rubbish_before_the_handshake_is_thrown_away() {
        let mut host = port();
        host.write_all(&[0, 1, 0xff, b'\n'].repeat(50_000)).await.unwrap();
        host.write_all(b"BANGER/1 GO one\nBANGER/1 HELLO half").await.unwrap();
        shake_hands(&mut host, "one", 1).await;
        let (opener, _driver) = drive(host);
        assert_eq!(exec(&opener, "exit 4").await.1, 4);
    }

    /// A frame's header of yamux: data with SYN for stream `id`, of that length.
    fn half_a_frame(id: u32, length: u32) -> Vec<u8> {
        let mut header = vec![0, 0, 0, 1];
        header.extend(id.to_be_bytes());
        header.extend(length.to_be_bytes());
        header
    }

    #[tokio::test]
    async fn a_daemon_that_came_back_unnoticed_is_heard_wherever_the_old_one_was_cut_off() {
        for old in [
            Vec::new(),
            half_a_frame(1, 0),
            half_a_frame(1, 16384),
            half_a_frame(1, 0)[..5].to_vec(),
        ] {
            let mut host = port();
            shake_hands(&mut host, "old", 1).await;
            host.write_all(&old).await.unwrap();
            // It says HELLO until it is answered; how often that must be depends on what swallows them.
            shake_hands(&mut host, "new", 4).await;
            let (opener, _driver) = drive(host);
            assert_eq!(exec(&opener, "exit 4").await.1, 4);
        }
    }
}
