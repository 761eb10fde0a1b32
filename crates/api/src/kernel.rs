//! Kernels that are fetched by name from a signed catalog, or built on the daemon's host: the requests, and the catalog
//! as people see it.

use serde::{Deserialize, Serialize};

use crate::KernelName;

/// POST /v1/kernels/pull: a kernel of the configured catalog.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PullKernel {
    /// Its name in the catalog.
    pub kernel: KernelName,
    /// Its name in the catalog when absent.
    #[serde(default)]
    pub name: Option<KernelName>,
    /// Replace another kernel of that name.
    #[serde(default)]
    pub replace: bool,
}

/// POST /v1/kernels/build: a kernel with everything built in, from the source package of the host's configured apt.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BuildKernel {
    /// The kernel's release when absent.
    #[serde(default)]
    pub name: Option<KernelName>,
    /// Such as `linux-source-6.1`; the newest when absent.
    #[serde(default)]
    pub package: Option<String>,
    /// Lines of a kernel's configuration that count more than banger's own.
    #[serde(default)]
    pub fragment: String,
    #[serde(default)]
    pub replace: bool,
}

/// POST /v1/catalog: the configured catalog as it is now, or as it was last seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Catalog {
    pub source: String,
    /// Grows with every catalog that is published.
    pub serial: u64,
    /// Those for this host's architecture.
    pub kernels: Vec<CatalogKernel>,
}

/// A kernel that `kernel pull` can bring.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CatalogKernel {
    pub name: String,
    /// As `uname -r` prints it.
    pub release: String,
    pub architecture: String,
    /// Of the file that is fetched.
    pub size_bytes: u64,
    /// Hex.
    pub sha256: String,
    /// Names of the kernels here that were pulled from this very file.
    pub here: Vec<String>,
}
