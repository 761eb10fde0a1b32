//! From a tar of a root filesystem (plain, gzip, xz, zstd) to an ext4 image: the image of one layer. What an import gives,
//! and what can go wrong in it, here and in [`crate::assemble`].

use std::io;
use std::path::{Path, PathBuf};

use banger_ext4::Ext4Error;

use crate::artifact::ArtifactError;
use crate::assemble::{LayerSource, assemble};
use crate::layers::Limits;
use crate::tarball::{Refusal, TarError};
use crate::{Trouble, Watch};

/// Stays free on the host's file system.
pub(crate) const RESERVE: u64 = 256 << 20;

/// A root filesystem in its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportedRootfs {
    /// SHA-256 of the image, hex.
    pub digest: String,
    /// What the image takes on the host.
    pub size_bytes: u64,
    /// How large the file system in it is; the file has this length.
    pub file_system_bytes: u64,
    /// The program that boots it, if it has one.
    pub init: Option<String>,
    /// How many entries the archives had.
    pub entries: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    #[error("cannot read {path}")]
    Read {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("{path} cannot be unpacked")]
    Unpack {
        path: PathBuf,
        #[source]
        cause: TarError,
    },
    #[error("{0} is not a tar archive (plain, or compressed with gzip, xz or zstd)")]
    NotATar(PathBuf),
    #[error("the archive {0} has nothing in it")]
    Empty(PathBuf),
    #[error("an image has one layer at least")]
    NoLayers,
    #[error("{diff_id:?}, which {path} should be, is not `sha256:` and 64 hexadecimal digits")]
    DiffIdForm { path: PathBuf, diff_id: String },
    #[error(
        "{path} is not the layer that the image's config names: it is sha256:{found}, and should be sha256:{expected}"
    )]
    DiffId { path: PathBuf, expected: String, found: String },
    #[error(
        "{folder} has {free} bytes free, the import needs about {needed} and leaves {RESERVE} free"
    )]
    NoSpace { folder: PathBuf, free: u64, needed: u64 },
    #[error("cannot write the image's file system")]
    Ext4(#[from] Ext4Error),
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
}

impl RootfsError {
    #[must_use]
    pub fn trouble(&self) -> Trouble {
        match self {
            Self::NoSpace { .. } => Trouble::NoSpace,
            Self::Artifact(cause) if cause.is_no_space() => Trouble::NoSpace,
            Self::Artifact(_) => Trouble::Host,
            Self::Ext4(cause)
            | Self::Unpack { cause: TarError::Entry { cause: Refusal::Ext4(cause), .. }, .. } => {
                match cause {
                    _ if cause.is_no_space() => Trouble::NoSpace,
                    Ext4Error::Io { .. } => Trouble::Host,
                    _ => Trouble::Input,
                }
            }
            _ => Trouble::Input,
        }
    }

    /// What to do next, where there is something.
    #[must_use]
    pub fn remedy(&self) -> Option<String> {
        match self {
            Self::NoSpace { folder, .. } => {
                Some(format!("free space on the file system of {}", folder.display()))
            }
            Self::DiffId { .. } => Some("fetch the image again".into()),
            _ => None,
        }
    }
}

/// Imports the root filesystem in the archive `tar` into the image `out`, which appears when it is whole.
///
/// # Errors
/// When `tar` is no archive of a root filesystem, or the host lacks space; then nothing is left.
pub fn import_rootfs(
    tar: &Path,
    out: &Path,
    watch: Watch<'_>,
) -> Result<ImportedRootfs, RootfsError> {
    let layer = LayerSource { path: tar.to_owned(), diff_id: None };
    assemble(&[layer], out, Limits::default(), watch)
}
