//! From a Dockerfile to an archive, by the builder that the user has: buildah, podman or docker. Its settings, its caches and
//! its base images are the user's; the archive is made in a scratch folder, which goes when it was taken.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::artifact::{self, ArtifactError};
use crate::programs::{Call, ProgramError};
use crate::{Progress, Trouble, Watch};

/// Whoever builds a compiler in a Dockerfile still gets there.
const BUILDING: Duration = Duration::from_secs(4 * 3600);
const SOON: Duration = Duration::from_secs(60);

/// A builder's line is told up to this length.
const LONGEST_LINE: u64 = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Builder {
    Buildah,
    Podman,
    Docker,
}

/// In this order they are looked for: the first two need no daemon.
const BUILDERS: [Builder; 3] = [Builder::Buildah, Builder::Podman, Builder::Docker];

impl Builder {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Buildah => "buildah",
            Self::Podman => "podman",
            Self::Docker => "docker",
        }
    }
}

/// What to build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dockerfile {
    pub file: PathBuf,
    pub context: PathBuf,
    /// `NAME=VALUE`.
    pub build_args: Vec<String>,
    pub target: Option<String>,
    /// The first that there is when absent.
    pub with: Option<Builder>,
}

#[derive(Debug, thiserror::Error)]
pub enum DockerfileError {
    #[error("there is no buildah, podman or docker in {}", path.display())]
    NoBuilder { path: PathBuf },
    #[error("there is no {} in {}", builder.name(), path.display())]
    Absent { builder: Builder, path: PathBuf },
    #[error("the Dockerfile {0} is not a file that can be read")]
    File(PathBuf),
    #[error("the context {0} is not a folder")]
    Context(PathBuf),
    #[error("the build argument {0:?} is not NAME=VALUE")]
    BuildArg(String),
    #[error("the stage {0:?} is no name of one")]
    Target(String),
    #[error("{} cannot build {file}", builder.name())]
    Build {
        builder: Builder,
        file: PathBuf,
        #[source]
        cause: ProgramError,
    },
    #[error("{} does not say which image it has built", builder.name())]
    NoId { builder: Builder },
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
}

impl DockerfileError {
    #[must_use]
    pub fn trouble(&self) -> Trouble {
        match self {
            Self::NoBuilder { .. } | Self::Absent { .. } => Trouble::Missing,
            Self::Build { cause, .. } if cause.is_no_space() => Trouble::NoSpace,
            Self::Build { cause: ProgramError::Deadline { .. }, .. } => Trouble::Timeout,
            Self::Build { cause: ProgramError::Failed { .. }, .. } => Trouble::Input,
            Self::Artifact(cause) if cause.is_no_space() => Trouble::NoSpace,
            Self::Build { .. } | Self::NoId { .. } | Self::Artifact(_) => Trouble::Host,
            _ => Trouble::Input,
        }
    }

    /// What to do next, where there is something.
    #[must_use]
    pub fn remedy(&self) -> Option<String> {
        match self {
            Self::NoBuilder { .. } => Some(
                "install buildah (`apt-get install buildah`), podman or docker; or build elsewhere, `docker save` the image \
                 and import that with `banger image import`"
                    .into(),
            ),
            Self::Absent { builder, .. } => {
                Some(format!("install {}, or name another with --with", builder.name()))
            }
            _ => None,
        }
    }
}

/// Builds in a scratch folder in `folder`, and gives the archive (OCI's or docker's) to `take`; with it, what built it.
///
/// # Errors
/// When there is no builder, or the build fails. Nothing is left either way but the builder's own caches.
pub fn build_dockerfile<T>(
    build: &Dockerfile,
    folder: &Path,
    watch: Watch<'_>,
    take: impl FnOnce(&Path, Builder) -> T,
) -> Result<T, DockerfileError> {
    check(build)?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let (builder, program) = find(build.with, &path)?;
    artifact::in_scratch(folder, |scratch| {
        let text = format!("building {} with {}", build.file.display(), builder.name());
        watch(Progress::Stage { name: "build", text: &text });
        let archive = scratch.join("image.tar");
        run(build, builder, &program, &archive, watch)?;
        Ok(take(&archive, builder))
    })
}

/// They become words of a command line; an option is none of them.
fn check(build: &Dockerfile) -> Result<(), DockerfileError> {
    if !build.file.is_file() {
        return Err(DockerfileError::File(build.file.clone()));
    }
    if !build.context.is_dir() {
        return Err(DockerfileError::Context(build.context.clone()));
    }
    let is_name = |text: &str| {
        let first = text.bytes().next();
        first.is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte))
    };
    for argument in &build.build_args {
        let good = argument.split_once('=').is_some_and(|(name, _)| is_name(name));
        if !good || argument.contains('\0') {
            return Err(DockerfileError::BuildArg(argument.chars().take(100).collect()));
        }
    }
    match &build.target {
        Some(target) if !is_name(target) => {
            Err(DockerfileError::Target(target.chars().take(100).collect()))
        }
        _ => Ok(()),
    }
}

