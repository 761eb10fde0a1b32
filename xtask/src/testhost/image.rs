//! The test host's image: a Debian with systemd on a disk, its kernel, and an initrd of ours. Made once by root and kept
//! under a hash of all that goes into it, except for what the archive has newer every week.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::key::Key;
use super::{locked, remove, remove_others};
use crate::failure::Failure;
use crate::host;
use crate::log::Log;
use crate::programs::Call;

/// The Debian release of the test host.
const RELEASE: &str = "bookworm";

/// What the host has beside Debian's essential packages.
const PACKAGES: [&str; 24] = [
    "systemd",
    "systemd-sysv",
    "dbus",
    "udev",
    "kmod",
    "iproute2",
    "nftables",
    "dmsetup",
    "e2fsprogs",
    "btrfs-progs",
    "openssh-server",
    "procps",
    // Who comes to guests, in the tests.
    "openssh-client",
    "rsync",
    // The host's programs ask it for names, those of VMs among them.
    "systemd-resolved",
    "libnss-resolve",
    // What banger's import of images needs.
    "fakeroot",
    "xz-utils",
    "zstd",
    // What banger brings repositories into guests with.
    "git",
    // Small guests are made of it, and so is the host's own initrd.
    "busybox-static",
    // The stranger at a socket, in the tests.
    "python3",
    // For people who look into it.
    "strace",
    "less",
];

/// The program, and the file that is its one input of ours.
const BUILD: &str = include_str!("image/build.sh");
const KERNEL: &str = include_str!("image/kernel.sh");
const INIT: &str = include_str!("image/init.sh");

/// What is added to Debian. Its keys are made anew for each image.
const FILES: &[(&str, &str)] = &[
    ("etc/hostname", "testhost\n"),
    ("etc/hosts", "127.0.0.1 localhost testhost\n::1 localhost\n"),
    (
        "etc/fstab",
        "/dev/vda / ext4 noatime,noinit_itable 0 0\n\
         /dev/vdb /banger ext4 ro,noatime,noauto 0 0\n\
         /dev/vdc /cache ext4 noatime,noinit_itable,noauto 0 0\n",
    ),
    // QEMU's user network has fixed addresses, so nobody waits for DHCP.
    (
        "etc/systemd/network/10-eth0.network",
        "[Match]\nName=eth0\n[Network]\nAddress=10.0.2.15/24\nGateway=10.0.2.2\n\
         LLMNR=no\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n",
    ),
    (
        "etc/ssh/sshd_config.d/testhost.conf",
        "HostKey /etc/ssh/ssh_host_ed25519_key\nPermitRootLogin prohibit-password\nUseDNS no\nUsePAM no\n\
         SetEnv PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/banger/bin\n",
    ),
    (
        "etc/modules-load.d/testhost.conf",
        "kvm\nkvm-amd\nloop\ndm-mod\ndm-snapshot\ntun\nbridge\nveth\nnf_tables\n",
    ),
    // A host that is up opens the port, which QEMU tells us.
    (
        "etc/systemd/system/testhost-ready.service",
        "[Unit]\nDescription=Tells whoever runs this machine that it is up\n[Service]\n\
         ExecStart=/bin/sh -c 'udevadm wait --timeout=60 /dev/virtio-ports/testhost-ready; \
         systemctl is-system-running --wait > /dev/null; : > /dev/virtio-ports/testhost-ready'\n\
         [Install]\nWantedBy=multi-user.target\n",
    ),
];

/// In its folder: `disk.raw`, `vmlinuz`, `initrd.img`, `key` (to log in), `known_hosts`.
#[derive(Debug, Clone)]
pub(super) struct Image {
    pub(super) folder: PathBuf,
    pub(super) key: String,
}

/// The image of this recipe, made if it is not there.
pub(super) fn ensure(places: &Path, log: &mut Log) -> Result<Image, Failure> {
    let _lock = locked(places)?;
    let key = key();
    let folder = places.join(format!("image-{key}"));
    if !folder.exists() {
        if !host::is_root() {
            return Err(Failure::new("the test host's image can be made by root only")
                .remedy("repeat the command as root"));
        }
        let draft = places.join("image-draft");
        remove(&draft)?;
        make(&draft, log)?;
        fs::rename(&draft, &folder).map_err(|error| {
            Failure::new(format!("cannot rename {}", draft.display())).cause(&error)
        })?;
    }
    remove_others(places, "image-", &folder)?;
    log.line(&format!("the test host's image is {}", folder.display()));
    Ok(Image { folder, key })
}

