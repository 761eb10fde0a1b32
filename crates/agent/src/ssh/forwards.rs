//! What leads on from a connection: to services and sockets of the guest (`-L`, `-W`, `-D`), from its ports and sockets back
//! to the client (`-R`), and to the client's agent of keys (`-A`). Sockets are opened and made as the user whose login it is.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net as std_unix;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use russh::server::{ChannelOpenHandle, Handle, Msg};
use russh::{Channel, ChannelId, ChannelOpenFailure, ChannelWriteHalf};
use rustix::process::{Gid, Uid};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use super::flow::{Flow, Inbox, Said, unread};
use super::names;
use crate::users::{self, User};

/// How long a service has to take a connection.
const DEADLINE: Duration = Duration::from_secs(20);

/// What is read at once.
const CHUNK: usize = 32 * 1024;

/// Ports below are root's (ip_unprivileged_port_start of ip(7), as it is by default).
const FIRST_OF_USERS: u32 = 1024;

/// What leads on from one connection.
pub(super) struct Forwards {
    flow: Arc<Flow>,
    /// Channels that we open, from the client's consent until somebody takes them; `None` when that came first.
    opened: Arc<Mutex<HashMap<ChannelId, Option<Inbox>>>>,
    /// What listens in the guest, by what the client named, and its port of a TCP one. Each ends with its sender.
    listening: HashMap<(String, u32), watch::Sender<()>>,
    work: mpsc::Sender<()>,
}

impl Forwards {
    pub(super) fn new(flow: Arc<Flow>, work: mpsc::Sender<()>) -> Self {
        Self { flow, opened: Arc::default(), listening: HashMap::new(), work }
    }

    /// The client lets us use a channel that we have opened.
    pub(super) fn opened(&self, id: ChannelId) {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        match opened.entry(id) {
            Entry::Vacant(entry) => drop(entry.insert(Some(self.flow.open(id)))),
            Entry::Occupied(entry) => drop(entry.remove()),
        }
    }

    fn ours(&self, handle: &Handle) -> Ours {
        let (flow, opened) = (Arc::clone(&self.flow), Arc::clone(&self.opened));
        Ours { flow, opened, handle: handle.clone() }
    }

