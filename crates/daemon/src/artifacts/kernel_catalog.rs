//! Kernels of the configured catalog. What was last accepted of the catalog is kept in `<state>/catalog`: it serves when
//! the source cannot be reached, and an older one is refused because of it.

use std::fs;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use banger_api::kernel::{self, PullKernel};
use banger_api::operation::Unit;
use banger_api::{Code, KernelName, Problem};
use banger_image::catalog::{
    self, Catalog, CatalogError, CatalogKernel, LARGEST_CATALOG, LARGEST_SIGNATURE, Place,
};
use banger_registry::download::{self, DownloadProgress, Downloader, Expected};
use banger_registry::{Digest, Proxies, RegistryError, RequestError};
use banger_store::KernelRecord;
use serde::{Deserialize, Serialize};

use super::kernels::{NewKernel, taken};
use super::pull::registry;
use super::{act, problem, watch};
use crate::config::CatalogSettings;
use crate::daemon::Daemon;
use crate::operations::Operation;
use crate::problems;

/// What was last accepted from one signer, whole in one file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Accepted {
    catalog: String,
    signature: String,
}

/// A catalog as it came.
struct Raw {
    catalog: Vec<u8>,
    signature: Vec<u8>,
}

impl Daemon {
    fn catalog_settings(&self) -> Result<&CatalogSettings, Problem> {
        self.config.catalog.as_ref().ok_or_else(|| {
            Problem::new(Code::Missing, "no catalog of kernels is configured, and there is no default one").remedy(
                "name one in config.toml: [catalog] with source = \"https://…\" and public_key = \"RW…\"; or \
                 `banger kernel import --from-apt PACKAGE`, or `banger kernel build`",
            )
        })
    }

    /// The catalog as its source has it now, or, when that cannot be reached, as it was last accepted.
    ///
    /// # Errors
    /// When none is configured, none can be had, or what came is not to be believed.
    pub(crate) async fn catalog(
        self: &Arc<Self>,
        operation: &Operation,
    ) -> Result<kernel::Catalog, Problem> {
        let catalog = self.refreshed_catalog(operation).await?;
        let kernels = self.store.kernels().map_err(problems::store)?;
        let here = |entry: &CatalogKernel| {
            let from = kernels.iter().filter(|kernel| kernel.source == source_of(entry));
            from.map(|kernel| kernel.name.to_string()).collect()
        };
        let shown = catalog.here().map(|entry| kernel::CatalogKernel {
            here: here(entry),
            name: entry.name.clone(),
            release: entry.release.clone(),
            architecture: entry.architecture.clone(),
            size_bytes: entry.size_bytes,
            sha256: entry.sha256.clone(),
        });
        Ok(kernel::Catalog {
            source: self.catalog_settings()?.source.to_string(),
            serial: catalog.serial,
            kernels: shown.collect(),
        })
    }

    async fn refreshed_catalog(
        self: &Arc<Self>,
        operation: &Operation,
    ) -> Result<Catalog, Problem> {
        let settings = self.catalog_settings()?.clone();
        operation.stage("catalog", format!("reading the catalog {}", settings.source));
        let _turn = self.making.turn("catalog").await;
        let operation = operation.clone();
        self.blocking(move |daemon| {
            let accepted = daemon.accepted_catalog(&settings)?;
            let raw = match daemon.read_catalog(&settings, &operation) {
                Ok(raw) => raw,
                Err(problem) => {
                    let away =
                        matches!(problem.code, Code::Missing | Code::Timeout | Code::NotFound);
                    let Some(accepted) = accepted.filter(|_| away) else { return Err(problem) };
                    let serial = accepted.serial;
                    operation.note(format!(
                        "{problem}; taking the catalog that was last accepted, serial {serial}"
                    ));
                    return Ok(accepted);
                }
            };
            let opened =
                catalog::open(&raw.catalog, &raw.signature, &settings.key, &settings.source);
            let catalog = opened.and_then(|catalog| {
                catalog.not_older_than(accepted.map_or(0, |accepted| accepted.serial))?;
                Ok(catalog)
            });
            let catalog = catalog.map_err(|error| unbelievable(&settings, &error))?;
            daemon.accept_catalog(&settings, raw)?;
            Ok(catalog)
        })
        .await?
    }

    /// Blocks.
    fn read_catalog(
        &self,
        settings: &CatalogSettings,
        operation: &Operation,
    ) -> Result<Raw, Problem> {
        let signature = settings.source.signature();
        Ok(Raw {
            catalog: self.read_small(&settings.source, LARGEST_CATALOG, operation)?,
            signature: self.read_small(&signature, LARGEST_SIGNATURE, operation)?,
        })
    }

