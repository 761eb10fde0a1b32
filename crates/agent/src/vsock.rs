//! The vsock port to the host: each connection is a session of its own (session.rs), and the one that shook hands last is
//! the one that is served.
//!
//! ```text
//! vsock.ko, …  ──►  listen  ──►  vmw_vsock_virtio_transport.ko  ──►  the host's connection, which waited for the device
//! ```
//! The VMM takes the host's connections once the transport's driver has started the device, and refuses those that nobody
//! listens for. So we listen before the driver is loaded. A kernel that has the driver built in was quicker than any
//! program, and what came before us is refused: then a line on the console tells the host that it may come again.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use banger_api::channel::VSOCK_PORT;
use rustix::io::Errno;
use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::net::{
    AddressFamily, SocketAddrAny, SocketFlags, SocketType, acceptfrom_with, bind, listen,
    socket_with,
};
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;

use crate::console;
use crate::modules::{self, ModuleError};
use crate::server::Guest;
use crate::session::{self, Buffered};
use crate::watched::watch;
use crate::wire::Lines;

/// The module that starts the device.
const TRANSPORT: &str = "vmw_vsock_virtio_transport";

#[derive(Debug, thiserror::Error)]
pub(crate) enum VsockError {
    #[error("cannot load what vsock needs")]
    Module(#[from] ModuleError),
    #[error(
        "this kernel has no vsock, neither built in nor as a module in the archive that was made at its import"
    )]
    NoVsock,
    #[error("cannot listen on the vsock port {VSOCK_PORT}")]
    Listen(#[source] io::Error),
    #[error("cannot take the host's connection on the vsock port {VSOCK_PORT}")]
    Accept(#[source] io::Error),
}

/// Listens, then lets the host in. `modules` is the folder of the kernel's modules.
pub(crate) fn open(modules: Option<&OwnedFd>) -> Result<OwnedFd, VsockError> {
    let Some((folder, files)) = transport(modules)? else {
        let listener = listener()?;
        console::say("listening for the host");
        return Ok(listener);
    };
    let (transport, before) = files.split_last().expect("the transport is one of them");
    before.iter().try_for_each(|file| modules::load_one(folder, file))?;
    let listener = listener()?;
    modules::load_one(folder, transport)?;
    Ok(listener)
}

/// The folder, and the files of the transport and of what it depends on, in the order in which they load; `None` when the
/// kernel does not have it as a module.
fn transport(modules: Option<&OwnedFd>) -> Result<Option<(&OwnedFd, Vec<String>)>, ModuleError> {
    let Some(folder) = modules else { return Ok(None) };
    Ok(modules::late_up_to(folder, TRANSPORT)?.map(|files| (folder, files)))
}

fn listener() -> Result<OwnedFd, VsockError> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = match socket_with(AddressFamily::VSOCK, SocketType::STREAM, flags, None) {
        Err(Errno::AFNOSUPPORT) => return Err(VsockError::NoVsock),
        socket => socket.map_err(|errno| VsockError::Listen(errno.into()))?,
    };
    bind(&socket, &Address { cid: ANY_CID, port: VSOCK_PORT })
        .and_then(|()| listen(&socket, 16))
        .map_err(|errno| VsockError::Listen(errno.into()))?;
    Ok(socket)
}

/// Serves the host, for ever. `ready` is told of the first connection that shook hands.
pub(crate) async fn serve(
    listener: OwnedFd,
    guest: Arc<Guest>,
    boot_id: String,
    ready: oneshot::Sender<()>,
) -> Result<Infallible, VsockError> {
    let listener = watch(listener).map_err(VsockError::Accept)?;
    serve_all(|context| accept(&listener, context), guest, boot_id, ready)
        .await
        .map_err(VsockError::Accept)
}

async fn serve_all(
    accept: impl Fn(&mut Context<'_>) -> Poll<io::Result<UnixStream>>,
    guest: Arc<Guest>,
    boot_id: String,
    ready: oneshot::Sender<()>,
) -> io::Result<Infallible> {
    let mut ready = Some(ready);
    let (shook, mut shaken) = mpsc::channel(1);
    let mut served: Option<AbortHandle> = None;
    loop {
        tokio::select! {
            accepted = poll_fn(&accept) => {
                let (stream, shook, boot_id) = (accepted?, shook.clone(), boot_id.clone());
                drop(tokio::spawn(async move {
                    let mut stream = session::buffered(stream);
                    let shaking =
                        session::handshake(&mut stream, &mut Lines::new(), None, &boot_id).await;
                    // One that has left before GO asked for nothing.
                    if shaking.is_ok() {
                        drop(shook.send(stream).await);
                    }
                }));
            }
            Some(stream) = shaken.recv() => {
                if let Some(before) = served.take() {
                    before.abort();
                }
                served = Some(begin(stream, &guest));
                if let Some(ready) = ready.take() {
                    ready.send(()).ok();
                }
            }
        }
    }
}

fn begin(stream: Buffered<UnixStream>, guest: &Arc<Guest>) -> AbortHandle {
    let guest = Arc::clone(guest);
    tokio::spawn(async move { session::serve(stream, &guest).await }).abort_handle()
}

/// The next connection of the host's. A program of the guest can reach this port too where vsock has a loopback.
fn accept(listener: &AsyncFd<OwnedFd>, context: &mut Context<'_>) -> Poll<io::Result<UnixStream>> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    loop {
        let mut ready = ready!(listener.poll_read_ready(context))?;
        let accepted = ready.try_io(|listener| {
            acceptfrom_with(listener.get_ref().as_fd(), flags).map_err(io::Error::from)
        });
        match accepted {
            Ok(Ok((stream, Some(peer)))) if cid(&peer) == Some(HOST_CID) => {
                // tokio has no vsock streams, and does nothing with a unix one that a vsock one cannot: recv, send, shutdown.
                return Poll::Ready(UnixStream::from_std(stream.into()));
            }
            Ok(Ok((stranger, _))) => drop(stranger),
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(Err(error)) => return Poll::Ready(Err(error)),
            Err(_would_block) => {}
        }
    }
}

