//! `cargo xtask VERB`: what people and CI type, so that both do the same. One file per verb; each prints for people.
//!
//! Needs little to build itself, since it is what installs the rest.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "these verbs talk to the person who typed them"
)]

mod bench;
mod build;
mod e2e;
mod failure;
mod firecracker;
mod host;
mod log;
mod packages;
mod programs;
mod project;
mod quickstart;
mod report;
mod stages;
mod sum;
mod test;
mod test_programs;
mod testhost;
mod tidy;

use std::process::ExitCode;

use crate::failure::Failure;

const USAGE: &str = "\
usage: cargo xtask VERB

  quickstart         from a fresh Debian or Ubuntu to a VM that ran a command: installs, builds, fetches, runs
  build [--release]  banger, bangerd and the guest's agent
  test [-- FILTER]   everything that must hold: tidy, format, lints, unit tests, tests in real VMs on this machine and
                     in the test host; with FILTER only the tests whose names hold it
  e2e [--host] [-- FILTER]
                     of these the tests in real VMs on this machine, or those in the test host
  testhost up | ssh [COMMAND] | down | status | run [--package PACKAGE] [-- FILTER]
                     a Debian machine with KVM and systemd, emulated: one to look into, or one for each test program
  bench image [ROUNDS]
                     the pull of an image of 500 MB, against skopeo, umoci and mke2fs
  bench start [ROUNDS]
                     the start of a jailed Firecracker, against a minimal program that does the same, in the test host
  bench network [ROUNDS]
                     TCP between host and guest, against a tap and a bridge made by hand
  bench ssh [ROUNDS]
                     scp of 100 MB to a guest and back, against OpenSSH's sshd in the same guest
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
        ["e2e"] => e2e::run(false, None),
        ["e2e", "--", filter] => e2e::run(false, Some(filter)),
        ["e2e", "--host"] => e2e::run(true, None),
        ["e2e", "--host", "--", filter] => e2e::run(true, Some(filter)),
        ["testhost", "up"] => testhost::up().map(|()| true),
        ["testhost", "ssh", ref command @ ..] => match testhost::ssh(command) {
            // ssh(1): the command's own, or 255.
            Ok(code) => return ExitCode::from(u8::try_from(code).unwrap_or(255)),
            Err(failure) => Err(failure),
        },
        ["testhost", "run"] => testhost::run(&[], None),
        ["testhost", "run", "--", filter] => testhost::run(&[], Some(filter)),
        ["testhost", "run", "--package", package] => testhost::run(&[package], None),
        ["testhost", "run", "--package", package, "--", filter] => {
            testhost::run(&[package], Some(filter))
        }
        ["testhost", "down"] => testhost::down().map(|()| true),
        ["testhost", "status"] => testhost::status().map(|()| true),
        ["bench", "image"] => bench::image("3").map(|()| true),
        ["bench", "image", rounds] => bench::image(rounds).map(|()| true),
        ["bench", "start"] => bench::start("12").map(|()| true),
        ["bench", "start", rounds] => bench::start(rounds).map(|()| true),
        ["bench", "network"] => bench::of_guests("bench-network", "10").map(|()| true),
        ["bench", "network", rounds] => bench::of_guests("bench-network", rounds).map(|()| true),
        ["bench", "ssh"] => bench::of_guests("bench-ssh", "5").map(|()| true),
        ["bench", "ssh", rounds] => bench::of_guests("bench-ssh", rounds).map(|()| true),
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
