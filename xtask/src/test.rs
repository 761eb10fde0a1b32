//! `cargo xtask test`: everything that must hold, with the time of each step and the sum of all tests at the end.
//!
//! A step that fails does not stop the ones that do not need it, so that one run tells all. Ends with the sum as cargo's
//! test runner would say it, and once more in the short form `N passed, N failed` on the last line.

use std::path::Path;

use crate::build::{self, Profile};
use crate::failure::Failure;
use crate::host::Distribution;
use crate::log::Log;
use crate::programs::{Call, find};
use crate::report::Report;
use crate::testhost::Extent;
use crate::{e2e, firecracker, packages, project, testhost, tidy};

/// Whether all is well. What is not has been shown when this returns, so that the sum is the last that is said.
pub(crate) fn run(filter: Option<&str>) -> Result<bool, Failure> {
    let target = project::target()?;
    let mut log = Log::create(&target, "test")?;
    let log = &mut log;
    let mut report = Report::begin();

    let kernel = packages::kernel_package(Distribution::here().family);
    let firecracker = report.stage("packages", log, |log, _| {
        packages::ensure(&testhost::needs(), Some(kernel), log)?;
        ensure_components(log)?;
        firecracker::ensure(&target, log)
    });
    let Some(firecracker) = firecracker else { return Ok(report.close(log)) };
    // The image needs nothing built, and waits for the network and the disk where compilers wait for processors.
    let image = filter.is_none().then(|| {
        let target = target.clone();
        std::thread::spawn(move || image_beside(&target))
    });

    if filter.is_none() {
        report.stage("tidy", log, |log, _| tidy::check(log));
        report.stage("lints", log, |log, _| clippy().run(log));
    }
    let built = report.stage("build", log, |log, _| build::all(Profile::Dev, &target, log));
    let units = tests(&["--workspace", "--exclude", "banger-e2e"], filter)
        .env("BANGER_FIRECRACKER_DIR", firecracker);
    report.stage("tests", log, |log, sum| {
        units.watch(log, |line| {
            sum.add(line);
        })
    });
    let image = report.stage("test host", log, |_, _| match image {
        Some(image) => image.join().unwrap_or_else(|_| Err(Failure::new("making it panicked"))),
        None => Ok(()),
    });
    if let Some(built) = built {
        e2e::here(&mut report, &built, filter, log);
        if image.is_some() {
            report.stage("tests in the test host", log, |log, sum| {
                testhost::run_tests(&[], Extent::OfThisHost, filter, &target, &built, log, sum)
            });
        }
    } else {
        report.fail(Failure::new("the tests in VMs and in the test host were not run"));
    }
    Ok(report.close(log))
}

fn image_beside(target: &Path) -> Result<(), Failure> {
    let mut log = Log::beside(target, "testhost-image")?;
    testhost::ensure_image(target, &mut log)
        .map_err(|failure| failure.remedy(format!("its output is in {}", log.path().display())))
}

fn clippy() -> Call {
    Call::cargo()
        .args(["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"])
        .in_folder(project::root())
}

/// cargo's tests of these packages.
pub(crate) fn tests(which: &[&str], filter: Option<&str>) -> Call {
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