/// VMADDR_CID_ANY and VMADDR_CID_HOST (include/uapi/linux/vm_sockets.h).
const ANY_CID: u32 = u32::MAX;
const HOST_CID: u32 = 2;

/// `struct sockaddr_vm`, 16 bytes: family, two reserved bytes, port, CID, flags, zeroes.
struct Address {
    cid: u32,
    port: u32,
}

impl Address {
    fn encode(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[0..2].copy_from_slice(&AddressFamily::VSOCK.as_raw().to_ne_bytes());
        bytes[4..8].copy_from_slice(&self.port.to_ne_bytes());
        bytes[8..12].copy_from_slice(&self.cid.to_ne_bytes());
        bytes
    }
}

#[expect(unsafe_code, reason = "rustix has no type for vsock's addresses")]
// SAFETY: the pointer is to 16 bytes that live during the call, laid out as `struct sockaddr_vm`.
unsafe impl SocketAddrArg for Address {
    unsafe fn with_sockaddr<R>(
        &self,
        f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R,
    ) -> R {
        let bytes = self.encode();
        f(bytes.as_ptr().cast(), 16)
    }
}

/// The CID of a `struct sockaddr_vm`.
#[expect(unsafe_code, reason = "rustix has no type for vsock's addresses")]
fn cid(address: &SocketAddrAny) -> Option<u32> {
    if address.address_family() != AddressFamily::VSOCK {
        return None;
    }
    let bytes = |pointer: *const SocketAddrOpaque, length: SocketAddrLen| {
        // SAFETY: `with_sockaddr` gives a pointer to `length` initialized bytes, which live during the call.
        unsafe { std::slice::from_raw_parts(pointer.cast::<u8>(), length as usize) }.to_vec()
    };
    // SAFETY: the closure does no more than read those bytes.
    let bytes = unsafe { address.with_sockaddr(bytes) };
    Some(u32::from_ne_bytes(bytes.get(8..12)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{drive, exec, shake_hands, within};
    use crate::init::Init;

    use tokio::io::AsyncReadExt;
    use tokio::net::UnixListener;

    /// The agent behind a unix socket, which plays the vsock port.
    fn agent() -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.sock");
        let listener = UnixListener::bind(&path).unwrap();
        drop(tokio::spawn(async move {
            let accept = |context: &mut Context<'_>| {
                listener.poll_accept(context).map_ok(|(stream, _)| stream)
            };
            let guest = Arc::new(Guest::new(Init::None));
            serve_all(accept, guest, "boot".to_owned(), oneshot::channel().0).await
        }));
        (folder, path)
    }

    #[tokio::test]
    async fn a_host_that_shook_hands_runs_commands() {
        let (_folder, path) = agent();
        let mut host = UnixStream::connect(&path).await.unwrap();
        shake_hands(&mut host, "one", 2).await;
        let (opener, _driver) = drive(host);
        assert_eq!(exec(&opener, "echo hello; exit 3").await, (b"hello\n".to_vec(), 3));
        let (stdout, status) = exec(&opener, "head -c 20000000 /dev/zero").await;
        assert_eq!((stdout.len(), status), (20_000_000, 0));
    }

    #[tokio::test]
    async fn a_daemon_that_comes_back_is_served_and_the_connection_before_it_ends() {
        let (_folder, path) = agent();
        let mut old = UnixStream::connect(&path).await.unwrap();
        shake_hands(&mut old, "old", 1).await;
        let (_opener, old) = drive(old);
        let mut new = UnixStream::connect(&path).await.unwrap();
        shake_hands(&mut new, "new", 1).await;
        within(old).await.unwrap();
        let (opener, _driver) = drive(new);
        assert_eq!(exec(&opener, "exit 4").await.1, 4);
    }

    #[tokio::test]
    async fn connections_that_never_shake_hands_disturb_nobody() {
        let (_folder, path) = agent();
        let mut host = UnixStream::connect(&path).await.unwrap();
        shake_hands(&mut host, "one", 1).await;
        let (opener, _driver) = drive(host);
        let _silent = UnixStream::connect(&path).await.unwrap();
        drop(UnixStream::connect(&path).await.unwrap());
        assert_eq!(exec(&opener, "exit 4").await.1, 4);
        // Nor does one that began and went away.
        let mut gone = UnixStream::connect(&path).await.unwrap();
        let hello = banger_api::channel::Line::Hello { nonce: "gone".into() };
        tokio::io::AsyncWriteExt::write_all(&mut gone, &hello.encode()).await.unwrap();
        within(gone.read_u8()).await.unwrap();
        drop(gone);
        assert_eq!(exec(&opener, "exit 5").await.1, 5);
    }

    #[test]
    fn an_address_is_laid_out_as_the_kernel_wants_it() {
        let address = Address { cid: HOST_CID, port: 1024 };
        let expected = [40, 0, 0, 0, 0, 4, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(address.encode(), expected);
        assert_eq!(cid(&address.as_any()), Some(2));
    }

    #[test]
    fn an_address_of_another_family_has_no_cid() {
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], 1024));
        assert_eq!(cid(&address.as_any()), None);
    }
}
