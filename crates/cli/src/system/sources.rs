//! Where the programs are that an installation is made of, and whether they fit.

use std::path::{Path, PathBuf};

use banger_api::install::{
    self, AGENT, DAEMON, FIRECRACKER, HELPER, JAILER, PACKAGED_PROGRAMS, PROGRAMS,
};
use banger_api::{Code, Problem};

use super::is_there;
use crate::programs;

/// The minor versions of Firecracker 1 that banger is tested with.
const TESTED: std::ops::RangeInclusive<u32> = 12..=16;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sources {
    /// This program.
    pub(crate) cli: PathBuf,
    /// The folder with the daemon, the helper and the agent.
    pub(crate) programs: PathBuf,
    pub(crate) firecracker: Option<Firecracker>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Firecracker {
    pub(crate) firecracker: PathBuf,
    pub(crate) jailer: PathBuf,
    /// Such as `1.12.1`.
    pub(crate) version: String,
    /// Newer than what banger is tested with.
    pub(crate) untested: bool,
}

impl Sources {
    /// `given`: the paths of firecracker and jailer, if the user named them.
    ///
    /// # Errors
    /// When a program is missing, or Firecracker is too old.
    pub(crate) fn find(given: Option<(PathBuf, PathBuf)>) -> Result<Self, Problem> {
        let untold = |error: std::io::Error| {
            Problem::new(Code::Internal, "cannot tell where banger itself is").cause(&error)
        };
        let cli = std::env::current_exe().map_err(untold)?;
        let folders = programs::folders_of_ours().map_err(untold)?;
        let lacks = |folder: &Path| {
            [DAEMON, HELPER, AGENT].into_iter().find(|name| !folder.join(name).is_file())
        };
        let Some(programs) = folders.iter().find(|folder| lacks(folder).is_none()) else {
            // Complain about the folder that has something of ours.
            let begun = folders.iter().find(|folder| folder.join(DAEMON).is_file());
            let folder = begun.unwrap_or(&folders[0]);
            let name = lacks(folder).unwrap_or(DAEMON);
            return Err(Problem::new(
                Code::Missing,
                format!("cannot install: there is no {}", folder.join(name).display()),
            )
            .remedy("keep the programs of one build together: `cargo xtask build` makes them"));
        };
        let pair = match given {
            Some(pair) => Some(pair),
            None => nearby(&folders)?,
        };
        let firecracker =
            pair.map(|(firecracker, jailer)| examine(firecracker, jailer)).transpose()?;
        Ok(Self { cli, programs: programs.clone(), firecracker })
    }

    /// Whether the programs are where a package has put them, and stay there.
    pub(crate) fn are_packaged(&self) -> bool {
        self.programs == Path::new(PACKAGED_PROGRAMS)
    }
}

/// Firecracker and its jailer beside our programs, where an installation has put them, or in the system's folders.
///
/// # Errors
/// When those of the system's folders are not root's alone: root would run what others wrote, and nobody named it.
fn nearby(ours: &[PathBuf]) -> Result<Option<(PathBuf, PathBuf)>, Problem> {
    let pair = |folder: &Path| (folder.join(FIRECRACKER), folder.join(JAILER));
    let complete =
        |(firecracker, jailer): &(PathBuf, PathBuf)| firecracker.is_file() && jailer.is_file();
    let beside = ours.iter().map(PathBuf::as_path).chain([Path::new(PROGRAMS)]);
    if let Some(found) = beside.map(pair).find(complete) {
        return Ok(Some(found));
    }
    let system = ["/usr/local/bin", "/usr/local/sbin", "/usr/bin", "/usr/sbin"].map(Path::new);
    let Some(found) = system.into_iter().map(pair).find(complete) else { return Ok(None) };
    for path in [&found.0, &found.1] {
        let data = path.metadata().map_err(|error| unusable(path).cause(&error))?;
        install::roots_alone(&data).map_err(|why| {
            unusable(path).because(why).remedy("name one with --firecracker and --jailer")
        })?;
    }
    Ok(Some(found))
}

fn unusable(path: &Path) -> Problem {
    Problem::new(Code::Invalid, format!("cannot install {}", path.display()))
}

fn examine(firecracker: PathBuf, jailer: PathBuf) -> Result<Firecracker, Problem> {
    let version = |path: &Path| {
        if !is_there(path) {
            return Err(unusable(path).because("it is not there"));
        }
        let said = programs::run_at(path, &["--version"])?;
        version(&said).ok_or_else(|| {
            let line = said.lines().next().unwrap_or_default();
            unusable(path).because(format!("it does not say its version, but {line:?}"))
        })
    };
    let (found, of_jailer) = (version(&firecracker)?, version(&jailer)?);
    if found != of_jailer {
        return Err(unusable(&firecracker)
            .because(format!("it is {found}, and {} is {of_jailer}", jailer.display()))
            .remedy("take both from one release of Firecracker"));
    }
    let untested = match support(&found) {
        Support::Tested => false,
        Support::Newer => true,
        Support::Older => {
            return Err(unusable(&firecracker)
                .because(format!("it is {found}, and banger needs 1.{} or newer", TESTED.start()))
                .remedy("take a newer release of Firecracker"));
        }
    };
    Ok(Firecracker { firecracker, jailer, version: found, untested })
}

/// The version in `Firecracker v1.12.1` or `Jailer v1.12.1`.
fn version(said: &str) -> Option<String> {
    let word = said.lines().next()?.split(' ').nth(1)?.strip_prefix('v')?;
    let numbers = word.split('.').take(2).filter(|part| part.parse::<u32>().is_ok()).count();
    (numbers == 2).then(|| word.to_owned())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Support {
    Older,
    Tested,
    Newer,
}

fn support(version: &str) -> Support {
    let mut numbers = version.split('.').map_while(|part| part.parse::<u32>().ok());
    match (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) {
        (1, minor) if TESTED.contains(&minor) => Support::Tested,
        (1, minor) if minor < *TESTED.start() => Support::Older,
        (0, _) => Support::Older,
        _ => Support::Newer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_the_programs_say() {
        let said =
            "Firecracker v1.12.1\n\n2025-08-28T16:30:16.868937190 [anonymous-instance:main] x";
        assert_eq!(version(said).as_deref(), Some("1.12.1"));
        assert_eq!(version("Jailer v1.16.0-dev\n").as_deref(), Some("1.16.0-dev"));
        for other in ["", "Firecracker", "QEMU emulator version 7.2", "Firecracker v1", "x vv.1"] {
            assert_eq!(version(other), None, "{other:?}");
        }
    }

    #[test]
    fn older_than_1_12_is_refused_and_newer_than_1_16_untested() {
        for (version, expected) in [
            ("0.25.2", Support::Older),
            ("1.11.0", Support::Older),
            ("1.12.0", Support::Tested),
            ("1.16.3", Support::Tested),
            ("1.17.0", Support::Newer),
            ("2.0.0", Support::Newer),
        ] {
            assert_eq!(support(version), expected, "{version}");
        }
    }

    fn program(folder: &Path, name: &str, says: &str) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let path = folder.join(name);
        std::fs::write(&path, format!("#!/bin/sh\necho '{says}'\n")).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn firecracker_and_jailer_must_be_of_one_release() {
        let folder = tempfile::tempdir().unwrap();
        let firecracker = program(folder.path(), "firecracker", "Firecracker v1.12.1");
        let jailer = program(folder.path(), "jailer", "Jailer v1.13.0");
        let problem = examine(firecracker.clone(), jailer).unwrap_err();
        assert!(problem.causes[0].contains("it is 1.12.1, and"), "{problem}");
        let jailer = program(folder.path(), "jailer", "Jailer v1.12.1");
        assert_eq!(examine(firecracker, jailer).unwrap().version, "1.12.1");
    }

    #[test]
    fn a_firecracker_that_is_not_there_or_no_firecracker_is_refused_by_its_path() {
        let folder = tempfile::tempdir().unwrap();
        let jailer = program(folder.path(), "jailer", "hello");
        let problem = examine(folder.path().join("none"), jailer.clone()).unwrap_err();
        assert!(problem.to_string().ends_with("none: it is not there"), "{problem}");
        let problem = examine(jailer.clone(), jailer).unwrap_err();
        assert!(problem.to_string().contains("hello"), "{problem}");
    }
}
