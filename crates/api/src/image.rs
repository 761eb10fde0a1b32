//! Images and kernels as the API shows them, and the requests about them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{ImageName, KernelName};

/// What an image says about the programs that run in it (OCI image specification, "Image Configuration"). An image that was
/// not pulled says nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// What its program begins with.
    pub entrypoint: Vec<String>,
    /// The arguments of the entrypoint; the program itself without one.
    pub cmd: Vec<String>,
    /// `NAME=VALUE`, for every command in the guest.
    pub env: Vec<String>,
    /// Where commands start; made when it is missing.
    pub working_dir: Option<String>,
    /// Whom commands run as: `NAME`, `UID`, `NAME:GROUP`, `UID:GID`.
    pub user: Option<String>,
    /// What asks its program to end: `SIGQUIT`, `QUIT` or a number; SIGTERM when absent.
    pub stop_signal: Option<String>,
    /// `80/tcp`: for people, nothing opens them.
    pub exposed_ports: Vec<String>,
    pub labels: BTreeMap<String, String>,
}

impl Config {
    /// The program that the image runs: its entrypoint and its arguments. Empty when it names none.
    #[must_use]
    pub fn program(&self) -> Vec<String> {
        self.entrypoint.iter().chain(&self.cmd).cloned().collect()
    }

    /// The program is a shell without a script, which ends at once where nobody types.
    #[must_use]
    pub fn is_only_a_shell(&self) -> bool {
        const SHELLS: [&str; 5] = ["sh", "bash", "ash", "dash", "zsh"];
        let program = self.program();
        let Some((name, options)) = program.split_first() else { return false };
        SHELLS.contains(&name.rsplit('/').next().unwrap_or(name))
            && options.iter().all(|option| ["-l", "-i", "-il", "-li"].contains(&option.as_str()))
    }
}

/// PUT /v1/image of the agent: what its image says, before the first command comes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GuestImage {
    pub config: Config,
    /// Run the image's program, unless it was run since this guest booted. The guest goes off when it ends.
    pub run: bool,
}

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
    #[serde(default)]
    pub config: Config,
    /// Digest of the manifest that it was pulled by: `sha256:…`.
    #[serde(default)]
    pub manifest: Option<String>,
}

/// POST /v1/images/pull: an image of a registry.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PullImage {
    /// `[HOST[:PORT]/]PATH[:TAG][@sha256:DIGEST]`, as docker and podman take it.
    pub reference: String,
    /// The reference in its shortest form when absent.
    #[serde(default)]
    pub name: Option<ImageName>,
    /// `OS/ARCHITECTURE[/VARIANT]`; the host's when absent.
    #[serde(default)]
    pub platform: Option<String>,
}

/// POST /v1/images/prune and /v1/cache/prune: removes every image that no VM uses; everything that can be fetched or made
/// again.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Prune {
    /// Only say what would go.
    pub dry_run: bool,
}

/// What went, or would go.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pruned {
    pub removed: Vec<PrunedThing>,
    pub freed_bytes: u64,
    pub dry_run: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrunedThing {
    /// `image`, `blob`, `partial blob`, `initramfs`, `disk template`.
    pub kind: String,
    pub name: String,
    pub size_bytes: u64,
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

/// POST /v1/images/import: a rootfs tar (plain, gzip, xz, zstd), an OCI layout folder, an OCI archive or an archive of
/// `docker save` on the daemon's host.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImportImage {
    pub name: ImageName,
    /// Absolute.
    pub path: PathBuf,
    /// Which image, where there are several: its tag or name there.
    #[serde(default)]
    pub image: Option<String>,
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

/// POST /v1/images/dockerfile: what one of the user's own builders makes of a Dockerfile.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BuildDockerfile {
    pub name: ImageName,
    /// Absolute.
    pub file: PathBuf,
    /// The folder that the file's COPY takes from; absolute.
    pub context: PathBuf,
    /// `NAME=VALUE` each.
    #[serde(default)]
    pub build_args: Vec<String>,
    /// The stage of the file to end with; its last when absent.
    #[serde(default)]
    pub target: Option<String>,
    /// The first of them that is there when absent.
    #[serde(default)]
    pub with: Option<Builder>,
    #[serde(default)]
    pub replace: bool,
}

/// A program that makes images of Dockerfiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Builder {
    Buildah,
    Podman,
    Docker,
}

/// POST /v1/images/recipe: a distribution with the packages that a recipe names.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BuildRecipe {
    /// What the recipe says when absent.
    #[serde(default)]
    pub name: Option<ImageName>,
    pub recipe: Recipe,
    #[serde(default)]
    pub replace: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Recipe {
    /// One that the daemon has, such as `development`.
    Named(String),
    /// TOML: `[recipe]` with `name`, `debian` and `include`.
    Text(String),
}

/// POST /v1/images/register: an ext4 file system that somebody made, which is copied.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegisterImage {
    pub name: ImageName,
    /// Absolute.
    pub rootfs: PathBuf,
    /// A kernel to import under the same name: a bzImage, a vmlinux or a .deb; absolute.
    #[serde(default)]
    pub kernel: Option<PathBuf>,
    #[serde(default)]
    pub replace: bool,
}

/// POST /v1/vms/{vm}/promote: what a stopped VM has on its disk as a new image.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PromoteVm {
    pub name: ImageName,
    #[serde(default)]
    pub replace: bool,
}

/// POST /v1/images/export: an image as an OCI archive on the daemon's host.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportImage {
    pub name: ImageName,
    /// Absolute.
    pub path: PathBuf,
    /// Compress the layer with gzip.
    pub compress: bool,
    /// Replace the file if it is there.
    #[serde(default)]
    pub replace: bool,
}

/// The archive that an export wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportedImage {
    pub name: ImageName,
    pub path: PathBuf,
    pub size_bytes: u64,
    /// Digest of its manifest: `sha256:…`.
    pub manifest: String,
    /// Digest of its layer as a plain tar: `sha256:…`. The same image gives the same one.
    pub diff_id: String,
    pub entries: u64,
}
