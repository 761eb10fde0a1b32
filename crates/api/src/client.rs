//! A client of the daemon's socket: plain requests, streams of events, and the WebSocket of an exec.
//!
//! One connection per request: the socket is local, and a request that hangs disturbs no other.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use bytes::{Buf, Bytes};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

use crate::operation::Event;
use crate::ports::{self, GuestPort};
use crate::{Code, Problem, VERSION_HEADER, version_line};

/// Where the daemon listens.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

/// A WebSocket to the agent of a VM.
pub type ExecSocket = WebSocketStream<UnixStream>;

impl Client {
    #[must_use]
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// GET, and the reply's JSON.
    ///
    /// # Errors
    /// What the daemon says, or that it cannot be reached.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Problem> {
        self.json(Method::GET, path, None::<&()>).await
    }

    /// A request with a JSON body if there is one, and the reply's JSON.
    ///
    /// # Errors
    /// What the daemon says, or that it cannot be reached.
    pub async fn json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, Problem> {
        let reply = self.send(method, path, body).await?;
        let bytes = reply.into_body().collect().await.map_err(|e| broken(path, &e))?.to_bytes();
        serde_json::from_slice(&bytes).map_err(|e| broken(path, &e))
    }

    /// A request for long work, and its events.
    ///
    /// # Errors
    /// What the daemon says before the first event, or that it cannot be reached.
    pub async fn events(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<Events, Problem> {
        let reply = self.send(method, path, body).await?;
        Ok(Events { path: path.to_owned(), body: reply.into_body(), buffer: Vec::new() })
    }

    /// GET of a text that may be long or never end, such as a log.
    ///
    /// # Errors
    /// What the daemon says, or that it cannot be reached.
    pub async fn text(&self, path: &str) -> Result<Text, Problem> {
        let reply = self.send(Method::GET, path, None::<&()>).await?;
        Ok(Text { path: path.to_owned(), body: reply.into_body() })
    }

    /// Opens the WebSocket at `path`.
    ///
    /// # Errors
    /// What the daemon says (no such VM, not running, …), or that it cannot be reached.
    pub async fn websocket(&self, path: &str) -> Result<ExecSocket, Problem> {
        use tokio_tungstenite::tungstenite::Error;
        let stream = self.connect().await?;
        let mut request =
            format!("ws://banger{path}").into_client_request().map_err(|e| broken(path, &e))?;
        request
            .headers_mut()
            .insert(VERSION_HEADER, version_line().parse().expect("a version is a header value"));
        match tokio_tungstenite::client_async_with_config(request, stream, Some(websocket_config()))
            .await
        {
            Ok((socket, _)) => Ok(socket),
            Err(Error::Http(reply)) => {
                let body = reply.body().clone().unwrap_or_default();
                Err(serde_json::from_slice(&body).unwrap_or_else(|_| {
                    Problem::new(
                        Code::Daemon,
                        format!("the daemon answered {} to {path}", reply.status()),
                    )
                }))
            }
            Err(error) => Err(broken(path, &error)),
        }
    }

    /// A stream to a port of a VM's, by its path; see [`crate::ports`].
    ///
    /// # Errors
    /// What the daemon says (not running, nobody listens there, …), or that it cannot be reached.
    pub async fn guest_port(
        &self,
        vm_path: &str,
        port: GuestPort,
    ) -> Result<TokioIo<Upgraded>, Problem> {
        self.stream(&format!("{vm_path}/connect{}", port.query()), ports::UPGRADE).await
    }

    /// A stream to a VM's ssh server, by the VM's path.
    ///
    /// # Errors
    /// What the daemon says (not running, an older agent, …), or that it cannot be reached.
    pub async fn ssh(&self, vm_path: &str) -> Result<TokioIo<Upgraded>, Problem> {
        self.stream(&format!("{vm_path}/ssh"), crate::ssh::UPGRADE).await
    }

    async fn stream(
        &self,
        path: &str,
        protocol: &'static str,
    ) -> Result<TokioIo<Upgraded>, Problem> {
        let request = self
            .request(Method::GET, path)
            .header(http::header::CONNECTION, "upgrade")
            .header(http::header::UPGRADE, protocol)
            .body(Full::default())
            .map_err(|e| broken(path, &e))?;
        let reply = self.answered(path, request).await?;
        if reply.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(unexplained(path, reply.status()));
        }
        hyper::upgrade::on(reply).await.map(TokioIo::new).map_err(|e| broken(path, &e))
    }

    async fn connect(&self) -> Result<UnixStream, Problem> {
        connect_unix(&self.socket).await.map_err(|error| {
            Problem::new(
                Code::Daemon,
                format!("cannot reach the daemon at {}", self.socket.display()),
            )
            .cause(&error)
            .remedy("see `banger daemon status`")
        })
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<hyper::Response<Incoming>, Problem> {
        let bytes = match body {
            Some(value) => serde_json::to_vec(value).map_err(|e| broken(path, &e))?,
            None => Vec::new(),
        };
        let request = self
            .request(method, path)
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(bytes)))
            .map_err(|e| broken(path, &e))?;
        self.answered(path, request).await
    }

    fn request(&self, method: Method, path: &str) -> http::request::Builder {
        Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::HOST, "banger")
            .header(VERSION_HEADER, version_line())
    }

    /// The reply, if it is no problem.
    async fn answered(
        &self,
        path: &str,
        request: Request<Full<Bytes>>,
    ) -> Result<hyper::Response<Incoming>, Problem> {
        let stream = self.connect().await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| broken(path, &e))?;
        // It ends with the connection; its error is the request's error, which is reported there.
        drop(tokio::spawn(connection.with_upgrades()));
        let reply = sender.send_request(request).await.map_err(|e| broken(path, &e))?;
        check_version(&reply)?;
        if reply.status().is_success() || reply.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(reply);
        }
        let status = reply.status();
        let bytes = reply.into_body().collect().await.map_err(|e| broken(path, &e))?.to_bytes();
        Err(serde_json::from_slice(&bytes).unwrap_or_else(|_| unexplained(path, status)))
    }
}

