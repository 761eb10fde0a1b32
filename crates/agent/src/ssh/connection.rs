//! One ssh connection, as a process: `russh` speaks the protocol, and asks here what it may lead to.
//!
//! Before the client has shown that it holds one of the owner's keys, nothing of the guest is touched.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use banger_api::image::Config as ImageConfig;
use russh::keys::ssh_key::public::KeyData;
use russh::keys::{PrivateKey, PublicKey};
use russh::server::{
    Auth, Config, Handler, Msg, PublicKeyOffer, Session as Wire, VerifiedPublicKey, run_stream,
};
use russh::{
    Channel, ChannelId, ChannelOpenFailure, MethodKind, MethodSet, Preferred, Pty, Sig, SshId,
    cipher, mac,
};
use rustix::net::AddressFamily;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{mpsc, watch};

use super::Errand;
use super::flow::{Flow, Paced, WINDOW, unread};
use super::forwards::Forwards;
use super::session::{Session, Started};
use crate::console;

/// How long a client has to show who it is.
const GRACE: Duration = Duration::from_secs(30);

/// How many keys it may try.
const TRIES: usize = 6;

/// How long what a connection leaves behind has to go: sockets of forwards are removed.
const LAST: Duration = Duration::from_secs(5);

/// Channels of a connection at once.
const MOST_CHANNELS: usize = 256;

/// A client that answers nothing for three of these has gone.
const ALIVE: Duration = Duration::from_secs(60);

/// As `OpenSSH` prefers them; the client's choice counts.
const CIPHERS: &[cipher::Name] = &[
    cipher::CHACHA20_POLY1305,
    cipher::AES_128_GCM,
    cipher::AES_256_GCM,
    cipher::AES_128_CTR,
    cipher::AES_256_CTR,
];
const MACS: &[mac::Name] =
    &[mac::HMAC_SHA256_ETM, mac::HMAC_SHA512_ETM, mac::HMAC_SHA256, mac::HMAC_SHA512];

#[derive(Debug, thiserror::Error)]
enum ConnectionError {
    #[error("cannot run")]
    Run(#[source] io::Error),
    #[error("cannot read what the connection is for")]
    Errand(#[from] serde_json::Error),
    #[error("cannot read a key")]
    Key(#[from] russh::keys::ssh_key::Error),
}

/// The process: its stdin is the connection, its stdout the agent's errand.
pub(crate) fn run() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            console::say_error(&error);
            ExitCode::FAILURE
        }
    }
}

fn serve() -> Result<(), ConnectionError> {
    let dup =
        |fd| rustix::io::fcntl_dupfd_cloexec(fd, 3).map_err(|e| ConnectionError::Run(e.into()));
    let connection = dup(rustix::stdio::stdin())?;
    let errand = dup(rustix::stdio::stdout())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(ConnectionError::Run)?;
    let served = runtime.block_on(serve_on(connection, errand));
    // A thread that asks for a name may be slow, and nobody waits for it any more.
    runtime.shutdown_background();
    served
}

async fn serve_on(connection: OwnedFd, errand: OwnedFd) -> Result<(), ConnectionError> {
    let run = ConnectionError::Run;
    let errand = std::os::unix::net::UnixStream::from(errand);
    errand.set_nonblocking(true).map_err(run)?;
    let mut agent = UnixStream::from_std(errand).map_err(run)?;
    let mut text = Vec::new();
    agent.read_to_end(&mut text).await.map_err(run)?;
    let errand: Errand = serde_json::from_slice(&text)?;
    match rustix::net::sockopt::socket_domain(&connection) {
        Ok(AddressFamily::UNIX) => {
            let stream = std::os::unix::net::UnixStream::from(connection);
            stream.set_nonblocking(true).map_err(run)?;
            speak(UnixStream::from_std(stream).map_err(run)?, None, errand, agent).await
        }
        _ => {
            let stream = std::net::TcpStream::from(connection);
            stream.set_nonblocking(true).map_err(run)?;
            stream.set_nodelay(true).map_err(run)?;
            let ends = stream.peer_addr().and_then(|peer| Ok((peer, stream.local_addr()?)));
            speak(TcpStream::from_std(stream).map_err(run)?, ends.ok(), errand, agent).await
        }
    }
}

