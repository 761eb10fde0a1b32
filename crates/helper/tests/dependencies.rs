//! What is linked into root's program is written down, so that a new dependency is seen by whoever reads the change.

#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![expect(clippy::disallowed_methods, reason = "asks cargo what the helper is made of")]

use std::collections::BTreeSet;
use std::process::Command;

/// One `name version` a line, as `cargo tree -p banger-helper -e normal --prefix none` says it.
const WRITTEN: &str = include_str!("../dependencies.txt");

#[test]
fn the_helper_is_made_of_what_is_written_down() {
    let args = [
        "tree",
        "-p",
        "banger-helper",
        "-e",
        "normal,no-proc-macro",
        "--prefix",
        "none",
        "--locked",
        "--offline",
    ];
    let tree = Command::new(env!("CARGO"))
        .args(args)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let text = String::from_utf8(tree.stdout).unwrap();
    let name = |line: &str| line.split(' ').next().unwrap_or_default().to_owned();
    let found: BTreeSet<String> = text.lines().map(name).filter(|name| !name.is_empty()).collect();
    let written: BTreeSet<String> = WRITTEN.lines().map(str::to_owned).collect();
    let new: Vec<_> = found.difference(&written).collect();
    let gone: Vec<_> = written.difference(&found).collect();
    assert!(
        new.is_empty(),
        "crates/helper/dependencies.txt lacks {new:?}: is each worth root's trust?"
    );
    assert!(gone.is_empty(), "crates/helper/dependencies.txt has {gone:?}, which are gone");
}

#[test]
fn no_runtime_and_no_logger_is_in_roots_program() {
    for unwanted in ["tokio", "hyper", "tracing", "axum", "futures-util"] {
        assert!(WRITTEN.lines().all(|line| line != unwanted), "{unwanted}");
    }
}
