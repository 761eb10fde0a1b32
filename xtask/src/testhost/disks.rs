//! What is brought into the test host, on two disks: the programs, to read, made for each run; and the cache of kernels and
//! images, to write on top of, made when it has changed. On the cache's filesystem the tests have their worlds, too: what
//! they share they link.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::key::Key;
use super::{locked, remove, remove_others};
use crate::failure::Failure;
use crate::programs::Call;
use crate::test_programs::TestProgram;

/// The disks' sizes, which must be those that the frozen host knows. The files are sparse.
pub(super) const PROGRAMS_BYTES: u64 = 4 << 30;
pub(super) const CACHE_BYTES: u64 = 16 << 30;

/// Makes `programs.raw` in `folder`:
/// ```text
/// /banger/bin          banger, bangerd, banger-helper, guest/banger-agent
/// /banger/firecracker  firecracker, jailer
/// /banger/tests        the test programs, by crate and name
/// ```
pub(super) fn programs(
    folder: &Path,
    built: &Path,
    firecracker: &Path,
    tests: &[&TestProgram],
) -> Result<PathBuf, Failure> {
    let stage = folder.join("stage");
    let bin = crate::build::PROGRAMS.map(|name| (built.join(name), Path::new("bin").join(name)));
    let tools = ["firecracker", "jailer"]
        .map(|name| (firecracker.join(name), Path::new("firecracker").join(name)));
    let tests = tests.iter().map(|test| (test.executable.clone(), in_host(test)));
    for (from, to) in bin.into_iter().chain(tools).chain(tests) {
        link(&from, &stage.join(to))?;
    }
    let disk = folder.join("programs.raw");
    filesystem(&disk, PROGRAMS_BYTES, &stage, &["-O", "^has_journal"])?;
    remove(&stage)?;
    Ok(disk)
}

/// Where a test program is, below /banger.
pub(super) fn in_host(test: &TestProgram) -> PathBuf {
    Path::new("tests").join(&test.of).join(&test.name)
}

/// The disk with what is in `cache`, a folder that need not be there. Kept until that changes.
pub(super) fn cache(places: &Path, cache: &Path) -> Result<PathBuf, Failure> {
    let _lock = locked(places)?;
    let mut files = Vec::new();
    walk(cache, Path::new(""), &mut files).map_err(|error| cannot_read(cache, &error))?;
    files.sort();
    let key = files.iter().fold(Key::new(), |key, file| {
        key.with(file.path.to_string_lossy().as_bytes())
            .with(file.length.to_le_bytes())
            .with(file.changed.to_le_bytes())
    });
    let disk = places.join(format!("cache-{}.raw", key.text()));
    if !disk.exists() {
        let (draft, stage) = (places.join("cache-draft.raw"), places.join("cache-stage"));
        remove(&stage)?;
        fs::create_dir_all(stage.join("e2e")).map_err(|error| cannot_read(&stage, &error))?;
        for file in &files {
            link(&cache.join(&file.path), &stage.join("e2e").join(&file.path))?;
        }
        filesystem(&draft, CACHE_BYTES, &stage, &["-J", "size=32"])?;
        remove(&stage)?;
        fs::rename(&draft, &disk).map_err(|error| cannot_read(&draft, &error))?;
    }
    remove_others(places, "cache-", &disk)?;
    Ok(disk)
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Kept {
    path: PathBuf,
    length: u64,
    /// In nanoseconds.
    changed: i128,
}

/// The regular files below a folder. Sockets and locks of daemons that made them are nothing to keep.
fn walk(root: &Path, below: &Path, files: &mut Vec<Kept>) -> io::Result<()> {
    let entries = match fs::read_dir(root.join(below)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let path = below.join(entry.file_name());
        let data = entry.metadata()?;
        if data.is_dir() {
            walk(root, &path, files)?;
        } else if data.is_file() {
            let changed = i128::from(data.mtime()) * 1_000_000_000 + i128::from(data.mtime_nsec());
            files.push(Kept { path, length: data.len(), changed });
        }
    }
    Ok(())
}

/// The same file under another name, or a copy where there can be no link.
fn link(from: &Path, to: &Path) -> Result<(), Failure> {
    let linked = to
        .parent()
        .map_or(Ok(()), fs::create_dir_all)
        .and_then(|()| fs::hard_link(from, to).or_else(|_| fs::copy(from, to).map(drop)));
    linked.map_err(|error| {
        Failure::new(format!("cannot bring {} into the test host", from.display())).cause(&error)
    })
}

/// An ext4 filesystem in a sparse file, with what is in `content`, all of it root's.
fn filesystem(disk: &Path, length: u64, content: &Path, options: &[&str]) -> Result<(), Failure> {
    drop(fs::remove_file(disk));
    let made = File::create(disk).and_then(|file| file.set_len(length));
    made.map_err(|error| Failure::new(format!("cannot write {}", disk.display())).cause(&error))?;
    Call::new("mke2fs")
        .args(["-q", "-F", "-t", "ext4", "-m", "0", "-i", "65536"])
        .args(["-E", "root_owner=0:0,lazy_itable_init=1,lazy_journal_init=1,nodiscard"])
        .args(options)
        .args(["-d", &content.to_string_lossy(), &disk.to_string_lossy()])
        .output()
        .map(drop)
}

fn cannot_read(path: &Path, error: &io::Error) -> Failure {
    Failure::new(format!("cannot bring {} into the test host", path.display())).cause(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What debugfs says of a path in a filesystem.
    fn stat(disk: &Path, path: &str) -> String {
        let request = format!("stat {path}");
        Call::new("debugfs").args(["-R", &request, &disk.to_string_lossy()]).output().unwrap()
    }

    #[test]
    fn a_disk_holds_the_files_of_its_folder_and_has_the_size_that_was_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let (source, content) = (folder.path().join("program"), folder.path().join("content"));
        fs::write(&source, "text").unwrap();
        link(&source, &content.join("tests/e2e/exec")).unwrap();
        let disk = folder.path().join("disk");
        filesystem(&disk, 64 << 20, &content, &["-O", "^has_journal"]).unwrap();
        assert_eq!(fs::metadata(&disk).unwrap().len(), 64 << 20);
        assert!(stat(&disk, "/tests/e2e/exec").contains("Size: 4"));
    }

    #[test]
    fn the_cache_is_made_anew_when_a_file_has_changed_and_kept_otherwise() {
        let places = tempfile::tempdir().unwrap();
        let source = tempfile::tempdir().unwrap();
        fs::create_dir(source.path().join("home")).unwrap();
        fs::write(source.path().join("home/image"), "one").unwrap();
        let first = cache(places.path(), source.path()).unwrap();
        let made = fs::metadata(&first).unwrap().ino();
        assert_eq!(cache(places.path(), source.path()).unwrap(), first);
        assert_eq!(fs::metadata(&first).unwrap().ino(), made);
        fs::write(source.path().join("home/image"), "another").unwrap();
        let second = cache(places.path(), source.path()).unwrap();
        assert_ne!(first, second);
        assert!(!first.exists(), "the old one is of no use");
        assert!(stat(&second, "/e2e/home/image").contains("Size: 7"));
    }

    #[test]
    fn a_cache_that_is_not_there_is_an_empty_disk() {
        let places = tempfile::tempdir().unwrap();
        let disk = cache(places.path(), &places.path().join("none")).unwrap();
        assert!(stat(&disk, "/e2e").contains("Type: directory"));
    }
}
