//! Networks over HTTP.

use axum::Json;
use axum::extract::{Path, State};
use banger_api::NetworkName;
use banger_api::network::{CreateNetwork, Network};

use super::{Answer, App, Body};
use crate::{networks, problems};

pub(super) async fn list(State(daemon): App) -> Answer<Vec<Network>> {
    let networks = daemon.store.networks().map_err(problems::store)?;
    Ok(Json(networks.into_iter().map(|record| daemon.shown_network(record)).collect()))
}

pub(super) async fn show(State(daemon): App, Path(name): Path<NetworkName>) -> Answer<Network> {
    let found = daemon.network_named(&name)?;
    Ok(Json(daemon.shown_network(found)))
}

pub(super) async fn create(
    State(daemon): App,
    Body(request): Body<CreateNetwork>,
) -> Answer<Network> {
    daemon.networks_work().await.map_err(|why| {
        networks::no_network("network create", &why).remedy("`banger doctor` shows what is missing")
    })?;
    let made = daemon.blocking(move |daemon| daemon.create_network(&request)).await??;
    Ok(Json(daemon.shown_network(made)))
}

pub(super) async fn delete(
    State(daemon): App,
    Path(name): Path<NetworkName>,
) -> Answer<serde_json::Value> {
    daemon.blocking(move |daemon| daemon.delete_network(&name)).await??;
    Ok(Json(serde_json::json!({})))
}
