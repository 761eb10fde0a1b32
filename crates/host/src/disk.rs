//! A VM's writable disk: a formatted empty one that the guest lays over its image, or a copy of the image that shares
//! its blocks. Sparse either way; nothing here ever writes to an image.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::error::{HostError, on};
use crate::mark::Mark;
use crate::{Places, command, show};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    pub mark: Mark,
    pub size_bytes: u64,
    pub source: DiskSource,
    /// The size that it had before, in bytes: one of that size is grown. It is there already, and never made anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grown_from: Option<u64>,
}

/// What a new disk holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "from", rename_all = "snake_case")]
pub enum DiskSource {
    /// An empty ext4 filesystem.
    Empty,
    /// Nothing: one hole.
    Hole,
    /// A copy of `base` that shares its blocks (FICLONE, ioctl_ficlone(2)), then grown; the guest grows the filesystem.
    Reflink { base: PathBuf },
}

pub(crate) fn acquire(disk: &Disk, places: &Places) -> Result<(), HostError> {
    let path = places.disk(&disk.mark);
    if let Ok(found) = fs::metadata(&path) {
        if found.len() == disk.size_bytes {
            return Ok(());
        }
        if disk.grown_from == Some(found.len()) && found.len() < disk.size_bytes {
            return grow(&path, disk.size_bytes);
        }
        let cause =
            format!("it is there with {} bytes instead of {}", found.len(), disk.size_bytes);
        return Err(HostError::because(format!("make the disk {}", show(&path)), cause));
    }
    if disk.grown_from.is_some() {
        let cause = "it is gone";
        return Err(HostError::because(format!("grow the disk {}", show(&path)), cause));
    }
    let half = half_made(&path);
    let mut file = create(&half)?;
    match &disk.source {
        DiskSource::Empty => {
            let template = ensure_template(&places.templates, disk.size_bytes)?;
            copy_sparse(&template, &mut file, &half)?;
        }
        DiskSource::Hole => file.set_len(disk.size_bytes).map_err(on("grow", &half))?,
        DiskSource::Reflink { base } => {
            let base_file = File::open(base).map_err(on("open the image", base))?;
            rustix::fs::ioctl_ficlone(&file, &base_file)
                .map_err(|e| on("share blocks with", base)(e.into()))?;
            file.set_len(disk.size_bytes).map_err(on("grow", &half))?;
        }
    }
    file.sync_all().map_err(on("write", &half))?;
    fs::rename(&half, &path).map_err(on("rename into place", &path))
}

pub(crate) fn release(path: &Path) -> Result<(), HostError> {
    let done = remove(path);
    let half_done = remove(&half_made(path));
    done.and(half_done)
}

pub(crate) fn is_there(path: &Path) -> bool {
    path.exists() || half_made(path).exists()
}

/// Whether files in `folder` can share blocks with `base`: tried with one block of it.
#[must_use]
pub fn reflink_works(base: &Path, folder: &Path) -> bool {
    let cloned = || {
        let source = File::open(base).ok()?;
        // Without a name, so that whoever dies here leaves nothing. Filesystems that share blocks have such files.
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let target = rustix::fs::open(folder, flags, Mode::RUSR | Mode::WUSR).ok()?;
        rustix::fs::ioctl_ficlone(&target, &source).ok()
    };
    cloned().is_some()
}

/// Sparse: what it grows by takes no room. The guest grows the filesystem.
fn grow(path: &Path, size_bytes: u64) -> Result<(), HostError> {
    let file = OpenOptions::new().write(true).open(path).map_err(on("open the disk", path))?;
    file.set_len(size_bytes).map_err(on("grow", path))?;
    file.sync_all().map_err(on("write", path))
}

fn half_made(path: &Path) -> PathBuf {
    path.with_extension("new")
}

fn create(path: &Path) -> Result<File, HostError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .map_err(on("create", path))
}

fn remove(path: &Path) -> Result<(), HostError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(on("remove", path)(error)),
        _ => Ok(()),
    }
}

/// The formatted empty disk of this size. Making one takes mke2fs some 100 ms, copying its few blocks takes 1.
fn ensure_template(folder: &Path, size_bytes: u64) -> Result<PathBuf, HostError> {
    let path = folder.join(format!("empty-{size_bytes}.ext4"));
    if path.exists() {
        return Ok(path);
    }
    // Named by process and thread: two that make the same one at once both succeed, and the last rename wins.
    let half = folder.join(format!("empty-{size_bytes}.{:?}.new", std::thread::current().id()));
    let file = create(&half)?;
    file.set_len(size_bytes).map_err(on("grow", &half))?;
    command::mke2fs(&half)?;
    file.sync_all().map_err(on("write", &half))?;
    fs::rename(&half, &path).map_err(on("rename into place", &path))?;
    Ok(path)
}

