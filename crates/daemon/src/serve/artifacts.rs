//! Images and kernels over HTTP.

use axum::Json;
use axum::extract::{Path, State};
use axum::response::Response;
use banger_api::image::{
    BuildDockerfile, BuildImage, BuildRecipe, ExportImage, Image, ImportImage, ImportKernel,
    Kernel, KernelSource, PromoteVm, Prune, PullImage, RegisterImage,
};
use banger_api::kernel::{BuildKernel, PullKernel};
use banger_api::{ImageName, KernelName};

use super::follow::run;
use super::{Answer, App, Body, Failure, Found};

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

pub(super) async fn build_dockerfile(
    State(daemon): App,
    Body(request): Body<BuildDockerfile>,
) -> Result<Response, Failure> {
    let subject = request.name.to_string();
    run(&daemon, "image build", &subject, |daemon, operation| async move {
        let image = daemon.build_dockerfile(&request, &operation).await?;
        daemon.show_image(image)
    })
}

pub(super) async fn build_recipe(
    State(daemon): App,
    Body(request): Body<BuildRecipe>,
) -> Result<Response, Failure> {
    let subject = request.name.as_ref().map_or("recipe".to_owned(), ToString::to_string);
    run(&daemon, "image build", &subject, |daemon, operation| async move {
        let image = daemon.build_recipe(&request, &operation).await?;
        daemon.show_image(image)
    })
}

pub(super) async fn register_image(
    State(daemon): App,
    Body(request): Body<RegisterImage>,
) -> Result<Response, Failure> {
    let subject = request.name.to_string();
    run(&daemon, "image register", &subject, |daemon, operation| async move {
        let image = daemon.register_image(&request, &operation).await?;
        daemon.show_image(image)
    })
}

pub(super) async fn promote(
    State(daemon): App,
    Found(vm): Found,
    Body(request): Body<PromoteVm>,
) -> Result<Response, Failure> {
    run(&daemon, "image promote", vm.name.as_str(), |daemon, operation| async move {
        let image = daemon.promote(&vm.id, &request, &operation).await?;
        daemon.show_image(image)
    })
}

pub(super) async fn export_image(
    State(daemon): App,
    Body(request): Body<ExportImage>,
) -> Result<Response, Failure> {
    let subject = request.name.to_string();
    run(&daemon, "image export", &subject, |daemon, operation| async move {
        daemon.export_image(&request, &operation).await
    })
}

pub(super) async fn delete_image(
    State(daemon): App,
    Path(name): Path<ImageName>,
) -> Answer<serde_json::Value> {
    daemon.blocking(move |daemon| daemon.delete_image(&name)).await??;
    Ok(Json(serde_json::json!({})))
}

pub(super) async fn prune_images(
    State(daemon): App,
    Body(request): Body<Prune>,
) -> Result<Response, Failure> {
    run(&daemon, "image prune", "images that no VM uses", move |daemon, operation| async move {
        daemon.prune_images(request.dry_run, &operation).await
    })
}

pub(super) async fn prune_cache(
    State(daemon): App,
    Body(request): Body<Prune>,
) -> Result<Response, Failure> {
    run(&daemon, "cache prune", "what can be made again", move |daemon, operation| async move {
        daemon.prune_cache(request.dry_run, &operation).await
    })
}

pub(super) async fn pull_image(
    State(daemon): App,
    Body(request): Body<PullImage>,
) -> Result<Response, Failure> {
    let subject = request.reference.clone();
    run(&daemon, "image pull", &subject, |daemon, operation| async move {
        let image = daemon.pull_image(&request, &operation).await?;
        daemon.show_image(image)
    })
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

pub(super) async fn build_kernel(
    State(daemon): App,
    Body(request): Body<BuildKernel>,
) -> Result<Response, Failure> {
    let subject = request.package.clone().unwrap_or_else(|| "the newest source".to_owned());
    run(&daemon, "kernel build", &subject, |daemon, operation| async move {
        let kernel = daemon.build_kernel(&request, &operation).await?;
        daemon.shown_kernel(&kernel.name)
    })
}

pub(super) async fn pull_kernel(
    State(daemon): App,
    Body(request): Body<PullKernel>,
) -> Result<Response, Failure> {
    let subject = request.kernel.to_string();
    run(&daemon, "kernel pull", &subject, |daemon, operation| async move {
        let kernel = daemon.pull_kernel(&request, &operation).await?;
        daemon.shown_kernel(&kernel.name)
    })
}

pub(super) async fn catalog(State(daemon): App) -> Result<Response, Failure> {
    run(&daemon, "kernel catalog", "the catalog of kernels", |daemon, operation| async move {
        daemon.catalog(&operation).await
    })
}

pub(super) async fn delete_kernel(
    State(daemon): App,
    Path(name): Path<KernelName>,
) -> Answer<serde_json::Value> {
    daemon.blocking(move |daemon| daemon.delete_kernel(&name)).await??;
    Ok(Json(serde_json::json!({})))
}
