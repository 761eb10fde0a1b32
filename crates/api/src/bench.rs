//! What `banger bench` asks the daemon for.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{ImageName, KernelName};

/// GET /v1/bench/boot: how a VM of the default sizes would be run by its VMM alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootPlan {
    pub program: String,
    /// Its arguments; the words `path=AGENT` and `file.filename=DISK` in them stand for the agent's socket and the disk.
    pub args: Vec<String>,
    /// What the disk is a sparse copy of, and how long it is.
    pub disk: PathBuf,
    pub disk_bytes: u64,
    pub vmm: String,
    pub image: ImageName,
    pub kernel: KernelName,
    pub disk_driver: String,
    /// A folder on the filesystem that the VMs' disks are on.
    pub filesystem: PathBuf,
}
