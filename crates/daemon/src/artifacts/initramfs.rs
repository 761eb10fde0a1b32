//! What a VM's kernel unpacks first: its modules and the agent, in one file per pair of them, made at first use.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

use banger_api::{Code, Problem};

use super::act;
use crate::daemon::Daemon;

impl Daemon {
    pub(super) fn initramfs_folder(&self) -> PathBuf {
        self.folders.state.join("initramfs")
    }

    /// # Errors
    /// When the agent is missing.
    pub(super) fn agent_version(&self) -> Result<String, Problem> {
        let agent = fs::metadata(&self.agent).map_err(|error| {
            Problem::new(
                Code::Missing,
                format!("the guest's agent {} is missing", self.agent.display()),
            )
            .cause(&error)
            .remedy("build it with `cargo xtask build`, or name it in BANGER_AGENT")
        })?;
        // Whoever replaces the agent changes its time or its size, as for any build.
        Ok(format!("{}-{}-{}", agent.len(), agent.mtime(), agent.mtime_nsec()))
    }

    /// The initramfs for this kernel and this daemon's agent.
    ///
    /// # Errors
    /// When the agent is missing or not a static program, or the file cannot be written.
    pub(crate) async fn initramfs(
        self: &Arc<Self>,
        kernel_digest: &str,
    ) -> Result<PathBuf, Problem> {
        let version = self.agent_version()?;
        let folder = self.initramfs_folder();
        let path = folder
            .join(format!("{}-{version}.cpio", &kernel_digest[..kernel_digest.len().min(16)]));
        if path.exists() {
            return Ok(path);
        }
        let _turn = self.making.turn("initramfs").await;
        if path.exists() {
            return Ok(path);
        }
        let (modules, out) = (self.modules_path(kernel_digest), path.clone());
        self.blocking(move |daemon| {
            fs::create_dir_all(&folder)
                .map_err(act(&format!("cannot make {}", folder.display())))?;
            banger_image::write_initramfs(&modules, &daemon.agent, &out)
                .map_err(|error| Problem::from_error(Code::Internal, &error))
        })
        .await??;
        Ok(path)
    }
}
