//! The API on its unix socket: who may speak, which path is what, how answers and errors look.

mod artifacts;
mod exec;
mod follow;
mod jobs;
mod logs;
mod networks;
mod ports;
mod ssh;
mod vms;
mod workspaces;

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use axum::extract::{FromRequestParts, Path, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::serve::Listener;
use axum::{Json, Router};
use banger_api::daemon::DaemonInfo;
use banger_api::operation::Operation;
use banger_api::{Code, OperationId, Problem, VERSION_HEADER, version_line};
use banger_store::OperationRecord;
use serde::de::DeserializeOwned;
use tokio::net::unix::SocketAddr;
use tokio::net::{UnixListener, UnixStream};

use crate::daemon::Daemon;
use crate::problems;

pub(crate) type App = State<Arc<Daemon>>;

/// Serves until the daemon is to end.
///
/// # Errors
/// When the listener fails.
pub async fn serve(daemon: Arc<Daemon>, listener: UnixListener) -> io::Result<()> {
    let mut ending = daemon.ending.subscribe();
    let app = router(daemon);
    let ended = async move {
        // The sender is in the daemon, which outlives this.
        drop(ending.wait_for(|ending| *ending).await);
    };
    tokio::select! {
        served = axum::serve(OwnerOnly(listener), app) => served,
        // Open streams are cut: clients of a daemon that was told to end are told so by that.
        () = ended => Ok(()),
    }
}

fn router(daemon: Arc<Daemon>) -> Router {
    Router::new()
        .route("/v1/daemon", get(info))
        .route("/v1/daemon/stop", post(stop))
        .route("/v1/doctor", get(doctor))
        .route("/v1/doctor/fix", post(doctor_fix))
        .route("/v1/doctor/deep", post(doctor_deep))
        .route("/v1/vms", get(vms::list).post(vms::create))
        .route("/v1/vms/prune", post(vms::prune))
        .route("/v1/vms/{vm}", get(vms::show).patch(vms::set).delete(vms::delete))
        .route("/v1/vms/{vm}/start", post(vms::start))
        .route("/v1/vms/{vm}/stop", post(vms::stop))
        .route("/v1/vms/{vm}/restart", post(vms::restart))
        .route("/v1/vms/{vm}/kill", post(vms::kill))
        .route("/v1/vms/{vm}/stats", get(vms::stats))
        .route("/v1/vms/{vm}/pause", post(vms::pause))
        .route("/v1/vms/{vm}/resume", post(vms::resume))
        .route("/v1/vms/{vm}/rename", post(vms::rename))
        .route("/v1/vms/{vm}/promote", post(artifacts::promote))
        .route("/v1/vms/{vm}/init", get(vms::init))
        .route("/v1/vms/{vm}/logs", get(logs::logs))
        .route("/v1/vms/{vm}/refused", get(vms::refused))
        .route("/v1/vms/{vm}/exec", get(exec::exec))
        .route("/v1/vms/{vm}/jobs", get(jobs::list).post(jobs::start))
        .route("/v1/vms/{vm}/jobs/{number}/signal", post(jobs::signal))
        .route("/v1/vms/{vm}/jobs/{number}/attach", get(jobs::attach))
        .route("/v1/vms/{vm}/files", get(exec::files))
        .route("/v1/vms/{vm}/workspace", put(workspaces::put))
        .route("/v1/vms/{vm}/ports", get(ports::ports))
        .route("/v1/vms/{vm}/connect", get(ports::connect))
        .route("/v1/vms/{vm}/ssh", get(ssh::connect))
        .route("/v1/ssh", get(ssh::access))
        .route("/v1/images", get(artifacts::images))
        .route("/v1/images/build", post(artifacts::build_image))
        .route("/v1/images/dockerfile", post(artifacts::build_dockerfile))
        .route("/v1/images/export", post(artifacts::export_image))
        .route("/v1/images/import", post(artifacts::import_image))
        .route("/v1/images/pull", post(artifacts::pull_image))
        .route("/v1/images/recipe", post(artifacts::build_recipe))
        .route("/v1/images/register", post(artifacts::register_image))
        .route("/v1/images/prune", post(artifacts::prune_images))
        .route("/v1/cache/prune", post(artifacts::prune_cache))
        .route("/v1/images/{*name}", get(artifacts::image).delete(artifacts::delete_image))
        .route("/v1/kernels", get(artifacts::kernels))
        .route("/v1/kernels/import", post(artifacts::import_kernel))
        .route("/v1/kernels/build", post(artifacts::build_kernel))
        .route("/v1/kernels/pull", post(artifacts::pull_kernel))
        .route("/v1/catalog", post(artifacts::catalog))
        .route("/v1/kernels/{*name}", get(artifacts::kernel).delete(artifacts::delete_kernel))
        .route("/v1/networks", get(networks::list).post(networks::create))
        .route("/v1/networks/{name}", get(networks::show).delete(networks::delete))
        .route("/v1/bench/boot", get(vms::bench_boot))
        .route("/v1/bench/start", get(vms::bench_start))
        .route("/v1/operations", get(operations))
        .route("/v1/operations/{id}", get(operation))
        .route("/v1/operations/{id}/events", get(follow::operation_events))
        .fallback(nothing)
        .layer(middleware::from_fn(versions))
        .with_state(daemon)
}

/// Tells every client what this daemon is, and refuses a client of another version by name.
async fn versions(request: Request, next: Next) -> Response {
    let theirs = request
        .headers()
        .get(VERSION_HEADER)
        .and_then(|value| value.to_str().ok())
        .map(str::to_owned);
    let mut response = match theirs {
        Some(theirs) if theirs != version_line() => {
            let message = format!(
                "this daemon is of another version: it is {}, the client is {theirs}",
                version_line()
            );
            let remedy = "run `banger daemon stop` (of an installation: `sudo banger system install`) and repeat the \
                          command; running VMs live on";
            Failure(Problem::new(Code::Daemon, message).remedy(remedy)).into_response()
        }
        _ => next.run(request).await,
    };
    let version = HeaderValue::from_str(&version_line()).expect("a version is a header value");
    response.headers_mut().insert(VERSION_HEADER, version);
    response
}

/// Accepts connections of the owner, and of root; others are closed at once.
struct OwnerOnly(UnixListener);

impl Listener for OwnerOnly {
    type Io = UnixStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (UnixStream, SocketAddr) {
        let owner = rustix::process::geteuid().as_raw();
        loop {
            let (stream, address) = Listener::accept(&mut self.0).await;
            match stream.peer_cred() {
                Ok(peer) if peer.uid() == owner || peer.uid() == 0 => return (stream, address),
                Ok(peer) => {
                    tracing::warn!(uid = peer.uid(), "refused a connection of another user")
                }
                Err(error) => tracing::warn!(%error, "refused a connection of nobody knows whom"),
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

/// A problem as an answer.
#[derive(Debug)]
pub(crate) struct Failure(pub(crate) Problem);

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = match self.0.code {
            Code::Invalid => StatusCode::BAD_REQUEST,
            Code::NotFound => StatusCode::NOT_FOUND,
            Code::Conflict | Code::WrongState | Code::Unexported => StatusCode::CONFLICT,
            Code::NoSpace => StatusCode::INSUFFICIENT_STORAGE,
            Code::Timeout => StatusCode::GATEWAY_TIMEOUT,
            Code::Guest => StatusCode::BAD_GATEWAY,
            Code::Missing
            | Code::Cancelled
            | Code::Daemon
            | Code::Damaged
            | Code::Leftover
            | Code::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, Json(self.0)).into_response()
    }
}

/// What a handler gives.
pub(crate) type Answer<T> = Result<Json<T>, Failure>;

/// A JSON body; an empty one counts as `{}`. What does not fit is refused with the field's name.
pub(crate) struct Body<T>(pub(crate) T);

impl<T: DeserializeOwned> axum::extract::FromRequest<Arc<Daemon>> for Body<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, daemon: &Arc<Daemon>) -> Result<Self, Failure> {
        let refuse = |text: String| {
            Failure(Problem::new(Code::Invalid, "the request does not fit").because(text))
        };
        let bytes =
            bytes::Bytes::from_request(request, daemon).await.map_err(|e| refuse(e.to_string()))?;
        let json: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        serde_json::from_slice(json).map(Self).map_err(|e| refuse(e.to_string()))
    }
}

/// The `{vm}` of a path: the VM there is, by name, id or unique beginning.
pub(crate) struct Found(pub(crate) banger_store::VmRecord);

impl FromRequestParts<Arc<Daemon>> for Found {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, daemon: &Arc<Daemon>) -> Result<Self, Failure> {
        let path = Path::<HashMap<String, String>>::from_request_parts(parts, daemon).await;
        let Path(words) = path.map_err(|e| {
            Problem::new(Code::Invalid, "the path names no VM").because(e.to_string())
        })?;
        let reference = words.get("vm").expect("every path that this is for has it");
        Ok(Self(daemon.find(reference)?))
    }
}

