//! The agent of a guest, as the daemon speaks to it: HTTP/1.1 over a stream of its channel, every call with a deadline.

use std::time::Duration;

use banger_api::channel::InitState;
use banger_api::guest::{GuestClock, GuestName, GuestUsage};
use banger_api::image::GuestImage;
use banger_api::ports::{self, GuestPort, Listening};
use banger_api::ssh::GuestSsh;
use banger_api::{Code, Problem, VmName};
use banger_vmm::Channel;
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

/// How long an agent has for a short answer. A translated guest that boots is slow.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);

/// Asks the guest to shut itself down: it flushes, unmounts and powers off. The VMM's end says when it has.
///
/// # Errors
/// When the agent does not answer.
pub async fn shutdown(channel: &Channel) -> Result<(), Problem> {
    let reply =
        timeout(ANSWER_DEADLINE, request(channel, Method::POST, "/v1/shutdown", Bytes::new()))
            .await;
    let status = reply.map_err(|_| silent())??.status();
    if status.is_success() { Ok(()) } else { Err(unexpected("/v1/shutdown", status)) }
}

/// Gives the guest another hostname.
///
/// # Errors
/// When the agent does not answer, cannot, or is too old to know how.
pub async fn put_name(channel: &Channel, name: &VmName) -> Result<(), Problem> {
    tell(channel, "/v1/name", &GuestName { name: name.clone() }).await
}

/// Sets the guest's clock to the time of now, if it is not that.
///
/// # Errors
/// When the agent does not answer, cannot, or is too old to know how.
pub async fn put_clock(channel: &Channel) -> Result<(), Problem> {
    tell(channel, "/v1/clock", &GuestClock { now: Timestamp::now() }).await
}

/// What the guest uses of what it was given.
///
/// # Errors
/// When the agent does not answer, cannot, or is too old to know how.
pub async fn usage(channel: &Channel) -> Result<GuestUsage, Problem> {
    let asked = async {
        let reply = request(channel, Method::GET, "/v1/usage", Bytes::new()).await?;
        if !reply.status().is_success() {
            return Err(refused(reply, "/v1/usage").await);
        }
        let bytes = reply.into_body().collect().await.map_err(|e| broken(&e))?.to_bytes();
        serde_json::from_slice(&bytes).map_err(|e| broken(&e))
    };
    timeout(ANSWER_DEADLINE, asked).await.map_err(|_| silent())?
}

/// PUT of something that is answered by its success alone.
async fn tell(channel: &Channel, path: &str, what: &impl Serialize) -> Result<(), Problem> {
    let body = serde_json::to_vec(what).map_err(|e| broken(&e))?;
    let told = async {
        let reply = request(channel, Method::PUT, path, body.into()).await?;
        if reply.status().is_success() { Ok(()) } else { Err(refused(reply, path).await) }
    };
    timeout(ANSWER_DEADLINE, told).await.map_err(|_| silent())?
}

/// Tells the agent what the guest's image says about its programs, and whether to run the image's own.
///
/// # Errors
/// When the agent does not answer, or cannot run the image's program: then it says why.
pub async fn put_image(channel: &Channel, image: &GuestImage) -> Result<(), Problem> {
    let body = serde_json::to_vec(image).map_err(|e| broken(&e))?;
    let told = async {
        let reply = request(channel, Method::PUT, "/v1/image", body.into()).await?;
        let status = reply.status();
        if status.is_success() {
            return Ok(());
        }
        let bytes = reply.into_body().collect().await.map_err(|e| broken(&e))?.to_bytes();
        Err(serde_json::from_slice(&bytes).unwrap_or_else(|_| unexpected("/v1/image", status)))
    };
    timeout(ANSWER_DEADLINE, told).await.map_err(|_| silent())?
}

/// What runs as PID 1, when it has started everything.
///
/// # Errors
/// When the agent does not answer before the deadline.
pub async fn init(channel: &Channel, deadline: Duration) -> Result<InitState, Problem> {
    let asked = async {
        let reply = request(channel, Method::GET, "/v1/init", Bytes::new()).await?;
        if !reply.status().is_success() {
            return Err(unexpected("/v1/init", reply.status()));
        }
        let bytes = reply.into_body().collect().await.map_err(|e| broken(&e))?.to_bytes();
        serde_json::from_slice(&bytes).map_err(|e| broken(&e))
    };
    timeout(deadline, asked).await.map_err(|_| {
        Problem::new(
            Code::Timeout,
            format!("the guest's init was not done after {} s", deadline.as_secs()),
        )
        .remedy("`banger vm exec NAME -- systemctl list-jobs` shows what it waits for")
    })?
}

/// Asks what has a short answer, in JSON.
///
/// # Errors
/// What the agent says, or that it does not answer.
pub async fn ask<T: DeserializeOwned>(
    channel: &Channel,
    method: Method,
    path: &str,
    body: Option<&impl Serialize>,
) -> Result<T, Problem> {
    let body =
        body.map(serde_json::to_vec).transpose().map_err(|e| broken(&e))?.unwrap_or_default();
    let asked = async {
        let reply = request(channel, method, path, body.into()).await?;
        if !reply.status().is_success() {
            return Err(refused(reply, path).await);
        }
        let bytes = reply.into_body().collect().await.map_err(|e| broken(&e))?.to_bytes();
        serde_json::from_slice(&bytes).map_err(|e| broken(&e))
    };
    timeout(ANSWER_DEADLINE, asked).await.map_err(|_| silent())?
}

