//! Files of the guest that hold a text of ours.
//!
//! Written inside the new root, so no symlink of the image leads out of it; a file is replaced, never written through.

use std::io;
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
#[error("cannot write {path}")]
pub(crate) struct WriteError {
    path: PathBuf,
    #[source]
    cause: io::Error,
}

/// Replaces the file, if it is not a text already that `text` makes of what it holds. An image without the folder needs no
/// such file.
pub(crate) fn make_hold(path: &Path, text: impl Fn(&str) -> String) -> Result<(), WriteError> {
    let failed = |cause| WriteError { path: path.to_owned(), cause };
    if !path.parent().is_some_and(Path::is_dir) {
        return Ok(());
    }
    let old = read(path);
    let new = text(&String::from_utf8_lossy(&old));
    if new.as_bytes() == old {
        return Ok(());
    }
    let temporary = path.with_extension("banger-new");
    std::fs::write(&temporary, new).map_err(failed)?;
    std::fs::rename(&temporary, path).map_err(failed)
}

/// What a file holds; nothing if it is none. To read a pipe or a device of an image could go on for ever.
pub(crate) fn read(path: &Path) -> Vec<u8> {
    if !path.is_file() {
        return Vec::new();
    }
    std::fs::read(path).unwrap_or_default()
}

/// As [`make_hold`], and makes the folder.
pub(crate) fn write(path: &Path, text: &str) -> Result<(), WriteError> {
    let folder = path.parent().unwrap_or(path);
    std::fs::create_dir_all(folder)
        .map_err(|cause| WriteError { path: folder.to_owned(), cause })?;
    make_hold(path, |_| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_symlink_is_replaced_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (link, target) = (folder.path().join("hostname"), folder.path().join("target"));
        std::fs::write(&target, "untouched").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        make_hold(&link, |_| "box\n".to_owned()).unwrap();
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "untouched");
        assert_eq!(std::fs::read_to_string(&link).unwrap(), "box\n");
    }

    #[test]
    fn a_pipe_that_nobody_writes_is_replaced_like_a_file() {
        use rustix::fs::{CWD, FileType, Mode, mknodat};
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("hosts");
        mknodat(CWD, &pipe, FileType::Fifo, Mode::RWXU, 0).unwrap();
        make_hold(&pipe, |old| format!("{old}text")).unwrap();
        assert_eq!(std::fs::read_to_string(&pipe).unwrap(), "text");
    }

    #[test]
    fn a_folder_is_made_only_where_that_is_asked_for() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a/b/file");
        make_hold(&path, |_| "text".to_owned()).unwrap();
        assert!(!root.path().join("a").exists());
        write(&path, "text").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "text");
    }
}
