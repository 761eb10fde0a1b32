//! Kernel packages from the host's configured apt, which checks the archive's signatures. Installs nothing, updates
//! nothing, names no archive itself.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::programs::{APT_CACHE, APT_CONFIG, APT_GET, Call, ProgramError};
use crate::{Trouble, Watch};

const LOOK_UP: Duration = Duration::from_secs(60);
const DOWNLOAD: Duration = Duration::from_secs(1800);

/// A metapackage stands for another at most so often.
const MOST_STEPS: usize = 4;

#[derive(Debug, thiserror::Error)]
pub enum AptError {
    #[error(
        "{0:?} is no package name: 2 or more of a-z, 0-9, + - . beginning with a letter or a digit"
    )]
    Name(String),
    #[error("the host's apt does not know the package {0}")]
    Unknown(String),
    #[error("the host's apt has no package lists")]
    NoLists,
    #[error("{0} is no kernel package and stands for none")]
    NoKernel(String),
    #[error("{0} is no package of a kernel's source and stands for none")]
    NoSource(String),
    #[error("apt downloaded {0}, but its file is not there")]
    NoFile(String),
    #[error("cannot read the folder {folder} that apt downloads into")]
    Folder {
        folder: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("the host's apt cannot fetch {package}")]
    Download {
        package: String,
        #[source]
        cause: ProgramError,
    },
    #[error("cannot ask the host's apt")]
    Ask(#[source] ProgramError),
}

impl AptError {
    #[must_use]
    pub fn trouble(&self) -> Trouble {
        match self {
            Self::Name(_) | Self::Unknown(_) | Self::NoKernel(_) | Self::NoSource(_) => {
                Trouble::Input
            }
            Self::NoLists | Self::Ask(ProgramError::Absent { .. }) => Trouble::Missing,
            Self::Download { cause, .. } if cause.is_no_space() => Trouble::NoSpace,
            Self::Download { cause: ProgramError::Deadline { .. }, .. } => Trouble::Timeout,
            Self::Download { .. } | Self::NoFile(_) | Self::Folder { .. } | Self::Ask(_) => {
                Trouble::Host
            }
        }
    }

    #[must_use]
    pub fn remedy(&self) -> Option<String> {
        match self {
            Self::NoLists => Some("run `apt-get update` as root".into()),
            Self::Unknown(_) => Some("see `apt-cache search '^linux-(image|source)'`; `apt-get update` brings newer lists".into()),
            Self::Download { .. } => {
                Some("the lists may be older than the archive: run `apt-get update` as root, then repeat".into())
            }
            Self::Ask(ProgramError::Absent { .. }) => {
                Some("a host without apt imports a kernel from a file: a bzImage, a vmlinux or a .deb".into())
            }
            _ => None,
        }
    }
}

/// deb-control(5), Package. Such a name cannot be taken for an option.
pub(crate) fn check_package_name(name: &str) -> Result<(), AptError> {
    let allowed =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"+-.".contains(&byte);
    let good = (2..=128).contains(&name.len())
        && name.bytes().all(allowed)
        && name.as_bytes()[0].is_ascii_alphanumeric();
    if good { Ok(()) } else { Err(AptError::Name(name.to_owned())) }
}

/// Fetches into `folder` the package of the kernel that `package` is or stands for, first, and after it the package
/// with its modules where that is another.
pub(crate) fn download_kernel(
    package: &str,
    folder: &Path,
    watch: Watch<'_>,
) -> Result<Vec<PathBuf>, AptError> {
    let found = resolve(package, "linux-image-")?;
    let (image, depends) = found.ok_or_else(|| AptError::NoKernel(package.to_owned()))?;
    let modules: Vec<String> =
        depends.into_iter().filter(|name| name.starts_with("linux-modules-")).collect();
    let mut files = Vec::new();
    for name in std::iter::once(image).chain(modules) {
        files.push(download(&name, folder, watch)?);
    }
    Ok(files)
}

/// Fetches into `folder` the package of a kernel's source that `package` is or stands for, as `linux-source` stands for
/// the newest.
pub(crate) fn download_source(
    package: &str,
    folder: &Path,
    watch: Watch<'_>,
) -> Result<PathBuf, AptError> {
    let found = resolve(package, "linux-source-")?;
    let (source, _) = found.ok_or_else(|| AptError::NoSource(package.to_owned()))?;
    download(&source, folder, watch)
}

