//! Operations over HTTP: begin the work, stream its events; the work goes on when the client leaves.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::Response;
use banger_api::{Code, OperationId, Problem};
use bytes::Bytes;
use serde::Serialize;
use tokio::sync::mpsc;

use super::{App, Failure};
use crate::daemon::Daemon;
use crate::operations::Operation;

/// Begins an operation, does its work in a task of its own, and answers with its events.
pub(super) fn run<T, F>(
    daemon: &Arc<Daemon>,
    kind: &'static str,
    subject: &str,
    work: impl FnOnce(Arc<Daemon>, Operation) -> F,
) -> Result<Response, Failure>
where
    T: Serialize + Send + 'static,
    F: Future<Output = Result<T, Problem>> + Send + 'static,
{
    let operation = daemon.operations.begin(kind, subject)?;
    let work = work(Arc::clone(daemon), operation.clone());
    let (daemon, working) = (Arc::clone(daemon), operation.clone());
    drop(tokio::spawn(async move {
        let outcome = work.await;
        daemon.operations.end(&working, outcome.as_ref());
    }));
    let (sender, response) = stream();
    drop(tokio::spawn(async move {
        // The client has left: nobody is waiting for the rest.
        drop(send(&operation, &sender).await);
    }));
    Ok(response)
}

/// GET /v1/operations/{id}/events
pub(super) async fn operation_events(
    State(daemon): App,
    Path(id): Path<OperationId>,
) -> Result<Response, Failure> {
    let operation = daemon.operations.get(&id).ok_or_else(|| {
        Problem::new(
            Code::NotFound,
            format!("the events of operation {id} are not kept, or there is none"),
        )
        .remedy(format!("GET /v1/operations/{id} says how it ended"))
    })?;
    let (sender, response) = stream();
    drop(tokio::spawn(async move {
        drop(send(&operation, &sender).await);
    }));
    Ok(response)
}

/// A response whose body comes from a channel. When the client leaves, the channel closes.
pub(super) fn stream() -> (mpsc::Sender<Bytes>, Response) {
    let (sender, receiver) = mpsc::channel::<Bytes>(16);
    let pieces = futures_util::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|bytes| (Ok::<_, Infallible>(bytes), receiver))
    });
    let response = Response::builder()
        .header(CONTENT_TYPE, "application/x-ndjson")
        .body(Body::from_stream(pieces))
        .expect("the header is one");
    (sender, response)
}

/// Sends all events to the end. An error means that the client has left.
pub(super) async fn send(operation: &Operation, to: &mpsc::Sender<Bytes>) -> Result<(), Left> {
    let mut sent = 0;
    loop {
        let (events, ended) = tokio::select! {
            next = operation.events_from(sent) => next,
            () = to.closed() => return Err(Left),
        };
        sent += events.len();
        let mut lines = Vec::new();
        for event in &events {
            serde_json::to_writer(&mut lines, event).expect("events are plain data");
            lines.push(b'\n');
        }
        to.send(lines.into()).await.map_err(|_| Left)?;
        if ended {
            return Ok(());
        }
    }
}

/// The client has closed its connection.
#[derive(Debug)]
pub(super) struct Left;
