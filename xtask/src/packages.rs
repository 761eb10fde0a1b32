//! What this project needs of the host beyond a Rust toolchain, and how it comes there: from the distribution, by
//! apt-get, said before it is done. Asks nothing; removes and upgrades nothing.

use std::path::Path;

use crate::failure::Failure;
use crate::host::{self, Distribution, Family};
use crate::log::Log;
use crate::programs::{Call, find};

/// Something that must be there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Need {
    there: Sign,
    package: &'static str,
    why: &'static str,
}

/// How we tell that it is there.
#[derive(Debug, Clone, Copy)]
enum Sign {
    Program(&'static str),
    File(&'static str),
}

const fn program(name: &'static str, package: &'static str, why: &'static str) -> Need {
    Need { there: Sign::Program(name), package, why }
}

const fn file(path: &'static str, package: &'static str, why: &'static str) -> Need {
    Need { there: Sign::File(path), package, why }
}

/// To build and to run.
pub(crate) const TO_RUN: &[Need] = &[
    program("cc", "gcc", "links every program; compiles the C in SQLite and liblzma"),
    file(
        "/usr/lib/x86_64-linux-gnu/libc.a",
        "libc6-dev",
        "the guest's agent is one static program",
    ),
    program("qemu-system-x86_64", "qemu-system-x86", "runs the VMs"),
    program("mke2fs", "e2fsprogs", "makes disks and images"),
    program("debugfs", "e2fsprogs", "makes disks and images"),
    program("e2fsck", "e2fsprogs", "makes disks and images"),
    program("mmdebstrap", "mmdebstrap", "builds Debian images"),
    program("fakeroot", "fakeroot", "keeps owners and modes in images without root"),
    program("gpg", "gpg", "tells mmdebstrap which key signs an archive"),
    program("mount", "mount", "mmdebstrap sets packages up with /proc and /dev in place"),
    program("tar", "tar", "unpacks root filesystems"),
    program("nft", "nftables", "keeps VMs from what they are not to reach"),
    file(
        "/var/lib/dpkg/info/debian-archive-keyring.list",
        "debian-archive-keyring",
        "signatures of Debian's archive",
    ),
];

/// For whoever is not root, on top.
const TO_RUN_AS_A_USER: &[Need] = &[
    program("newuidmap", "uidmap", "lets mmdebstrap own files under many ids without root"),
    program("fakechroot", "fakechroot", "the same for a user who has no ids in /etc/subuid"),
];

/// To test, on top.
pub(crate) const TO_TEST: &[Need] = &[
    program("git", "git", "tells which files belong to the repository"),
    file(
        "/var/lib/dpkg/info/busybox-static.list",
        "busybox-static",
        "what the smallest guests of the tests are made of",
    ),
    program("python3", "python3", "is the stranger who knocks at the daemon's socket"),
    program("cpio", "cpio", "reads back the archives that the image tests make"),
    program("xz", "xz-utils", "compresses what the image tests import"),
    program("zstd", "zstd", "compresses what the image tests import"),
    program("mkfs.btrfs", "btrfs-progs", "makes the filesystem on which disks share blocks"),
    program("docker-registry", "docker-registry", "is the registry that tests pull from"),
    program("skopeo", "skopeo", "pushes images to it, and is what imports are measured against"),
    program("buildah", "buildah", "builds an image of a Dockerfile"),
    program("minisign", "minisign", "signs the kernel catalogs of the tests"),
    program("openssl", "openssl", "makes the certificate of a registry that speaks TLS"),
    program("umoci", "umoci", "is the other opinion on what an image holds"),
    program("ip", "iproute2", "gives each test a network of its own"),
    program("iptables-nft-restore", "iptables", "writes what Docker and ufw write"),
    program("passt", "passt", "lets an ordinary user's VMs out"),
    program("dig", "bind9-dnsutils", "asks the DNS server, and checks its answers"),
    program("pip3", "python3-pip", "fetches Firecracker and its jailer"),
    program("qemu-img", "qemu-utils", "makes the test host's disks"),
    program("ssh", "openssh-client", "is the way into the test host"),
    program("rsync", "rsync", "copies to a guest and back by ssh"),
    program("setpriv", "util-linux", "sees to it that the test host ends with its test"),
];

/// What the guest's kernel comes from. Never installed: only fetched and unpacked.
pub(crate) fn kernel_package(family: Family) -> &'static str {
    match family {
        Family::Ubuntu => "linux-image-virtual",
        Family::Debian | Family::Other => "linux-image-cloud-amd64",
    }
}

/// Installs what is missing of `needs`, and sees to it that apt knows `fetched`.
pub(crate) fn ensure(needs: &[Need], fetched: Option<&str>, log: &mut Log) -> Result<(), Failure> {
    let distribution = Distribution::here();
    if !cfg!(target_arch = "x86_64") {
        return Err(Failure::new("banger runs on x86-64 machines only, so far"));
    }
    let for_users = if host::is_root() { &[] } else { TO_RUN_AS_A_USER };
    let missing: Vec<Need> =
        needs.iter().chain(for_users).copied().filter(|need| !is_there(*need)).collect();
    if distribution.family == Family::Other {
        return if missing.is_empty() { Ok(()) } else { Err(refusal(&distribution, &missing)) };
    }
    let packages = packages(&missing);
    if packages.is_empty() {
        log.line("everything that is needed is installed");
    } else {
        log.line(&format!("missing on this host ({}):", distribution.name));
        for line in reasons(&missing) {
            log.line(&line);
        }
    }
    let known = |package: &str| {
        Call::new("apt-cache").args(["show", "--no-all-versions", package]).succeeds()
    };
    let mut updated = false;
    if packages.iter().copied().chain(fetched).any(|package| !known(package)) {
        log.line("apt's package lists are absent or too old, so they are fetched first");
        apt_get(["update"], log)?;
        updated = true;
    }
    if packages.is_empty() {
        return Ok(());
    }
    let install =
        ["install", "--yes", "--no-install-recommends"].into_iter().chain(packages.iter().copied());
    match apt_get(install.clone(), log) {
        // Lists that name versions which the archive has replaced since.
        Err(_) if !updated => {
            log.line("apt-get failed; once more, with new package lists");
            apt_get(["update"], log)?;
            apt_get(install, log)?;
        }
        outcome => outcome?,
    }
    match missing.iter().find(|need| !is_there(**need)) {
        None => Ok(()),
        Some(need) => Err(Failure::new(format!(
            "{} is installed, but {} is not there",
            need.package,
            sign(*need)
        ))),
    }
}

fn is_there(need: Need) -> bool {
    match need.there {
        Sign::Program(name) => find(name).is_some(),
        Sign::File(path) => Path::new(path).exists(),
    }
}

fn sign(need: Need) -> &'static str {
    match need.there {
        Sign::Program(name) | Sign::File(name) => name,
    }
}