/// Passes a WebSocket request on and returns the agent's answer, whose upgrade the caller splices.
///
/// # Errors
/// When the agent does not answer.
pub async fn upgrade(
    channel: &Channel,
    path: &str,
    headers: &http::HeaderMap,
) -> Result<http::Response<Incoming>, Problem> {
    let mut builder =
        Request::builder().method(Method::GET).uri(path).header(http::header::HOST, "agent");
    let passed = [
        http::header::CONNECTION,
        http::header::UPGRADE,
        http::header::SEC_WEBSOCKET_KEY,
        http::header::SEC_WEBSOCKET_VERSION,
    ];
    for name in passed {
        if let Some(value) = headers.get(&name) {
            builder = builder.header(name, value);
        }
    }
    let request = builder.body(Full::default()).map_err(|e| broken(&e))?;
    timeout(ANSWER_DEADLINE, send(channel, request)).await.map_err(|_| silent())?
}

/// A stream to a port of the guest's; see `banger_forward` for what it carries.
///
/// # Errors
/// When nothing listens there, or the agent does not answer.
pub async fn guest_port(channel: &Channel, port: GuestPort) -> Result<TokioIo<Upgraded>, Problem> {
    let path = format!("/v1/connect{}", port.query());
    timeout(ANSWER_DEADLINE, stream(channel, &path, ports::UPGRADE)).await.map_err(|_| silent())?
}

/// Gives the guest's ssh server its keys.
///
/// # Errors
/// When the agent does not answer, or does not take them.
pub async fn put_ssh(channel: &Channel, ssh: &GuestSsh) -> Result<(), Problem> {
    let body = serde_json::to_vec(ssh).map_err(|e| broken(&e))?;
    let told = async {
        let reply = request(channel, Method::PUT, "/v1/ssh", body.into()).await?;
        if reply.status().is_success() { Ok(()) } else { Err(refused(reply, "/v1/ssh").await) }
    };
    timeout(ANSWER_DEADLINE, told).await.map_err(|_| silent())?
}

/// A stream to the guest's ssh server.
///
/// # Errors
/// When it has too many, or the agent does not answer.
pub async fn ssh(channel: &Channel) -> Result<TokioIo<Upgraded>, Problem> {
    timeout(ANSWER_DEADLINE, stream(channel, "/v1/ssh", banger_api::ssh::UPGRADE))
        .await
        .map_err(|_| silent())?
}

/// A request that becomes a stream.
async fn stream(
    channel: &Channel,
    path: &str,
    protocol: &'static str,
) -> Result<TokioIo<Upgraded>, Problem> {
    let request = Request::builder()
        .method(Method::GET)
        .uri(path)
        .header(http::header::HOST, "agent")
        .header(http::header::CONNECTION, "upgrade")
        .header(http::header::UPGRADE, protocol)
        .body(Full::default())
        .map_err(|e| broken(&e))?;
    let reply = send(channel, request).await?;
    if reply.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(refused(reply, path).await);
    }
    hyper::upgrade::on(reply).await.map(TokioIo::new).map_err(|e| broken(&e))
}

/// What waits for somebody in the guest.
///
/// # Errors
/// When the agent does not answer.
pub async fn ports(channel: &Channel) -> Result<Vec<Listening>, Problem> {
    let asked = async {
        let reply = request(channel, Method::GET, "/v1/ports", Bytes::new()).await?;
        if !reply.status().is_success() {
            return Err(refused(reply, "/v1/ports").await);
        }
        let bytes = reply.into_body().collect().await.map_err(|e| broken(&e))?.to_bytes();
        serde_json::from_slice(&bytes).map_err(|e| broken(&e))
    };
    timeout(ANSWER_DEADLINE, asked).await.map_err(|_| silent())?
}

/// Why the agent refused. One that is older than this daemon does not know what it was asked.
pub(crate) async fn refused(reply: http::Response<Incoming>, path: &str) -> Problem {
    let status = reply.status();
    let bytes = reply.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    match serde_json::from_slice::<Problem>(&bytes) {
        Ok(problem) if problem.message.starts_with("the agent has no ") => problem
            .because("it is of an older banger")
            .remedy("`banger vm restart NAME` gives the guest this one's agent"),
        Ok(problem) => problem,
        Err(_) => unexpected(path, status),
    }
}

async fn request(
    channel: &Channel,
    method: Method,
    path: &str,
    body: Bytes,
) -> Result<http::Response<Incoming>, Problem> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::HOST, "agent")
        .body(Full::new(body))
        .map_err(|e| broken(&e))?;
    send(channel, request).await
}

async fn send(
    channel: &Channel,
    request: Request<Full<Bytes>>,
) -> Result<http::Response<Incoming>, Problem> {
    let stream = channel.open().await.map_err(|e| broken(&e))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| broken(&e))?;
    // It ends with the stream; its errors are the request's.
    drop(tokio::spawn(connection.with_upgrades()));
    sender.send_request(request).await.map_err(|e| broken(&e))
}

fn broken(error: &(dyn std::error::Error + 'static)) -> Problem {
    Problem::new(Code::Guest, "cannot talk to the guest's agent").cause(error).remedy(LOOK)
}

fn silent() -> Problem {
    Problem::new(
        Code::Guest,
        format!("the guest's agent did not answer within {} s", ANSWER_DEADLINE.as_secs()),
    )
    .remedy(LOOK)
}

fn unexpected(path: &str, status: StatusCode) -> Problem {
    Problem::new(Code::Guest, format!("the guest's agent answered {status} to {path}")).remedy(LOOK)
}

const LOOK: &str = "`banger vm logs NAME` shows the guest's console; `banger vm kill NAME` ends it";
