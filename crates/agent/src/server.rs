//! What the agent answers: HTTP/1.1 on any byte stream, one connection each.
//!
//! ```text
//! GET  /v1/exec      WebSocket: a command, see exec.rs
//! *    /v1/jobs...   commands that go on by themselves, see banger_api::jobs
//! GET  /v1/files     WebSocket: files to and from the guest, see files.rs
//! PUT  /v1/image     what the image says about its programs (JSON GuestImage); runs its program if asked to
//! PUT  /v1/name      another hostname (JSON GuestName)
//! PUT  /v1/clock     what time it is (JSON GuestClock)
//! GET  /v1/init      what PID 1 is and how far, once it has started what it starts
//! PUT  /v1/ssh       who the guest is to ssh clients, and who may come (JSON GuestSsh)
//! GET  /v1/ssh       a stream that carries an ssh connection, see ssh/door.rs
//! GET  /v1/connect   a stream to a port of the guest's, see guest_port.rs
//! GET  /v1/ports     what waits for somebody in the guest (JSON array of Listening)
//! GET  /v1/usage     what the guest uses of what it was given (JSON GuestUsage)
//! GET  /v1/health    200 {"uptime_ms": ..}
//! POST /v1/shutdown  202 when all is on the disks; then PID 1 is asked to turn the guest off
//! ```

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};

use banger_api::client::websocket_config;
use banger_api::guest::{GuestClock, GuestName};
use banger_api::image::{Config, GuestImage};
use banger_api::jobs::JobSignal;
use banger_api::{Code, Problem};
use bytes::Bytes;
use http::header::{
    CONNECTION, CONTENT_TYPE, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE,
};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OnceCell, Semaphore};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::entrypoint::{self, Entrypoint, EntrypointError};
use crate::init::{Init, InitError};
use crate::jobs::{JobError, Jobs};
use crate::ssh::Door;
use crate::{
    clock, cmdline, console, exec, files, guest_port, names, probe, shutdown, sockets, usage,
};

type Reply = Response<Full<Bytes>>;

/// What the answers depend on.
#[derive(Debug)]
pub(crate) struct Guest {
    init: Init,
    end_is_installed: OnceCell<()>,
    image: Mutex<Arc<Config>>,
    /// The image's program, from its start on.
    entrypoint: OnceCell<Arc<Entrypoint>>,
    /// To its ports, each with one of these.
    connections: Arc<Semaphore>,
    jobs: Arc<Jobs>,
    ssh: Arc<Door>,
}

/// What an image says is no longer than this: 1 MiB.
const LARGEST_BODY: usize = 1 << 20;

impl Guest {
    pub(crate) fn new(init: Init) -> Self {
        Self {
            init,
            end_is_installed: OnceCell::new(),
            image: Mutex::default(),
            entrypoint: OnceCell::new(),
            connections: Arc::new(Semaphore::new(guest_port::MOST)),
            jobs: Arc::default(),
            ssh: Arc::default(),
        }
    }

