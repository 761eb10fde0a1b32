//! Images from files: an OCI layout folder, an archive of one, or what `docker save` writes. The same comes out as from a
//! registry. Blocks; who calls from asynchronous code gives it a thread that may.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use crate::archive::Archive;
use crate::blobs::{AddError, Lease, Store};
use crate::digest::Digest;
use crate::error::{LocalError, RegistryError};
use crate::fetched::{Compression, Fetched, Layer, LayerState, Progress, Watch};
use crate::manifest::{ImageConfig, ManifestError, Platform};
use crate::settings::Limits;
use crate::{docker_archive, layout};

const TOLD_BYTES: u64 = 256 << 10;

/// Whether there is an image in the form of one of these; else it may be the tar of a root file system.
///
/// # Errors
/// When it cannot be read.
pub fn is_image(path: &Path) -> Result<bool, RegistryError> {
    let failed = |cause| local(path, LocalError::Read { what: "it".into(), cause });
    if fs::metadata(path).map_err(failed)?.is_dir() {
        return Ok(path.join(layout::MARK).is_file());
    }
    match Archive::read(path) {
        Ok(archive) => {
            let is_docker = archive.has(docker_archive::MANIFEST)
                && docker_archive::is_one(&archive, &Limits::default());
            Ok(archive.has(layout::MARK) || is_docker)
        }
        Err(LocalError::Read { what, cause }) if cause.kind() == io::ErrorKind::NotFound => {
            Err(local(path, LocalError::Read { what, cause }))
        }
        // Whatever it is, an image it is not.
        Err(_) => Ok(false),
    }
}

/// Brings an image into the store. `name` says which, if there are several: a name or a digest in it.
///
/// # Errors
/// When it cannot be had whole and as it is announced.
pub fn import(
    path: &Path,
    name: Option<&str>,
    platform: &Platform,
    store: &Store,
    limits: &Limits,
    watch: Watch<'_>,
) -> Result<Fetched, RegistryError> {
    let failed = |cause| local(path, LocalError::Read { what: "it".into(), cause });
    let kept = |cause| RegistryError::Store { what: path.display().to_string(), cause };
    let is_folder = fs::metadata(path).map_err(failed)?.is_dir();
    let lease = store.lease().map_err(kept)?;
    let import = Import { path, name, platform, store, lease, limits, watch };
    if is_folder {
        return layout::import(import, &Folder(path));
    }
    let archive = Archive::read(path).map_err(|cause| local(path, cause))?;
    if archive.has(layout::MARK) {
        layout::import(import, &archive)
    } else if archive.has(docker_archive::MANIFEST) {
        docker_archive::import(import, &archive)
    } else {
        Err(local(path, LocalError::Unknown))
    }
}

fn local(path: &Path, cause: LocalError) -> RegistryError {
    RegistryError::Local { path: path.to_owned(), cause: Box::new(cause) }
}

/// Where the parts of an image are.
pub(crate) trait Parts {
    /// The file of that name, and its size.
    fn open_part(&self, name: &str) -> Result<(Box<dyn Read + '_>, u64), LocalError>;

    /// A small file of that name.
    fn read_part(&self, name: &str, limit: u64) -> Result<Vec<u8>, LocalError> {
        let (part, size) = self.open_part(name)?;
        let what = shown(name);
        if size > limit {
            return Err(LocalError::TooLarge { what, limit });
        }
        let mut bytes = Vec::new();
        part.take(limit)
            .read_to_end(&mut bytes)
            .map_err(|cause| LocalError::Read { what: what.clone(), cause })?;
        Ok(bytes)
    }
}

impl Parts for Archive {
    fn open_part(&self, name: &str) -> Result<(Box<dyn Read + '_>, u64), LocalError> {
        let (part, size) = self.open(name)?;
        Ok((Box::new(part), size))
    }
}

/// A layout's folder. Links in it are followed: it is the user's own, and what is read must have its digest.
pub(crate) struct Folder<'a>(&'a Path);

impl Parts for Folder<'_> {
    fn open_part(&self, name: &str) -> Result<(Box<dyn Read + '_>, u64), LocalError> {
        let failed = |cause: io::Error| match cause.kind() {
            io::ErrorKind::NotFound => LocalError::Absent(shown(name)),
            _ => LocalError::Read { what: shown(name), cause },
        };
        // A fifo would keep us waiting.
        let nonblock = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        let file: File = OpenOptions::new()
            .read(true)
            .custom_flags(nonblock)
            .open(self.0.join(name))
            .map_err(failed)?;
        let found = file.metadata().map_err(failed)?;
        if !found.is_file() {
            return Err(failed(io::Error::other("it is not a file")));
        }
        Ok((Box::new(file), found.len()))
    }
}

