//! Kernels: import, build, show, delete. The newest is the default.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use banger_api::image::{ImportKernel, Kernel, KernelSource};
use banger_api::kernel::BuildKernel;
use banger_api::{Code, KernelName, Problem};
use banger_image::ImportedKernel;
use banger_store::KernelRecord;
use jiff::Timestamp;

use super::images::in_use;
use super::{TEMPORARY, act, problem, watch};
use crate::daemon::Daemon;
use crate::operations::Operation;
use crate::problems;

/// The package of the host's apt that a first kernel comes from: small, made for virtual machines, in Debian and its
/// derivatives.
const DEFAULT_PACKAGE: &str = "linux-image-cloud-amd64";

/// How a kernel that is being made will be recorded.
pub(super) struct NewKernel {
    /// Makings of one turn come one after the other.
    pub(super) turn: &'static str,
    /// Its release when absent.
    pub(super) name: Option<KernelName>,
    pub(super) source: String,
    /// Another kernel of that name makes room.
    pub(super) replace: bool,
}

impl Daemon {
    pub(crate) fn kernels_folder(&self) -> PathBuf {
        self.folders.state.join("kernels")
    }

    pub(crate) fn kernel_path(&self, digest: &str) -> PathBuf {
        self.kernels_folder().join(digest).join("vmlinux")
    }

    pub(crate) fn modules_path(&self, digest: &str) -> PathBuf {
        self.kernels_folder().join(digest).join("modules.cpio")
    }

    /// The kernel of that name, or the default one, which is imported here if there is none.
    pub(crate) async fn kernel_for(
        self: &Arc<Self>,
        name: Option<&KernelName>,
        operation: &Operation,
    ) -> Result<KernelRecord, Problem> {
        if let Some(name) = name {
            return self
                .store
                .kernel(name)
                .map_err(problems::store)?
                .ok_or_else(|| no_kernel(name));
        }
        if let Some(newest) = self.store.kernels().map_err(problems::store)?.into_iter().next() {
            return Ok(newest);
        }
        operation.note(format!(
            "there is no kernel yet: importing {DEFAULT_PACKAGE} from the host's apt, once"
        ));
        let source = KernelSource::Apt(DEFAULT_PACKAGE.to_owned());
        self.import_kernel(&ImportKernel { name: None, source, replace: false }, operation).await
    }

    /// # Errors
    /// When the source holds no kernel that boots a guest, or the name is taken by another and not to be replaced.
    pub(crate) async fn import_kernel(
        self: &Arc<Self>,
        request: &ImportKernel,
        operation: &Operation,
    ) -> Result<KernelRecord, Problem> {
        let source = match &request.source {
            KernelSource::File(path) if !path.is_absolute() => {
                return Err(Problem::new(
                    Code::Invalid,
                    format!("path: {} is not absolute", path.display()),
                ));
            }
            KernelSource::File(path) => format!("file {}", path.display()),
            KernelSource::Apt(package) => format!("apt {package}"),
        };
        let told = watch(operation);
        let (name, replace) = (request.name.clone(), request.replace);
        let new = NewKernel { turn: "kernel", name, source, replace };
        let from = request.source.clone();
        self.make_kernel(new, operation, move |_, half| {
            let made = match &from {
                KernelSource::File(path) => banger_image::import_kernel(path, half, &told),
                KernelSource::Apt(package) => {
                    banger_image::import_kernel_from_apt(package, half, &told)
                }
            };
            made.map_err(|error| problem(&error, error.trouble(), error.remedy()))
        })
        .await
    }

    /// # Errors
    /// When the host lacks what a build needs, the fragment cannot be met, or the build fails.
    pub(crate) async fn build_kernel(
        self: &Arc<Self>,
        request: &BuildKernel,
        operation: &Operation,
    ) -> Result<KernelRecord, Problem> {
        let package = request.package.as_deref().unwrap_or(banger_image::DEFAULT_SOURCE).to_owned();
        let told = watch(operation);
        let fragment = request.fragment.clone();
        let new = NewKernel {
            turn: "kernel build",
            name: request.name.clone(),
            source: format!("build of {package}"),
            replace: request.replace,
        };
        self.make_kernel(new, operation, move |_, half| {
            banger_image::build_kernel(&package, &fragment, half, &told)
                .map_err(|error| problem(&error, error.trouble(), error.remedy()))
        })
        .await
    }