/// The limits of an exec's WebSocket, the same on both ends.
#[must_use]
pub fn websocket_config() -> WebSocketConfig {
    WebSocketConfig::default()
        .max_message_size(Some(crate::exec::MAX_CONTENT + 1))
        .max_frame_size(Some(crate::exec::MAX_CONTENT + 1))
}

/// Connects to a unix socket whose path may be longer than the 108 bytes of `sun_path` (unix(7)): through its folder's fd.
///
/// # Errors
/// When nobody listens there, or the folder cannot be opened.
pub async fn connect_unix(path: &Path) -> std::io::Result<UnixStream> {
    if path.as_os_str().len() < 100 {
        return UnixStream::connect(path).await;
    }
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(std::io::Error::other("a socket's path names a file in a folder"));
    };
    let folder = std::fs::File::open(folder)?;
    let short = Path::new("/proc/self/fd")
        .join(rustix::fd::AsRawFd::as_raw_fd(&folder.as_fd()).to_string())
        .join(name);
    UnixStream::connect(short).await
}

fn check_version(reply: &hyper::Response<Incoming>) -> Result<(), Problem> {
    let theirs = reply
        .headers()
        .get(VERSION_HEADER)
        .and_then(|value| value.to_str().ok())
        .unwrap_or("unknown");
    if theirs == version_line() {
        return Ok(());
    }
    Err(Problem::new(
        Code::Daemon,
        format!("the daemon is of another version: it is {theirs}, this is {}", version_line()),
    )
    .remedy(
        "run `banger daemon stop` (of an installation: `sudo banger system install`) and repeat the command; running VMs \
         live on",
    ))
}

fn broken(path: &str, error: &(dyn std::error::Error + 'static)) -> Problem {
    Problem::new(Code::Daemon, format!("the connection to the daemon broke at {path}"))
        .cause(error)
        .remedy("if the daemon has just ended, repeat the command: it starts another; see `banger daemon status`")
}

fn unexplained(path: &str, status: StatusCode) -> Problem {
    Problem::new(Code::Daemon, format!("the daemon answered {status} to {path}"))
}

/// The events of an operation, in their order.
#[derive(Debug)]
pub struct Events {
    path: String,
    body: Incoming,
    buffer: Vec<u8>,
}

impl Events {
    /// The next event; `None` when the stream has ended.
    ///
    /// # Errors
    /// When the connection breaks or a line is no event.
    pub async fn next(&mut self) -> Result<Option<Event>, Problem> {
        loop {
            if let Some(end) = self.buffer.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return serde_json::from_slice(&line).map(Some).map_err(|e| broken(&self.path, &e));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(broken(&self.path, &error)),
                Some(Ok(frame)) => {
                    if let Ok(mut data) = frame.into_data() {
                        while data.has_remaining() {
                            let chunk = data.chunk();
                            self.buffer.extend_from_slice(chunk);
                            let length = chunk.len();
                            data.advance(length);
                        }
                    }
                }
            }
        }
    }
}

/// A text that comes piece by piece.
#[derive(Debug)]
pub struct Text {
    path: String,
    body: Incoming,
}

impl Text {
    /// The next piece; `None` at the end.
    ///
    /// # Errors
    /// When the connection breaks.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Problem> {
        loop {
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(broken(&self.path, &error)),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }
}
