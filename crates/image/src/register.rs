//! An ext4 file system that somebody made elsewhere, as an image: looked at, checked by e2fsck(8) where there is one, and
//! copied. Where the host's file system can, the copy shares the blocks of the original; holes stay holes.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use banger_ext4::Kind;
use rustix::io::Errno;

use crate::artifact::{self, ArtifactError, failed};
use crate::assemble::{self, INITS};
use crate::filesystem::{FileSystem, FileSystemError};
use crate::programs::{Call, Program, ProgramError};
use crate::rootfs::ImportedRootfs;
use crate::{Progress, Trouble, Watch};

const E2FSCK: Program = Program { name: "e2fsck", package: "e2fsprogs" };
const CHECKING: Duration = Duration::from_secs(1800);

#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    #[error("cannot read {path}")]
    Read {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("{0} is not a regular file")]
    NotAFile(PathBuf),
    #[error("{path} cannot be an image")]
    FileSystem {
        path: PathBuf,
        #[source]
        cause: FileSystemError,
    },
    #[error("the file system in {path} has {blocks} blocks, and the file is shorter")]
    Short { path: PathBuf, blocks: u64 },
    #[error("the file system in {path} is damaged")]
    Damaged {
        path: PathBuf,
        #[source]
        cause: ProgramError,
    },
    #[error("cannot check the file system in {path}")]
    Check {
        path: PathBuf,
        #[source]
        cause: ProgramError,
    },
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
}

impl RegisterError {
    #[must_use]
    pub fn trouble(&self) -> Trouble {
        match self {
            Self::Artifact(cause) if cause.is_no_space() => Trouble::NoSpace,
            Self::Artifact(_) | Self::Check { .. } => Trouble::Host,
            _ => Trouble::Input,
        }
    }

    /// What to do next, where there is something.
    #[must_use]
    pub fn remedy(&self) -> Option<String> {
        match self {
            Self::FileSystem {
                path,
                cause: FileSystemError::NotUnmounted | FileSystemError::Errors,
            }
            | Self::Damaged { path, .. } => {
                Some(format!("repair it: `e2fsck -f -p {}`", path.display()))
            }
            Self::FileSystem { cause: FileSystemError::NotExt4, .. } => {
                Some("for a tar of a root file system there is `banger image import`".into())
            }
            _ => None,
        }
    }
}

/// Copies the file system in `rootfs` to the image `out`, which appears when it is whole.
///
/// # Errors
/// When `rootfs` is no sound ext4 file system, or cannot be copied; then nothing is left.
pub fn register_rootfs(
    rootfs: &Path,
    out: &Path,
    watch: Watch<'_>,
) -> Result<ImportedRootfs, RegisterError> {
    let read = |cause| RegisterError::Read { path: rootfs.to_owned(), cause };
    // A fifo would keep us waiting.
    if !std::fs::metadata(rootfs).map_err(read)?.is_file() {
        return Err(RegisterError::NotAFile(rootfs.to_owned()));
    }
    let source = File::open(rootfs).map_err(read)?;
    let text = format!("copying {}", rootfs.display());
    watch(Progress::Stage { name: "copy", text: &text });
    artifact::write(out, |image, draft| {
        copy(&source, image, watch).map_err(failed("copy to", draft))?;
        // The copy is looked at: nobody else writes to it.
        let opened = image.try_clone().map_err(failed("open", draft))?;
        let unfit = |cause| RegisterError::FileSystem { path: rootfs.to_owned(), cause };
        let file_system = FileSystem::open(Box::new(opened)).map_err(unfit)?;
        let file_system_bytes = file_system.blocks * u64::from(file_system.block_bytes);
        let length = image.metadata().map_err(failed("look at", draft))?.len();
        if length < file_system_bytes {
            let path = rootfs.to_owned();
            return Err(RegisterError::Short { path, blocks: file_system.blocks });
        }
        // What stands behind it is not its own.
        image.set_len(file_system_bytes).map_err(failed("cut", draft))?;
        check(rootfs, draft, watch)?;
        let init = init(&file_system).map_err(unfit)?;
        watch(Progress::Stage { name: "digest", text: "computing the image's digest" });
        let digest = assemble::digest(image).map_err(failed("read", draft))?;
        let metadata = image.metadata().map_err(failed("look at", draft))?;
        let entries = u64::from(file_system.inodes);
        let size_bytes = metadata.blocks() * 512;
        Ok(ImportedRootfs { digest, size_bytes, file_system_bytes, init, entries })
    })
}

fn init(file_system: &FileSystem) -> Result<Option<String>, FileSystemError> {
    for name in INITS {
        let found = file_system.resolve(name.as_bytes())?;
        if found.is_some_and(|node| node.kind == Kind::File && node.attributes.mode & 0o111 != 0) {
            return Ok(Some(name.to_owned()));
        }
    }
    Ok(None)
}

/// e2fsck(8): status 0 means that there is nothing to say. A host without it trusts the file system's own word.
fn check(rootfs: &Path, draft: &Path, watch: Watch<'_>) -> Result<(), RegisterError> {
    if !E2FSCK.exists() {
        return Ok(());
    }
    watch(Progress::Stage { name: "check", text: "checking the file system with e2fsck" });
    let checked =
        Call::new(E2FSCK, CHECKING).and_then(|call| call.args(["-f", "-n"]).args([draft]).output());
    let path = rootfs.to_owned();
    match checked {
        Ok(_) => Ok(()),
        Err(cause @ ProgramError::Failed { .. }) => Err(RegisterError::Damaged { path, cause }),
        Err(cause) => Err(RegisterError::Check { path, cause }),
    }
}

/// Shares blocks (ioctl_ficlone(2)) or copies what is allocated (lseek(2), SEEK_DATA).
fn copy(source: &File, to: &mut File, watch: Watch<'_>) -> io::Result<()> {
    if rustix::fs::ioctl_ficlone(&*to, source).is_ok() {
        return Ok(());
    }
    let metadata = source.metadata()?;
    to.set_len(metadata.len())?;
    let total = metadata.blocks() * 512;
    let mut source = source;
    let (mut at, mut done) = (0, 0);
    let mut buffer = vec![0; 256 << 10];
    loop {
        let start = match rustix::fs::seek(source, rustix::fs::SeekFrom::Data(at)) {
            Ok(start) => start,
            // No data behind this.
            Err(Errno::NXIO) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        let end = rustix::fs::seek(source, rustix::fs::SeekFrom::Hole(start))?;
        source.seek(SeekFrom::Start(start))?;
        to.seek(SeekFrom::Start(start))?;
        at = start;
        while at < end {
            let most = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
            let count = source.read(&mut buffer[..most])?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            to.write_all(&buffer[..count])?;
            (at, done) = (at + count as u64, done + count as u64);
            watch(Progress::Bytes { done, total });
        }
    }
}
