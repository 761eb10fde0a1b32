//! The repository that this program was built in: its root, its target folder, what cargo knows of its crates.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::failure::Failure;
use crate::programs::Call;

/// The repository's root. xtask is always run where it was built.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is a folder of the repository")
}

/// What `cargo metadata` says of the crates of this workspace, and of no other.
pub(crate) fn metadata() -> Result<Value, Failure> {
    let text = Call::cargo()
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .in_folder(root())
        .output()?;
    serde_json::from_str(&text)
        .map_err(|error| Failure::new("cannot read what cargo metadata says").cause(&error))
}

/// Where cargo puts what it builds.
pub(crate) fn target() -> Result<PathBuf, Failure> {
    let metadata = metadata()?;
    let folder = metadata.get("target_directory").and_then(Value::as_str);
    folder.map(PathBuf::from).ok_or_else(|| Failure::new("cargo metadata names no target folder"))
}
