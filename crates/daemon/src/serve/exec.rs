//! Exec and files over HTTP: authenticate, find the agent, pass the WebSocket's handshake on, then only move bytes.

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use banger_api::{Code, Problem};
use banger_vmm::Channel;
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional_with_sizes};

use super::{App, Failure, Found};
use crate::agent;

pub(super) async fn exec(
    State(daemon): App,
    Found(vm): Found,
    headers: HeaderMap,
    request: Request,
) -> Result<Response, Failure> {
    splice(&daemon.channel(&vm).await?, "/v1/exec", &headers, request).await
}

pub(super) async fn files(
    State(daemon): App,
    Found(vm): Found,
    headers: HeaderMap,
    request: Request,
) -> Result<Response, Failure> {
    splice(&daemon.channel(&vm).await?, "/v1/files", &headers, request).await
}

/// Becomes the agent's WebSocket at that path.
async fn splice(
    channel: &Channel,
    path: &str,
    headers: &HeaderMap,
    mut request: Request,
) -> Result<Response, Failure> {
    let from_client = hyper::upgrade::on(&mut request);
    let answer = agent::upgrade(channel, path, headers).await?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        let status = answer.status();
        let said =
            answer.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let problem =
            Problem::new(Code::Guest, format!("the guest's agent refused {path} with {status}"))
                .because(String::from_utf8_lossy(&said).into_owned());
        return Err(Failure(problem));
    }
    let mut response = Response::builder().status(StatusCode::SWITCHING_PROTOCOLS);
    for (name, value) in answer.headers() {
        response = response.header(name, value);
    }
    let from_agent = hyper::upgrade::on(answer);
    drop(tokio::spawn(async move {
        let (Ok(client), Ok(agent)) = tokio::join!(from_client, from_agent) else {
            // One of the two left before it was connected; the other sees its stream end.
            return;
        };
        // The session's own frames have said how it ended.
        move_bytes(TokioIo::new(client), TokioIo::new(agent)).await;
    }));
    response
        .body(Body::empty())
        .map_err(|e| Failure(Problem::new(Code::Internal, "cannot answer").cause(&e)))
}

/// Until both sides have ended, or one is gone.
pub(super) async fn move_bytes(
    mut client: impl AsyncRead + AsyncWrite + Unpin,
    mut agent: impl AsyncRead + AsyncWrite + Unpin,
) {
    let moved = copy_bidirectional_with_sizes(&mut client, &mut agent, SPLICE_BYTES, SPLICE_BYTES);
    drop(moved.await);
}

/// Buffer of each direction of a session.
const SPLICE_BYTES: usize = 64 * 1024;
