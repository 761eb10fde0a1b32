//! Images: build, import, show, delete.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use banger_api::image::{BuildImage, Config, Image, ImportImage, PullImage};
use banger_api::{Code, ImageName, Problem};
use banger_image::{ImportedRootfs, Watch};
use banger_registry::Reference;
use banger_store::ImageRecord;
use jiff::Timestamp;

use super::{TEMPORARY, act, problem, watch};
use crate::daemon::Daemon;
use crate::operations::Operation;
use crate::problems;

impl Daemon {
    pub(crate) fn images_folder(&self) -> PathBuf {
        self.folders.state.join("images")
    }

    pub(crate) fn image_path(&self, digest: &str) -> PathBuf {
        self.images_folder().join(format!("{digest}.ext4"))
    }

    /// The image of that name, or the default one, which is made here if it is missing and can be.
    pub(crate) async fn image_for(
        self: &Arc<Self>,
        name: Option<&ImageName>,
        operation: &Operation,
    ) -> Result<ImageRecord, Problem> {
        let wanted = name.unwrap_or(&self.config.image).clone();
        if let Some(image) = self.store.image(&wanted).map_err(problems::store)? {
            return Ok(image);
        }
        // `debian:RELEASE` is made here, on any host with apt: what registries have by that name boots no system.
        let Some(release) = wanted.as_str().strip_prefix("debian:").map(str::to_owned) else {
            return self.pull_missing(wanted, operation).await;
        };
        operation.note(format!("there is no image {wanted} yet: building it, once"));
        let request =
            BuildImage { name: Some(wanted), debian: release, include: Vec::new(), replace: false };
        self.build_image(&request, operation).await
    }

    /// An image that nobody made here may be a registry's.
    async fn pull_missing(
        self: &Arc<Self>,
        wanted: ImageName,
        operation: &Operation,
    ) -> Result<ImageRecord, Problem> {
        // `alpine` and `alpine:latest` are one image, called by what `image pull` calls it.
        let reference: Option<Reference> = wanted.as_str().parse().ok();
        let short = reference.and_then(|it| ImageName::parse(&it.short()).ok());
        let name = short.unwrap_or_else(|| wanted.clone());
        if let Some(image) = self.store.image(&name).map_err(problems::store)? {
            return Ok(image);
        }
        operation.note(format!("there is no image {wanted} here: asking its registry"));
        let request = PullImage { reference: wanted.to_string(), name: Some(name), platform: None };
        self.pull_image(&request, operation).await.map_err(|problem| {
            let mut found = no_image(&wanted);
            found.causes = [vec![problem.message], problem.causes].concat();
            found
        })
    }

    /// # Errors
    /// When mmdebstrap fails, or the name is taken and not to be replaced.
    pub(crate) async fn build_image(
        self: &Arc<Self>,
        request: &BuildImage,
        operation: &Operation,
    ) -> Result<ImageRecord, Problem> {
        let name = match &request.name {
            Some(name) => name.clone(),
            None => ImageName::parse(&format!("debian:{}", request.debian))
                .map_err(|e| Problem::from_error(Code::Invalid, &e))?,
        };
        let release = request.debian.clone();
        let (include, source) = match request.include.as_slice() {
            [] => (
                banger_image::debian::TOOLS.iter().map(ToString::to_string).collect(),
                format!("mmdebstrap {release} with the usual tools"),
            ),
            named => {
                (named.to_vec(), format!("mmdebstrap {release} --include {}", named.join(",")))
            }
        };
        self.make_image(name, request.replace, source, operation, move |out, watch| {
            banger_image::build_debian(&release, &include, out, watch)
                .map_err(|error| problem(&error, error.trouble(), error.remedy()))
        })
        .await
    }

    /// # Errors
    /// When the file or folder holds no image, or the name is taken and not to be replaced.
    pub(crate) async fn import_image(
        self: &Arc<Self>,
        request: &ImportImage,
        operation: &Operation,
    ) -> Result<ImageRecord, Problem> {
        let path = request.path.clone();
        if !path.is_absolute() {
            return Err(Problem::new(
                Code::Invalid,
                format!("path: {} is not absolute", path.display()),
            ));
        }
        let source = match &request.image {
            Some(image) => format!("{image} of {}", path.display()),
            None => format!("file {}", path.display()),
        };
        let (image, told) = (request.image.clone(), operation.clone());
        let daemon = Arc::clone(self);
        self.make_image_with(
            request.name.clone(),
            request.replace,
            source,
            operation,
            move |out, watch| match daemon.assemble_local(&path, image.as_deref(), out, &told)? {
                Some(made) => Ok(made),
                None if image.is_some() => {
                    let message = format!("{} holds no images with names", path.display());
                    Err(Problem::new(Code::Invalid, message).remedy(
                        "--image is for OCI archives and layouts, and for archives of docker",
                    ))
                }
                None => banger_image::import_rootfs(&path, out, watch)
                    .map(Made::bare)
                    .map_err(|error| problem(&error, error.trouble(), error.remedy())),
            },
        )
        .await
    }