/// The builder that is asked for, or the first that there is, in the folders of `path`.
fn find(wanted: Option<Builder>, path: &OsStr) -> Result<(Builder, PathBuf), DockerfileError> {
    let program = |builder: Builder| {
        std::env::split_paths(path)
            .filter(|folder| folder.is_absolute())
            .map(|folder| folder.join(builder.name()))
            .find(|file| {
                fs::metadata(file).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
            })
            .map(|file| (builder, file))
    };
    match wanted {
        Some(builder) => {
            program(builder).ok_or_else(|| DockerfileError::Absent { builder, path: path.into() })
        }
        None => BUILDERS
            .into_iter()
            .find_map(program)
            .ok_or_else(|| DockerfileError::NoBuilder { path: path.into() }),
    }
}

fn run(
    build: &Dockerfile,
    builder: Builder,
    program: &Path,
    archive: &Path,
    watch: Watch<'_>,
) -> Result<(), DockerfileError> {
    let failed = |cause| DockerfileError::Build { builder, file: build.file.clone(), cause };
    let id = archive.with_extension("id");
    let mut words: Vec<OsString> = vec!["build".into(), "--file".into(), build.file.clone().into()];
    for argument in &build.build_args {
        words.extend(["--build-arg".into(), argument.into()]);
    }
    if let Some(target) = &build.target {
        words.extend(["--target".into(), target.into()]);
    }
    match builder {
        // Straight into the archive: nothing gets into the user's storage.
        Builder::Buildah => {
            let mut to = OsString::from("oci-archive:");
            to.push(archive);
            words.extend(["--tag".into(), to]);
        }
        Builder::Podman => words.extend(["--iidfile".into(), id.clone().into()]),
        Builder::Docker => {
            words.extend(["--iidfile".into(), id.clone().into(), "--progress=plain".into()]);
        }
    }
    words.push(build.context.clone().into());
    call(program, BUILDING)
        .args(words)
        .watched(watch)
        .drained_by(&mut |stdout| tell(stdout, watch))
        .map_err(failed)?;
    if builder == Builder::Buildah {
        return Ok(());
    }
    let image = fs::read_to_string(&id).unwrap_or_default().trim().to_owned();
    let digits = image.strip_prefix("sha256:").unwrap_or(&image);
    if digits.len() != 64 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(DockerfileError::NoId { builder });
    }
    let save: &[&str] = match builder {
        Builder::Podman => &["save", "--format", "oci-archive", "--output"],
        _ => &["save", "--output"],
    };
    let save = save.iter().map(OsString::from).chain([archive.into(), image.clone().into()]);
    let saved = call(program, BUILDING).args(save).watched(watch).output();
    // Refused where it has a name by now, or another image stands on it: then it is wanted.
    let remove = ["image", "rm", image.as_str()];
    if let Err(error) = call(program, SOON).args(remove).output() {
        watch(Progress::Line(&format!("the image stays with {}: {error}", builder.name())));
    }
    saved.map(drop).map_err(failed)
}

/// What a builder tells on stdout: its steps, and what they print.
fn tell(stdout: impl Read, watch: Watch<'_>) {
    let mut stdout = BufReader::new(stdout);
    let mut line = Vec::new();
    while matches!((&mut stdout).take(LONGEST_LINE).read_until(b'\n', &mut line), Ok(1..)) {
        watch(Progress::Line(String::from_utf8_lossy(&line).trim_end()));
        line.clear();
    }
}

