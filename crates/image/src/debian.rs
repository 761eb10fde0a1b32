//! A Debian release as an image that boots, made on this host by mmdebstrap from the archives that the host's apt is
//! configured with. Names no archive itself, and takes nothing that apt did not check.
//!
//! The image is left as a machine that has never run: no machine id, no host keys, no host name, root's password
//! locked, no package lists. What only waits or complains without hardware and network is masked, so that systemd comes
//! to `running`.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::apt::{self, AptError, check_package_name};
use crate::artifact::{self, ArtifactError};
use crate::assemble::{self, Archive};
use crate::layers::Limits;
use crate::programs::{APT_GET, Call, MMDEBSTRAP, Program, ProgramError, UNSHARE};
use crate::rootfs::{ImportedRootfs, RootfsError};
use crate::stream::Source;
use crate::{Progress, Trouble, Watch};

/// What makes a machine of Debian's smallest system: it boots, has a network, and can be logged in to.
pub const BASE: &[&str] = &[
    "ca-certificates",
    "dbus",
    "iproute2",
    "iputils-ping",
    "kmod",
    "libpam-systemd",
    "netbase",
    "procps",
    "systemd",
    "systemd-sysv",
    "udev",
];

/// What a developer, or an agent that works for one, expects to find.
pub const TOOLS: &[&str] = &[
    "bash-completion",
    "bsdextrautils",
    "curl",
    "file",
    "gcc",
    "git",
    "jq",
    "less",
    "libc6-dev",
    "lsof",
    "make",
    "nano",
    "openssh-client",
    "patch",
    "psmisc",
    "python3",
    "python3-pip",
    "python3-venv",
    "ripgrep",
    "rsync",
    "strace",
    "sudo",
    "tmux",
    "unzip",
    "vim-tiny",
    "wget",
    "xz-utils",
    "zip",
    "zstd",
];

