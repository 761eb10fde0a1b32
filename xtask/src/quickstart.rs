//! `cargo xtask quickstart`: from a fresh machine to a VM that ran a command. What is done already is not done again, so
//! the second run takes seconds.
//!
//! Works in the user's own folders, or in BANGER_HOME if that is set, so that `banger` works afterwards. Only apt-get
//! runs as root.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::build::{self, Profile};
use crate::failure::Failure;
use crate::host::Distribution;
use crate::log::Log;
use crate::packages;
use crate::programs::Call;
use crate::project;
use crate::stages::Stages;

/// The Debian release that banger's default image, `debian:RELEASE`, is made of.
const RELEASE: &str = "bookworm";

pub(crate) fn run() -> Result<(), Failure> {
    let target = project::target()?;
    let mut log = Log::create(&target, "quickstart")?;
    let mut stages = Stages::begin();
    let outcome = all(&target, &mut stages, &mut log);
    log.line(&format!("\n{}", stages.table().trim_end()));
    match (outcome, stages.failed()) {
        (Ok(()), _) => {
            println!("\n{}", what_next(&target));
            Ok(())
        }
        (Err(failure), stage) => {
            let log = log.path().display();
            Err(failure
                .remedy(format!(
                    "the whole output of stage {:?} is in {log}",
                    stage.unwrap_or("beginning")
                ))
                .remedy("repeat the command when it is mended: what is done is not done again"))
        }
    }
}

fn all(target: &Path, stages: &mut Stages, log: &mut Log) -> Result<(), Failure> {
    let kernel = packages::kernel_package(Distribution::here().family);
    let image = format!("debian:{RELEASE}");
    stages.stage("packages", log, |log| packages::ensure(packages::TO_RUN, Some(kernel), log))?;
    let folder = stages.stage("build", log, |log| build::all(Profile::Dev, target, log))?;
    let banger = folder.join("banger");
    stages.stage("daemon", log, |log| replace_an_old_daemon(&banger, log))?;
    stages.stage("kernel", log, |log| {
        if names(&banger, "kernel")?.is_empty() {
            return call(&banger, &["kernel", "import", "--from-apt", kernel]).run(log);
        }
        log.line("there is one");
        Ok(())
    })?;
    stages.stage("image", log, |log| {
        if !names(&banger, "image")?.contains(&image) {
            return call(&banger, &["image", "build", "--debian", RELEASE]).run(log);
        }
        log.line("there is one");
        Ok(())
    })?;
    stages.stage("first VM", log, |log| {
        let mut said = Vec::new();
        call(&banger, &["vm", "run", "--rm", "--", "uname", "-a"])
            .watch(log, |line| said.push(line.to_owned()))?;
        if said.iter().any(|line| line.starts_with("Linux ")) {
            Ok(())
        } else {
            Err(Failure::new("the VM ran `uname -a` and ended well, but its answer did not arrive"))
        }
    })
}

/// A daemon that runs a program which the build has replaced since does not do what the new one would. Running VMs live
/// on without it, and the next command starts the new one.
fn replace_an_old_daemon(banger: &Path, log: &mut Log) -> Result<(), Failure> {
    let status =
        call(banger, &["daemon", "status", "--format", "json"]).output().unwrap_or_default();
    let pid =
        serde_json::from_str::<Value>(&status).ok().and_then(|status| status.get("pid")?.as_u64());
    let program = pid.and_then(|pid| fs::read_link(format!("/proc/{pid}/exe")).ok());
    // proc(5): the link of a program whose file is gone ends so.
    if program.is_some_and(|program| program.to_string_lossy().ends_with(" (deleted)")) {
        return call(banger, &["daemon", "stop"]).run(log);
    }
    log.line(if pid.is_some() { "it runs" } else { "the first command that needs it starts it" });
    Ok(())
}

/// What `banger NOUN list` has, by name.
fn names(banger: &Path, noun: &str) -> Result<Vec<String>, Failure> {
    Ok(call(banger, &[noun, "list", "--quiet"]).output()?.lines().map(str::to_owned).collect())
}

fn call(banger: &Path, arguments: &[&str]) -> Call {
    Call::new(banger).args(arguments)
}

fn what_next(target: &Path) -> String {
    let folder = target.join("debug");
    format!(
        "It works. To have `banger` in your shell:

    export PATH=\"{folder}:$PATH\"

Then:

    banger vm run                        a shell in a new VM, which stays when you leave it
    banger vm run --rm -- COMMAND        one command in a VM that is gone afterwards
    banger vm list                       what there is
    banger doctor                        what this host is fit for",
        folder = folder.display()
    )
}
