//! Networks over HTTP.

use axum::Json;
use axum::extract::{Path, State};
use banger_api::network::Network;
use banger_api::{Code, Problem};

use super::{Answer, App};
use crate::problems;

pub(super) async fn list(State(daemon): App) -> Answer<Vec<Network>> {
    let networks = daemon.store.networks().map_err(problems::store)?;
    Ok(Json(networks.into_iter().map(|record| daemon.shown_network(record)).collect()))
}

pub(super) async fn show(State(daemon): App, Path(name): Path<String>) -> Answer<Network> {
    let networks = daemon.store.networks().map_err(problems::store)?;
    let found = networks.into_iter().find(|record| record.name == name);
    let none = || {
        Problem::new(Code::NotFound, format!("there is no network {name}"))
            .remedy("`banger network list` shows which there are; the first VM brings one")
    };
    Ok(Json(daemon.shown_network(found.ok_or_else(none)?)))
}
