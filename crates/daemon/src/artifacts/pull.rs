//! Images of registries, archives and layout folders: fetched blob by blob into the cache, where they stay until `cache prune`, then made into a root
//! filesystem. A pull that is cut off goes on where it was; one that finds what the name stands for here already is done.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use banger_api::image::{Config, Pruned, PrunedThing, PullImage};
use banger_api::operation::Unit;
use banger_api::{Code, ImageName, Problem};
use banger_image::LayerSource;
use banger_registry::{
    Fetched, Home, ImageConfig, LayerState, Platform, Progress, Proxies, Puller, Reference,
    RegistryError, Store as Blobs, StoreError, Trouble, local,
};
use banger_store::ImageRecord;

use super::images::Made;
use super::{problem, watch};
use crate::daemon::Daemon;
use crate::operations::Operation;
use crate::problems;

impl Daemon {
    /// The image of that reference, as its registry has it now.
    ///
    /// # Errors
    /// When it cannot be fetched whole, is none that can be unpacked, or its name is another image's.
    pub(crate) async fn pull_image(
        self: &Arc<Self>,
        request: &PullImage,
        operation: &Operation,
    ) -> Result<ImageRecord, Problem> {
        let reference: Reference =
            request.reference.parse().map_err(|e| Problem::from_error(Code::Invalid, &e))?;
        let platform = match &request.platform {
            Some(text) => text.parse().map_err(|e| Problem::from_error(Code::Invalid, &e))?,
            None => Platform::host(),
        };
        let name = match &request.name {
            Some(name) => name.clone(),
            None => ImageName::parse(&reference.short()).map_err(|e| {
                Problem::from_error(Code::Invalid, &e)
                    .remedy("give it a name of its own with --name")
            })?,
        };
        let source = format!("registry {reference}");
        let _turn = self.making.turn(&format!("image {name}")).await;
        let found = self.store.image(&name).map_err(problems::store)?;
        if let Some(other) = found.as_ref().filter(|found| found.source != source) {
            let message = format!("there is already an image {name}, from {}", other.source);
            return Err(Problem::new(Code::Conflict, message)
                .remedy("give this one another name with --name, or delete that one"));
        }
        operation.stage("fetch", format!("fetching {reference}"));
        let told = progress(operation);
        // On a thread of its own: it hashes what comes, and reads what is there.
        let fetched = self
            .blocking(move |daemon| {
                tokio::runtime::Handle::current()
                    .block_on(daemon.fetch(&reference, &platform, &told))
            })
            .await??;
        let manifest = fetched.manifest_digest.to_string();
        if let Some(same) = found.filter(|found| {
            found.manifest.as_ref() == Some(&manifest) && self.image_path(&found.digest).exists()
        }) {
            operation.note(format!("{name} is up to date"));
            return Ok(same);
        }
        let told = watch(operation);
        let half = self.half_made_image(operation);
        self.blocking(move |daemon| {
            let made = daemon.assemble(fetched, &half, &told)?;
            daemon.keep_image(name, source, &half, made)
        })
        .await?
    }

    async fn fetch(
        &self,
        reference: &Reference,
        platform: &Platform,
        told: banger_registry::Watch<'_>,
    ) -> Result<Fetched, Problem> {
        // A service has no runtime folder of its user's, which is where podman keeps credentials.
        let runtime = || format!("/run/user/{}", rustix::process::geteuid().as_raw()).into();
        let variable = |name: &str| {
            std::env::var_os(name).or_else(|| (name == "XDG_RUNTIME_DIR").then(runtime))
        };
        let home = Home::from_environment(variable);
        let proxies = Proxies::from_environment(variable);
        let puller =
            Puller::new(self.config.registry.clone(), home, &proxies).map_err(|e| registry(&e))?;
        puller.pull(reference, platform, &self.blobs()?, told).await.map_err(|e| registry(&e))
    }

    /// The image in an archive or a layout folder; `None` when that is something else, such as the tar of a root filesystem.
    ///
    /// # Errors
    /// When it holds no such image, or one that cannot be unpacked.
    pub(super) fn assemble_local(
        &self,
        path: &Path,
        image: Option<&str>,
        out: &Path,
        operation: &Operation,
    ) -> Result<Option<Made>, Problem> {
        if !local::is_image(path).map_err(|e| registry(&e))? {
            return Ok(None);
        }
        operation.stage("fetch", format!("reading {}", path.display()));
        let limits = self.config.registry.limits();
        let told = progress(operation);
        let fetched = local::import(path, image, &Platform::host(), &self.blobs()?, &limits, &told)
            .map_err(|e| registry(&e))?;
        self.assemble(fetched, out, &watch(operation)).map(Some)
    }

