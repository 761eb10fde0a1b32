//! Folders of a VM: made private, removed with all that is in them. They are ours by their name: a mark.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;

use crate::error::{HostError, on};
use crate::mark::Mark;

pub(crate) fn acquire(path: &Path) -> Result<(), HostError> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => check(path),
        Err(error) => Err(on("make the folder", path)(error)),
    }
}

fn check(path: &Path) -> Result<(), HostError> {
    let found = fs::symlink_metadata(path).map_err(on("look at", path))?;
    if found.is_dir() && found.uid() == rustix::process::geteuid().as_raw() {
        return Ok(());
    }
    Err(HostError::because(
        format!("use the folder {}", path.display()),
        "it is not a folder of this user's",
    ))
}

pub(crate) fn release(path: &Path) -> Result<(), HostError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(on("remove the folder", path)(error))
        }
        _ => Ok(()),
    }
}

/// The marks by which folders in `parent` are named. No `parent`, no folders.
pub(crate) fn marked(parent: &Path) -> Result<Vec<Mark>, HostError> {
    let entries = match fs::read_dir(parent) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(on("list", parent)(error)),
    };
    let mut marks = Vec::new();
    for entry in entries {
        let entry = entry.map_err(on("list", parent))?;
        marks.extend(entry.file_name().to_str().and_then(Mark::parse));
    }
    Ok(marks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acquire_and_release_can_be_repeated() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("bg0000-00000000");
        acquire(&path).unwrap();
        acquire(&path).unwrap();
        assert_eq!(marked(parent.path()).unwrap().len(), 1);
        release(&path).unwrap();
        release(&path).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn a_file_or_a_link_in_the_folders_place_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("bg0000-00000000");
        std::os::unix::fs::symlink("/", &path).unwrap();
        assert!(acquire(&path).is_err());
    }
}
