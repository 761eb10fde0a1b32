//! What a pull or an import gives: an image whose every blob is verified and in the store.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use crate::blobs::Lease;
use crate::digest::Digest;
use crate::manifest::ImageConfig;
use crate::reference::Reference;

/// A whole image. Its lease keeps its blobs; record [`Fetched::blobs`] as needed before it ends.
#[derive(Debug)]
pub struct Fetched {
    /// What it is called; `None` when an archive does not say.
    pub reference: Option<Reference>,
    /// What the name stood for: an index's digest, or the manifest's.
    pub digest: Digest,
    pub manifest_digest: Digest,
    pub manifest: Vec<u8>,
    pub config: ImageConfig,
    pub config_digest: Digest,
    /// The lowest first.
    pub layers: Vec<Layer>,
    pub lease: Lease,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    pub path: PathBuf,
    /// Of the file.
    pub digest: Digest,
    pub size_bytes: u64,
    /// Of the tar in it, which nobody has verified yet.
    pub diff_id: Digest,
    pub compression: Compression,
}

/// As the first bytes of the file say; media types are often wrong about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Fetched {
    /// All blobs of the store that it consists of, each once.
    #[must_use]
    pub fn blobs(&self) -> Vec<Digest> {
        let mut blobs = vec![self.digest, self.manifest_digest, self.config_digest];
        blobs.extend(self.layers.iter().map(|layer| layer.digest));
        blobs.sort();
        blobs.dedup();
        blobs
    }
}

impl Compression {
    pub(crate) fn of_file(path: &Path) -> io::Result<Self> {
        let mut first = Vec::new();
        File::open(path)?.take(4).read_to_end(&mut first)?;
        Ok(Self::of(&first))
    }

    /// By RFC 1952 and RFC 8878.
    pub(crate) fn of(first: &[u8]) -> Self {
        match first {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::None,
        }
    }
}

/// What an import or a pull tells while it works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress<'a> {
    /// It is known what the name stands for, and how much there is, whether it is here already or not.
    Resolved { manifest: Digest, layers: usize, total_bytes: u64 },
    /// A layer's state. Layers are counted from 0, the lowest first; one that is in an image twice is told once.
    Layer { index: usize, digest: Digest, done_bytes: u64, total_bytes: u64, state: LayerState },
    /// Something that people may want to know: a mirror that failed, a request that is repeated.
    Note(&'a str),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerState {
    /// Another pull downloads it.
    Waiting,
    Downloading,
    /// Verified, and in the store.
    Done,
    /// It was in the store already.
    Cached,
}

/// Who listens to the progress.
pub type Watch<'a> = &'a (dyn Fn(Progress<'_>) + Sync);