    /// A service that the guest reaches.
    pub(super) fn connect(
        &self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        reply: ChannelOpenHandle,
    ) {
        let (host, flow) = (host.to_owned(), Arc::clone(&self.flow));
        drop(tokio::spawn(async move {
            let connected = timeout(DEADLINE, connect_tcp(&host, port)).await;
            match connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                Ok(stream) => accept(channel, reply, &flow, stream).await,
                Err(error) => reject(reply, &error).await,
            }
        }));
    }

    /// A socket that the user may open.
    pub(super) fn connect_socket(
        &self,
        channel: Channel<Msg>,
        path: &str,
        user: &str,
        reply: ChannelOpenHandle,
    ) {
        let (path, user, flow) = (PathBuf::from(path), user.to_owned(), Arc::clone(&self.flow));
        drop(tokio::spawn(async move {
            let connecting = as_user(&user, move || std_unix::UnixStream::connect(path));
            let connected = timeout(DEADLINE, connecting).await;
            let stream = connected
                .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
                .and_then(|stream| stream.set_nonblocking(true).map(|()| stream))
                .and_then(UnixStream::from_std);
            match stream {
                Ok(stream) => accept(channel, reply, &flow, stream).await,
                Err(error) => reject(reply, &error).await,
            }
        }));
    }

    /// Leads a port of the guest's loopback to the client, which has sshd's default too. `port` 0 becomes a free one.
    pub(super) async fn listen(
        &mut self,
        address: &str,
        port: &mut u32,
        user: &str,
        handle: &Handle,
    ) -> bool {
        let is_root = users::find(Some(user)).is_ok_and(|user| user.uid == 0);
        let Ok(wanted) = u16::try_from(*port) else { return false };
        if *port != 0 && *port < FIRST_OF_USERS && !is_root {
            return false;
        }
        let Ok(first) = TcpListener::bind((Ipv4Addr::LOCALHOST, wanted)).await else {
            return false;
        };
        let Ok(bound) = first.local_addr() else { return false };
        *port = u32::from(bound.port());
        // A guest without IPv6 has one less.
        let second = TcpListener::bind((Ipv6Addr::LOCALHOST, bound.port())).await.ok();
        let (end, ended) = watch::channel(());
        for listener in [Some(first), second].into_iter().flatten() {
            let (ours, mut ended) = (self.ours(handle), ended.clone());
            let (address, port) = (address.to_owned(), *port);
            drop(tokio::spawn(async move {
                let serve = async {
                    while let Ok((stream, from)) = listener.accept().await {
                        let (ours, address) = (ours.clone(), address.clone());
                        drop(tokio::spawn(async move {
                            let (from, from_port) = (from.ip().to_string(), u32::from(from.port()));
                            let channel = ours
                                .handle
                                .channel_open_forwarded_tcpip(address, port, from, from_port);
                            if let Ok(channel) = channel.await {
                                ours.carry(channel, stream).await;
                            }
                        }));
                    }
                };
                tokio::select! { () = serve => {}, _ = ended.changed() => {} }
            }));
        }
        self.listening.insert((address.to_owned(), *port), end);
        true
    }

    /// Leads a socket of the guest's to the client. It is removed when that ends.
    pub(super) async fn listen_socket(&mut self, path: &str, user: &str, handle: &Handle) -> bool {
        let at = PathBuf::from(path);
        let bound = as_user(user, move || std_unix::UnixListener::bind(at)).await;
        let listener = bound.and_then(|listener| {
            listener.set_nonblocking(true)?;
            UnixListener::from_std(listener)
        });
        let listener = match listener {
            Ok(listener) => listener,
            Err(error) => {
                crate::console::say(&format!("cannot listen on {path} for ssh: {error}"));
                return false;
            }
        };
        let (end, mut ended) = watch::channel(());
        let (ours, path, user) = (self.ours(handle), path.to_owned(), user.to_owned());
        self.listening.insert((path.clone(), 0), end);
        let work = self.work.clone();
        drop(tokio::spawn(async move {
            let serve = async {
                while let Ok((stream, _)) = listener.accept().await {
                    let (ours, path) = (ours.clone(), path.clone());
                    drop(tokio::spawn(async move {
                        let channel = ours.handle.channel_open_forwarded_streamlocal(path);
                        if let Ok(channel) = channel.await {
                            ours.carry(channel, stream).await;
                        }
                    }));
                }
            };
            tokio::select! { () = serve => {}, _ = ended.changed() => {} }
            // One that somebody has removed before is gone.
            drop(as_user(&user, move || std::fs::remove_file(path)).await);
            drop(work);
        }));
        true
    }

    /// Whether there was one.
    pub(super) fn end(&mut self, of: &(String, u32)) -> bool {
        self.listening.remove(of).is_some()
    }

    /// A socket of the user's, in a folder that is the user's alone, that leads to the client's agent of keys.
    pub(super) fn lend_agent(&self, user: &str, handle: &Handle) -> io::Result<LentAgent> {
        let name = banger_api::ids::random_text(12)?;
        let folder = PathBuf::from(format!("/tmp/ssh-{name}"));
        let path = folder.join("agent").to_string_lossy().into_owned();
        let at = path.clone();
        // Before the command is there that uses it; both calls are at once done.
        let listener = at_once_as_user(user, move || {
            std::fs::DirBuilder::new().mode(0o700).create(folder)?;
            std_unix::UnixListener::bind(at)
        })?;
        listener.set_nonblocking(true)?;
        let listener = UnixListener::from_std(listener)?;
        let (end, mut ended) = watch::channel(());
        let ours = self.ours(handle);
        drop(tokio::spawn(async move {
            let serve = async {
                loop {
                    let (stream, _) = listener.accept().await?;
                    let ours = ours.clone();
                    drop(tokio::spawn(async move {
                        if let Ok(channel) = ours.handle.channel_open_agent().await {
                            ours.carry(channel, stream).await;
                        }
                    }));
                }
            };
            let served: io::Result<()> = tokio::select! {
                served = serve => served,
                _ = ended.changed() => Ok(()),
            };
            if let Err(error) = served {
                crate::console::say(&format!("cannot lend an ssh agent: {error}"));
            }
        }));
        Ok(LentAgent { path, user: user.to_owned(), end })
    }
}

/// The way to the client's agent of keys that one session has.
#[derive(Debug)]
pub(super) struct LentAgent {
    path: String,
    user: String,
    end: watch::Sender<()>,
}