    fn image(&self) -> Arc<Config> {
        Arc::clone(&self.image.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes what the image says; if `run`, runs its program, once.
    async fn take_image(self: &Arc<Self>, image: GuestImage) -> Result<(), EntrypointError> {
        if let Some(folder) = &image.config.working_dir
            && let Err(error) = std::fs::create_dir_all(folder)
        {
            console::say(&format!("cannot make the image's working folder {folder}: {error}"));
        }
        let config = Arc::new(image.config);
        *self.image.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&config);
        self.ssh.take_image(Config::clone(&config));
        if !image.run || config.program().is_empty() {
            return Ok(());
        }
        let start = || async {
            let (entrypoint, child) = entrypoint::start(&config)?;
            let entrypoint = Arc::new(entrypoint);
            drop(tokio::spawn(Arc::clone(self).off_after(Arc::clone(&entrypoint), child)));
            Ok(entrypoint)
        };
        self.entrypoint.get_or_try_init(start).await.map(drop)
    }

    /// The guest lives as long as its image's program.
    async fn off_after(self: Arc<Self>, entrypoint: Arc<Entrypoint>, child: std::process::Child) {
        let how = entrypoint.end(child).await;
        console::say(&format!("the image's program ended with {how}; the guest goes off"));
        drop(tokio::task::spawn_blocking(rustix::fs::sync).await);
        if let Err(error) = self.init.power_off(cmdline::off()).await {
            console::say_error(&error);
        }
    }

    /// Sees to it, once, that an init which hands over at its end finds us.
    pub(crate) async fn install_end(&self) {
        let install = async {
            if self.init == Init::Systemd {
                // A task that was cancelled: the runtime ends.
                if let Ok(Err(error)) = crate::serve::idly(shutdown::install).await {
                    console::say(&format!("cannot write /run/initramfs/shutdown: {error}"));
                }
            }
        };
        self.end_is_installed.get_or_init(|| install).await;
    }
}

/// Serves a connection to its end. How it ended is the other side's business.
pub(crate) async fn connection<S>(stream: S, guest: Arc<Guest>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| answer(request, Arc::clone(&guest)));
    let served =
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    drop(served.with_upgrades().await);
}

async fn answer(request: Request<Incoming>, guest: Arc<Guest>) -> Result<Reply, Infallible> {
    let reply = match (request.method(), request.uri().path()) {
        (&Method::GET, "/v1/exec") => {
            let image = guest.image();
            upgrade(request, |socket| async move { exec::serve(socket, &image).await })
        }
        (&Method::GET, "/v1/files") => upgrade(request, files::serve),
        (_, path) if path.starts_with("/v1/jobs") => jobs(request, &guest).await,
        (&Method::GET, "/v1/connect") => {
            match guest_port::upgrade(request, &guest.connections).await {
                Ok(reply) => reply,
                Err((status, problem)) => json(status, &problem),
            }
        }
        (&Method::GET, "/v1/ports") => ports().await,
        (&Method::PUT, "/v1/ssh") => take_ssh(request, &guest).await,
        (&Method::GET, "/v1/ssh") => match guest.ssh.upgrade(request) {
            Ok(reply) => reply,
            Err((status, problem)) => json(status, &problem),
        },
        (&Method::PUT, "/v1/image") => take_image(request, &guest).await,
        (&Method::PUT, "/v1/name") => take_name(request, &guest).await,
        (&Method::PUT, "/v1/clock") => take_clock(request, &guest).await,
        (&Method::GET, "/v1/init") => match guest.init.state().await {
            Ok(state) => json(StatusCode::OK, &state),
            Err(error) => problem(StatusCode::INTERNAL_SERVER_ERROR, &error),
        },
        (&Method::GET, "/v1/usage") => match usage::now() {
            Ok(usage) => json(StatusCode::OK, &usage),
            Err(error) => failed(&error),
        },
        (&Method::GET, "/v1/health") => {
            json(StatusCode::OK, &serde_json::json!({ "uptime_ms": uptime_ms() }))
        }
        (&Method::POST, "/v1/shutdown") => power_off(guest).await,
        (method, path) => {
            let problem = Problem::new(Code::NotFound, format!("the agent has no {method} {path}"));
            json(StatusCode::NOT_FOUND, &problem)
        }
    };
    Ok(reply)
}

async fn ports() -> Reply {
    let listening = tokio::task::spawn_blocking(sockets::listening).await;
    match listening.map_err(std::io::Error::other).flatten() {
        Ok(mut listening) => {
            probe::ask(&mut listening).await;
            json(StatusCode::OK, &listening)
        }
        Err(error) => {
            let problem = Problem::new(Code::Guest, "cannot read the guest's list of sockets");
            json(StatusCode::INTERNAL_SERVER_ERROR, &problem.cause(&error))
        }
    }
}

