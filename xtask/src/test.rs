//! `cargo xtask test`: everything that must hold, with the time of each step and the sum of all tests at the end.
//!
//! A step that fails does not stop the ones that do not need it, so that one run tells all. Ends with the sum as cargo's
//! test runner would say it, and once more in the short form `N passed, N failed` on the last line.

use std::time::Duration;

use crate::build::{self, Profile};
use crate::failure::Failure;
use crate::host::Distribution;
use crate::log::Log;
use crate::packages;
use crate::programs::{Call, find};
use crate::project;
use crate::stages::Stages;
use crate::tidy;

/// How many tests ended how, over all test programs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Sum {
    passed: u64,
    failed: u64,
    ignored: u64,
    measured: u64,
    filtered_out: u64,
}

/// Whether all is well. What is not has been shown when this returns, so that the sum is the last that is said.
pub(crate) fn run(filter: Option<&str>) -> Result<bool, Failure> {
    let target = project::target()?;
    let mut log = Log::create(&target, "test")?;
    let log = &mut log;
    let mut stages = Stages::begin();
    let mut sum = Sum::default();
    let mut failures = Vec::new();

    let kernel = packages::kernel_package(Distribution::here().family);
    let needs: Vec<_> = packages::TO_RUN.iter().chain(packages::TO_TEST).copied().collect();
    stages.stage("packages", log, |log| {
        packages::ensure(&needs, Some(kernel), log)?;
        ensure_components(log)
    })?;
    if filter.is_none() {
        failures.extend(stages.stage("tidy", log, tidy::check).err());
        failures.extend(stages.stage("lints", log, |log| clippy().run(log)).err());
    }
    let built = stages.stage("build", log, |log| build::all(Profile::Dev, &target, log));
    let units = tests(&["--workspace", "--exclude", "banger-e2e"], filter);
    failures.extend(stages.stage("tests", log, |log| units.watch(log, |line| sum.add(line))).err());
    match built {
        Ok(folder) => {
            let in_vms = tests(&["--package", "banger-e2e"], filter).env("BANGER_BIN_DIR", folder);
            failures.extend(
                stages
                    .stage("tests in VMs", log, |log| in_vms.watch(log, |line| sum.add(line)))
                    .err(),
            );
        }
        Err(failure) => failures.push(failure.because("so the tests in VMs were not run")),
    }
    if sum.passed + sum.failed == 0 {
        failures.push(Failure::new("no test ran"));
    }

    log.line(&format!("\n{}", stages.table()));
    for failure in &failures {
        log.line(&format!("error: {failure}"));
        failure.causes().iter().for_each(|cause| log.line(&format!("  {cause}")));
    }
    if !failures.is_empty() {
        log.line(&format!("the whole output is in {}\n", log.path().display()));
    }
    log.line(&sum.as_cargo_says_it(failures.is_empty(), stages.elapsed()));
    log.line(&format!("{} passed, {} failed", sum.passed, sum.failed));
    Ok(failures.is_empty())
}

fn clippy() -> Call {
    Call::cargo()
        .args(["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"])
        .in_folder(project::root())
}

fn tests(which: &[&str], filter: Option<&str>) -> Call {
    Call::cargo()
        .args(["test", "--no-fail-fast"])
        .args(which)
        .args(["--"])
        .args(filter)
        .in_folder(project::root())
}

/// cargo's own helpers, which a minimal toolchain lacks.
fn ensure_components(log: &mut Log) -> Result<(), Failure> {
    let there = |verb: &str| Call::cargo().args([verb, "--version"]).succeeds();
    let missing: Vec<&str> = [("fmt", "rustfmt"), ("clippy", "clippy")]
        .iter()
        .filter(|(verb, _)| !there(verb))
        .map(|(_, name)| *name)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    log.line(&format!("the Rust toolchain lacks {}", missing.join(" and ")));
    if find("rustup").is_none() {
        return Err(Failure::new(format!("the Rust toolchain lacks {}", missing.join(" and ")))
            .remedy(
                "install them as you installed cargo (Debian: apt-get install rustfmt rust-clippy)",
            ));
    }
    Call::new("rustup").args(["component", "add"]).args(missing).in_folder(project::root()).run(log)
}

impl Sum {
    /// Adds what a test program's closing line says: `test result: ok. 5 passed; 0 failed; 0 ignored; …`.
    fn add(&mut self, line: &str) {
        let Some(counts) = line.strip_prefix("test result: ") else { return };
        for part in counts.split(['.', ';']) {
            let Some((number, what)) = part.trim().split_once(' ') else { continue };
            let Ok(number) = number.parse::<u64>() else { continue };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                "measured" => self.measured += number,
                "filtered out" => self.filtered_out += number,
                _ => {}
            }
        }
    }

    fn as_cargo_says_it(self, all_well: bool, took: Duration) -> String {
        format!(
            "test result: {}. {} passed; {} failed; {} ignored; {} measured; {} filtered out; finished in {:.2}s",
            if all_well { "ok" } else { "FAILED" },
            self.passed,
            self.failed,
            self.ignored,
            self.measured,
            self.filtered_out,
            took.as_secs_f64()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_is_over_all_closing_lines_and_nothing_else() {
        let mut sum = Sum::default();
        for line in [
            "running 3 tests",
            "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 1 filtered out; finished in 0.01s",
            "test a_result ... ok",
            "we said: test result: ok. 9 passed; 9 failed",
            "test result: FAILED. 2 passed; 4 failed; 1 ignored; 0 measured; 0 filtered out; finished in 12.50s",
        ] {
            sum.add(line);
        }
        assert_eq!(sum, Sum { passed: 5, failed: 4, ignored: 1, measured: 0, filtered_out: 1 });
    }

    #[test]
    fn the_sum_reads_as_a_closing_line_that_can_be_added_again() {
        let sum = Sum { passed: 5, failed: 4, ignored: 1, measured: 0, filtered_out: 1 };
        let mut again = Sum::default();
        again.add(&sum.as_cargo_says_it(false, Duration::from_millis(1500)));
        assert_eq!(again, sum);
    }
}