/// Each once, in the order of the needs.
fn packages(needs: &[Need]) -> Vec<&'static str> {
    let mut packages = Vec::new();
    for need in needs {
        if !packages.contains(&need.package) {
            packages.push(need.package);
        }
    }
    packages
}

fn reasons(needs: &[Need]) -> Vec<String> {
    let width = needs.iter().map(|need| sign(*need).len()).max().unwrap_or(0);
    needs
        .iter()
        .map(|need| format!("  {:width$}  {} (package {})", sign(*need), need.why, need.package))
        .collect()
}

fn refusal(distribution: &Distribution, missing: &[Need]) -> Failure {
    let mut failure = Failure::new(format!(
        "this is {}: only the packages of Debian and Ubuntu are known here, so nothing was installed",
        distribution.name
    ))
    .because("missing on this host (with Debian's package names):");
    for line in reasons(missing) {
        failure = failure.because(line);
    }
    failure.remedy("install these by your system's means and repeat the command")
}

/// As root, or through sudo. The command is shown before it runs.
fn apt_get<'a>(arguments: impl IntoIterator<Item = &'a str>, log: &mut Log) -> Result<(), Failure> {
    // Waits for another apt that runs, such as a fresh machine's unattended upgrade, instead of failing.
    let words = ["apt-get", "-o", "DPkg::Lock::Timeout=120"].into_iter().chain(arguments);
    let call = if host::is_root() {
        Call::new("env").args(["DEBIAN_FRONTEND=noninteractive"]).args(words)
    } else if find("sudo").is_some() {
        Call::new("sudo").args(["env", "DEBIAN_FRONTEND=noninteractive"]).args(words)
    } else {
        let command = words.collect::<Vec<_>>().join(" ");
        return Err(Failure::new(
            "packages are missing, and this is neither root nor is there sudo",
        )
        .remedy(format!("as root: {command}")));
    };
    call.run(log).map_err(|failure| {
        failure.remedy("see what apt-get says above; repeat the command when it is mended")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_is_installed_once_however_many_of_its_programs_are_missing() {
        assert_eq!(packages(&TO_RUN[3..6]), ["e2fsprogs"]);
    }

    #[test]
    fn what_is_there_is_told_from_what_is_not() {
        assert!(is_there(program("sh", "dash", "")));
        assert!(!is_there(program("no-such-program-anywhere", "none", "")));
        assert!(!is_there(file("/no/such/file", "none", "")));
    }

    #[test]
    fn a_foreign_system_is_refused_by_name_with_a_list_of_what_it_lacks() {
        let fedora = Distribution { name: "Fedora Linux 41".into(), family: Family::Other };
        let failure = refusal(&fedora, &TO_RUN[2..3]);
        assert!(failure.to_string().starts_with("this is Fedora Linux 41: "), "{failure}");
        assert!(
            failure.causes().iter().any(|line| line.contains("qemu-system-x86_64")),
            "{failure:?}"
        );
    }
}