fn json(status: StatusCode, value: &impl serde::Serialize) -> Reply {
    let body =
        serde_json::to_vec(value).expect("replies are plain data, which always has a JSON form");
    let mut reply = Response::new(Full::new(Bytes::from(body)));
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    reply
}

/// The paths of `banger_api::jobs`.
async fn jobs(request: Request<Incoming>, guest: &Arc<Guest>) -> Reply {
    let path = request.uri().path().trim_start_matches("/v1/jobs").to_owned();
    let words: Vec<&str> = path.split('/').skip(1).collect();
    let failed = |error: &JobError| {
        let (status, code) = match error {
            JobError::Refused(_) => (StatusCode::BAD_REQUEST, Code::Invalid),
            JobError::TooMany => (StatusCode::CONFLICT, Code::Conflict),
            JobError::Unknown(_) => (StatusCode::NOT_FOUND, Code::NotFound),
            JobError::Ended(_) => (StatusCode::CONFLICT, Code::WrongState),
            JobError::Keep { .. } => (StatusCode::INTERNAL_SERVER_ERROR, Code::Guest),
        };
        json(status, &Problem::from_error(code, error))
    };
    let number = words.first().and_then(|word| word.parse::<u32>().ok());
    match (request.method(), number, words.get(1).copied()) {
        (&Method::GET, None, None) => match guest.jobs.list() {
            Ok(jobs) => json(StatusCode::OK, &jobs),
            Err(error) => failed(&error),
        },
        (&Method::POST, None, None) => match body(request).await {
            Err(reply) => reply,
            Ok(start) => match guest.jobs.start(&start, &guest.image()) {
                Ok(job) => json(StatusCode::OK, &job),
                Err(error) => failed(&error),
            },
        },
        (&Method::POST, Some(number), Some("signal")) => match body::<JobSignal>(request).await {
            Err(reply) => reply,
            Ok(wanted) => match guest.jobs.signal(number, wanted.signal).await {
                Ok(()) => json(StatusCode::OK, &serde_json::json!({})),
                Err(error) => failed(&error),
            },
        },
        (&Method::GET, Some(number), Some("attach")) => {
            let follow = request.uri().query() != Some("follow=false");
            match guest.jobs.show(number) {
                Err(error) => failed(&error),
                Ok(_) => {
                    let jobs = Arc::clone(&guest.jobs);
                    upgrade(request, move |socket| async move {
                        jobs.attach(number, follow, socket).await
                    })
                }
            }
        }
        (method, ..) => {
            let message = format!("the agent has no {method} /v1/jobs{path}");
            json(StatusCode::NOT_FOUND, &Problem::new(Code::NotFound, message))
        }
    }
}

/// A JSON body, or what is answered to one that is none.
async fn body<T: DeserializeOwned>(request: Request<Incoming>) -> Result<T, Reply> {
    let invalid = |error: &(dyn std::error::Error + 'static)| {
        json(StatusCode::BAD_REQUEST, &Problem::from_error(Code::Invalid, error))
    };
    let body = Limited::new(request.into_body(), LARGEST_BODY).collect().await;
    let body = body.map_err(|error| invalid(error.as_ref()))?.to_bytes();
    serde_json::from_slice(&body).map_err(|error| invalid(&error))
}

async fn take_image(request: Request<Incoming>, guest: &Arc<Guest>) -> Reply {
    let image = match body(request).await {
        Ok(image) => image,
        Err(reply) => return reply,
    };
    match guest.take_image(image).await {
        Ok(()) => json(StatusCode::OK, &serde_json::json!({})),
        Err(error) => {
            console::say_error(&error);
            json(StatusCode::CONFLICT, &Problem::from_error(Code::Guest, &error))
        }
    }
}

