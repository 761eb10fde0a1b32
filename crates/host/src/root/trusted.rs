//! Which programs root may run: those that nobody but root could have written or put in their place.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::error::{HostError, on};

/// Checks that only root can change the program, or what its path leads to: the file and every folder above it are root's
/// and nobody else may write to them. A folder with the sticky bit, as /tmp, counts as writable: others can put files there.
///
/// # Errors
/// What is wrong with which file or folder.
pub fn trusted_program(path: &Path) -> Result<(), HostError> {
    let fail = on("trust the program", path);
    check(path).map_err(fail)
}

fn check(path: &Path) -> io::Result<()> {
    let real = path.canonicalize()?;
    if real != path {
        let says = format!("its path leads over a link: name it {} instead", real.display());
        return Err(io::Error::other(says));
    }
    if !path.symlink_metadata()?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    for part in path.ancestors() {
        let data = part.symlink_metadata()?;
        let wrong = match (data.uid(), data.mode() & 0o022) {
            (0, 0) => continue,
            (0, _) => "can be written by others than root".to_owned(),
            (uid, _) => format!("belongs to user {uid} instead of root"),
        };
        return Err(io::Error::other(format!("{} {wrong}", part.display())));
    }
    if path.symlink_metadata()?.mode() & 0o100 == 0 {
        return Err(io::Error::other("it cannot be executed"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use super::*;

    /// A folder that only root can write to, all the way up.
    fn folder() -> tempfile::TempDir {
        tempfile::Builder::new().prefix("banger-test-").tempdir_in("/var/lib").unwrap()
    }

    fn program(path: &Path) {
        fs::write(path, b"#!/bin/false\n").unwrap();
        fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn a_program_that_only_root_can_change_is_trusted() {
        let folder = folder();
        program(&folder.path().join("p"));
        trusted_program(&folder.path().join("p")).unwrap();
    }

    #[test]
    fn a_program_that_somebody_else_could_change_is_not() {
        let folder = folder();
        let path = folder.path().join("sub/p");
        fs::create_dir(folder.path().join("sub")).unwrap();
        let reset = || {
            program(&path);
            fs::set_permissions(folder.path().join("sub"), Permissions::from_mode(0o755)).unwrap();
            chown(folder.path().join("sub"), Some(0), Some(0)).unwrap();
            chown(&path, Some(0), Some(0)).unwrap();
            trusted_program(&path).unwrap();
        };
        reset();
        for mode in [0o775, 0o757, 0o644] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            assert!(trusted_program(&path).is_err(), "a program of mode {mode:o}");
            reset();
        }
        for mode in [0o775, 0o757, 0o1777] {
            fs::set_permissions(folder.path().join("sub"), Permissions::from_mode(mode)).unwrap();
            assert!(trusted_program(&path).is_err(), "in a folder of mode {mode:o}");
            reset();
        }
        chown(&path, Some(1000), None).unwrap();
        assert!(trusted_program(&path).is_err());
        reset();
        chown(folder.path().join("sub"), Some(1000), None).unwrap();
        assert!(trusted_program(&path).is_err());
    }

    #[test]
    fn links_folders_and_relative_paths_are_no_programs() {
        let folder = folder();
        program(&folder.path().join("p"));
        symlink(folder.path().join("p"), folder.path().join("link")).unwrap();
        symlink(folder.path(), folder.path().join("folder-link")).unwrap();
        for path in ["link", "folder-link/p", ".", "absent"] {
            assert!(trusted_program(&folder.path().join(path)).is_err(), "{path}");
        }
        assert!(trusted_program(Path::new("p")).is_err());
        assert!(trusted_program(Path::new("/var/lib/../lib/p")).is_err());
    }
}
