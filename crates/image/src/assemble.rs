//! From the layers of an image to an ext4 file system in a file, with everything in it as root would see it: owners, modes,
//! devices, hard links, attributes, times to the nanosecond. As root or as an ordinary user; without mounting anything, and
//! without another program.
//!
//! ```text
//! archives ─► stream (decompress) ─channel─► hash ─► tarball (entries) ─► layers (tree) ─► banger-ext4 ─► image ─► digest
//!             a thread of its own                                                        files' data goes straight there
//! ```

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, sync_channel};

use banger_ext4::{Image, Options, Spare};
use sha2::{Digest, Sha256};

use crate::artifact::{self, failed, free_bytes};
use crate::kernel::hex;
use crate::layers::{Layers, Limits, Stop};
use crate::rootfs::{ImportedRootfs, RESERVE, RootfsError};
use crate::stream::{self, AHEAD, Counter, Message, Pieces, Source};
use crate::tarball::{Allowance, Refusal, TarError, Tarball};
use crate::{Progress, Watch};

/// Space is looked at again after so many bytes.
const SPACE_STEP: u64 = 16 << 20;

/// Every image has it.
const LABEL: &str = "banger-root";

/// mke2fs(8), `-i`: one inode for so many bytes, in each group that growing adds as well.
const BYTES_PER_INODE: u32 = 16384;

/// What mke2fs would take for an 8 GiB disk; it does not grow with the file system.
const JOURNAL: u64 = 64 << 20;

/// Free when it is new; a guest grows it before it writes much.
const SLACK: u64 = 64 << 20;

/// The group descriptors have room to grow to this while mounted; beyond it the kernel converts them (meta_bg).
const LARGEST: u64 = 1 << 40;

/// Where an init is looked for, in this order.
pub(crate) const INITS: [&str; 5] =
    ["/sbin/init", "/usr/lib/systemd/systemd", "/lib/systemd/systemd", "/bin/init", "/init"];

/// A layer in its file: a tar, plain or compressed with gzip, zstd or xz, which its first bytes tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerSource {
    pub path: PathBuf,
    /// What the image's config says of it: `sha256:` and the SHA-256 of the plain tar, hex.
    pub diff_id: Option<String>,
}

/// An archive that can be read, of whatever it is.
pub(crate) struct Archive<'a> {
    /// For messages.
    pub path: PathBuf,
    pub source: Source<'a>,
    pub diff_id: Option<String>,
}

/// Makes the image `out` of `layers`, the lowest first. It appears when it is whole.
///
/// # Errors
/// When a layer is none, is not what its `diff_id` says, or has what cannot be kept or what `limits` forbid; when the host
/// lacks space. Then nothing is left.
pub fn assemble(
    layers: &[LayerSource],
    out: &Path,
    limits: Limits,
    watch: Watch<'_>,
) -> Result<ImportedRootfs, RootfsError> {
    let mut archives = Vec::new();
    let mut total = 0;
    for layer in layers {
        let read = |cause| RootfsError::Read { path: layer.path.clone(), cause };
        let file = File::open(&layer.path).map_err(read)?;
        let metadata = file.metadata().map_err(read)?;
        if !metadata.is_file() {
            return Err(read(io::Error::other("it is not a regular file")));
        }
        total += metadata.len();
        archives.push(Archive {
            path: layer.path.clone(),
            source: Source::File(file),
            diff_id: layer.diff_id.clone(),
        });
    }
    artifact::write(out, |image, draft| fill(archives, total, limits, image, draft, watch))
}

