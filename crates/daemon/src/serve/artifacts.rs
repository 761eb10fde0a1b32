//! Images and kernels over HTTP.

use axum::Json;
use axum::extract::{Path, State};
use axum::response::Response;
use banger_api::image::{BuildImage, Image, ImportImage, ImportKernel, Kernel, KernelSource};
use banger_api::{ImageName, KernelName};

use super::follow::run;
use super::{Answer, App, Body, Failure};

pub(super) async fn images(State(daemon): App) -> Answer<Vec<Image>> {
    Ok(Json(daemon.shown_images()?))
}

pub(super) async fn image(State(daemon): App, Path(name): Path<ImageName>) -> Answer<Image> {
    Ok(Json(daemon.shown_image(&name)?))
}

pub(super) async fn build_image(
    State(daemon): App,
    Body(request): Body<BuildImage>,
) -> Result<Response, Failure> {
    let subject = request.name.as_ref().map_or(request.debian.clone(), ToString::to_string);
    run(&daemon, "image build", &subject, |daemon, operation| async move {
        let image = daemon.build_image(&request, &operation).await?;
        daemon.show_image(image)
    })
}

pub(super) async fn import_image(
    State(daemon): App,
    Body(request): Body<ImportImage>,
) -> Result<Response, Failure> {
    let subject = request.name.to_string();
    run(&daemon, "image import", &subject, |daemon, operation| async move {
        let image = daemon.import_image(&request, &operation).await?;
        daemon.show_image(image)
    })
}

pub(super) async fn delete_image(
    State(daemon): App,
    Path(name): Path<ImageName>,
) -> Answer<serde_json::Value> {
    daemon.blocking(move |daemon| daemon.delete_image(&name)).await??;
    Ok(Json(serde_json::json!({})))
}

pub(super) async fn kernels(State(daemon): App) -> Answer<Vec<Kernel>> {
    Ok(Json(daemon.shown_kernels()?))
}

pub(super) async fn kernel(State(daemon): App, Path(name): Path<KernelName>) -> Answer<Kernel> {
    Ok(Json(daemon.shown_kernel(&name)?))
}

pub(super) async fn import_kernel(
    State(daemon): App,
    Body(request): Body<ImportKernel>,
) -> Result<Response, Failure> {
    let subject = match &request.source {
        KernelSource::File(path) => path.display().to_string(),
        KernelSource::Apt(package) => package.clone(),
    };
    run(&daemon, "kernel import", &subject, |daemon, operation| async move {
        let kernel = daemon.import_kernel(&request, &operation).await?;
        daemon.shown_kernel(&kernel.name)
    })
}

pub(super) async fn delete_kernel(
    State(daemon): App,
    Path(name): Path<KernelName>,
) -> Answer<serde_json::Value> {
    daemon.blocking(move |daemon| daemon.delete_kernel(&name)).await??;
    Ok(Json(serde_json::json!({})))
}