    /// The root filesystem of an image whose blobs are in the cache.
    pub(super) fn assemble(
        &self,
        fetched: Fetched,
        out: &Path,
        told: banger_image::Watch<'_>,
    ) -> Result<Made, Problem> {
        let layers: Vec<LayerSource> = fetched
            .layers
            .iter()
            .map(|layer| LayerSource {
                path: layer.path.clone(),
                diff_id: Some(layer.diff_id.to_string()),
            })
            .collect();
        let rootfs = banger_image::assemble(&layers, out, self.config.image_limits, told)
            .map_err(|error| problem(&error, error.trouble(), error.remedy()))?;
        let manifest = Some(fetched.manifest_digest.to_string());
        if let Err(error) = fetched.lease.release() {
            tracing::warn!(%error, "the lease of a pull stays until the cache is pruned");
        }
        Ok(Made { rootfs, config: config(fetched.config), manifest })
    }

    fn blobs_folder(&self) -> PathBuf {
        self.folders.cache.join("blobs")
    }

    pub(super) fn blobs(&self) -> Result<Blobs, Problem> {
        Blobs::open(&self.blobs_folder()).map_err(|e| stored(&e))
    }

    /// Blobs that no pull works with go: images do not need them once they are made.
    pub(super) fn prune_blobs(&self, pruned: &mut Pruned) -> Result<(), Problem> {
        let blobs = self.blobs()?;
        let sizes = blobs.list().map_err(|e| stored(&e))?;
        let freed = blobs
            .gc(std::time::Duration::ZERO, pruned.dry_run, || Ok(std::collections::BTreeSet::new()))
            .map_err(|e| stored(&e))?;
        pruned.freed_bytes += freed.bytes;
        pruned.removed.extend(freed.blobs.into_iter().map(|digest| PrunedThing {
            kind: "blob".to_owned(),
            name: digest.to_string(),
            size_bytes:
                sizes.iter().find(|blob| blob.digest == digest).map_or(0, |blob| blob.size_bytes),
        }));
        pruned.removed.extend(freed.partials.into_iter().map(|path| PrunedThing {
            kind: "unfinished blob".to_owned(),
            name: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            size_bytes: 0,
        }));
        Ok(())
    }
}

/// Tells an operation how far each layer is, and all together.
fn progress(operation: &Operation) -> impl Fn(Progress<'_>) + Sync + use<> {
    let operation = operation.clone();
    let layers = std::sync::Mutex::new((Vec::<u64>::new(), 0));
    move |progress| {
        let mut layers = layers.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match progress {
            Progress::Resolved { manifest, layers: count, total_bytes } => {
                *layers = (vec![0; count], total_bytes);
                operation.note(format!("it is {manifest}"));
            }
            Progress::Layer { index, done_bytes, total_bytes, state, .. } => {
                let (done, all) = &mut *layers;
                if let Some(layer) = done.get_mut(index) {
                    *layer = done_bytes;
                }
                let part = format!("layer {} of {}", index + 1, done.len());
                match state {
                    LayerState::Cached => operation.log(&format!("{part}: here already")),
                    LayerState::Waiting => operation.log(&format!("{part}: another pull has it")),
                    LayerState::Downloading | LayerState::Done => {
                        operation.part(&part, done_bytes, total_bytes, Unit::Bytes);
                    }
                }
                operation.progress(done.iter().sum(), *all, Unit::Bytes);
            }
            Progress::Note(text) => operation.note(text),
        }
    }
}

/// What the image says, in the API's words.
pub(super) fn config(config: ImageConfig) -> Config {
    let some = |text: String| Some(text).filter(|text| !text.is_empty());
    Config {
        entrypoint: config.entrypoint,
        cmd: config.cmd,
        env: config.env,
        working_dir: some(config.working_dir),
        user: some(config.user),
        stop_signal: some(config.stop_signal),
        exposed_ports: config.exposed_ports,
        labels: config.labels,
    }
}

pub(super) fn registry(error: &RegistryError) -> Problem {
    let code = match error.trouble() {
        Trouble::Input => Code::Invalid,
        Trouble::NotFound | Trouble::Denied => Code::NotFound,
        Trouble::Network => Code::Missing,
        Trouble::Timeout => Code::Timeout,
        Trouble::NoSpace => Code::NoSpace,
        Trouble::Host => Code::Internal,
    };
    Problem { remedy: error.remedy(), ..Problem::from_error(code, error) }
}

fn stored(error: &StoreError) -> Problem {
    let code = if error.is_no_space() { Code::NoSpace } else { Code::Internal };
    Problem::from_error(code, error)
}
