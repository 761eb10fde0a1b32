//! A guest's ports over HTTP: which there are, and a stream to one of them.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, Request, State};
use axum::http::header::UPGRADE;
use axum::response::Response;
use banger_api::ports::{self, GuestPort, Ports};
use banger_api::{Code, Problem};
use banger_forward::MOST_CONNECTIONS;

use super::exec::carry;
use super::{Answer, App, Failure, Found};
use crate::agent;

pub(super) async fn ports(State(daemon): App, Found(vm): Found) -> Answer<Ports> {
    Ok(Json(daemon.ports(&vm).await?))
}

/// Becomes a stream to a service of the guest's, once that has been reached.
pub(super) async fn connect(
    State(daemon): App,
    Found(vm): Found,
    Query(port): Query<GuestPort>,
    request: Request,
) -> Result<Response, Failure> {
    let wanted = request.headers().get(UPGRADE).is_some_and(|value| value == ports::UPGRADE);
    if !wanted {
        let message = format!("this path is upgraded to {}", ports::UPGRADE);
        return Err(Failure(Problem::new(Code::Invalid, message)));
    }
    let connections = Arc::clone(&daemon.slots.of(&vm.id).connections);
    let permit = connections.try_acquire_owned().map_err(|_| {
        let message = format!("VM {} has {MOST_CONNECTIONS} connections to its ports", vm.name);
        Problem::new(Code::Conflict, message).remedy("end some of them")
    })?;
    let busy = daemon.slots.of(&vm.id).activity.begin();
    let channel = daemon.channel(&vm).await?;
    let agent = agent::guest_port(&channel, port).await?;
    carry(request, ports::UPGRADE, agent, (permit, busy))
}
