//! `cargo xtask e2e`: the tests that boot VMs, with QEMU on this machine, or with Firecracker in the test host.

use std::path::Path;

use crate::build::{self, Profile};
use crate::failure::Failure;
use crate::host::Distribution;
use crate::log::Log;
use crate::packages;
use crate::programs::Call;
use crate::project;
use crate::report::Report;
use crate::test_programs;
use crate::testhost::{self, Extent};

/// Where these tests keep the kernel and the images that they made, below the target folder; and the program that makes
/// them.
pub(crate) const CACHE: &str = "e2e-cache";

pub(crate) fn run(in_host: bool, filter: Option<&str>) -> Result<bool, Failure> {
    let target = project::target()?;
    let mut log = Log::create(&target, "e2e")?;
    let log = &mut log;
    let mut report = Report::begin();
    if in_host {
        in_test_host(&mut report, &["banger-e2e"], filter, &target, log);
    } else if prepared(&mut report, log) {
        let built = report.stage("build", log, |log, _| build::all(Profile::Dev, &target, log));
        if let Some(built) = built {
            here(&mut report, &built, filter, log);
        }
    }
    Ok(report.close(log))
}

/// All that it takes to run tests in the test host, from a machine that has nothing.
pub(crate) fn in_test_host(
    report: &mut Report,
    packages: &[&str],
    filter: Option<&str>,
    target: &Path,
    log: &mut Log,
) {
    if !prepared(report, log) {
        return;
    }
    let built = report.stage("build", log, |log, _| build::all(Profile::Dev, target, log));
    if let Some(built) = built {
        report.stage("tests in the test host", log, |log, sum| {
            testhost::run_tests(packages, Extent::Whole, filter, target, &built, log, sum)
        });
    }
}

/// The stage that runs them on this machine.
pub(crate) fn here(report: &mut Report, built: &Path, filter: Option<&str>, log: &mut Log) {
    report.stage("tests in VMs", log, |log, sum| {
        let mut failed = Vec::new();
        for program in test_programs::build_e2e(log)? {
            log.line(&format!("\n     Running {}", program.title()));
            let call = Call::new(&program.executable)
                .args(filter)
                .env("BANGER_BIN_DIR", built)
                .in_folder(&project::root().join(test_programs::E2E));
            let ended = call.watch(log, |line| {
                sum.add(line);
            });
            failed.extend(ended.err().map(|_| program.title()));
        }
        if failed.is_empty() {
            return Ok(());
        }
        Err(Failure::new(format!("tests failed in {}", failed.join(", "))))
    });
}

/// Sees to it that there is a cache to bring along: the test host has no archive to make one from.
pub(crate) fn ensure_cache(target: &Path, built: &Path, log: &mut Log) -> Result<(), Failure> {
    // As a part of the workspace, as the tests are built.
    Call::cargo()
        .args(["build", "--quiet", "--workspace", "--bin", CACHE])
        .in_folder(project::root())
        .run(log)?;
    Call::new(target.join("debug").join(CACHE)).env("BANGER_BIN_DIR", built).run(log)
}

/// Whether this machine has what the tests need, after the stage that sees to it.
fn prepared(report: &mut Report, log: &mut Log) -> bool {
    let kernel = packages::kernel_package(Distribution::here().family);
    let there = report
        .stage("packages", log, |log, _| packages::ensure(&testhost::needs(), Some(kernel), log));
    there.is_some()
}
