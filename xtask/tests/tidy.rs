//! The repository keeps its own rules, so `cargo test` says so too, and not only CI.

use std::process::Command;

#[test]
fn the_repository_keeps_its_rules() {
    #[expect(clippy::disallowed_methods, reason = "a test of the program itself")]
    let output = Command::new(env!("CARGO_BIN_EXE_xtask")).arg("tidy").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(
        said.lines().filter(|line| line.starts_with("ok ")).count() >= 12,
        "some rules were not checked:\n{said}"
    );
}
