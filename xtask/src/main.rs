//! `cargo xtask VERB`: what people and CI type, so that both do the same. One file per verb; each prints for people.
//!
//! Needs little to build itself, since it is what installs the rest.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "these verbs talk to the person who typed them"
)]

mod build;
mod failure;
mod host;
mod log;
mod packages;
mod programs;
mod project;
mod quickstart;
mod stages;
mod test;
mod tidy;

use std::process::ExitCode;

use crate::failure::Failure;

const USAGE: &str = "\
usage: cargo xtask VERB

  quickstart         from a fresh Debian or Ubuntu to a VM that ran a command: installs, builds, fetches, runs
  build [--release]  banger, bangerd and the guest's agent
  test [-- FILTER]   everything that must hold: tidy, format, lints, unit tests, tests in real VMs;
                     with FILTER only the tests whose names hold it
  tidy               the rules of this repository that no compiler checks
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match words[..] {
        ["quickstart"] => quickstart::run().map(|()| true),
        ["build"] => build::run(build::Profile::Dev).map(|()| true),
        ["build", "--release"] => build::run(build::Profile::Release).map(|()| true),
        ["test"] => test::run(None),
        ["test", "--", filter] => test::run(Some(filter)),
        ["tidy"] => tidy::run().map(|()| true),
        ["help" | "--help" | "-h"] => {
            print!("{USAGE}");
            Ok(true)
        }
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        // It has said why, before its last line.
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => {
            eprint!("{}", failure.shown());
            ExitCode::FAILURE
        }
    }
}

impl Failure {
    /// What failed, why, and what to do next; a line each.
    fn shown(&self) -> String {
        let mut text = format!("error: {self}\n");
        for cause in self.causes() {
            text += &format!("  {cause}\n");
        }
        for remedy in self.remedies() {
            text += &format!("try: {remedy}\n");
        }
        text
    }
}