async fn take_name(request: Request<Incoming>, guest: &Guest) -> Reply {
    if guest.init == Init::None {
        return problem(StatusCode::CONFLICT, &InitError::NotAGuest);
    }
    let GuestName { name } = match body(request).await {
        Ok(name) => name,
        Err(reply) => return reply,
    };
    let set = move || names::set(Some(name.as_str()), cmdline::net().as_ref());
    match tokio::task::spawn_blocking(set).await {
        Ok(Ok(())) => json(StatusCode::OK, &serde_json::json!({})),
        Ok(Err(error)) => failed(&error),
        // The runtime ends.
        Err(error) => failed(&error),
    }
}

async fn take_clock(request: Request<Incoming>, guest: &Guest) -> Reply {
    if guest.init == Init::None {
        return problem(StatusCode::CONFLICT, &InitError::NotAGuest);
    }
    let GuestClock { now } = match body(request).await {
        Ok(clock) => clock,
        Err(reply) => return reply,
    };
    match clock::step(now) {
        Ok(()) => json(StatusCode::OK, &serde_json::json!({})),
        Err(error) => failed(&error),
    }
}

fn failed(error: &(dyn std::error::Error + 'static)) -> Reply {
    json(StatusCode::INTERNAL_SERVER_ERROR, &Problem::from_error(Code::Guest, error))
}

async fn take_ssh(request: Request<Incoming>, guest: &Arc<Guest>) -> Reply {
    let ssh = match body(request).await {
        Ok(ssh) => ssh,
        Err(reply) => return reply,
    };
    match guest.ssh.open(ssh) {
        Ok(()) => json(StatusCode::OK, &serde_json::json!({})),
        Err(problem) => json(StatusCode::BAD_REQUEST, &problem),
    }
}

fn problem(status: StatusCode, error: &InitError) -> Reply {
    json(status, &Problem::from_error(Code::Guest, error))
}

/// Time since the guest booted, time asleep included.
fn uptime_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let ms = i128::from(now.tv_sec) * 1000 + i128::from(now.tv_nsec) / 1_000_000;
    u64::try_from(ms).unwrap_or_default()
}

type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// Turns the connection into a WebSocket that `serve` answers (RFC 6455, 4.2).
fn upgrade<F>(request: Request<Incoming>, serve: impl FnOnce(Socket) -> F + Send + 'static) -> Reply
where
    F: Future<Output = ()> + Send,
{
    let headers = request.headers();
    let wants_websocket = headers
        .get(UPGRADE)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"));
    let accept = headers.get(SEC_WEBSOCKET_KEY).map(|key| derive_accept_key(key.as_bytes()));
    let Some(accept) =
        accept.filter(|_| wants_websocket).and_then(|accept| HeaderValue::try_from(accept).ok())
    else {
        return json(
            StatusCode::BAD_REQUEST,
            &Problem::new(Code::Invalid, format!("{} is a WebSocket", request.uri().path())),
        );
    };
    drop(tokio::spawn(async move {
        // An upgrade that fails is a connection that has ended.
        if let Ok(upgraded) = hyper::upgrade::on(request).await {
            let stream = TokioIo::new(upgraded);
            let limits = Some(websocket_config());
            serve(WebSocketStream::from_raw_socket(stream, Role::Server, limits).await).await;
        }
    }));
    let mut reply = Response::new(Full::default());
    *reply.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = reply.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    reply
}

/// Answers when everything written so far is on the disks, and asks PID 1 beside the answer: the guest may take it away.
async fn power_off(guest: Arc<Guest>) -> Reply {
    if guest.init == Init::None {
        return problem(StatusCode::CONFLICT, &InitError::NotAGuest);
    }
    guest.install_end().await;
    drop(tokio::task::spawn_blocking(rustix::fs::sync).await);
    drop(tokio::spawn(async move {
        if let Some(entrypoint) = guest.entrypoint.get() {
            entrypoint.stop().await;
        }
        if let Err(error) = guest.init.power_off(cmdline::off()).await {
            console::say_error(&error);
        }
    }));
    json(StatusCode::ACCEPTED, &serde_json::json!({}))
}
