//! A stopped VM's disk as a new image: read without mounting, archived on the way as one layer, and made into a file system
//! as every layer is. So what comes out has no more than its content needs, whatever the disk's size is.

use std::fs::File;
use std::io::{self, BufWriter, Read};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, sync_channel};

use crate::artifact;
use crate::assemble::{self, Archive};
use crate::export::Sender;
use crate::filesystem::{FileSystem, FileSystemError, Snapshot};
use crate::layers::Limits;
use crate::rootfs::{ImportedRootfs, RootfsError};
use crate::stream::Source;
use crate::tar_writer::{self, ArchiveError};
use crate::union::{Union, UnionError};
use crate::{Trouble, Watch};

/// How the root of a VM stands on its files; each is a path on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Root {
    /// A file system of the VM's own.
    Whole { disk: PathBuf },
    /// An image, and an ext4 file system that overlayfs lays over it.
    Overlay { image: PathBuf, disk: PathBuf },
    /// An image, and a store of device-mapper's snapshot target.
    Snapshot { image: PathBuf, disk: PathBuf },
}

#[derive(Debug, thiserror::Error)]
pub enum PromoteError {
    #[error("cannot open {path}")]
    Open {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("the disk {path} cannot be read")]
    Disk {
        path: PathBuf,
        #[source]
        cause: FileSystemError,
    },
    #[error("the VM's changes cannot be read")]
    Union(#[from] UnionError),
    #[error("the VM's files cannot be read")]
    Archive(#[source] ArchiveError),
    #[error("cannot make the image")]
    Image(#[from] RootfsError),
}

impl PromoteError {
    #[must_use]
    pub fn trouble(&self) -> Trouble {
        match self {
            Self::Image(cause) => cause.trouble(),
            Self::Open { .. } => Trouble::Host,
            _ => Trouble::Input,
        }
    }

    /// What to do next, where there is something.
    #[must_use]
    pub fn remedy(&self) -> Option<String> {
        match self {
            Self::Image(cause) => cause.remedy(),
            Self::Disk {
                cause: FileSystemError::NotUnmounted | FileSystemError::Errors, ..
            } => Some(
                "start the VM, which repairs its disk, and stop it with `banger vm stop`".into(),
            ),
            _ => None,
        }
    }
}

/// Pieces of the archive on their way.
const PIECE: usize = 256 << 10;
const AHEAD: usize = 16;

/// Makes the image `out` of what a VM, which must not run, sees as its root. It appears when it is whole.
///
/// # Errors
/// When the disk was not unmounted, is damaged, or has what an image cannot have; when the host lacks space.
pub fn promote(
    root: &Root,
    out: &Path,
    limits: Limits,
    watch: Watch<'_>,
) -> Result<ImportedRootfs, PromoteError> {
    let (path, union) = match root {
        Root::Whole { disk } => {
            let file = open(disk)?;
            (disk, Union::of_one(file_system(disk, file)?))
        }
        Root::Overlay { image, disk } => {
            let below = file_system(image, open(image)?)?;
            (disk, Union::with_changes(below, file_system(disk, open(disk)?)?)?)
        }
        Root::Snapshot { image, disk } => {
            let snapshot = Snapshot::open(open(image)?, open(disk)?)
                .map_err(|cause| PromoteError::Disk { path: disk.clone(), cause })?;
            let file_system = FileSystem::open(Box::new(snapshot))
                .map_err(|cause| PromoteError::Disk { path: disk.clone(), cause })?;
            (disk, Union::of_one(file_system))
        }
    };
    let (sender, receiver) = sync_channel(AHEAD);
    std::thread::scope(|scope| {
        let archiving = scope.spawn(|| {
            let mut to = BufWriter::with_capacity(PIECE, Sender(sender));
            let written = tar_writer::write(&union, &mut to, &mut |_| {});
            written.and_then(|written| {
                let flushed = to.into_inner().map_err(io::IntoInnerError::into_error);
                flushed.map(|_| written).map_err(ArchiveError::Write)
            })
        });
        let archive = Archive {
            path: path.clone(),
            source: Source::Stream(Box::new(Pieces { from: receiver, piece: Vec::new(), read: 0 })),
            diff_id: None,
        };
        let made = artifact::write(out, |image, draft| {
            assemble::fill(vec![archive], 0, limits, image, draft, watch)
        });
        match archiving.join().expect("archiving does not panic") {
            // Nobody took it any more: why is told below.
            Err(ArchiveError::Write(_)) | Ok(_) => Ok(made?),
            Err(cause) => {
                // An archive that ends early is refused by who reads it.
                debug_assert!(made.is_err());
                Err(PromoteError::Archive(cause))
            }
        }
    })
}

fn open(path: &Path) -> Result<File, PromoteError> {
    File::open(path).map_err(|cause| PromoteError::Open { path: path.to_owned(), cause })
}

fn file_system(path: &Path, file: File) -> Result<FileSystem, PromoteError> {
    FileSystem::open(Box::new(file))
        .map_err(|cause| PromoteError::Disk { path: path.to_owned(), cause })
}

/// What another thread sends, read.
struct Pieces {
    from: Receiver<Vec<u8>>,
    piece: Vec<u8>,
    read: usize,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.read == self.piece.len() {
            match self.from.recv() {
                Ok(piece) => (self.piece, self.read) = (piece, 0),
                Err(_) => return Ok(0),
            }
        }
        let rest = &self.piece[self.read..];
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        self.read += count;
        Ok(count)
    }
}