/// Follows metapackages to a package whose name begins with `prefix`; gives it and what it depends on.
fn resolve(package: &str, prefix: &str) -> Result<Option<(String, Vec<String>)>, AptError> {
    check_package_name(package)?;
    let mut name = package.to_owned();
    for _ in 0..MOST_STEPS {
        let depends = depends_of(&name)?;
        match depends.iter().find(|depended| depended.starts_with(prefix)) {
            Some(real) => {
                check_package_name(real)?;
                name.clone_from(real);
            }
            None if name.starts_with(prefix) => return Ok(Some((name, depends))),
            None => break,
        }
    }
    Ok(None)
}

/// The names in `Depends:` of the version that apt would install.
fn depends_of(package: &str) -> Result<Vec<String>, AptError> {
    let shown = Call::new(APT_CACHE, LOOK_UP)
        .map_err(AptError::Ask)?
        .args(["show", "--no-all-versions", "--", package])
        .output();
    match shown {
        Ok(record) => Ok(parse_depends(&String::from_utf8_lossy(&record))),
        Err(ProgramError::Failed { .. }) if !has_lists()? => Err(AptError::NoLists),
        Err(ProgramError::Failed { stderr, .. })
            if stderr.contains("No packages found") || stderr.contains("Unable to locate") =>
        {
            Err(AptError::Unknown(package.to_owned()))
        }
        Err(error) => Err(AptError::Ask(error)),
    }
}

fn has_lists() -> Result<bool, AptError> {
    let targets = Call::new(APT_GET, LOOK_UP)
        .and_then(|call| {
            call.args(["indextargets", "--format", "$(SITE)", "Created-By: Packages"]).output()
        })
        .map_err(AptError::Ask)?;
    Ok(!targets.is_empty())
}

/// `Depends: a (= 1), b | c` → a, b: the first of alternatives is the one that apt prefers.
fn parse_depends(record: &str) -> Vec<String> {
    let Some(line) = record.lines().find_map(|line| line.strip_prefix("Depends:")) else {
        return Vec::new();
    };
    line.split(',')
        .filter_map(|one| one.split([' ', '|', '(', ':']).find(|word| !word.is_empty()))
        .map(str::to_owned)
        .collect()
}

fn download(package: &str, folder: &Path, watch: Watch<'_>) -> Result<PathBuf, AptError> {
    check_package_name(package)?;
    Call::new(APT_GET, DOWNLOAD)
        .map_err(AptError::Ask)?
        .in_folder(folder)
        .watched(watch)
        // The folder is ours alone, so apt's own user could not write there.
        .args(["--quiet", "--option=APT::Sandbox::User=root", "download", "--", package])
        .output()
        .map_err(|cause| AptError::Download { package: package.to_owned(), cause })?;
    let of_folder = |cause| AptError::Folder { folder: folder.to_owned(), cause };
    for entry in fs::read_dir(folder).map_err(of_folder)? {
        let path = entry.map_err(of_folder)?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.strip_prefix(package).is_some_and(|rest| rest.starts_with('_'))
            && name.ends_with(".deb")
        {
            return Ok(path);
        }
    }
    Err(AptError::NoFile(package.to_owned()))
}

/// The proxy that apt is configured to reach `scheme` by; `None` when there is none.
pub(crate) fn proxy(scheme: &str) -> Result<Option<String>, AptError> {
    let option = format!("Acquire::{scheme}::Proxy");
    let value = Call::new(APT_CONFIG, LOOK_UP)
        .and_then(|call| call.args(["dump", "--format", "%v%n", &option]).output())
        .map_err(AptError::Ask)?;
    let value = String::from_utf8_lossy(&value);
    Ok(value
        .lines()
        .map(str::trim)
        .find(|line| !line.is_empty() && *line != "DIRECT")
        .map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_reach_a_command_line_are_package_names() {
        for good in ["linux-image-cloud-amd64", "g++", "libc6", "python3.11"] {
            check_package_name(good).unwrap();
        }
        for bad in [
            "",
            "a",
            "-o",
            "--help",
            "a b",
            "A1",
            "a;b",
            "a/b",
            "a=1",
            "../x",
            "a\n",
            &"a".repeat(200),
        ] {
            assert!(check_package_name(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn the_first_of_alternatives_is_depended_on() {
        let record = "Package: x\nDepends: kmod, linux-base (>= 4.3~), a:any | b, initramfs-tools (>= 0.120+deb8u2) | linux-initramfs-tool\nRecommends: q\n";
        assert_eq!(parse_depends(record), ["kmod", "linux-base", "a", "initramfs-tools"]);
        assert!(parse_depends("Package: x\n").is_empty());
    }
}
