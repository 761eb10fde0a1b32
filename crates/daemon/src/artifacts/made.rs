//! Images that are made on this host of what the user has: a Dockerfile, a recipe, a file system, a stopped VM's disk.

use std::sync::Arc;

use banger_api::image::{
    BuildDockerfile, BuildRecipe, Builder, ImportKernel, KernelSource, PromoteVm, Recipe,
    RegisterImage,
};
use banger_api::vm::State;
use banger_api::{Code, ImageName, KernelName, Problem, VmId};
use banger_host::StateFile;
use banger_image::{Dockerfile, RecipeError, Root};
use banger_store::{ImageRecord, VmRecord};
use jiff::Timestamp;

use super::images::Made;
use super::problem;
use crate::daemon::Daemon;
use crate::operations::Operation;

impl Daemon {
    /// # Errors
    /// When there is no builder, the build fails, or the name is taken and not to be replaced.
    pub(crate) async fn build_dockerfile(
        self: &Arc<Self>,
        request: &BuildDockerfile,
        operation: &Operation,
    ) -> Result<ImageRecord, Problem> {
        let BuildDockerfile { name, file, context, build_args, target, with, replace } =
            request.clone();
        for path in [&file, &context] {
            if !path.is_absolute() {
                let message = format!("{} is not absolute", path.display());
                return Err(Problem::new(Code::Invalid, message));
            }
        }
        // The same file may make something else tomorrow, so two builds are never the same source.
        let source = format!("Dockerfile {}, {:.0}", file.display(), Timestamp::now());
        let build = Dockerfile { file, context, build_args, target, with: with.map(builder) };
        let (daemon, told) = (Arc::clone(self), operation.clone());
        self.make_image_with(name, replace, source, operation, move |out, watch| {
            let folder = daemon.images_folder();
            let taken = banger_image::build_dockerfile(&build, &folder, watch, |archive, _| {
                daemon.assemble_local(archive, None, out, &told)
            });
            let made =
                taken.map_err(|error| problem(&error, error.trouble(), error.remedy()))??;
            made.ok_or_else(|| Problem::new(Code::Internal, "the builder wrote no image"))
        })
        .await
    }

    /// # Errors
    /// When it is no recipe, the build fails, or the name is taken and not to be replaced.
    pub(crate) async fn build_recipe(
        self: &Arc<Self>,
        request: &BuildRecipe,
        operation: &Operation,
    ) -> Result<ImageRecord, Problem> {
        let refused = |error: &RecipeError| Problem::from_error(Code::Invalid, error);
        let recipe = match &request.recipe {
            Recipe::Named(name) => banger_image::Recipe::named(name),
            Recipe::Text(text) => banger_image::Recipe::parse(text),
        }
        .map_err(|error| refused(&error))?;
        let name = match (&request.name, &recipe.name) {
            (Some(name), _) => name.clone(),
            (None, Some(name)) => {
                ImageName::parse(name).map_err(|e| Problem::from_error(Code::Invalid, &e))?
            }
            (None, None) => {
                return Err(Problem::new(Code::Invalid, "the recipe does not name its image")
                    .remedy("give it a `name`, or say --name"));
            }
        };
        let release = recipe.debian.clone();
        let mut include = recipe.include;
        include.sort();
        let source = match &request.recipe {
            Recipe::Named(named) => format!("recipe {named} ({release})"),
            Recipe::Text(_) => format!("mmdebstrap {release} --include {}", include.join(",")),
        };
        self.make_image_with(name, request.replace, source, operation, move |out, watch| {
            banger_image::build_debian(&release, &include, out, watch)
                .map(Made::bare)
                .map_err(|error| problem(&error, error.trouble(), error.remedy()))
        })
        .await
    }

    /// # Errors
    /// When it is no sound file system or no kernel, or the name is taken and not to be replaced.
    pub(crate) async fn register_image(
        self: &Arc<Self>,
        request: &RegisterImage,
        operation: &Operation,
    ) -> Result<ImageRecord, Problem> {
        let RegisterImage { name, rootfs, kernel, replace } = request.clone();
        if !rootfs.is_absolute() {
            let message = format!("rootfs: {} is not absolute", rootfs.display());
            return Err(Problem::new(Code::Invalid, message));
        }
        if let Some(kernel) = kernel {
            let called = KernelName::parse(name.as_str())
                .map_err(|e| Problem::from_error(Code::Invalid, &e))?;
            let source = KernelSource::File(kernel);
            let request = ImportKernel { name: Some(called), source, replace };
            self.import_kernel(&request, operation).await?;
        }
        let source = format!("file system {}", rootfs.display());
        self.make_image_with(name, replace, source, operation, move |out, watch| {
            banger_image::register_rootfs(&rootfs, out, watch)
                .map(Made::bare)
                .map_err(|error| problem(&error, error.trouble(), error.remedy()))
        })
        .await
    }

    /// What the VM has on its disk as an image, with what its own image says of its programs.
    ///
    /// # Errors
    /// When it is not stopped, its disk cannot be read, or the name is taken and not to be replaced.
    pub(crate) async fn promote(
        self: &Arc<Self>,
        id: &VmId,
        request: &PromoteVm,
        operation: &Operation,
    ) -> Result<ImageRecord, Problem> {
        let slot = self.slots.of(id);
        // It neither starts nor goes while its disk is read.
        let _turn = slot.lock.lock().await;
        let vm = self.record(id)?;
        if vm.state != State::Stopped {
            let message = format!("{} is {}, and its disk is in use", vm.name, vm.state);
            return Err(Problem::new(Code::WrongState, message)
                .remedy(format!("`banger vm stop {}` first", vm.name)));
        }
        let root = self.root_of(&vm)?;
        let limits = self.config.image_limits;
        let config = vm.config.clone();
        // The same VM has something else on its disk later.
        let source = format!("vm {}, {:.0}", vm.name, Timestamp::now());
        self.make_image_with(
            request.name.clone(),
            request.replace,
            source,
            operation,
            move |out, watch| {
                let rootfs = banger_image::promote(&root, out, limits, watch)
                    .map_err(|error| problem(&error, error.trouble(), error.remedy()))?;
                Ok(Made { rootfs, config, manifest: None })
            },
        )
        .await
    }

    /// How the root of a VM stands on its files (`banger-storage`).
    fn root_of(&self, vm: &VmRecord) -> Result<Root, Problem> {
        let image = self.image_path(&vm.image_digest);
        let disk = StateFile::disk(&self.mark(&vm.id)).below(&self.folders.state);
        match vm.disk_driver.as_str() {
            "reflink" => Ok(Root::Whole { disk }),
            "overlay" => Ok(Root::Overlay { image, disk }),
            "dm-snapshot" => Ok(Root::Snapshot { image, disk }),
            other => {
                let message = format!("the disk of {} is of the unknown kind {other:?}", vm.name);
                Err(Problem::new(Code::Internal, message))
            }
        }
    }
}

fn builder(builder: Builder) -> banger_image::Builder {
    match builder {
        Builder::Buildah => banger_image::Builder::Buildah,
        Builder::Podman => banger_image::Builder::Podman,
        Builder::Docker => banger_image::Builder::Docker,
    }
}
