//! A banger home with a kernel and images, made once by the programs under test and copied for every world.
//!
//! It is in `target/e2e-cache`: the kernel and the default image come from the host's apt, the busybox images from the
//! host's static busybox. Remove the folder to have it made anew. `BANGER_E2E_CACHE` names another folder, which may be
//! read-only if it is complete: where there is no archive, such as in the test host.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::{FlockOperation, flock};

use crate::backend::Backend;
use crate::outcome::Outcome;
use crate::programs::{built, must, new, target};
use crate::{BUSYBOX, PANICKING, SYSTEMD};

/// The file that says that a template is whole. Its number changes when an older template no longer serves.
const COMPLETE: &str = "complete-6";

/// The template's home.
#[must_use]
pub fn home() -> &'static Path {
    static HOME: OnceLock<PathBuf> = OnceLock::new();
    HOME.get_or_init(|| {
        let cache = match std::env::var_os("BANGER_E2E_CACHE") {
            Some(folder) => PathBuf::from(folder),
            None => target().join("e2e-cache"),
        };
        fs::create_dir_all(&cache).unwrap();
        let cache = cache.canonicalize().unwrap();
        let home = cache.join("home");
        let complete = cache.join(COMPLETE);
        if complete.exists() {
            return home;
        }
        let lock = File::create(cache.join("lock")).unwrap();
        flock(&lock, FlockOperation::LockExclusive).unwrap();
        if !complete.exists() {
            if home.exists() {
                banger(&home, &["daemon", "stop"]);
                fs::remove_dir_all(&home).unwrap();
            }
            make(&home, &cache);
            fs::write(&complete, "").unwrap();
        }
        home
    })
}

fn make(home: &Path, cache: &Path) {
    banger(home, &["kernel", "import", "--from-apt", "linux-image-cloud-amd64"]).succeeds();
    let tar = busybox_tar(cache, "busybox.tar");
    banger(home, &["image", "import", tar.to_str().unwrap(), "--name", BUSYBOX]).succeeds();
    let tar = busybox_tar_with(cache, "panicking.tar", Some("#!/bin/sh\nexit 3\n"));
    banger(home, &["image", "import", tar.to_str().unwrap(), "--name", PANICKING]).succeeds();
    // The default image, with what a user gets who names none.
    banger(home, &["vm", "create", "--name", "maker", "--image", SYSTEMD]).succeeds();
    banger(home, &["vm", "delete", "maker"]).succeeds();
    // And an initramfs.
    banger(home, &["vm", "run", "--rm", "--image", BUSYBOX, "--", "true"]).succeeds();
    banger(home, &["daemon", "stop"]).succeeds();
}

fn banger(home: &Path, args: &[&str]) -> Outcome {
    fs::create_dir_all(home.join("config")).unwrap();
    fs::write(home.join("config/config.toml"), Backend::here().config()).unwrap();
    let output = new(built().join("banger")).args(args).env("BANGER_HOME", home).output().unwrap();
    Outcome::new(format!("banger {}", args.join(" ")), output)
}

/// A root filesystem of one static program, without an init, as a tar that is there already.
#[must_use]
pub fn busybox_layer() -> PathBuf {
    home().with_file_name("busybox.tar")
}

/// A root filesystem of one static program, without an init, as a tar in `folder`.
#[must_use]
pub fn busybox_tar(folder: &Path, name: &str) -> PathBuf {
    busybox_tar_with(folder, name, None)
}

fn busybox_tar_with(cache: &Path, name: &str, init: Option<&str>) -> PathBuf {
    let root = cache.join(name).with_extension("root");
    if root.exists() {
        fs::remove_dir_all(&root).unwrap();
    }
    for folder in ["bin", "etc", "root", "tmp", "dev", "proc", "sys", "run"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    let busybox =
        ["/usr/bin/busybox", "/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
    fs::copy(busybox.expect("apt-get install busybox-static"), root.join("bin/busybox")).unwrap();
    for applet in "sh cat ls ps id env grep pwd sleep kill sha256sum head tail dd uname echo true false stty tty mkdir touch sync \
                   mount umount hostname seq wc yes poweroff reboot stat chmod chown test"
        .split_whitespace()
    {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/tmp:/bin/sh\n",
    )
    .unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\nuser:x:1000:\nwheel:x:10:user\n").unwrap();
    if let Some(script) = init {
        fs::create_dir_all(root.join("sbin")).unwrap();
        fs::write(root.join("sbin/init"), script).unwrap();
        must("chmod", &["755", "sbin/init"], &root);
    }
    let tar = cache.join(name);
    let tar_text = tar.to_str().unwrap();
    must(
        "tar",
        &["--create", "--file", tar_text, "--owner=0", "--group=0", "--numeric-owner", "."],
        &root,
    );
    tar
}
