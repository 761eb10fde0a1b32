//! Images and kernels as the API shows them, and the requests about them.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{ImageName, KernelName};

/// A root filesystem that VMs boot from. Never written after it was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    pub name: ImageName,
    /// SHA-256 of the filesystem image, hex.
    pub digest: String,
    /// Allocated bytes on the host.
    pub size_bytes: u64,
    /// The init that boots it, such as `/sbin/init`; absent when the agent does a init's duty.
    pub init: Option<String>,
    /// Where it came from: `mmdebstrap bookworm`, `tar /home/me/rootfs.tar`.
    pub source: String,
    pub created_at: Timestamp,
    /// Names of the VMs that use it.
    pub used_by: Vec<String>,
}

/// POST /v1/images/build: a distribution made on this host by mmdebstrap and the host's configured apt.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BuildImage {
    /// `debian:RELEASE` when absent.
    pub name: Option<ImageName>,
    /// A Debian release, such as `bookworm`.
    pub debian: String,
    /// Packages on top of the base that boots; the usual tools for development when empty.
    #[serde(default)]
    pub include: Vec<String>,
    /// Replace an image of that name.
    #[serde(default)]
    pub replace: bool,
}

/// POST /v1/images/import: a rootfs tar (plain, gzip, xz, zstd) on the daemon's host.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImportImage {
    pub name: ImageName,
    /// Absolute.
    pub path: PathBuf,
    #[serde(default)]
    pub replace: bool,
}

/// A kernel and the modules that a guest needs to boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel {
    pub name: KernelName,
    /// SHA-256 of the vmlinux, hex.
    pub digest: String,
    /// The kernel's own release, as `uname -r` prints it.
    pub release: String,
    pub size_bytes: u64,
    /// How many modules its initramfs carries; 0 for a kernel with everything built in.
    pub modules: u32,
    pub source: String,
    pub created_at: Timestamp,
    pub used_by: Vec<String>,
    /// Taken when nobody names a kernel.
    pub default: bool,
}

/// POST /v1/kernels/import
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImportKernel {
    /// The kernel's release when absent.
    pub name: Option<KernelName>,
    pub source: KernelSource,
    #[serde(default)]
    pub replace: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum KernelSource {
    /// A bzImage, a vmlinux or a .deb on the daemon's host; absolute.
    File(PathBuf),
    /// A package of the host's configured apt, such as `linux-image-cloud-amd64`.
    Apt(String),
}
