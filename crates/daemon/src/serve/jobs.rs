//! A guest's jobs over HTTP: passed on to its agent, which has them; see `banger_api::jobs`.

use axum::Json;
use axum::extract::{Path, Query, Request, State};
use axum::http::Method;
use axum::response::Response;
use banger_api::exec::Start;
use banger_api::jobs::{Attach, Job, JobSignal};
use serde_json::Value;

use super::exec::splice;
use super::{Answer, App, Body, Failure, Found};
use crate::agent;

const PATH: &str = "/v1/jobs";

pub(super) async fn list(State(daemon): App, Found(vm): Found) -> Answer<Vec<Job>> {
    let channel = daemon.channel(&vm).await?;
    Ok(Json(agent::ask(&channel, Method::GET, PATH, None::<&()>).await?))
}

pub(super) async fn start(
    State(daemon): App,
    Found(vm): Found,
    Body(start): Body<Start>,
) -> Answer<Job> {
    let channel = daemon.channel(&vm).await?;
    Ok(Json(agent::ask(&channel, Method::POST, PATH, Some(&start)).await?))
}

pub(super) async fn signal(
    State(daemon): App,
    Found(vm): Found,
    Path((_, number)): Path<(String, u32)>,
    Body(signal): Body<JobSignal>,
) -> Answer<Value> {
    let channel = daemon.channel(&vm).await?;
    let path = format!("{PATH}/{number}/signal");
    Ok(Json(agent::ask(&channel, Method::POST, &path, Some(&signal)).await?))
}

pub(super) async fn attach(
    State(daemon): App,
    Found(vm): Found,
    Path((_, number)): Path<(String, u32)>,
    Query(how): Query<Attach>,
    request: Request,
) -> Result<Response, Failure> {
    let path = format!("{PATH}/{number}/attach?follow={}", how.follow);
    splice(&daemon, &vm, &path, request).await
}
