//! A folder for what is large and soon gone: on a disk, which `/tmp` often is not.

use std::path::PathBuf;

use banger_api::{Code, Problem};
use tempfile::TempDir;

/// A folder of our own in `TMPDIR`, else in `/var/tmp`. Whoever is done with it closes it.
///
/// # Errors
/// When it cannot be made.
pub fn scratch() -> Result<TempDir, Problem> {
    let folder = std::env::var_os("TMPDIR").map_or_else(|| "/var/tmp".into(), PathBuf::from);
    tempfile::Builder::new().prefix("banger-").tempdir_in(&folder).map_err(|error| {
        let message = format!("cannot make a folder in {}", folder.display());
        Problem::new(Code::Internal, message).cause(&error)
    })
}
