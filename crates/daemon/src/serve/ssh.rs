//! ssh over HTTP: what clients need, and streams to guests' servers.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::header::UPGRADE;
use axum::response::Response;
use banger_api::ssh::{self, SshAccess};
use banger_api::{Code, Problem};
use banger_forward::MOST_CONNECTIONS;

use super::exec::carry;
use super::{Answer, App, Failure, Found};

pub(super) async fn access(State(daemon): App) -> Answer<SshAccess> {
    Ok(Json(daemon.blocking(|daemon| daemon.ssh_access()).await??))
}

/// Becomes a stream that carries ssh.
pub(super) async fn connect(
    State(daemon): App,
    Found(vm): Found,
    request: Request,
) -> Result<Response, Failure> {
    if request.headers().get(UPGRADE).is_none_or(|value| value != ssh::UPGRADE) {
        let message = format!("this path is upgraded to {}", ssh::UPGRADE);
        return Err(Failure(Problem::new(Code::Invalid, message)));
    }
    let connections = Arc::clone(&daemon.slots.of(&vm.id).connections);
    let permit = connections.try_acquire_owned().map_err(|_| {
        let message = format!("VM {} has {MOST_CONNECTIONS} connections", vm.name);
        Problem::new(Code::Conflict, message).remedy("end some of them")
    })?;
    let busy = daemon.slots.of(&vm.id).activity.begin();
    let agent = daemon.ssh_stream(&vm).await?;
    carry(request, ssh::UPGRADE, agent, (permit, busy))
}
