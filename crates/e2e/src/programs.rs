//! The one place where this crate starts programs.

use std::path::{Path, PathBuf};
use std::process::Command;

#[expect(clippy::disallowed_methods, reason = "this file is where this crate starts programs")]
pub(crate) fn new(program: impl AsRef<Path>) -> Command {
    Command::new(program.as_ref())
}

/// The folder with the programs under test: `banger`, `bangerd`, `guest/banger-agent`.
#[must_use]
pub fn built() -> PathBuf {
    let folder = match std::env::var_os("BANGER_BIN_DIR") {
        Some(folder) => PathBuf::from(folder),
        None => target().join("debug"),
    };
    let agent = folder.join("guest/banger-agent");
    assert!(agent.exists(), "{} is missing: run `cargo xtask build` first", agent.display());
    folder.canonicalize().unwrap()
}

pub(crate) fn target() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target")
}

/// Runs a program of the host's that must succeed.
#[track_caller]
pub fn run(program: &str, args: &[&str]) {
    must(program, args, Path::new("/"));
}

/// As [`run`], in this folder.
#[track_caller]
pub(crate) fn must(program: &str, args: &[&str], folder: &Path) {
    let output = new(program).args(args).current_dir(folder).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}