/// Fills `image`, the new and empty file at `draft`, from archives of `total` bytes, or 0 when nobody knows.
pub(crate) fn fill(
    archives: Vec<Archive<'_>>,
    total: u64,
    limits: Limits,
    image: &mut File,
    draft: &Path,
    watch: Watch<'_>,
) -> Result<ImportedRootfs, RootfsError> {
    let folder = draft.parent().expect("a draft lies in a folder");
    require_space(folder, total)?;
    let Some(first) = archives.first() else { return Err(RootfsError::NoLayers) };
    let first = first.path.clone();
    let text = match archives.len() {
        1 => format!("unpacking {}", first.display()),
        count => format!("unpacking {count} layers"),
    };
    watch(Progress::Stage { name: "unpack", text: &text });
    let file = image.try_clone().map_err(failed("open", draft))?;
    let mut layers = Layers::new(Image::create(file, options(&limits))?, limits);
    let digests = apply_all(archives, total, &limits, folder, &mut layers, watch)?;
    let entries = layers.entries;
    if entries == 0 {
        return Err(RootfsError::Empty(first));
    }
    let init = INITS.into_iter().find(|name| layers.is_program(name)).map(str::to_owned);

    watch(Progress::Stage {
        name: "write",
        text: &format!("writing {entries} entries to the filesystem"),
    });
    let mut finished =
        layers.finish().map_err(|cause| RootfsError::Unpack { path: first, cause })?;
    let identity = identity(&digests);
    finished.set_identity(identity, identity);
    let (written_file, written) = finished.finish(Spare { bytes: SLACK })?;

    watch(Progress::Stage { name: "digest", text: "computing the image's digest" });
    let (digest, synced) = std::thread::scope(|scope| {
        // It must get to the disk anyway, and that goes side by side.
        let syncing = scope.spawn(|| written_file.sync_all());
        (digest(image), syncing.join().expect("syncing does not panic"))
    });
    synced.map_err(failed("sync", draft))?;
    let digest = digest.map_err(failed("read", draft))?;
    let metadata = image.metadata().map_err(failed("look at", draft))?;
    Ok(ImportedRootfs {
        digest,
        size_bytes: std::os::unix::fs::MetadataExt::blocks(&metadata) * 512,
        file_system_bytes: written.file_system_bytes,
        init,
        entries,
    })
}

fn options(limits: &Limits) -> Options {
    Options {
        // Known when all was read: see `identity`.
        uuid: [0; 16],
        hash_seed: [0; 16],
        label: LABEL.to_owned(),
        bytes_per_inode: BYTES_PER_INODE,
        journal_bytes: JOURNAL,
        largest_bytes: LARGEST,
        most_inodes: u32::try_from(limits.entries).unwrap_or(u32::MAX - 16),
    }
}

/// Applies all archives in their order; gives the SHA-256 of each.
fn apply_all(
    archives: Vec<Archive<'_>>,
    total: u64,
    limits: &Limits,
    folder: &Path,
    layers: &mut Layers,
    watch: Watch<'_>,
) -> Result<Vec<[u8; 32]>, RootfsError> {
    let (mut told, mut sources) = (Vec::new(), Vec::new());
    for archive in archives {
        let expected =
            archive.diff_id.map(|diff_id| sha256_of(&archive.path, &diff_id)).transpose()?;
        told.push((archive.path, expected));
        sources.push(archive.source);
    }
    let (to, from) = sync_channel(AHEAD);
    std::thread::scope(|scope| {
        // It owns the sender, so its end is seen here; and `from` is dropped when this closure ends, which ends it.
        scope.spawn(move || {
            let mut counter = Counter::new(total, watch);
            for source in sources {
                if !stream::send(source, &mut counter, &to) {
                    break;
                }
            }
        });
        let from = from;
        let (mut digests, mut spent) = (Vec::new(), 0);
        let mut looked = 0;
        let mut check = |bytes: u64| {
            if bytes.saturating_sub(looked) < SPACE_STEP {
                return Ok(());
            }
            looked = bytes;
            // Inode tables and the like take a fiftieth.
            require_space(folder, bytes / 50 + SPACE_STEP)
        };
        for (path, expected) in told {
            let digest = apply(&path, expected, limits, &mut spent, layers, &from, &mut check)?;
            digests.push(digest);
        }
        Ok(digests)
    })
}

