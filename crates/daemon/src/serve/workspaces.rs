//! Workspaces over HTTP.

use axum::Json;
use axum::extract::State;
use banger_api::vm::Vm;
use banger_api::workspace::Workspace;

use super::{Answer, App, Body, Found};
use crate::problems;
use crate::vms::shown;

/// Records what was brought into a VM, or taken out of it. What is recorded was done before, over the other endpoints.
pub(super) async fn put(
    State(daemon): App,
    Found(vm): Found,
    Body(workspace): Body<Workspace>,
) -> Answer<Vm> {
    daemon.store.set_workspace(&vm.id, &workspace).map_err(problems::store)?;
    Ok(Json(shown(daemon.record(&vm.id)?)))
}