/// One import that is going on.
pub(crate) struct Import<'a> {
    pub(crate) path: &'a Path,
    pub(crate) name: Option<&'a str>,
    pub(crate) platform: &'a Platform,
    pub(crate) store: &'a Store,
    pub(crate) lease: Lease,
    pub(crate) limits: &'a Limits,
    watch: Watch<'a>,
}

/// A layer that is to be copied.
pub(crate) struct Source<'a> {
    pub(crate) index: usize,
    pub(crate) what: String,
    pub(crate) part: Box<dyn Read + 'a>,
    pub(crate) size: u64,
    /// Its digest, when that is known before.
    pub(crate) expected: Option<Digest>,
}

impl Import<'_> {
    pub(crate) fn failed(&self, cause: LocalError) -> RegistryError {
        local(self.path, cause)
    }

    pub(crate) fn unusable(&self, what: &str, cause: ManifestError) -> RegistryError {
        self.failed(LocalError::Manifest { what: what.to_owned(), cause: Box::new(cause) })
    }

    pub(crate) fn config(&self, bytes: &[u8], layers: usize) -> Result<ImageConfig, RegistryError> {
        let read = ImageConfig::parse(bytes, self.limits)
            .and_then(|read| read.check_against(layers, self.platform).map(|()| read));
        read.map_err(|cause| self.unusable("the config", cause))
    }

    /// A manifest or a config into the store.
    pub(crate) fn keep(&self, what: &str, bytes: &[u8]) -> Result<Digest, RegistryError> {
        self.store.put(&self.lease, bytes).map_err(|error| self.not_added(what, error))
    }

    pub(crate) fn resolved(&self, manifest: Digest, layers: usize, total_bytes: u64) {
        (self.watch)(Progress::Resolved { manifest, layers, total_bytes });
    }

    /// Copies a layer into the store, verified.
    pub(crate) fn layer(
        &self,
        source: Source<'_>,
        diff_id: Digest,
    ) -> Result<Layer, RegistryError> {
        let Source { index, what, part, size, expected } = source;
        let limit = self.limits.largest_blob_bytes;
        if size > limit {
            return Err(self.failed(LocalError::TooLarge { what, limit }));
        }
        let kept = |cause| RegistryError::Store { what: what.clone(), cause };
        let free = self.store.room_bytes().map_err(kept)?;
        let known = expected.map(|digest| (digest, size));
        let needed = match known {
            Some(known) => self.store.missing_bytes(&[known]).map_err(kept)?,
            None => size,
        };
        if needed > free {
            let folder = self.store.folder().to_owned();
            return Err(RegistryError::NoSpace { needed, free, folder });
        }
        let told = expected.unwrap_or(diff_id);
        let mut part = Told {
            part,
            watch: self.watch,
            index,
            digest: told,
            total_bytes: size,
            done: 0,
            told: 0,
        };
        let added = self.store.add(&self.lease, &mut part, known, limit);
        let (digest, size_bytes) = added.map_err(|error| self.not_added(&what, error))?;
        // What was there already was not read.
        let state = if part.done == 0 && size > 0 { LayerState::Cached } else { LayerState::Done };
        let (done_bytes, total_bytes) = (size, size);
        (self.watch)(Progress::Layer { index, digest, done_bytes, total_bytes, state });
        let path = self.store.path(digest);
        let compression = Compression::of_file(&path)
            .map_err(|cause| self.failed(LocalError::Read { what, cause }))?;
        Ok(Layer { path, digest, size_bytes, diff_id, compression })
    }

    fn not_added(&self, what: &str, error: AddError) -> RegistryError {
        let what = what.to_owned();
        let cause = match error {
            AddError::Store(cause) => {
                let what = format!("{what} of {}", self.path.display());
                return RegistryError::Store { what, cause };
            }
            AddError::Read(cause) => LocalError::Read { what, cause },
            AddError::Wrong { expected, found } => {
                LocalError::WrongDigest { what, expected, found }
            }
            AddError::Size { expected, found } => LocalError::WrongSize { what, expected, found },
            AddError::TooLarge { limit } => LocalError::TooLarge { what, limit },
        };
        self.failed(cause)
    }
}

/// Tells how much was read.
struct Told<'a> {
    part: Box<dyn Read + 'a>,
    watch: Watch<'a>,
    index: usize,
    digest: Digest,
    total_bytes: u64,
    done: u64,
    told: u64,
}

impl Read for Told<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.part.read(buffer)?;
        self.done += count as u64;
        if self.done - self.told >= TOLD_BYTES {
            self.told = self.done;
            let (index, digest, state) = (self.index, self.digest, LayerState::Downloading);
            let (done_bytes, total_bytes) = (self.done, self.total_bytes);
            (self.watch)(Progress::Layer { index, digest, done_bytes, total_bytes, state });
        }
        Ok(count)
    }
}

/// Someone else's text in a message of ours is short.
pub(crate) fn shown(text: &str) -> String {
    text.chars().take(200).collect()
}
