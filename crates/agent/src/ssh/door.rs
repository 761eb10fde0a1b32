//! Where ssh connections come in, in the agent's process: each becomes a process of its own. Reads nothing of what they say.
//!
//! A port 22 of an image with an ssh server is that server's, and it is let go when such a server is installed. By
//! `GET /v1/ssh` the guest is reached all the same.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use banger_api::image::Config;
use banger_api::ssh::{GuestSsh, PORT, UPGRADE};
use banger_api::{Code, Problem};
use bytes::Bytes;
use http::header::{CONNECTION, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use russh::keys::{PrivateKey, PublicKey};
use rustix::fs::inotify;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional_with_sizes};
use tokio::net::{TcpListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;

use super::Errand;
use crate::watched::watch;
use crate::{console, spawn};

/// Connections at once.
const MOST: usize = 64;

/// Of these, how many at the port may not have shown yet who they are: each costs a process.
const MOST_STRANGERS: usize = 10;

/// Buffer of each direction.
const BUFFER: usize = 64 * 1024;

/// Where ssh servers of images are.
const SERVERS: [&str; 5] = [
    "/usr/sbin/sshd",
    "/usr/sbin/dropbear",
    "/usr/bin/sshd",
    "/usr/local/sbin/sshd",
    "/usr/local/sbin/dropbear",
];

#[derive(Debug)]
pub(crate) struct Door {
    said: Mutex<Said>,
    connections: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
}

/// What the daemon has said.
#[derive(Debug, Default)]
struct Said {
    ssh: Option<GuestSsh>,
    image: Config,
    listening: Option<JoinHandle<()>>,
}

impl Default for Door {
    fn default() -> Self {
        Self {
            said: Mutex::default(),
            connections: Arc::new(Semaphore::new(MOST)),
            strangers: Arc::new(Semaphore::new(MOST_STRANGERS)),
        }
    }
}

impl Door {
    fn said(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn take_image(&self, image: Config) {
        self.said().image = image;
    }

    /// Takes the keys for every connection from now on, and listens where it is to.
    ///
    /// # Errors
    /// Which key is none.
    pub(crate) fn open(self: &Arc<Self>, ssh: GuestSsh) -> Result<(), Problem> {
        let invalid = |what: &str, error: russh::keys::ssh_key::Error| {
            Problem::new(Code::Invalid, format!("{what} is no key of OpenSSH's")).cause(&error)
        };
        PrivateKey::from_openssh(&ssh.host_key).map_err(|error| invalid("the host key", error))?;
        for line in &ssh.authorized_keys {
            PublicKey::from_openssh(line).map_err(|error| invalid(line, error))?;
        }
        let mut said = self.said();
        let before = said.ssh.replace(ssh.clone()).and_then(|ssh| ssh.listen);
        if ssh.listen == before && said.listening.is_some() {
            return Ok(());
        }
        let listening = ssh.listen.map(|at| tokio::spawn(Arc::clone(self).listen(at)));
        if let Some(before) = std::mem::replace(&mut said.listening, listening) {
            before.abort();
        }
        Ok(())
    }

    async fn listen(self: Arc<Self>, at: SocketAddr) {
        let left = |server: &Path| {
            console::say(&format!("{at} is left to {} for ssh", server.display()));
        };
        // Watched before it is looked at, so that none comes unseen.
        let servers = if at.port() == PORT { Servers::watch() } else { Servers::default() };
        if let Some(server) = servers.found() {
            return left(&server);
        }
        let listener = match TcpListener::bind(at).await {
            Ok(listener) => listener,
            Err(error) => return console::say(&format!("cannot listen on {at} for ssh: {error}")),
        };
        tokio::select! {
            error = self.accept(&listener) => {
                console::say(&format!("can no longer listen on {at} for ssh: {error}"));
            }
            server = servers.appears() => left(&server),
        }
    }

    async fn accept(self: &Arc<Self>, listener: &TcpListener) -> io::Error {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let stranger = Arc::clone(&self.strangers).try_acquire_owned();
                    let permit = Arc::clone(&self.connections).try_acquire_owned();
                    // One too many is closed.
                    if let (Ok(stranger), Ok(permit), Ok(stream)) =
                        (stranger, permit, stream.into_std())
                    {
                        drop(tokio::spawn(Arc::clone(self).serve(
                            stream.into(),
                            Some(stranger),
                            permit,
                        )));
                    }
                }
                // It has left, or files are scarce: the next one is another matter.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => return error,
            }
        }
    }

    /// The request becomes a stream that carries ssh.
    pub(crate) fn upgrade(
        self: &Arc<Self>,
        request: Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>, (StatusCode, Problem)> {
        if request.headers().get(http::header::UPGRADE).is_none_or(|value| value != UPGRADE) {
            let message = format!("GET /v1/ssh is upgraded to {UPGRADE}");
            return Err((StatusCode::BAD_REQUEST, Problem::new(Code::Invalid, message)));
        }
        if self.said().ssh.is_none() {
            let problem = Problem::new(Code::Guest, "the guest has no keys for ssh yet");
            return Err((StatusCode::CONFLICT, problem));
        }
        let permit = Arc::clone(&self.connections).try_acquire_owned().map_err(|_| {
            let message = format!("the guest has {MOST} ssh connections already");
            (StatusCode::SERVICE_UNAVAILABLE, Problem::new(Code::Guest, message))
        })?;
        let (theirs, mut ours) = pair().map_err(|error| {
            let problem = Problem::new(Code::Guest, "cannot make a stream for ssh").cause(&error);
            (StatusCode::INTERNAL_SERVER_ERROR, problem)
        })?;
        drop(tokio::spawn(Arc::clone(self).serve(theirs, None, permit)));
        drop(tokio::spawn(async move {
            // An upgrade that fails is a connection that has ended.
            if let Ok(upgraded) = hyper::upgrade::on(request).await {
                let mut stream = TokioIo::new(upgraded);
                drop(copy_bidirectional_with_sizes(&mut stream, &mut ours, BUFFER, BUFFER).await);
            }
        }));
        let mut reply = Response::new(Full::default());
        *reply.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = reply.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(http::header::UPGRADE, HeaderValue::from_static(UPGRADE));
        Ok(reply)
    }

    /// Sees a connection's process to its end.
    async fn serve(
        self: Arc<Self>,
        connection: OwnedFd,
        stranger: Option<OwnedSemaphorePermit>,
        permit: OwnedSemaphorePermit,
    ) {
        let errand = {
            let said = self.said();
            let Some(ssh) = said.ssh.clone() else { return };
            serde_json::to_vec(&Errand { ssh, image: said.image.clone() })
        };
        let served = async {
            let (theirs, mut ours) = pair()?;
            let mut process = spawn::ssh(connection, theirs)?;
            ours.write_all(&errand?).await?;
            ours.shutdown().await?;
            if ours.read(&mut [0]).await? == 1 {
                drop(stranger);
            }
            process.wait().await
        };
        if let Err(error) = served.await {
            console::say(&format!("cannot serve an ssh connection: {error}"));
        }
        drop(permit);
    }
}