fn apply(
    path: &Path,
    expected: Option<[u8; 32]>,
    limits: &Limits,
    spent: &mut u64,
    layers: &mut Layers,
    from: &Receiver<Message>,
    check: &mut impl FnMut(u64) -> Result<(), RootfsError>,
) -> Result<[u8; 32], RootfsError> {
    let mut tarball = Tarball::new(Pieces::new(from), allowance(limits, *spent));
    let entries = layers.entries;
    let applied = layers.apply(&mut tarball, check);
    let applied = applied.and_then(|()| tarball.finish().map_err(Stop::Tar));
    applied.map_err(|stop| match stop {
        Stop::Caller(error) => error,
        Stop::Tar(TarError::NotATar) if layers.entries == entries => {
            RootfsError::NotATar(path.to_owned())
        }
        Stop::Tar(cause) => RootfsError::Unpack { path: path.to_owned(), cause },
    })?;
    *spent += tarball.position();
    // Without a digest only the mark tells that nothing was cut off.
    if expected.is_none() && !tarball.has_end_mark() {
        let cause = TarError::NoEnd { at: tarball.position() };
        return Err(RootfsError::Unpack { path: path.to_owned(), cause });
    }
    let digest = tarball.into_source().digest().expect("the archive was read to its end");
    match expected {
        Some(expected) if expected != digest => Err(RootfsError::DiffId {
            path: path.to_owned(),
            expected: hex(&expected),
            found: hex(&digest),
        }),
        _ => Ok(digest),
    }
}

fn allowance(limits: &Limits, spent: u64) -> Allowance {
    let left = limits.total_bytes.saturating_sub(spent);
    if left < limits.layer_bytes {
        Allowance { bytes: left, refusal: Refusal::TotalBytes, limit: limits.total_bytes }
    } else {
        let bytes = limits.layer_bytes;
        Allowance { bytes, refusal: Refusal::LayerBytes, limit: bytes }
    }
}

/// `sha256:` and 64 digits.
fn sha256_of(path: &Path, diff_id: &str) -> Result<[u8; 32], RootfsError> {
    let digits = diff_id.strip_prefix("sha256:").filter(|digits| digits.len() == 64);
    let mut bytes = [0; 32];
    let parsed = digits.and_then(|digits| {
        for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
            let digit =
                |at: usize| char::from(pair[at]).to_digit(16).and_then(|d| u8::try_from(d).ok());
            *byte = digit(0)? << 4 | digit(1)?;
        }
        Some(bytes)
    });
    parsed.ok_or_else(|| RootfsError::DiffIdForm {
        path: path.to_owned(),
        diff_id: diff_id.chars().take(200).collect(),
    })
}

/// A UUID of the content: the same layers give a file system of the same identity. RFC 9562, version 8: bits of one's own
/// choice.
fn identity(digests: &[[u8; 32]]) -> [u8; 16] {
    let digest: [u8; 32] = match digests {
        [one] => *one,
        many => Sha256::digest(many.concat()).into(),
    };
    let mut bytes: [u8; 16] = digest[..16].try_into().expect("16 of 32");
    bytes[6] = bytes[6] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    bytes
}

fn require_space(folder: &Path, needed: u64) -> Result<(), RootfsError> {
    let free = free_bytes(folder)?;
    if free < needed.saturating_add(RESERVE) {
        return Err(RootfsError::NoSpace { folder: folder.to_owned(), free, needed });
    }
    Ok(())
}

/// SHA-256 of the file, hex.
pub(crate) fn digest(image: &mut File) -> io::Result<String> {
    use std::io::Seek as _;
    image.rewind()?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match image.read(&mut buffer)? {
            0 => return Ok(hex(&hash.finalize())),
            count => hash.update(&buffer[..count]),
        }
    }
}