async fn info(State(daemon): App) -> Answer<DaemonInfo> {
    Ok(Json(daemon.info()?))
}

async fn stop(State(daemon): App) -> Json<serde_json::Value> {
    tracing::info!("told to end");
    daemon.ending.send_replace(true);
    Json(serde_json::json!({}))
}

async fn doctor(State(daemon): App) -> Answer<banger_api::daemon::Report> {
    Ok(Json(daemon.doctor().await?))
}

async fn doctor_fix(State(daemon): App) -> Result<Response, Failure> {
    follow::run(&daemon, "doctor fix", "host", |daemon, operation| async move {
        daemon.doctor_fix(&operation).await
    })
}

async fn doctor_deep(State(daemon): App) -> Result<Response, Failure> {
    follow::run(&daemon, "doctor deep", "artifacts", |daemon, operation| async move {
        daemon.doctor_deep(&operation).await
    })
}

async fn operations(State(daemon): App) -> Answer<Vec<Operation>> {
    let all = daemon.store.operations().map_err(problems::store)?;
    Ok(Json(all.into_iter().map(shown).collect()))
}

async fn operation(State(daemon): App, Path(id): Path<OperationId>) -> Answer<Operation> {
    let found = daemon.store.operation(&id).map_err(problems::store)?;
    let found =
        found.ok_or_else(|| Problem::new(Code::NotFound, format!("there is no operation {id}")))?;
    Ok(Json(shown(found)))
}

fn shown(record: OperationRecord) -> Operation {
    Operation {
        id: record.id,
        kind: record.kind,
        subject: record.subject,
        started_at: record.started_at,
        ended_at: record.ended_at,
        problem: record.problem,
    }
}

async fn nothing(request: Request) -> Failure {
    Failure(Problem::new(
        Code::NotFound,
        format!("the API has no {} {}", request.method(), request.uri().path()),
    ))
}
