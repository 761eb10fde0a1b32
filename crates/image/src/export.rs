//! From an image to an OCI archive (OCI image specification 1.1, "Image Layout", in a tar) of one layer, which other tools
//! load and we import: read without mounting, so without root. The same image gives the same layer.

use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::artifact::{self, ArtifactError, failed};
use crate::filesystem::{FileSystem, FileSystemError};
use crate::kernel::hex;
use crate::tar_writer::{self, ArchiveError, Written};
use crate::union::Union;
use crate::{Progress, Trouble, Watch};

/// What the archive says beside the layer.
#[derive(Debug, Clone, Default)]
pub struct Description {
    /// What the image is called in it: `org.opencontainers.image.ref.name`.
    pub name: String,
    /// RFC 3339.
    pub created: String,
    /// The `config` of the image's configuration.
    pub config: Value,
}

/// An archive that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    /// Of the manifest: `sha256:…`.
    pub manifest: String,
    /// Of the layer as a plain tar.
    pub diff_id: String,
    /// Of the archive.
    pub size_bytes: u64,
    pub entries: u64,
    /// Left out: an archive has no sockets.
    pub sockets: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error("cannot open {path}")]
    Open {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("{path} cannot be read")]
    FileSystem {
        path: PathBuf,
        #[source]
        cause: FileSystemError,
    },
    #[error("{path} cannot be exported")]
    Archive {
        path: PathBuf,
        #[source]
        cause: ArchiveError,
    },
    #[error("there is {0} already")]
    Exists(PathBuf),
    #[error("{0} is not a file")]
    NotAFile(PathBuf),
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
}

impl ExportError {
    #[must_use]
    pub fn trouble(&self) -> Trouble {
        match self {
            Self::Archive { cause: ArchiveError::Write(cause), .. }
                if artifact::is_no_space(cause) =>
            {
                Trouble::NoSpace
            }
            Self::Artifact(cause) if cause.is_no_space() => Trouble::NoSpace,
            Self::Exists(_) | Self::NotAFile(_) => Trouble::Input,
            Self::Archive {
                cause:
                    ArchiveError::Whiteout { .. } | ArchiveError::Shared { .. } | ArchiveError::Names(_),
                ..
            } => Trouble::Input,
            _ => Trouble::Host,
        }
    }

    /// What to do next, where there is something.
    #[must_use]
    pub fn remedy(&self) -> Option<String> {
        match self {
            Self::Exists(_) => Some("name another file, or replace it with --force".into()),
            _ => None,
        }
    }
}

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Pieces of the plain layer on their way to the one who compresses it.
const PIECE: usize = 256 << 10;
const AHEAD: usize = 16;

/// Writes the image in the file `image` into the archive `out`, which appears when it is whole.
///
/// # Errors
/// When the image cannot be read or has what no archive can have; when `out` is there and not to be replaced, or cannot be
/// written. Then nothing is left.
pub fn export_image(
    image: &Path,
    out: &Path,
    description: &Description,
    compress: bool,
    replace: bool,
    watch: Watch<'_>,
) -> Result<Exported, ExportError> {
    match std::fs::symlink_metadata(out) {
        Ok(found) if !found.is_file() => return Err(ExportError::NotAFile(out.to_owned())),
        Ok(_) if !replace => return Err(ExportError::Exists(out.to_owned())),
        _ => {}
    }
    let file =
        File::open(image).map_err(|cause| ExportError::Open { path: image.to_owned(), cause })?;
    let total = file.metadata().map_or(0, |metadata| metadata.blocks() * 512);
    let file_system = FileSystem::open(Box::new(file))
        .map_err(|cause| ExportError::FileSystem { path: image.to_owned(), cause })?;
    let union = Union::of_one(file_system);
    remove_leftovers(out);
    let text = format!("writing {}", out.display());
    watch(Progress::Stage { name: "export", text: &text });
    artifact::write(out, |archive, draft| {
        let mut done = 0;
        let mut told = |count| {
            done += count;
            watch(Progress::Bytes { done, total });
        };
        let at = |cause| ExportError::from(failed("write", draft)(cause));
        // The layer's place is known, its name and length are told when it is written.
        archive.write_all(&tar_writer::plain_header("blobs", 0)).map_err(at)?;
        let layer = if compress {
            compressed(&union, archive, &mut told)
        } else {
            plain(&union, archive, &mut told)
        };
        let layer =
            layer.map_err(|cause| ExportError::Archive { path: image.to_owned(), cause })?;
        finish(archive, &layer, description, compress).map_err(at)
    })
}

/// Exports that were killed left their drafts beside the archive.
fn remove_leftovers(out: &Path) {
    let Some(folder) = out.parent() else { return };
    for path in artifact::leftovers(folder).unwrap_or_default() {
        // It stays for the next to try.
        drop(artifact::remove_leftover(&path));
    }
}

/// A layer that was written.
struct Layer {
    digest: String,
    bytes: u64,
    diff_id: String,
    written: Written,
}