/// Copies what is allocated and leaves the holes (lseek(2), SEEK_DATA).
fn copy_sparse(from: &Path, to: &mut File, to_path: &Path) -> Result<(), HostError> {
    let mut source = File::open(from).map_err(on("open", from))?;
    let length = source.metadata().map_err(on("look at", from))?.len();
    copy_extents(&mut source, to, length).map_err(on("copy an empty disk to", to_path))
}

fn copy_extents(source: &mut File, to: &mut File, length: u64) -> io::Result<()> {
    to.set_len(length)?;
    let mut at = 0;
    loop {
        let start = match rustix::fs::seek(&*source, rustix::fs::SeekFrom::Data(at)) {
            Ok(start) => start,
            // No data after this offset.
            Err(Errno::NXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(&*source, rustix::fs::SeekFrom::Hole(start))?;
        source.seek(SeekFrom::Start(start))?;
        to.seek(SeekFrom::Start(start))?;
        copy_bytes(source, to, end - start)?;
        at = end;
    }
}

fn copy_bytes(source: &mut File, to: &mut File, count: u64) -> io::Result<()> {
    let mut buffer = vec![0; 256 * 1024];
    let mut left = count;
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let got = source.read(&mut buffer[..most])?;
        if got == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        to.write_all(&buffer[..got])?;
        left -= got as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use banger_api::VmId;

    use super::*;
    use crate::Installation;

    fn places(root: &Path) -> (Places, Mark) {
        let installation = Installation::random().unwrap();
        let mark = Mark::new(installation.clone(), VmId::random().unwrap());
        let places = Places::new(installation, root, root, root);
        for folder in [&places.templates, &places.vm_folder(&mark)] {
            fs::create_dir_all(folder).unwrap();
        }
        (places, mark)
    }

    #[test]
    fn an_empty_disk_is_a_sparse_clean_filesystem_of_its_size() {
        let root = tempfile::tempdir().unwrap();
        let (places, mark) = places(root.path());
        let disk = Disk {
            mark: mark.clone(),
            size_bytes: 4 << 30,
            source: DiskSource::Empty,
            grown_from: None,
        };
        acquire(&disk, &places).unwrap();
        acquire(&disk, &places).unwrap();
        let path = places.disk(&mark);
        let found = fs::metadata(&path).unwrap();
        assert_eq!(found.len(), 4 << 30);
        assert!(found.blocks() * 512 < 16 << 20, "{} bytes are allocated", found.blocks() * 512);
        command::run("e2fsck", &["-f", "-n", path.to_str().unwrap()]).unwrap();
        release(&path).unwrap();
        release(&path).unwrap();
        assert!(!is_there(&path));
    }

    #[test]
    fn a_disk_of_another_size_in_its_place_is_an_error() {
        let root = tempfile::tempdir().unwrap();
        let (places, mark) = places(root.path());
        fs::write(places.disk(&mark), b"precious").unwrap();
        let disk = Disk {
            mark: mark.clone(),
            size_bytes: 1 << 30,
            source: DiskSource::Empty,
            grown_from: None,
        };
        assert!(acquire(&disk, &places).is_err());
        assert_eq!(fs::read(places.disk(&mark)).unwrap(), b"precious");
    }

    #[test]
    fn a_disk_is_grown_from_the_size_that_it_had_and_from_no_other() {
        let root = tempfile::tempdir().unwrap();
        let (places, mark) = places(root.path());
        let path = places.disk(&mark);
        let of = |size_bytes, from| Disk {
            mark: mark.clone(),
            size_bytes,
            source: DiskSource::Empty,
            grown_from: Some(from),
        };
        assert!(
            acquire(&of(16, 8), &places).is_err(),
            "one that is gone does not pass for a new one"
        );
        assert!(!is_there(&path));
        fs::write(&path, b"precious").unwrap();
        for wrong in [of(16, 4), of(4, 8)] {
            assert!(acquire(&wrong, &places).is_err(), "{wrong:?}");
            assert_eq!(fs::read(&path).unwrap(), b"precious");
        }
        for _ in 0..2 {
            acquire(&of(16, 8), &places).unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"precious\0\0\0\0\0\0\0\0");
        }
    }

    #[test]
    fn a_half_made_disk_is_found_and_released() {
        let root = tempfile::tempdir().unwrap();
        let (places, mark) = places(root.path());
        let path = places.disk(&mark);
        fs::write(half_made(&path), b"half").unwrap();
        assert!(is_there(&path));
        release(&path).unwrap();
        assert!(!is_there(&path));
    }
}