impl LentAgent {
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    pub(super) async fn take_back(self) {
        drop(self.end);
        let path = PathBuf::from(self.path);
        let removed = as_user(&self.user, move || {
            std::fs::remove_file(&path)?;
            std::fs::remove_dir(path.parent().unwrap_or(&path))
        });
        // What its user has removed before is gone.
        drop(removed.await);
    }
}

/// What a channel of ours needs.
#[derive(Clone)]
struct Ours {
    flow: Arc<Flow>,
    opened: Arc<Mutex<HashMap<ChannelId, Option<Inbox>>>>,
    handle: Handle,
}

impl Ours {
    async fn carry(&self, channel: Channel<Msg>, stream: impl AsyncRead + AsyncWrite) {
        let id = channel.id();
        let inbox = {
            let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
            match opened.remove(&id).flatten() {
                Some(inbox) => inbox,
                // This task was first.
                None => {
                    opened.insert(id, None);
                    self.flow.open(id)
                }
            }
        };
        carry(unread(channel), inbox, stream).await;
    }
}

async fn connect_tcp(host: &str, port: u32) -> io::Result<TcpStream> {
    let port = u16::try_from(port).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    let addresses: Vec<IpAddr> = names::find(host).await?;
    for address in addresses {
        match TcpStream::connect((address, port)).await {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn accept(
    channel: Channel<Msg>,
    reply: ChannelOpenHandle,
    flow: &Arc<Flow>,
    stream: impl AsyncRead + AsyncWrite,
) {
    let inbox = flow.open(channel.id());
    reply.accept().await;
    carry(unread(channel), inbox, stream).await;
}

async fn reject(reply: ChannelOpenHandle, error: &io::Error) {
    /// SSH_OPEN_CONNECT_FAILED (RFC 4254, 5.1).
    const CONNECT_FAILED: u32 = 2;
    let reason = error.to_string();
    reply.reject(ChannelOpenFailure::Other { code: CONNECT_FAILED, reason }).await;
}

/// Until both directions have ended, or either side is gone.
async fn carry(
    channel: ChannelWriteHalf<Msg>,
    mut inbox: Inbox,
    stream: impl AsyncRead + AsyncWrite,
) {
    let (mut from_stream, mut to_stream) = tokio::io::split(stream);
    let back = async {
        let mut buffer = vec![0; CHUNK];
        loop {
            let length = from_stream.read(&mut buffer).await?;
            if length == 0 {
                return channel.eof().await.map_err(io::Error::other);
            }
            let bytes = buffer[..length].to_vec();
            channel.data_bytes(bytes).await.map_err(io::Error::other)?;
        }
    };
    let there = async {
        let mut takes_more = true;
        // Until the client closes the channel, which it does when both sides have ended.
        while let Some(said) = inbox.next().await {
            // Who takes no more may still have something to say.
            takes_more = takes_more
                && match said {
                    Said::Data(bytes) => to_stream.write_all(&bytes).await.is_ok(),
                    Said::End => to_stream.shutdown().await.is_ok(),
                };
        }
    };
    tokio::pin!(there);
    tokio::select! {
        // Its end is told; what still comes is still taken.
        said = back => if said.is_ok() { there.await },
        () = &mut there => {}
    }
    // A client that has left needs not know.
    drop(channel.close().await);
}

/// Does `work` as that user, in a thread of its own: its identity is that thread's alone (credentials(7)).
async fn as_user<T: Send + 'static>(
    user: &str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let user = users::find(Some(user)).map_err(io::Error::other)?;
    let (tell, told) = oneshot::channel();
    std::thread::Builder::new().spawn(move || {
        // Nobody waits any more: then it is closed.
        drop(tell.send(become_user(&user).and_then(|()| work())));
    })?;
    told.await.map_err(io::Error::other)?
}

/// The same, while everything else waits.
fn at_once_as_user<T: Send + 'static>(
    user: &str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let user = users::find(Some(user)).map_err(io::Error::other)?;
    let thread =
        std::thread::Builder::new().spawn(move || become_user(&user).and_then(|()| work()))?;
    thread.join().map_err(|_| io::Error::other("a thread died"))?
}

fn become_user(user: &User) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    let is_ourselves = rustix::process::geteuid() == uid && rustix::process::getegid() == gid;
    if !is_ourselves {
        let groups: Vec<Gid> = user.groups.iter().copied().map(Gid::from_raw).collect();
        rustix::thread::set_thread_groups(&groups)?;
        rustix::thread::set_thread_gid(gid)?;
        rustix::thread::set_thread_uid(uid)?;
    }
    Ok(())
}