    fn read_small(
        &self,
        place: &Place,
        limit: u64,
        operation: &Operation,
    ) -> Result<Vec<u8>, Problem> {
        match place {
            Place::Url(url) => {
                let reading = self.downloader()?.small_blocking(url, limit, operation);
                reading.map_err(|error| not_fetched(&error))
            }
            Place::File(path) => {
                let mut bytes = Vec::new();
                let cannot = format!("cannot read {}", path.display());
                fs::File::open(path)
                    .and_then(|file| file.take(limit + 1).read_to_end(&mut bytes))
                    .map_err(|error| Problem::new(Code::NotFound, cannot.clone()).cause(&error))?;
                if bytes.len() as u64 > limit {
                    let cause = format!("it has more than {limit} bytes");
                    return Err(Problem::new(Code::Invalid, cannot).because(cause));
                }
                Ok(bytes)
            }
        }
    }

    fn downloader(&self) -> Result<Blocking, Problem> {
        let proxies = Proxies::from_environment(|name| std::env::var_os(name));
        let downloader = Downloader::new(self.config.registry.clone(), &proxies);
        Ok(Blocking(downloader.map_err(|error| registry(&error))?))
    }

    /// By whose signature: another signer's serials say nothing about this one's.
    fn accepted_path(&self, settings: &CatalogSettings) -> PathBuf {
        let signer = Digest::of(settings.key.as_str().as_bytes()).hex();
        self.folders.state.join("catalog").join(format!("{}.json", &signer[..16]))
    }

    fn accepted_catalog(&self, settings: &CatalogSettings) -> Result<Option<Catalog>, Problem> {
        let path = self.accepted_path(settings);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(act(&format!("cannot read {}", path.display()))(error)),
        };
        let damaged = |cause: &(dyn std::error::Error + 'static)| {
            let message =
                format!("{} is damaged: it holds the last accepted catalog", path.display());
            Problem::new(Code::Damaged, message).cause(cause).remedy(
                "remove it; banger then cannot tell whether the next catalog is older than the last",
            )
        };
        let accepted: Accepted = serde_json::from_slice(&text).map_err(|error| damaged(&error))?;
        let (catalog, signature) = (accepted.catalog.as_bytes(), accepted.signature.as_bytes());
        let opened = catalog::open(catalog, signature, &settings.key, &settings.source);
        opened.map(Some).map_err(|error| damaged(&error))
    }

    fn accept_catalog(&self, settings: &CatalogSettings, raw: Raw) -> Result<(), Problem> {
        let path = self.accepted_path(settings);
        let text = |bytes| String::from_utf8(bytes).expect("what was opened is text");
        let accepted = Accepted { catalog: text(raw.catalog), signature: text(raw.signature) };
        let bytes = serde_json::to_vec(&accepted).expect("texts are plain data");
        write_whole(&path, &bytes).map_err(act(&format!("cannot write {}", path.display())))
    }

    /// # Errors
    /// When the catalog does not have it, it cannot be fetched as the catalog says, or its name is another kernel's.
    pub(crate) async fn pull_kernel(
        self: &Arc<Self>,
        request: &PullKernel,
        operation: &Operation,
    ) -> Result<KernelRecord, Problem> {
        let catalog = self.refreshed_catalog(operation).await?;
        let entry = catalog.here().find(|entry| entry.name == request.kernel.as_str());
        let entry = entry.cloned().ok_or_else(|| not_in_catalog(&request.kernel, &catalog))?;
        let name = request.name.clone().unwrap_or_else(|| request.kernel.clone());
        // One download of one file at a time. Who waited for another's finds the kernel here.
        let _turn = self.making.turn(&format!("kernel file {}", entry.sha256)).await;
        let source = source_of(&entry);
        let found = self.store.kernel(&name).map_err(problems::store)?;
        if let Some(same) = found
            .as_ref()
            .filter(|found| found.source == source && self.kernel_path(&found.digest).exists())
        {
            operation.note(format!("{name} is up to date"));
            return Ok(same.clone());
        }
        // What this name brought before, the name may bring anew.
        let is_ours = |found: &KernelRecord| found.source.starts_with(&source_prefix(&entry));
        if let Some(other) = found.as_ref().filter(|found| !is_ours(found) && !request.replace) {
            return Err(taken(other));
        }
        let (fetched, told) = (entry.clone(), operation.clone());
        let partial = self.blocking(move |daemon| daemon.fetch_kernel(&fetched, &told)).await??;
        let new = NewKernel { turn: "kernel", name: Some(name), source, replace: true };
        let told = watch(operation);
        let record = self
            .make_kernel(new, operation, move |_, half| {
                let made = banger_image::import_kernel(&partial, half, &told);
                // As announced, it is of no more use here, whether a kernel or not.
                fs::remove_file(&partial)
                    .map_err(act(&format!("cannot remove {}", partial.display())))?;
                let made =
                    made.map_err(|error| problem(&error, error.trouble(), error.remedy()))?;
                if made.release != entry.release {
                    let message = format!(
                        "the kernel {} is release {}, and the catalog says {}",
                        entry.name, made.release, entry.release
                    );
                    return Err(Problem::new(Code::Invalid, message));
                }
                Ok(made)
            })
            .await?;
        Ok(record)
    }

    /// The kernel's file, whole and as the catalog says, in the cache. Blocks.
    fn fetch_kernel(
        &self,
        entry: &CatalogKernel,
        operation: &Operation,
    ) -> Result<PathBuf, Problem> {
        operation.stage("fetch", format!("fetching {}", entry.place));
        let folder = self.folders.cache.join("kernels");
        fs::create_dir_all(&folder).map_err(act(&format!("cannot make {}", folder.display())))?;
        let partial = folder.join(format!("{}.partial", entry.sha256));
        let digest = Digest::from_hex(&entry.sha256)
            .ok_or_else(|| Problem::new(Code::Internal, "a checked digest is none"))?;
        let expected = Expected { digest, size_bytes: entry.size_bytes };
        let fetched = match &entry.place {
            Place::Url(url) => self.downloader()?.file_blocking(url, expected, &partial, operation),
            Place::File(path) => download::copy(path, expected, &partial),
        };
        fetched.map_err(|error| not_fetched(&error))?;
        Ok(partial)
    }
}