/// Two ends of a stream: one to give away, one to keep.
fn pair() -> io::Result<(OwnedFd, UnixStream)> {
    let (theirs, ours) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    Ok((theirs.into(), UnixStream::from_std(ours)?))
}

/// The ssh servers that the image has, and the folders where more may appear.
#[derive(Debug, Default)]
struct Servers(Option<tokio::io::unix::AsyncFd<OwnedFd>>);

impl Servers {
    /// A guest that cannot tell (no inotify) keeps the port.
    fn watch() -> Self {
        let flags = inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC;
        let Ok(changes) = inotify::init(flags) else { return Self::default() };
        let appears = inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
        for folder in SERVERS.iter().filter_map(|server| Path::new(server).parent()) {
            // An image need not have it.
            inotify::add_watch(&changes, folder, appears).ok();
        }
        Self(watch(changes).ok())
    }

    fn found(&self) -> Option<PathBuf> {
        self.0.as_ref()?;
        SERVERS.iter().map(PathBuf::from).find(|server| server.exists())
    }

    async fn appears(&self) -> PathBuf {
        let Some(changes) = &self.0 else { return std::future::pending().await };
        let mut events = [0_u8; 4096];
        loop {
            match changes.readable().await {
                Ok(mut ready) => {
                    if rustix::io::read(changes, &mut events[..]).is_err() {
                        ready.clear_ready();
                    }
                }
                Err(_) => return std::future::pending().await,
            }
            if let Some(server) = self.found() {
                return server;
            }
        }
    }
}