/// Documentation that a disposable machine does without, as in Debian's container images; licences stay. And udev's
/// names for hardware that no VM has, and a compiler developer's tool of 32 MB. These stay dpkg's settings in the image,
/// and so does the last: what a sandbox installs need not outlive a power cut, and installs faster without syncs.
const DPKG: [&str; 11] = [
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/lintian/*",
    "path-exclude=/usr/share/locale/*",
    "path-include=/usr/share/locale/locale.alias",
    "path-exclude=/usr/lib/udev/hwdb.d/*",
    "path-exclude=/lib/udev/hwdb.d/*",
    "path-exclude=/usr/bin/*-lto-dump-*",
    "force-unsafe-io",
];

/// They wait for what a VM does not have, or work in the background of a machine that lives for an hour.
const MASKED: [&str; 14] = [
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "console-getty.service",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty@tty1.service",
    "man-db.timer",
    "networking.service",
    "systemd-networkd-wait-online.service",
    "systemd-pstore.service",
    "systemd-time-wait-sync.service",
    "NetworkManager-wait-online.service",
];

/// A mirror that answers slowly still gets there.
const BUILDING: Duration = Duration::from_secs(2 * 3600);
const LOOK_UP: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
pub enum DebianError {
    #[error("{0:?} is no name of a Debian release: a-z, 0-9 and -, beginning with a letter")]
    Release(String),
    #[error("cannot include a package")]
    Package(#[source] AptError),
    #[error("the host's apt has no Debian archive, or no lists of it")]
    NoArchive,
    #[error("the host's Debian archive {0} is of a kind that cannot be carried into an image")]
    Archive(String),
    #[error("cannot read {path}")]
    Sources {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error(
        "an ordinary user needs a range of ids in /etc/subuid and the program newuidmap, or the programs fakechroot and fakeroot"
    )]
    NoMode,
    #[error("cannot ask the host's apt")]
    Ask(#[source] ProgramError),
    #[error("mmdebstrap cannot build {release}")]
    Build {
        release: String,
        #[source]
        cause: ProgramError,
    },
    #[error("cannot make an image of {release}")]
    Image {
        release: String,
        #[source]
        cause: RootfsError,
    },
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
}

impl DebianError {
    #[must_use]
    pub fn trouble(&self) -> Trouble {
        match self {
            Self::Release(_) | Self::Archive(_) => Trouble::Input,
            Self::Package(cause) => cause.trouble(),
            Self::NoArchive
            | Self::NoMode
            | Self::Ask(ProgramError::Absent { .. })
            | Self::Build { cause: ProgramError::Absent { .. }, .. } => Trouble::Missing,
            Self::Build { cause, .. } if cause.is_no_space() => Trouble::NoSpace,
            Self::Build { cause: ProgramError::Deadline { .. }, .. } => Trouble::Timeout,
            Self::Image { cause, .. } => cause.trouble(),
            Self::Artifact(cause) if cause.is_no_space() => Trouble::NoSpace,
            Self::Sources { .. } | Self::Ask(_) | Self::Build { .. } | Self::Artifact(_) => {
                Trouble::Host
            }
        }
    }

    /// What to do next, where there is something.
    #[must_use]
    pub fn remedy(&self) -> Option<String> {
        match self {
            Self::NoArchive => Some(
                "add a Debian archive to the host's apt sources and run `apt-get update` as root, or import a rootfs tar".into(),
            ),
            Self::NoMode => Some("install uidmap (Debian gives new users their ranges), or fakechroot and fakeroot".into()),
            Self::Ask(ProgramError::Absent { package, .. })
            | Self::Build { cause: ProgramError::Absent { package, .. }, .. } => Some(format!("install the package {package}")),
            Self::Image { cause, .. } => cause.remedy(),
            _ => None,
        }
    }
}

/// Builds the Debian release `release` with [`BASE`] and the packages `include` into the image `out`, which appears when
/// it is whole. [`TOOLS`] is what to include when nobody says anything else.
///
/// # Errors
/// When a name is none, the host lacks what the build needs, or the archive does not have the release or a package.
pub fn build_debian(
    release: &str,
    include: &[String],
    out: &Path,
    watch: Watch<'_>,
) -> Result<ImportedRootfs, DebianError> {
    check_release(release)?;
    for package in include {
        check_package_name(package).map_err(DebianError::Package)?;
    }
    let sources = sources(release)?;
    let mode = mode()?;
    let folder =
        out.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    artifact::in_scratch(folder, |scratch| {
        let call = call(release, include, &sources, mode, scratch)
            .map_err(|cause| building(release, cause))?;
        watch(Progress::Stage {
            name: "debian",
            text: &format!("building {release} with mmdebstrap ({} mode)", mode.name()),
        });
        artifact::write(out, |image, draft| {
            let mut image = Some(image);
            let mut filled = None;
            let built = call.watched(watch).drained_by(&mut |stdout| {
                if let Some(image) = image.take() {
                    let archive = Archive {
                        path: "mmdebstrap's output".into(),
                        source: Source::Stream(Box::new(stdout)),
                        diff_id: None,
                    };
                    let limits = Limits::default();
                    filled = Some(assemble::fill(vec![archive], 0, limits, image, draft, watch));
                }
            });
            // A build that failed ends its output early, an import that failed ends the build early.
            match (filled, built) {
                (Some(Err(cause)), _) if cause.trouble() != Trouble::Input => {
                    Err(DebianError::Image { release: release.to_owned(), cause })
                }
                (_, Err(cause)) => Err(building(release, cause)),
                (Some(filled), Ok(())) => filled
                    .map_err(|cause| DebianError::Image { release: release.to_owned(), cause }),
                (None, Ok(())) => unreachable!("a program that was started is drained"),
            }
        })
    })
}

fn building(release: &str, cause: ProgramError) -> DebianError {
    DebianError::Build { release: release.to_owned(), cause }
}

fn call<'a>(
    release: &str,
    include: &[String],
    sources: &[String],
    mode: BuildMode,
    scratch: &Path,
) -> Result<Call<'a>, ProgramError> {
    let mut packages: Vec<&str> =
        BASE.iter().copied().chain(include.iter().map(String::as_str)).collect();
    packages.sort_unstable();
    packages.dedup();
    let begun =
        if mode == BuildMode::Root { isolated()? } else { Call::new(MMDEBSTRAP, BUILDING)? };
    let mut call = begun
        .args(["--variant=minbase", "--format=tar"])
        .args([format!("--mode={}", mode.name()), format!("--include={}", packages.join(","))])
        .args(DPKG.map(|option| format!("--dpkgopt={option}")))
        .args([format!("--customize-hook={}", finish())])
        .args(["--", release, "-"])
        .args(sources);
    // In the other modes users of the image's own must reach the build, and so not in a folder of ours alone.
    let temporary = if mode == BuildMode::Root { scratch } else { Path::new("/var/tmp") };
    call = call.env("TMPDIR", temporary);
    for (scheme, variable) in [("http", "http_proxy"), ("https", "https_proxy")] {
        if std::env::var_os(variable).is_none()
            && let Ok(Some(proxy)) = apt::proxy(scheme)
        {
            call = call.env(variable, proxy);
        }
    }
    Ok(call)
}

/// mmdebstrap in namespaces of its own: as root it mounts proc and sys below its folder, in the host's view, where they
/// would stay if it were killed. So they go with it, and everything that it started goes too.
fn isolated<'a>() -> Result<Call<'a>, ProgramError> {
    const ISOLATE: [&str; 5] = ["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"];
    const SOON: Duration = Duration::from_secs(10);
    let works = Call::new(UNSHARE, SOON)?.args(ISOLATE).args(["--", "true"]).output().is_ok();
    if works {
        return Ok(Call::new(UNSHARE, BUILDING)?
            .args(ISOLATE)
            .args(["--"])
            .args([MMDEBSTRAP.path()?]));
    }
    // A root that may not: a container's. mmdebstrap says what it cannot do there, and mounts nothing.
    Call::new(MMDEBSTRAP, BUILDING)
}

/// The last touches, as mmdebstrap's hook: a script of constant text; `$1` is the image's root.
fn finish() -> String {
    let mut script = String::from(
        r#"set -eu
: > "$1/etc/machine-id"
rm -f "$1/var/lib/dbus/machine-id" "$1/etc/hostname" "$1/etc/resolv.conf" "$1/var/lib/systemd/random-seed"
rm -f "$1"/etc/ssh/ssh_host_*
if [ -e "$1/usr/sbin/sshd" ]; then
    mkdir -p "$1/etc/systemd/system/ssh.service.d"
    printf '[Service]\nExecStartPre=\nExecStartPre=/usr/bin/ssh-keygen -A\nExecStartPre=/usr/sbin/sshd -t\n' > "$1/etc/systemd/system/ssh.service.d/host-keys.conf"
fi
: > "$1/etc/fstab"
printf '127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n' > "$1/etc/hosts"
printf 'LANG=C.UTF-8\n' > "$1/etc/default/locale"
chroot "$1" passwd --quiet --lock root
rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/*.bin "$1"/var/log/*.log "$1"/var/log/apt/*
mkdir -p "$1/etc/systemd/system-generators"
ln -sf /dev/null "$1/etc/systemd/system-generators/systemd-getty-generator"
"#,
    );
    for unit in MASKED {
        writeln!(script, "ln -sf /dev/null \"$1/etc/systemd/system/{unit}\"")
            .expect("a String takes all");
    }
    // systemd-update-done(8): what is newer than /usr needs no first-boot work.
    script.push_str("touch \"$1/etc/.updated\" \"$1/var/.updated\"\n");
    script
}

/// A code name such as `bookworm`; it becomes part of an archive's address and of a command line.
fn check_release(release: &str) -> Result<(), DebianError> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let good = (1..=32).contains(&release.len())
        && release.bytes().all(allowed)
        && release.as_bytes()[0].is_ascii_lowercase();
    if good { Ok(()) } else { Err(DebianError::Release(release.to_owned())) }
}

/// How mmdebstrap gets the rights that a build takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BuildMode {
    Root,
    Unshare,
    Fakechroot,
}

impl BuildMode {
    fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Unshare => "unshare",
            Self::Fakechroot => "fakechroot",
        }
    }
}

fn mode() -> Result<BuildMode, DebianError> {
    const NEWUIDMAP: Program = Program { name: "newuidmap", package: "uidmap" };
    const FAKECHROOT: Program = Program { name: "fakechroot", package: "fakechroot" };
    let uid = rustix::process::geteuid();
    if uid.is_root() {
        return Ok(BuildMode::Root);
    }
    // newuidmap is setuid, which no_new_privs takes away (prctl(2)): so it is in an installation's daemon.
    let may_gain = !has_no_new_privs();
    if may_gain && NEWUIDMAP.exists() && has_subuids(uid.as_raw())? {
        return Ok(BuildMode::Unshare);
    }
    if FAKECHROOT.exists() && crate::programs::FAKEROOT.exists() {
        return Ok(BuildMode::Fakechroot);
    }
    Err(DebianError::NoMode)
}

/// proc_pid_status(5): `NoNewPrivs`.
fn has_no_new_privs() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().any(|line| line.split_whitespace().eq(["NoNewPrivs:", "1"]))
}

/// subuid(5): `NAME or UID:first:count`.
fn has_subuids(uid: u32) -> Result<bool, DebianError> {
    let read = |path: &str| match fs::read_to_string(path) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        other => other.map_err(|cause| DebianError::Sources { path: path.into(), cause }),
    };
    let users = crate::posix_acl::ids(&read("/etc/passwd")?);
    let ranges = read("/etc/subuid")?;
    Ok(ranges
        .lines()
        .filter_map(|line| line.split(':').next())
        .any(|owner| owner == uid.to_string() || users.get(owner) == Some(&uid)))
}

/// An index that the host's apt has.
#[derive(Debug, PartialEq, Eq)]
struct Index {
    site: String,
    suite: String,
    component: String,
}

/// Lines for the image's sources.list: the host's Debian archives, with the suites of `release`.
fn sources(release: &str) -> Result<Vec<String>, DebianError> {
    let format = "$(ORIGIN)|$(SITE)|$(RELEASE)|$(CODENAME)|$(COMPONENT)";
    let listed = Call::new(APT_GET, LOOK_UP)
        .and_then(|call| {
            call.args(["indextargets", "--format", format, "Created-By: Packages"]).output()
        })
        .map_err(DebianError::Ask)?;
    let mut signed_by = Vec::new();
    for path in source_files()? {
        let text = fs::read_to_string(&path)
            .map_err(|cause| DebianError::Sources { path: path.clone(), cause })?;
        signed_by.extend(keyrings(&text));
    }
    lines(release, &String::from_utf8_lossy(&listed), &signed_by)
}

/// Where apt reads its sources (sources.list(5)).
fn source_files() -> Result<Vec<PathBuf>, DebianError> {
    let main = PathBuf::from("/etc/apt/sources.list");
    let parts = Path::new("/etc/apt/sources.list.d");
    let mut files = Vec::new();
    let of_parts = |cause| DebianError::Sources { path: parts.to_owned(), cause };
    match fs::read_dir(parts) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => {}
        Err(cause) => return Err(of_parts(cause)),
        Ok(entries) => {
            for entry in entries {
                let path = entry.map_err(of_parts)?.path();
                if path
                    .extension()
                    .is_some_and(|extension| extension == "list" || extension == "sources")
                {
                    files.push(path);
                }
            }
        }
    }
    if main.exists() {
        files.push(main);
    }
    Ok(files)
}

/// Archive → the keyring file that signs it, from sources in either style.
fn keyrings(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for line in text.lines().filter(|line| line.starts_with("deb ")) {
        let Some((options, rest)) =
            line[4..].trim_start().strip_prefix('[').and_then(|line| line.split_once(']'))
        else {
            continue;
        };
        let keyring =
            options.split_whitespace().find_map(|option| option.strip_prefix("signed-by="));
        if let (Some(keyring), Some(site)) = (keyring, rest.split_whitespace().next()) {
            found.push((site.to_owned(), keyring.to_owned()));
        }
    }
    let text: String =
        text.lines().filter(|line| !line.starts_with('#')).flat_map(|line| [line, "\n"]).collect();
    for stanza in text.split("\n\n") {
        let field = |name: &str| {
            stanza.lines().find_map(|line| {
                let (key, value) = line.split_once(':')?;
                key.eq_ignore_ascii_case(name).then(|| value.trim())
            })
        };
        if let (Some(sites), Some(keyring)) = (field("URIs"), field("Signed-By")) {
            found
                .extend(sites.split_whitespace().map(|site| (site.to_owned(), keyring.to_owned())));
        }
    }
    // A key in the sources themselves has no file; mmdebstrap then takes the host's trusted keys.
    found.retain(|(_, keyring)| keyring.starts_with('/') && !keyring.contains(char::is_whitespace));
    found
}

/// Debian's suites of a release, and no others: what is proposed or backported is not asked for.
const SUFFIXES: [&str; 4] = ["", "-updates", "-security", "/updates"];

fn lines(
    release: &str,
    listed: &str,
    signed_by: &[(String, String)],
) -> Result<Vec<String>, DebianError> {
    let mut found: Vec<Index> = Vec::new();
    for line in listed.lines() {
        let [origin, site, suite, codename, component] = line.split('|').collect::<Vec<_>>()[..]
        else {
            continue;
        };
        let Some(suffix) = suffix(suite, codename) else { continue };
        if origin != "Debian"
            || [site, suite, component].iter().any(|text| text.contains(char::is_whitespace))
        {
            continue;
        }
        let same_release =
            codename == format!("{release}{suffix}") || suite == format!("{release}{suffix}");
        // Components come and go between releases; main is in each.
        if !same_release && component != "main" {
            continue;
        }
        // Unstable has no updates.
        if ["sid", "unstable"].contains(&release) && !suffix.is_empty() {
            continue;
        }
        let index = Index {
            site: site.to_owned(),
            suite: format!("{release}{suffix}"),
            component: component.to_owned(),
        };
        if !found.contains(&index) {
            found.push(index);
        }
    }
    if !found.iter().any(|index| index.suite == release) {
        return Err(DebianError::NoArchive);
    }
    found
        .iter()
        .map(|index| {
            let Index { site, suite, component } = index;
            // `mirror+file:` and `file:` name files of this host, which the image does not have.
            if !site.starts_with("http://") && !site.starts_with("https://") {
                return Err(DebianError::Archive(site.clone()));
            }
            let keyring = signed_by
                .iter()
                .find(|(of, _)| of.trim_end_matches('/') == site.trim_end_matches('/'));
            let options =
                keyring.map(|(_, keyring)| format!("[signed-by={keyring}] ")).unwrap_or_default();
            Ok(format!("deb {options}{site} {suite} {component}"))
        })
        .collect()
}

/// What follows the release's name in the suite's: `bookworm-updates` → `-updates`; `None` for other suites.
fn suffix(suite: &str, codename: &str) -> Option<&'static str> {
    let ends = |text: &str| SUFFIXES.into_iter().rev().find(|suffix| text.ends_with(suffix));
    let suffix = ends(suite)?;
    let base = |text: &str| !text[..text.len() - suffix.len()].contains(['-', '/']);
    // The code name says it as well, where the suite goes by `stable`.
    (base(suite) && (ends(codename) == Some(suffix) || suffix == "/updates")).then_some(suffix)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTED: &str = "Debian|http://mirror/debian|bookworm|bookworm|main\n\
        Debian|http://mirror/debian|bookworm|bookworm|contrib\n\
        Debian|http://mirror/debian|bookworm-updates|bookworm-updates|main\n\
        Debian|http://mirror/debian|bookworm-backports|bookworm-backports|main\n\
        Debian|http://mirror/security|bookworm-security|bookworm-security|main\n\
        nodistro|http://other/node|nodistro|nodistro|main\n";

    fn keyring() -> Vec<(String, String)> {
        vec![("http://mirror/debian/".into(), "/k.gpg".into())]
    }

    #[test]
    fn the_hosts_archives_are_taken_and_no_others() {
        assert_eq!(
            lines("bookworm", LISTED, &keyring()).unwrap(),
            [
                "deb [signed-by=/k.gpg] http://mirror/debian bookworm main",
                "deb [signed-by=/k.gpg] http://mirror/debian bookworm contrib",
                "deb [signed-by=/k.gpg] http://mirror/debian bookworm-updates main",
                "deb http://mirror/security bookworm-security main",
            ]
        );
    }

    #[test]
    fn another_release_changes_the_suites_only() {
        assert_eq!(
            lines("trixie", LISTED, &keyring()).unwrap(),
            [
                "deb [signed-by=/k.gpg] http://mirror/debian trixie main",
                "deb [signed-by=/k.gpg] http://mirror/debian trixie-updates main",
                "deb http://mirror/security trixie-security main",
            ]
        );
        assert_eq!(lines("sid", LISTED, &[]).unwrap(), ["deb http://mirror/debian sid main"]);
    }

    #[test]
    fn a_host_that_goes_by_stable_is_understood() {
        let listed = "Debian|http://m|stable|bookworm|main\nDebian|http://s|stable-security|bookworm-security|main\n";
        assert_eq!(
            lines("bookworm", listed, &[]).unwrap(),
            ["deb http://m bookworm main", "deb http://s bookworm-security main",]
        );
    }

    #[test]
    fn a_host_without_a_debian_archive_is_told_so() {
        for listed in [
            "",
            "Ubuntu|http://u|noble|noble|main\n",
            "Debian|http://s|bookworm-security|bookworm-security|main\n",
        ] {
            assert!(
                matches!(lines("bookworm", listed, &[]), Err(DebianError::NoArchive)),
                "{listed:?}"
            );
        }
        let listed = "Debian|mirror+file:/etc/apt/mirrors/debian.list|bookworm|bookworm|main\n";
        assert!(matches!(lines("bookworm", listed, &[]), Err(DebianError::Archive(_))));
    }

    #[test]
    fn keyrings_are_found_in_sources_of_either_style() {
        assert_eq!(
            keyrings(
                "# x\ndeb [arch=amd64 signed-by=/k/a.gpg] http://a/debian stable main\ndeb http://b x y\n"
            ),
            [("http://a/debian".into(), "/k/a.gpg".into())]
        );
        assert_eq!(
            keyrings(
                "Types: deb\n# note\nURIs: http://a http://b\nSuites: x\nSigned-By: /k.gpg\n\nURIs: http://c\nSigned-By:\n -----BEGIN\n"
            ),
            [("http://a".into(), "/k.gpg".into()), ("http://b".into(), "/k.gpg".into())]
        );
    }

    #[test]
    fn names_of_releases_are_checked_before_they_reach_a_command_line() {
        for good in ["bookworm", "trixie", "sid", "stable"] {
            check_release(good).unwrap();
        }
        for bad in
            ["", "-o", "Bookworm", "book worm", "bookworm/updates", "a;b", "../x", &"a".repeat(40)]
        {
            assert!(check_release(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn the_hook_is_a_script_that_a_shell_takes() {
        let status =
            crate::programs::tests::command("sh").args(["-n", "-c", &finish()]).status().unwrap();
        assert!(status.success());
    }
}
