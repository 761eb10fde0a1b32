//! Files that appear whole or not at all: a temporary name in the same folder, written, synced, renamed, the folder
//! synced. And scratch folders, which go when the work ends.
//!
//! Nothing is cleaned up in `Drop`. What a killed run leaves is known by its name and by the lock that nobody holds on
//! it any more: [`leftovers`] lists it, [`remove_leftover`] removes it. Both leave the work of living runs alone.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use sha2::{Digest as _, Sha256};

use crate::kernel::hex;

const NEW_FILE: &str = ".banger-new-";
const SCRATCH: &str = ".banger-scratch-";

#[derive(Debug, thiserror::Error)]
#[error("cannot {act} {path}")]
pub struct ArtifactError {
    act: &'static str,
    path: PathBuf,
    #[source]
    cause: io::Error,
}

impl ArtifactError {
    /// The file system is full, or the owner's quota is.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        is_no_space(&self.cause)
    }
}

pub(crate) fn is_no_space(cause: &io::Error) -> bool {
    matches!(cause.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Fits `map_err`: what we did to what.
pub(crate) fn failed(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ArtifactError {
    move |cause| ArtifactError { act, path: path.to_owned(), cause }
}

/// Makes the file `out` by way of `fill`, which gets a new, empty file and its temporary path. Replaces what was there.
///
/// # Errors
/// What `fill` fails with, or that the file cannot be made; then nothing is left, and `out` is as it was.
pub(crate) fn write<T, E: From<ArtifactError>>(
    out: &Path,
    fill: impl FnOnce(&mut File, &Path) -> Result<T, E>,
) -> Result<T, E> {
    let folder = folder_of(out);
    let draft = folder.join(temporary_name(NEW_FILE)?);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&draft)
        .map_err(failed("create", &draft))?;
    let filled = lock(&file)
        .map_err(|cause| failed("lock", &draft)(cause).into())
        .and_then(|()| fill(&mut file, &draft))
        .and_then(|value| publish(&file, &draft, out).map(|()| value).map_err(E::from));
    if filled.is_err() {
        // The first error is the one to tell; a file that stays is a leftover, known by its name.
        drop(fs::remove_file(&draft));
    }
    filled
}

fn publish(file: &File, draft: &Path, out: &Path) -> Result<(), ArtifactError> {
    file.sync_all().map_err(failed("sync", draft))?;
    fs::rename(draft, out).map_err(failed("rename", draft))?;
    let folder = folder_of(out);
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(failed("sync the folder", folder))
}

/// Gives `work` an empty folder in `folder` that only we may enter, and removes it afterwards.
///
/// # Errors
/// What `work` fails with, or that the folder cannot be made or removed.
pub(crate) fn in_scratch<T, E: From<ArtifactError>>(
    folder: &Path,
    work: impl FnOnce(&Path) -> Result<T, E>,
) -> Result<T, E> {
    let scratch = folder.join(temporary_name(SCRATCH)?);
    fs::DirBuilder::new().mode(0o700).create(&scratch).map_err(failed("create", &scratch))?;
    let held = File::open(&scratch).and_then(|held| lock(&held).map(|()| held));
    let worked = match &held {
        Ok(_) => work(&scratch),
        Err(_) => Err(ArtifactError {
            act: "lock",
            path: scratch.clone(),
            cause: io::Error::other("another process took it for a leftover"),
        }
        .into()),
    };
    let removed = remove_tree(&scratch);
    drop(held);
    worked.and_then(|value| removed.map(|()| value).map_err(E::from))
}

/// What runs that were killed have left in `folder`.
///
/// # Errors
/// When the folder cannot be read.
pub fn leftovers(folder: &Path) -> Result<Vec<PathBuf>, ArtifactError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed("read", folder))? {
        let entry = entry.map_err(failed("read", folder))?;
        if is_temporary(&entry.file_name()) && hold(&entry.path())?.is_some() {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// Removes one of [`leftovers`]. It being gone is success; anything else, or the work of a living run, is left.
///
/// # Errors
/// When it is no leftover, is in use, or cannot be removed.
pub fn remove_leftover(path: &Path) -> Result<(), ArtifactError> {
    let refuse = |why| failed("remove", path)(io::Error::other(why));
    if !path.file_name().is_some_and(is_temporary) {
        return Err(refuse("its name is not one that imports leave"));
    }
    if !path.try_exists().map_err(failed("look at", path))? {
        return Ok(());
    }
    let held = hold(path)?;
    if held.is_none() {
        return Err(refuse("a run that lives works in it"));
    }
    remove_tree(path)
}

fn remove_tree(path: &Path) -> Result<(), ArtifactError> {
    let is_folder = fs::symlink_metadata(path).map_err(failed("look at", path))?.is_dir();
    if is_folder && let Some(mount) = mounted_below(path).map_err(failed("look at", path))? {
        let why =
            format!("something is mounted in it, at {}: `umount` that first", mount.display());
        return Err(failed("remove", path)(io::Error::other(why)));
    }
    let removed = if is_folder { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    removed.map_err(failed("remove", path))
}

/// What is mounted is not ours to remove, wherever it came from.
fn mounted_below(path: &Path) -> io::Result<Option<PathBuf>> {
    let path = path.canonicalize()?;
    // proc_pid_mountinfo(5): the fifth field is the mount point, with blanks as \\040.
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    Ok(points
        .map(|point| PathBuf::from(point.replace("\\040", " ")))
        .find(|point| point.starts_with(&path)))
}

fn is_temporary(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| name.starts_with(NEW_FILE) || name.starts_with(SCRATCH))
}

/// The lock of a leftover; `None` when a run that lives has it, or when it has gone.
fn hold(path: &Path) -> Result<Option<File>, ArtifactError> {
    let opened = OpenOptions::new().read(true).custom_flags(nofollow()).open(path);
    match opened.and_then(|file| lock(&file).map(|()| file)) {
        Ok(file) => Ok(Some(file)),
        Err(error)
            if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NotFound) =>
        {
            Ok(None)
        }
        Err(error) => Err(failed("lock", path)(error)),
    }
}

fn nofollow() -> i32 {
    rustix::fs::OFlags::NOFOLLOW.bits().cast_signed()
}

fn lock(file: &File) -> io::Result<()> {
    Ok(rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive)?)
}

fn folder_of(out: &Path) -> &Path {
    out.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn temporary_name(prefix: &str) -> Result<OsString, ArtifactError> {
    let mut random = [0_u8; 8];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
        .map_err(|errno| failed("make a name in", Path::new(prefix))(errno.into()))?;
    Ok(format!("{prefix}{:016x}", u64::from_ne_bytes(random)).into())
}

/// SHA-256 of a file, hex.
///
/// # Errors
/// When it cannot be read.
pub fn digest(path: &Path) -> Result<String, ArtifactError> {
    let mut file = File::open(path).map_err(failed("open", path))?;
    let mut hash = Sha256::new();
    let mut piece = vec![0; 1 << 20];
    loop {
        match file.read(&mut piece).map_err(failed("read", path))? {
            0 => return Ok(hex(&hash.finalize())),
            count => hash.update(&piece[..count]),
        }
    }
}

/// Bytes that an ordinary user can still write on the file system of `folder`.
pub(crate) fn free_bytes(folder: &Path) -> Result<u64, ArtifactError> {
    let space = rustix::fs::statvfs(folder)
        .map_err(|errno| failed("look for space in", folder)(errno.into()))?;
    Ok(space.f_bavail.saturating_mul(space.f_frsize))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn names(folder: &Path) -> Vec<OsString> {
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect()
    }

    #[test]
    fn a_file_appears_whole() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        write::<_, ArtifactError>(&out, |file, draft| {
            assert!(!out.exists());
            assert_eq!(draft.parent(), out.parent());
            file.write_all(b"whole").map_err(failed("write", draft))
        })
        .unwrap();
        assert_eq!(fs::read(&out).unwrap(), b"whole");
        assert_eq!(names(folder.path()), ["out"]);
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        fs::write(&out, b"old").unwrap();
        let failure = write::<(), ArtifactError>(&out, |file, draft| {
            file.write_all(b"half").unwrap();
            Err(failed("fill", draft)(io::Error::other("no")))
        });
        assert!(failure.is_err());
        assert_eq!(fs::read(&out).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["out"]);
    }

    #[test]
    fn a_scratch_folder_goes_whether_the_work_succeeds_or_not() {
        let folder = tempfile::tempdir().unwrap();
        let work = |scratch: &Path| {
            fs::create_dir_all(scratch.join("a/b")).unwrap();
            assert!(
                leftovers(folder.path()).unwrap().is_empty(),
                "a living run's work is no leftover"
            );
            assert!(remove_leftover(scratch).is_err());
        };
        in_scratch::<_, ArtifactError>(folder.path(), |scratch| {
            work(scratch);
            Ok(())
        })
        .unwrap();
        assert!(names(folder.path()).is_empty());
        let failure = in_scratch::<(), ArtifactError>(folder.path(), |scratch| {
            work(scratch);
            Err(failed("work in", scratch)(io::Error::other("no")))
        });
        assert!(failure.is_err());
        assert!(names(folder.path()).is_empty());
    }

    #[test]
    fn what_a_killed_run_leaves_is_found_and_removed_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(".banger-new-0000000000000001");
        let tree = folder.path().join(".banger-scratch-0000000000000002");
        let mine = folder.path().join("vmlinux");
        fs::write(&file, b"half").unwrap();
        fs::create_dir_all(tree.join("a")).unwrap();
        fs::write(&mine, b"whole").unwrap();
        assert_eq!(leftovers(folder.path()).unwrap(), [file.clone(), tree.clone()]);
        assert!(remove_leftover(&mine).is_err());
        for path in [&file, &tree, &tree] {
            remove_leftover(path).unwrap();
        }
        assert_eq!(names(folder.path()), ["vmlinux"]);
    }
}