    /// Makes a kernel in a folder of its own by way of `make`, then gives it its place and its name.
    ///
    /// # Errors
    /// What `make` fails with, or when the name is another kernel's.
    pub(super) async fn make_kernel(
        self: &Arc<Self>,
        new: NewKernel,
        operation: &Operation,
        make: impl FnOnce(&Daemon, &Path) -> Result<ImportedKernel, Problem> + Send + 'static,
    ) -> Result<KernelRecord, Problem> {
        let _turn = self.making.turn(new.turn).await;
        let half = self.kernels_folder().join(format!("{TEMPORARY}{}", operation.id()));
        self.blocking(move |daemon| {
            fs::create_dir_all(&half).map_err(act(&format!("cannot make {}", half.display())))?;
            let made = make(daemon, &half).and_then(|made| daemon.keep_kernel(new, &half, made));
            if made.is_err()
                && let Err(error) = fs::remove_dir_all(&half)
            {
                tracing::warn!(path = %half.display(), %error, "cannot remove a half-made kernel");
            }
            made
        })
        .await?
    }

    fn keep_kernel(
        &self,
        new: NewKernel,
        half: &Path,
        made: ImportedKernel,
    ) -> Result<KernelRecord, Problem> {
        let name = match new.name {
            Some(name) => name,
            None => KernelName::parse(&made.release)
                .map_err(|e| Problem::from_error(Code::Invalid, &e))?,
        };
        let _artifacts = self.artifacts();
        let found = self.store.kernel(&name).map_err(problems::store)?;
        if let Some(found) = found.filter(|found| found.digest != made.digest && !new.replace) {
            return Err(taken(&found));
        }
        let folder = self.kernels_folder().join(&made.digest);
        if folder.exists() {
            fs::remove_dir_all(half).map_err(act(&format!("cannot remove {}", half.display())))?;
        } else {
            fs::rename(half, &folder)
                .map_err(act(&format!("cannot rename the new kernel to {}", folder.display())))?;
        }
        let record = KernelRecord {
            name,
            digest: made.digest,
            release: made.release,
            size_bytes: made.size_bytes,
            modules: made.modules,
            source: new.source,
            created_at: Timestamp::now(),
        };
        self.store.put_kernel(&record).map_err(problems::store)?;
        Ok(record)
    }

    /// # Errors
    /// When it is not there or used by a VM.
    pub(crate) fn delete_kernel(&self, name: &KernelName) -> Result<(), Problem> {
        let _artifacts = self.artifacts();
        let kernel = self.shown_kernel(name)?;
        if !kernel.used_by.is_empty() {
            return Err(in_use("kernel", name.as_str(), &kernel.used_by));
        }
        self.store.delete_kernel(name).map_err(problems::store)?;
        let kernels = self.store.kernels().map_err(problems::store)?;
        let vms = self.store.vms().map_err(problems::store)?;
        if kernels.iter().all(|other| other.digest != kernel.digest)
            && vms.iter().all(|vm| vm.kernel_digest != kernel.digest)
        {
            let folder = self.kernels_folder().join(&kernel.digest);
            fs::remove_dir_all(&folder)
                .map_err(act(&format!("cannot remove {}", folder.display())))?;
        }
        Ok(())
    }

    /// # Errors
    /// When it is not there.
    pub(crate) fn shown_kernel(&self, name: &KernelName) -> Result<Kernel, Problem> {
        let kernels = self.shown_kernels()?;
        kernels.into_iter().find(|kernel| &kernel.name == name).ok_or_else(|| no_kernel(name))
    }

    /// # Errors
    /// When the database cannot be read.
    pub(crate) fn shown_kernels(&self) -> Result<Vec<Kernel>, Problem> {
        let vms = self.store.vms().map_err(problems::store)?;
        let kernels = self.store.kernels().map_err(problems::store)?;
        let show = |(index, kernel): (usize, KernelRecord)| Kernel {
            used_by: vms
                .iter()
                .filter(|vm| vm.kernel == kernel.name && vm.kernel_digest == kernel.digest)
                .map(|vm| vm.name.to_string())
                .collect(),
            default: index == 0,
            name: kernel.name,
            digest: kernel.digest,
            release: kernel.release,
            size_bytes: kernel.size_bytes,
            modules: kernel.modules,
            source: kernel.source,
            created_at: kernel.created_at,
        };
        Ok(kernels.into_iter().enumerate().map(show).collect())
    }
}

/// Of another kernel than the one that is to have its name.
pub(super) fn taken(found: &KernelRecord) -> Problem {
    let message = format!("there is already another kernel {}, from {}", found.name, found.source);
    Problem::new(Code::Conflict, message).remedy("use another name, or --replace")
}

fn no_kernel(name: &KernelName) -> Problem {
    Problem::new(Code::NotFound, format!("there is no kernel {name}")).remedy(
        "`banger kernel list` shows those there are; `banger kernel import`, `banger kernel pull` \
         and `banger kernel build` bring one",
    )
}