fn plain(union: &Union, to: &mut File, told: &mut dyn FnMut(u64)) -> Result<Layer, ArchiveError> {
    let mut to = Hashing::new(BufWriter::with_capacity(PIECE, to));
    let written = tar_writer::write(union, &mut to, told)?;
    let (digest, bytes) = to.finish().map_err(ArchiveError::Write)?;
    Ok(Layer { diff_id: digest.clone(), digest, bytes, written })
}

/// Two threads: one reads and archives, one compresses.
fn compressed(
    union: &Union,
    to: &mut File,
    told: &mut dyn FnMut(u64),
) -> Result<Layer, ArchiveError> {
    let (sender, receiver) = sync_channel(AHEAD);
    std::thread::scope(|scope| {
        let packing = scope.spawn(move || pack(receiver, to));
        let mut plain = Hashing::new(BufWriter::with_capacity(PIECE, Sender(sender)));
        let written = tar_writer::write(union, &mut plain, told);
        let finished = plain.finish();
        let packed = packing.join().expect("packing does not panic").map_err(ArchiveError::Write);
        // Who cannot send any more is told why by who does not take it.
        if matches!(written, Err(ArchiveError::Write(_))) {
            packed?;
            return written.map(|_| unreachable!("it failed"));
        }
        let written = written?;
        let (digest, bytes) = packed?;
        let (diff_id, _) = finished.map_err(ArchiveError::Write)?;
        Ok(Layer { digest, bytes, diff_id, written })
    })
}

fn pack(pieces: Receiver<Vec<u8>>, to: &mut File) -> io::Result<(String, u64)> {
    let to = Hashing::new(BufWriter::with_capacity(PIECE, to));
    let mut encoder = flate2::write::GzEncoder::new(to, flate2::Compression::new(4));
    for piece in pieces {
        encoder.write_all(&piece)?;
    }
    encoder.finish()?.finish()
}

/// The rest of the archive behind the layer, and the header before it.
fn finish(
    archive: &mut File,
    layer: &Layer,
    description: &Description,
    compress: bool,
) -> io::Result<Exported> {
    let mut end = archive.seek(SeekFrom::End(0))?;
    archive.write_all(&vec![0; usize::try_from(end.next_multiple_of(512) - end).unwrap_or(0)])?;
    let diff_id = format!("sha256:{}", layer.diff_id);
    let config = json!({
        "created": description.created,
        "architecture": architecture(),
        "os": "linux",
        "config": description.config,
        "rootfs": { "type": "layers", "diff_ids": [diff_id] },
        "history": [{ "created": description.created, "created_by": "banger image export" }],
    });
    let config = put(archive, None, &config)?;
    let media_type = if compress { format!("{LAYER}+gzip") } else { LAYER.to_owned() };
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": { "mediaType": CONFIG, "digest": config.0, "size": config.1 },
        "layers": [{
            "mediaType": media_type,
            "digest": format!("sha256:{}", layer.digest),
            "size": layer.bytes,
        }],
    });
    let manifest = put(archive, None, &manifest)?;
    let index = json!({
        "schemaVersion": 2,
        "mediaType": INDEX,
        "manifests": [{
            "mediaType": MANIFEST,
            "digest": manifest.0,
            "size": manifest.1,
            "annotations": { "org.opencontainers.image.ref.name": description.name },
        }],
    });
    put(archive, Some("index.json"), &index)?;
    put(archive, Some("oci-layout"), &json!({ "imageLayoutVersion": "1.0.0" }))?;
    archive.write_all(&[0; 1024])?;
    end = archive.stream_position()?;
    archive.rewind()?;
    let name = format!("blobs/sha256/{}", layer.digest);
    archive.write_all(&tar_writer::plain_header(&name, layer.bytes))?;
    Ok(Exported {
        manifest: manifest.0,
        diff_id,
        size_bytes: end,
        entries: layer.written.entries,
        sockets: layer.written.sockets,
    })
}

/// A JSON file of the archive, a blob if it has no name of its own; its digest and length.
fn put(archive: &mut File, name: Option<&str>, value: &Value) -> io::Result<(String, usize)> {
    let bytes = serde_json::to_vec(value)?;
    let digest = hex(&Sha256::digest(&bytes));
    let name = name.map_or_else(|| format!("blobs/sha256/{digest}"), str::to_owned);
    archive.write_all(&tar_writer::plain_header(&name, bytes.len() as u64))?;
    archive.write_all(&bytes)?;
    archive.write_all(&vec![0; bytes.len().next_multiple_of(512) - bytes.len()])?;
    Ok((format!("sha256:{digest}"), bytes.len()))
}

/// As Go names it (OCI image specification, "Image Configuration").
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Hashes and counts what passes.
struct Hashing<W> {
    to: W,
    hash: Sha256,
    bytes: u64,
}

impl<W: Write> Hashing<W> {
    fn new(to: W) -> Self {
        Self { to, hash: Sha256::new(), bytes: 0 }
    }

    fn finish(mut self) -> io::Result<(String, u64)> {
        self.to.flush()?;
        Ok((hex(&self.hash.finalize()), self.bytes))
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.to.write(bytes)?;
        self.hash.update(&bytes[..count]);
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Sends what is written to another thread.
pub(crate) struct Sender(pub SyncSender<Vec<u8>>);

impl Write for Sender {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        self.0.send(bytes.to_vec()).map_err(gone)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