/// Speaks ssh on the stream until either side ends it. What goes wrong then is the client's to see.
async fn speak<S>(
    stream: S,
    ends: Option<(SocketAddr, SocketAddr)>,
    errand: Errand,
    mut agent: UnixStream,
) -> Result<(), ConnectionError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let keys = errand
        .ssh
        .authorized_keys
        .iter()
        .map(|line| PublicKey::from_openssh(line).map(|key| key.key_data().clone()));
    let keys = keys.collect::<Result<Vec<_>, _>>()?;
    let host_key = PrivateKey::from_openssh(&errand.ssh.host_key)?;
    let config = Config {
        server_id: SshId::Standard(concat!("SSH-2.0-banger_", env!("CARGO_PKG_VERSION")).into()),
        methods: MethodSet::from(&[MethodKind::PublicKey][..]),
        auth_rejection_time: Duration::from_millis(500),
        // The first asks which methods there are.
        auth_rejection_time_initial: Some(Duration::ZERO),
        keys: vec![host_key],
        window_size: WINDOW,
        max_auth_attempts: TRIES,
        inactivity_timeout: None,
        keepalive_interval: Some(ALIVE),
        preferred: Preferred { cipher: CIPHERS.into(), mac: MACS.into(), ..Preferred::DEFAULT },
        ..Config::default()
    };
    let flow = Arc::new(Flow::default());
    let (known, mut when_known) = watch::channel(false);
    let (work, mut when_done) = mpsc::channel::<()>(1);
    let handler = Connection {
        keys,
        known,
        flow: Arc::clone(&flow),
        user: String::new(),
        sessions: HashMap::new(),
        started: HashMap::new(),
        forwards: Forwards::new(Arc::clone(&flow), work.clone()),
        guest: Arc::new(Guest { image: errand.image, ends }),
        work,
    };
    let serving = async {
        // How it ends is the client's to see, and its user's.
        if let Ok(session) =
            run_stream(Arc::new(config), Paced::new(stream, flow.clone()), handler).await
        {
            drop(session.await);
        }
    };
    tokio::pin!(serving);
    tokio::select! {
        () = &mut serving => return Ok(()),
        known = tokio::time::timeout(GRACE, when_known.wait_for(|known| *known)) => {
            if !matches!(known, Ok(Ok(_))) {
                return Ok(());
            }
        }
    }
    // An agent that has ended needs not know.
    drop(agent.write_all(&[1]).await);
    drop(agent);
    serving.await;
    flow.close_all();
    drop(tokio::time::timeout(LAST, when_done.recv()).await);
    Ok(())
}

/// What commands depend on, beside their user.
#[derive(Debug)]
pub(super) struct Guest {
    pub(super) image: ImageConfig,
    /// The client's and ours, of a connection over TCP.
    pub(super) ends: Option<(SocketAddr, SocketAddr)>,
}

struct Connection {
    keys: Vec<KeyData>,
    known: watch::Sender<bool>,
    flow: Arc<Flow>,
    /// Whose login this is, by the name that the client gave.
    user: String,
    /// Those that have not begun to run something.
    sessions: HashMap<ChannelId, Session>,
    /// Those that have.
    started: HashMap<ChannelId, Started>,
    forwards: Forwards,
    guest: Arc<Guest>,
    /// Held by whatever must end before the process does.
    work: mpsc::Sender<()>,
}

impl Connection {
    fn knows(&self, key: &PublicKey) -> Auth {
        if self.keys.contains(key.key_data()) { Auth::Accept } else { Auth::reject() }
    }

    fn is_full(&self) -> bool {
        self.flow.count() >= MOST_CHANNELS
    }

    fn start(
        &mut self,
        channel: ChannelId,
        what: super::session::What,
        wire: &mut Wire,
    ) -> Result<(), russh::Error> {
        let Some(session) = self.sessions.remove(&channel) else {
            return wire.channel_failure(channel);
        };
        wire.channel_success(channel)?;
        let started = session.start(
            what,
            &self.user,
            &self.guest,
            &self.forwards,
            wire.handle(),
            self.work.clone(),
        );
        self.started.extend(started.map(|started| (channel, started)));
        Ok(())
    }
}

type Done = Result<(), russh::Error>;

impl Handler for Connection {
    type Error = russh::Error;

    async fn auth_publickey_offered(
        &mut self,
        _user: &str,
        offer: PublicKeyOffer<'_>,
    ) -> Result<Auth, russh::Error> {
        Ok(self.knows(offer.public_key))
    }

    async fn auth_publickey(
        &mut self,
        user: &str,
        key: VerifiedPublicKey<'_>,
    ) -> Result<Auth, russh::Error> {
        user.clone_into(&mut self.user);
        Ok(self.knows(key.public_key))
    }

    async fn auth_succeeded(&mut self, _wire: &mut Wire) -> Done {
        self.known.send_replace(true);
        Ok(())
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: russh::server::ChannelOpenHandle,
        _wire: &mut Wire,
    ) -> Done {
        if self.is_full() {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        }
        let id = channel.id();
        let inbox = self.flow.open(id);
        self.sessions.insert(id, Session::new(unread(channel), inbox));
        reply.accept().await;
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _from: &str,
        _from_port: u32,
        reply: russh::server::ChannelOpenHandle,
        _wire: &mut Wire,
    ) -> Done {
        if self.is_full() {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
        } else {
            self.forwards.connect(channel, host, port, reply);
        }
        Ok(())
    }

