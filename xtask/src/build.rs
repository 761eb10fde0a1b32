//! `cargo xtask build`: the three programs of the host, and the guest's agent in the place where the daemon looks for it.
//!
//! ```text
//! target/debug/banger              the CLI
//! target/debug/bangerd             the daemon, which the CLI looks for beside itself
//! target/debug/banger-helper       root's part, which `banger system install` installs
//! target/debug/guest/banger-agent  the agent, which the daemon looks for beside itself; static, whatever the profile
//! ```

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::failure::Failure;
use crate::log::Log;
use crate::programs::Call;
use crate::project;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    Dev,
    Release,
}

impl Profile {
    fn folder(self) -> &'static str {
        match self {
            Profile::Dev => "debug",
            Profile::Release => "release",
        }
    }
}

/// What is built, below the folder of the profile.
pub(crate) const PROGRAMS: [&str; 4] = ["banger", "bangerd", "banger-helper", "guest/banger-agent"];

const AGENT_TARGET: &str = "x86_64-unknown-linux-gnu";

pub(crate) fn run(profile: Profile) -> Result<(), Failure> {
    let target = project::target()?;
    let folder = all(profile, &target, &mut Log::create(&target, "build")?)?;
    println!(
        "\nbuilt in {}\nto have it in your shell: export PATH=\"{}:$PATH\"",
        folder.display(),
        folder.display()
    );
    Ok(())
}

/// Builds everything; gives the folder that holds `banger`.
pub(crate) fn all(profile: Profile, target: &Path, log: &mut Log) -> Result<PathBuf, Failure> {
    let packages = ["banger-cli", "banger-daemon", "banger-helper"];
    let mut host = Call::cargo()
        .args(["build"])
        .args(packages.iter().flat_map(|package| ["--package", package]));
    if profile == Profile::Release {
        host = host.args(["--release"]);
    }
    host.in_folder(project::root()).run(log)?;
    // The flags go by the environment variable that overrides all others: flags of the user's own, or none, would make
    // an agent that needs a C library which images do not have. With --target they do not touch build scripts.
    Call::cargo()
        .args([
            "build",
            "--package",
            "banger-agent",
            "--profile",
            "agent",
            "--target",
            AGENT_TARGET,
        ])
        .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static")
        .in_folder(project::root())
        .run(log)?;
    let folder = target.join(profile.folder());
    install_agent(&target.join(AGENT_TARGET).join("agent/banger-agent"), &folder.join("guest"))?;
    Ok(folder)
}

/// Copies the agent to its place under a temporary name first: a daemon may read it at this moment.
fn install_agent(built: &Path, guest: &Path) -> Result<(), Failure> {
    let bytes = fs::read(built)
        .map_err(|error| Failure::new(format!("cannot read {}", built.display())).cause(&error))?;
    if wants_an_interpreter(&bytes) != Some(false) {
        return Err(Failure::new(format!("{} is not a static program", built.display()))
            .because("no image has the C library that it was linked with"));
    }
    let place = guest.join("banger-agent");
    let draft = guest.join(format!(".banger-agent.{}", std::process::id()));
    let copied = fs::create_dir_all(guest)
        .and_then(|()| fs::copy(built, &draft))
        .and_then(|_| File::open(&draft)?.sync_all())
        .and_then(|()| fs::rename(&draft, &place));
    copied.map_err(|error: io::Error| {
        Failure::new(format!("cannot write {}", place.display())).cause(&error)
    })
}

/// Whether an ELF program asks for a dynamic linker (PT_INTERP, elf(5)); `None` if it is no 64-bit ELF file.
fn wants_an_interpreter(elf: &[u8]) -> Option<bool> {
    const PT_INTERP: u32 = 3;
    let number = |at: usize, length: usize| -> Option<usize> {
        let bytes = elf.get(at..at.checked_add(length)?)?;
        usize::try_from(bytes.iter().rev().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte)))
            .ok()
    };
    if elf.get(..5)? != b"\x7fELF\x02" {
        return None;
    }
    let (table, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    for index in 0..count {
        if number(table.checked_add(index.checked_mul(size)?)?, 4)? == PT_INTERP as usize {
            return Some(true);
        }
    }
    Some(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_program_is_told_from_a_static_one() {
        let own = fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(wants_an_interpreter(&own), Some(true));
        let mut header = own[..64].to_vec();
        header[56..58].fill(0);
        assert_eq!(
            wants_an_interpreter(&header),
            Some(false),
            "an ELF file without program headers"
        );
        assert_eq!(wants_an_interpreter(b"#!/bin/sh\n"), None);
        assert_eq!(wants_an_interpreter(&own[..40]), None, "cut short");
    }

    #[test]
    fn a_program_that_needs_a_dynamic_linker_is_not_installed_as_the_agent() {
        let own = std::env::current_exe().unwrap();
        let guest = own.with_file_name("no-such-guest-folder");
        let failure = install_agent(&own, &guest).unwrap_err();
        assert!(failure.to_string().ends_with("is not a static program"), "{failure}");
        assert!(!guest.exists());
    }
}