/// The user's own program, with what of the user's environment says how it works.
fn call<'a>(program: &Path, deadline: Duration) -> Call<'a> {
    const NAMES: [&str; 9] = [
        "PATH",
        "USER",
        "LOGNAME",
        "TMPDIR",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "SSH_AUTH_SOCK",
        "DBUS_SESSION_BUS_ADDRESS",
        "_CONTAINERS_ROOTLESS_UID",
    ];
    const PREFIXES: [&str; 9] = [
        "BUILDAH_",
        "BUILDKIT_",
        "BUILDX_",
        "CONTAINER",
        "DOCKER_",
        "PODMAN_",
        "REGISTRY_",
        "STORAGE_",
        "XDG_",
    ];
    let is_kept = |name: &OsStr| {
        let name = name.to_string_lossy();
        NAMES.contains(&name.as_ref()) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
    };
    std::env::vars_os()
        .filter(|(name, _)| is_kept(name))
        .fold(Call::of(program.to_owned(), deadline), |call, (name, value)| call.env(name, value))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::samples::reasons;

    fn sample(folder: &Path, text: &str) -> Dockerfile {
        let file = folder.join("Dockerfile");
        fs::write(&file, text).unwrap();
        fs::write(folder.join("hello"), "hello\n").unwrap();
        Dockerfile {
            file,
            context: folder.to_owned(),
            build_args: vec!["WHO=me and you".into()],
            target: Some("first".into()),
            with: None,
        }
    }

    #[test]
    fn buildah_makes_an_archive_of_the_stage_and_nothing_is_left() {
        let context = tempfile::tempdir().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let build = sample(
            context.path(),
            "FROM scratch AS first\nARG WHO\nLABEL who=$WHO\nCOPY hello /hello\nFROM first\nCOPY nothing /\n",
        );
        let said = Mutex::new(Vec::new());
        let watch = |progress: Progress<'_>| {
            if let Progress::Line(line) = progress {
                said.lock().unwrap().push(line.to_owned());
            }
        };
        let (archive, builder) =
            build_dockerfile(&build, folder.path(), &watch, |path, builder| {
                (fs::read(path).unwrap(), builder)
            })
            .unwrap();
        assert_eq!(builder, Builder::Buildah);
        let text = String::from_utf8_lossy(&archive);
        assert!(text.contains("oci-layout") && text.contains("me and you"));
        assert!(said.lock().unwrap().iter().any(|line| line.contains("COPY hello")));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);

        let broken = sample(context.path(), "FROM scratch AS first\nCOPY nothing /\n");
        let error = build_dockerfile(&broken, folder.path(), &|_| {}, |_, _| ()).unwrap_err();
        assert!(reasons(&error).contains("nothing"), "{}", reasons(&error));
        assert_eq!(error.trouble(), Trouble::Input);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    /// A builder of our own: it says what it was called with, and saves an archive or fails.
    fn builder(folder: &Path, name: &str, script: &str) -> OsString {
        let file = folder.join(name);
        fs::write(&file, format!("#!/bin/sh\n{script}")).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        folder.into()
    }

    #[test]
    fn docker_and_podman_save_what_they_built_and_keep_nothing() {
        // The words of `docker build`, `save` and `image rm`, as their manuals have them.
        let script = r#"echo "$@" >> "$(dirname "$0")/calls"
case $1 in
build) while [ $# -gt 0 ]; do [ "$1" = --iidfile ] && echo "sha256:$(printf 'a%.0s' $(seq 64))" > "$2"; shift; done ;;
save) while [ $# -gt 0 ]; do [ "$1" = --output ] && echo archive > "$2"; shift; done ;;
esac
"#;
        for which in [Builder::Podman, Builder::Docker] {
            let folder = tempfile::tempdir().unwrap();
            let build = sample(folder.path(), "FROM scratch AS first\n");
            let path = builder(folder.path(), which.name(), script);
            let (found, program) = find(None, &path).unwrap();
            assert_eq!(found, which);
            let archive = folder.path().join("image.tar");
            run(&build, which, &program, &archive, &|_| {}).unwrap();
            assert_eq!(fs::read_to_string(&archive).unwrap(), "archive\n");
            let calls = fs::read_to_string(folder.path().join("calls")).unwrap();
            let calls: Vec<_> = calls.lines().collect();
            assert!(calls[0].contains("--build-arg WHO=me and you --target first"), "{calls:?}");
            assert!(calls[0].ends_with(folder.path().to_str().unwrap()));
            assert!(calls[1].starts_with("save") && calls[1].ends_with(&"a".repeat(64)));
            assert_eq!(calls[2], format!("image rm sha256:{}", "a".repeat(64)));

            builder(folder.path(), which.name(), "exit 0");
            fs::remove_file(archive.with_extension("id")).unwrap();
            let error = run(&build, which, &program, &archive, &|_| {}).unwrap_err();
            assert!(matches!(error, DockerfileError::NoId { .. }), "{error}");
        }
    }

    #[test]
    fn without_a_builder_the_remedy_names_them() {
        let folder = tempfile::tempdir().unwrap();
        let error = find(None, folder.path().as_os_str()).unwrap_err();
        assert_eq!(error.trouble(), Trouble::Missing);
        for builder in BUILDERS {
            assert!(error.remedy().unwrap().contains(builder.name()));
            let error = find(Some(builder), folder.path().as_os_str()).unwrap_err();
            assert!(error.to_string().contains(builder.name()), "{error}");
        }
    }

    #[test]
    fn words_that_would_be_options_or_are_no_names_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let build = sample(folder.path(), "FROM scratch AS first\n");
        let refused = |change: &dyn Fn(&mut Dockerfile)| {
            let mut changed = build.clone();
            change(&mut changed);
            check(&changed).unwrap_err().to_string()
        };
        assert!(check(&build).is_ok());
        assert!(refused(&|build| build.target = Some("--no-cache".into())).contains("--no-cache"));
        assert!(refused(&|build| build.build_args = vec!["WHO".into()]).contains("NAME=VALUE"));
        assert!(refused(&|build| build.build_args = vec!["--x=y".into()]).contains("NAME=VALUE"));
        assert!(refused(&|build| build.context = "/no/such".into()).contains("/no/such"));
        assert!(refused(&|build| build.file = "/no/such".into()).contains("/no/such"));
    }
}
