//! Kernels: import, show, delete. The newest is the default.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use banger_api::image::{ImportKernel, Kernel, KernelSource};
use banger_api::{Code, KernelName, Problem};
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
        let _turn = self.making.turn("kernel").await;
        let told = watch(operation);
        let half = self.kernels_folder().join(format!("{TEMPORARY}{}", operation.id()));
        let request = request.clone();
        self.blocking(move |daemon| {
            fs::create_dir(&half).map_err(act(&format!("cannot make {}", half.display())))?;
            let made = daemon.import_into(&request, &half, source, &told);
            if made.is_err()
                && let Err(error) = fs::remove_dir_all(&half)
            {
                tracing::warn!(path = %half.display(), %error, "cannot remove a half-made kernel");
            }
            made
        })
        .await?
    }

    fn import_into(
        &self,
        request: &ImportKernel,
        half: &std::path::Path,
        source: String,
        told: banger_image::Watch<'_>,
    ) -> Result<KernelRecord, Problem> {
        let made = match &request.source {
            KernelSource::File(path) => banger_image::import_kernel(path, half, told),
            KernelSource::Apt(package) => banger_image::import_kernel_from_apt(package, half, told),
        };
        let made = made.map_err(|error| problem(&error, error.trouble(), error.remedy()))?;
        let name = match &request.name {
            Some(name) => name.clone(),
            None => KernelName::parse(&made.release)
                .map_err(|e| Problem::from_error(Code::Invalid, &e))?,
        };
        let found = self.store.kernel(&name).map_err(problems::store)?;
        if let Some(found) = found.filter(|found| found.digest != made.digest && !request.replace) {
            let message = format!("there is already another kernel {name}, from {}", found.source);
            return Err(
                Problem::new(Code::Conflict, message).remedy("use another name, or --replace")
            );
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
            source,
            created_at: Timestamp::now(),
        };
        self.store.put_kernel(&record).map_err(problems::store)?;
        Ok(record)
    }

    /// # Errors
    /// When it is not there or used by a VM.
    pub(crate) fn delete_kernel(&self, name: &KernelName) -> Result<(), Problem> {
        let kernel = self.shown_kernel(name)?;
        if !kernel.used_by.is_empty() {
            return Err(in_use("kernel", name.as_str(), &kernel.used_by));
        }
        self.store.delete_kernel(name).map_err(problems::store)?;
        let kernels = self.store.kernels().map_err(problems::store)?;
        if kernels.iter().all(|other| other.digest != kernel.digest) {
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

fn no_kernel(name: &KernelName) -> Problem {
    Problem::new(Code::NotFound, format!("there is no kernel {name}")).remedy(
        "`banger kernel list` shows those there are; `banger kernel import --from-apt PACKAGE` or \
         `banger kernel import FILE` bring one",
    )
}