fn key() -> String {
    let recipe = [BUILD, KERNEL, INIT, RELEASE].into_iter().chain(PACKAGES);
    let files = FILES.iter().flat_map(|(path, text)| [*path, *text]);
    recipe.chain(files).fold(Key::new(), Key::with).text()
}

fn make(draft: &Path, log: &mut Log) -> Result<(), Failure> {
    const MOST: Duration = Duration::from_secs(900);
    let files = draft.join("files");
    for (path, text) in FILES {
        write(&files.join(path), text)?;
    }
    for (script, text) in [("build.sh", BUILD), ("kernel.sh", KERNEL), ("init.sh", INIT)] {
        write(&draft.join(script), text)?;
    }
    let ours = new_key(draft, "key")?;
    write(&files.join("root/.ssh/authorized_keys"), &ours)?;
    let hosts = new_key(draft, "host-key")?;
    write(&draft.join("known_hosts"), &format!("testhost {hosts}"))?;
    for (from, to) in
        [("host-key", "ssh_host_ed25519_key"), ("host-key.pub", "ssh_host_ed25519_key.pub")]
    {
        move_file(&draft.join(from), &files.join("etc/ssh").join(to))?;
    }
    // What is mounted on the way is mounted for nobody else, and goes with whoever mounted it, even killed.
    Call::new("unshare")
        .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"])
        .args(["sh", "build.sh", RELEASE, &PACKAGES.join(",")])
        .args(sources()?)
        .env("TMPDIR", draft)
        .in_folder(draft)
        .silent_for(MOST)
        .run(log)?;
    for scrap in ["tree", "kernel", "initrd", "files"] {
        remove(&draft.join(scrap))?;
    }
    Ok(())
}

/// A key without a passphrase; gives its public half.
fn new_key(folder: &Path, name: &str) -> Result<String, Failure> {
    Call::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "testhost", "-f", name])
        .in_folder(folder)
        .output()?;
    let path = folder.join(format!("{name}.pub"));
    fs::read_to_string(&path)
        .map_err(|error| Failure::new(format!("cannot read {}", path.display())).cause(&error))
}

/// The release's suites in the archives that this machine's apt knows, as lines of a sources.list; none where it knows
/// another distribution's.
fn sources() -> Result<Vec<String>, Failure> {
    let known = Call::new("apt-get")
        .args(["indextargets", "--format", "$(SITE) $(CODENAME) $(COMPONENT)"])
        .args(["Created-By: Packages"])
        .output()?;
    Ok(lines(&known))
}

fn lines(known: &str) -> Vec<String> {
    let mut lines = Vec::new();
    for target in known.lines() {
        let [site, suite, "main"] = target.split(' ').collect::<Vec<_>>()[..] else { continue };
        let part = suite.strip_prefix(RELEASE);
        let line = format!("deb {site} {suite} main");
        if part.is_some_and(|part| ["", "-updates", "-security"].contains(&part))
            && !lines.contains(&line)
        {
            lines.push(line);
        }
    }
    lines
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    let made = path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| {
        fs::write(path, text)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o644))
    });
    made.map_err(|error| Failure::new(format!("cannot write {}", path.display())).cause(&error))
}

fn move_file(from: &Path, to: &Path) -> Result<(), Failure> {
    let moved = to.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::rename(from, to));
    moved.map_err(|error| Failure::new(format!("cannot write {}", to.display())).cause(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archives_of_the_release_are_taken_and_others_are_not() {
        let known = "http://a.example/debian bookworm main\n\
                     http://a.example/debian bookworm main\n\
                     http://a.example/debian bookworm contrib\n\
                     http://a.example/debian bookworm-updates main\n\
                     http://a.example/debian bookworm-backports main\n\
                     http://s.example/debian-security bookworm-security main\n\
                     http://a.example/debian trixie main\n\
                     http://other.example/apt nodistro main\n";
        assert_eq!(
            lines(known),
            [
                "deb http://a.example/debian bookworm main",
                "deb http://a.example/debian bookworm-updates main",
                "deb http://s.example/debian-security bookworm-security main",
            ]
        );
    }
}