    async fn channel_open_direct_streamlocal(
        &mut self,
        channel: Channel<Msg>,
        path: &str,
        reply: russh::server::ChannelOpenHandle,
        _wire: &mut Wire,
    ) -> Done {
        if self.is_full() {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
        } else {
            self.forwards.connect_socket(channel, path, &self.user, reply);
        }
        Ok(())
    }

    async fn tcpip_forward(
        &mut self,
        address: &str,
        port: &mut u32,
        wire: &mut Wire,
    ) -> Result<bool, russh::Error> {
        Ok(self.forwards.listen(address, port, &self.user, &wire.handle()).await)
    }

    async fn cancel_tcpip_forward(
        &mut self,
        address: &str,
        port: u32,
        _wire: &mut Wire,
    ) -> Result<bool, russh::Error> {
        Ok(self.forwards.end(&(address.to_owned(), port)))
    }

    async fn streamlocal_forward(
        &mut self,
        path: &str,
        wire: &mut Wire,
    ) -> Result<bool, russh::Error> {
        Ok(self.forwards.listen_socket(path, &self.user, &wire.handle()).await)
    }

    async fn cancel_streamlocal_forward(
        &mut self,
        path: &str,
        _wire: &mut Wire,
    ) -> Result<bool, russh::Error> {
        Ok(self.forwards.end(&(path.to_owned(), 0)))
    }

    /// Channels that we have opened: what comes on them is kept before anything can come.
    async fn channel_open_confirmation(
        &mut self,
        id: ChannelId,
        _largest: u32,
        _window: u32,
        _wire: &mut Wire,
    ) -> Done {
        self.forwards.opened(id);
        Ok(())
    }

    async fn data(&mut self, channel: ChannelId, data: &[u8], _wire: &mut Wire) -> Done {
        self.flow.data(channel, data);
        Ok(())
    }

    fn adjust_window(&mut self, channel: ChannelId, _current: u32) -> u32 {
        self.flow.width(channel)
    }

    async fn channel_eof(&mut self, channel: ChannelId, _wire: &mut Wire) -> Done {
        self.flow.end(channel);
        Ok(())
    }

    async fn channel_close(&mut self, channel: ChannelId, _wire: &mut Wire) -> Done {
        self.sessions.remove(&channel);
        self.started.remove(&channel);
        self.flow.close(channel);
        Ok(())
    }

    async fn env_request(
        &mut self,
        channel: ChannelId,
        name: &str,
        value: &str,
        wire: &mut Wire,
    ) -> Done {
        match self.sessions.get_mut(&channel).is_some_and(|session| session.set(name, value)) {
            true => wire.channel_success(channel),
            false => wire.channel_failure(channel),
        }
    }

    async fn pty_request(
        &mut self,
        channel: ChannelId,
        term: &str,
        columns: u32,
        rows: u32,
        _width: u32,
        _height: u32,
        modes: &[(Pty, u32)],
        wire: &mut Wire,
    ) -> Done {
        match self.sessions.get_mut(&channel) {
            Some(session) => {
                session.at_terminal(term, columns, rows, modes);
                wire.channel_success(channel)
            }
            None => wire.channel_failure(channel),
        }
    }

    async fn agent_request(
        &mut self,
        channel: ChannelId,
        _wire: &mut Wire,
    ) -> Result<bool, russh::Error> {
        Ok(self.sessions.get_mut(&channel).is_some_and(Session::lend_agent))
    }

    async fn shell_request(&mut self, channel: ChannelId, wire: &mut Wire) -> Done {
        self.start(channel, super::session::What::Shell, wire)
    }

    async fn exec_request(&mut self, channel: ChannelId, line: &[u8], wire: &mut Wire) -> Done {
        self.start(channel, super::session::What::Command(line.to_vec()), wire)
    }

    async fn subsystem_request(&mut self, channel: ChannelId, name: &str, wire: &mut Wire) -> Done {
        if name == "sftp" {
            self.start(channel, super::session::What::Files, wire)
        } else {
            wire.channel_failure(channel)
        }
    }

    async fn window_change_request(
        &mut self,
        channel: ChannelId,
        columns: u32,
        rows: u32,
        _width: u32,
        _height: u32,
        _wire: &mut Wire,
    ) -> Done {
        if let Some(started) = self.started.get(&channel) {
            started.resize(columns, rows);
        }
        Ok(())
    }

    async fn signal(&mut self, channel: ChannelId, signal: Sig, _wire: &mut Wire) -> Done {
        if let Some(started) = self.started.get(&channel) {
            started.signal(&signal);
        }
        Ok(())
    }
}