    /// # Errors
    /// When it is not there or used by a VM.
    pub(crate) fn delete_image(&self, name: &ImageName) -> Result<(), Problem> {
        let _artifacts = self.artifacts();
        let image = self.shown_image(name)?;
        if !image.used_by.is_empty() {
            return Err(in_use("image", name.as_str(), &image.used_by));
        }
        self.store.delete_image(name).map_err(problems::store)?;
        let images = self.store.images().map_err(problems::store)?;
        let vms = self.store.vms().map_err(problems::store)?;
        // A VM may boot it by another name.
        if images.iter().all(|other| other.digest != image.digest)
            && vms.iter().all(|vm| vm.image_digest != image.digest)
        {
            let path = self.image_path(&image.digest);
            fs::remove_file(&path).map_err(act(&format!("cannot remove {}", path.display())))?;
        }
        Ok(())
    }

    /// # Errors
    /// When it is not there.
    pub(crate) fn shown_image(&self, name: &ImageName) -> Result<Image, Problem> {
        let image =
            self.store.image(name).map_err(problems::store)?.ok_or_else(|| no_image(name))?;
        self.show_image(image)
    }

    /// # Errors
    /// When the database cannot be read.
    pub(crate) fn shown_images(&self) -> Result<Vec<Image>, Problem> {
        let images = self.store.images().map_err(problems::store)?;
        images.into_iter().map(|image| self.show_image(image)).collect()
    }

    pub(crate) fn show_image(&self, image: ImageRecord) -> Result<Image, Problem> {
        let vms = self.store.vms().map_err(problems::store)?;
        let users =
            vms.into_iter().filter(|vm| vm.image_digest == image.digest && vm.image == image.name);
        Ok(Image {
            used_by: users.map(|vm| vm.name.to_string()).collect(),
            name: image.name,
            digest: image.digest,
            size_bytes: image.size_bytes,
            init: image.init,
            source: image.source,
            created_at: image.created_at,
            config: image.config,
            manifest: image.manifest,
        })
    }

    async fn make_image(
        self: &Arc<Self>,
        name: ImageName,
        replace: bool,
        source: String,
        operation: &Operation,
        make: impl FnOnce(&Path, Watch<'_>) -> Result<ImportedRootfs, Problem> + Send + 'static,
    ) -> Result<ImageRecord, Problem> {
        let make = move |out: &Path, watch: Watch<'_>| Ok(Made::bare(make(out, watch)?));
        self.make_image_with(name, replace, source, operation, make).await
    }

    /// As [`Self::make_image`], of something that says more than a root filesystem does.
    pub(super) async fn make_image_with(
        self: &Arc<Self>,
        name: ImageName,
        replace: bool,
        source: String,
        operation: &Operation,
        make: impl FnOnce(&Path, Watch<'_>) -> Result<Made, Problem> + Send + 'static,
    ) -> Result<ImageRecord, Problem> {
        let _turn = self.making.turn(&format!("image {name}")).await;
        if let Some(found) = self.store.image(&name).map_err(problems::store)?
            && !replace
        {
            // Whoever waited for its turn wanted the same thing; whoever came alone is told.
            if found.source == source {
                operation.note(format!("there is an image {name} from the same source already"));
                return Ok(found);
            }
            let message = format!("there is already an image {name}, from {}", found.source);
            return Err(
                Problem::new(Code::Conflict, message).remedy("use another name, or --replace")
            );
        }
        let told = watch(operation);
        let half = self.half_made_image(operation);
        self.blocking(move |daemon| {
            let made = make(&half, &told)?;
            daemon.keep_image(name, source, &half, made)
        })
        .await?
    }

    /// Gives the image in `half` its name.
    pub(super) fn keep_image(
        &self,
        name: ImageName,
        source: String,
        half: &Path,
        made: Made,
    ) -> Result<ImageRecord, Problem> {
        let Made { rootfs, config, manifest } = made;
        let path = self.image_path(&rootfs.digest);
        let _artifacts = self.artifacts();
        fs::rename(half, &path)
            .map_err(act(&format!("cannot rename the new image to {}", path.display())))?;
        let record = ImageRecord {
            name,
            digest: rootfs.digest,
            size_bytes: rootfs.size_bytes,
            init: rootfs.init,
            source,
            created_at: Timestamp::now(),
            config,
            manifest,
        };
        self.store.put_image(&record).map_err(problems::store)?;
        Ok(record)
    }

    /// Where an image is made, until it has its name.
    pub(super) fn half_made_image(&self, operation: &Operation) -> PathBuf {
        self.images_folder().join(format!("{TEMPORARY}{}", operation.id()))
    }
}

/// An image that was made, and what is known of it.
pub(super) struct Made {
    pub rootfs: ImportedRootfs,
    pub config: Config,
    pub manifest: Option<String>,
}

impl Made {
    /// Nothing is known but what is in it.
    pub(super) fn bare(rootfs: ImportedRootfs) -> Self {
        Self { rootfs, config: Config::default(), manifest: None }
    }
}

pub(super) fn no_image(name: &ImageName) -> Problem {
    Problem::new(Code::NotFound, format!("there is no image {name}")).remedy(
        "`banger image list` shows those there are; `banger image pull`, `import` and `build` bring others",
    )
}

pub(super) fn in_use(what: &str, name: &str, users: &[String]) -> Problem {
    Problem::new(Code::Conflict, format!("the {what} {name} is used by {}", users.join(", ")))
        .remedy(format!("delete these VMs first: `banger vm delete {}`", users.join(" ")))
}