/// A downloader for threads that may block, and what it tells an operation.
struct Blocking(Downloader);

impl Blocking {
    fn small_blocking(
        &self,
        url: &str,
        limit: u64,
        operation: &Operation,
    ) -> Result<Vec<u8>, RegistryError> {
        tokio::runtime::Handle::current().block_on(self.0.small(url, limit, told(operation)))
    }

    fn file_blocking(
        &self,
        url: &str,
        expected: Expected,
        partial: &Path,
        operation: &Operation,
    ) -> Result<(), RegistryError> {
        let downloading = self.0.file(url, expected, partial, told(operation));
        tokio::runtime::Handle::current().block_on(downloading)
    }
}

/// Bytes are told at most a hundred times.
fn told(operation: &Operation) -> impl Fn(DownloadProgress<'_>) + use<> {
    let operation = operation.clone();
    let last = std::sync::atomic::AtomicU64::new(u64::MAX);
    move |progress| match progress {
        DownloadProgress::Bytes { done, total } => {
            let step = done.saturating_mul(100).checked_div(total).unwrap_or(0);
            if last.swap(step, std::sync::atomic::Ordering::Relaxed) != step {
                operation.progress(done, total, Unit::Bytes);
            }
        }
        DownloadProgress::Note(text) => operation.note(text),
    }
}

/// What a kernel's record says of where it came from.
fn source_of(entry: &CatalogKernel) -> String {
    format!("{}{}", source_prefix(entry), entry.sha256)
}

fn source_prefix(entry: &CatalogKernel) -> String {
    format!("catalog {} sha256:", entry.name)
}

fn not_in_catalog(name: &KernelName, catalog: &Catalog) -> Problem {
    let there: Vec<&str> = catalog.here().map(|entry| entry.name.as_str()).collect();
    let remedy = match there.is_empty() {
        true => "it has none for this host".to_owned(),
        false => format!("it has: {}", there.join(", ")),
    };
    Problem::new(Code::NotFound, format!("the catalog has no kernel {name}")).remedy(remedy)
}

/// What a registry's words would be wrong about.
fn not_fetched(error: &RegistryError) -> Problem {
    let problem = registry(error);
    match error {
        RegistryError::Request { cause: RequestError::NotFound { .. }, .. } => {
            problem.remedy("check `source` of [catalog] in config.toml")
        }
        RegistryError::WrongDigest { .. } | RegistryError::WrongSize { .. } => {
            problem.remedy("try again; if it stays so, tell whoever publishes the catalog")
        }
        _ => problem,
    }
}

fn unbelievable(settings: &CatalogSettings, error: &CatalogError) -> Problem {
    let message = format!("the catalog {} is refused", settings.source);
    let problem = Problem::new(Code::Invalid, message).cause(error);
    match error {
        CatalogError::OtherKey(_) => problem.remedy(
            "if its publisher has a new key, and you have that from them, set public_key of [catalog] in config.toml",
        ),
        CatalogError::NoSignature | CatalogError::BadSignature(_) | CatalogError::Older { .. } => {
            problem.remedy("try again later, or another mirror; if it stays so, tell whoever publishes the catalog")
        }
        _ => problem,
    }
}

/// By a temporary name, so that it is there whole or not at all.
fn write_whole(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    use std::io::Write as _;
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder)?;
    let draft = path.with_extension("new");
    let mut file = fs::File::create(&draft)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&draft, path)?;
    fs::File::open(folder)?.sync_all()
}
