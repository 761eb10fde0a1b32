//! Exec and files over HTTP: authenticate, find the agent, pass the WebSocket's handshake on, then only move bytes.

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::header::{CONNECTION, UPGRADE};
use axum::response::Response;
use banger_api::{Code, Problem};
use banger_store::VmRecord;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional_with_sizes};

use super::{App, Failure, Found};
use crate::agent;
use crate::daemon::Daemon;

pub(super) async fn exec(
    State(daemon): App,
    Found(vm): Found,
    request: Request,
) -> Result<Response, Failure> {
    splice(&daemon, &vm, "/v1/exec", request).await
}

pub(super) async fn files(
    State(daemon): App,
    Found(vm): Found,
    request: Request,
) -> Result<Response, Failure> {
    splice(&daemon, &vm, "/v1/files", request).await
}

/// Becomes the agent's WebSocket at that path.
pub(super) async fn splice(
    daemon: &Daemon,
    vm: &VmRecord,
    path: &str,
    mut request: Request,
) -> Result<Response, Failure> {
    let busy = daemon.slots.of(&vm.id).activity.begin();
    let channel = daemon.channel(vm).await?;
    let from_client = hyper::upgrade::on(&mut request);
    let answer = agent::upgrade(&channel, path, request.headers()).await?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(Failure(agent::refused(answer, path).await));
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
        drop(busy);
    }));
    response
        .body(Body::empty())
        .map_err(|e| Failure(Problem::new(Code::Internal, "cannot answer").cause(&e)))
}

/// Answers that the connection carries this protocol from now on, and moves its bytes to the agent's stream and back. What is
/// `held` goes when they are done.
pub(super) fn carry(
    mut request: Request,
    protocol: &'static str,
    agent: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    held: impl Send + 'static,
) -> Result<Response, Failure> {
    let client = hyper::upgrade::on(&mut request);
    drop(tokio::spawn(async move {
        if let Ok(client) = client.await {
            move_bytes(TokioIo::new(client), agent).await;
        }
        drop(held);
    }));
    Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(CONNECTION, "upgrade")
        .header(UPGRADE, protocol)
        .body(Body::empty())
        .map_err(|e| Failure(Problem::new(Code::Internal, "cannot answer").cause(&e)))
}

/// Until both sides have ended, or one is gone.
async fn move_bytes(
    mut client: impl AsyncRead + AsyncWrite + Unpin,
    mut agent: impl AsyncRead + AsyncWrite + Unpin,
) {
    let moved = copy_bidirectional_with_sizes(&mut client, &mut agent, SPLICE_BYTES, SPLICE_BYTES);
    drop(moved.await);
}

/// Buffer of each direction of a session.
const SPLICE_BYTES: usize = 64 * 1024;
