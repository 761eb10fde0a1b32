//! An ordinary user of a world's host, with a home of its own: `nobody`, who may do nothing.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use crate::backend::Backend;
use crate::outcome::Outcome;
use crate::programs::built;
use crate::world::World;

const UID: u32 = 65534;

/// The user, and the home. What it starts carries the same mark as the world.
#[derive(Debug)]
pub struct Nobody<'a> {
    world: &'a World,
    home: PathBuf,
}

impl<'a> Nobody<'a> {
    /// With an empty home.
    #[must_use]
    pub fn of(world: &'a World) -> Self {
        let home = world.home().join("nobody");
        std::fs::create_dir(&home).unwrap();
        chown(&home, Some(UID), Some(UID)).unwrap();
        // The way to it is the test's own folder, which is private.
        for folder in home.ancestors().skip(1).take(2) {
            std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o711)).unwrap();
        }
        Self { world, home }
    }

    #[must_use]
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// Gives it the world's images, kernels and configuration.
    pub fn give_artifacts(&self) {
        self.world.give_artifacts(&self.home, UID);
    }

    /// `banger ARGS…` as this user, to its end.
    #[must_use]
    pub fn banger(&self, args: &[&str]) -> Outcome {
        self.world
            .program("setpriv", &self.words(args).iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// A daemon that finds the second of each pair of files to be the first.
    pub fn start_daemon(&self, mounts: &[(&str, &str)]) {
        let script = "while [ \"$1\" != -- ]; do mount --bind \"$1\" \"$2\" || exit; shift 2; done; shift; exec setpriv \"$@\"";
        let words = self.words(&["daemon", "start"]);
        let mounts = mounts.iter().flat_map(|(from, over)| [*from, *over]);
        let all: Vec<&str> = ["--mount", "sh", "-c", script, "-"]
            .into_iter()
            .chain(mounts)
            .chain(["--"])
            .chain(words.iter().map(String::as_str))
            .collect();
        self.world.program("unshare", &all).succeeds();
    }

    /// For setpriv(1).
    fn words(&self, args: &[&str]) -> Vec<String> {
        // Who may use KVM is in its group (Debian's udev rules); QEMU translates without it.
        let groups = match Backend::here() {
            Backend::Qemu => "65534",
            Backend::Firecracker => "kvm",
        };
        let home = format!("BANGER_HOME={}", self.home.display());
        let banger = built().join("banger");
        let fixed =
            ["--reuid", "65534", "--regid", "65534", "--groups", groups, "env", "-i", &home];
        let program = ["HOME=/nonexistent", banger.to_str().unwrap()];
        fixed.iter().chain(&program).chain(args).map(ToString::to_string).collect()
    }
}
