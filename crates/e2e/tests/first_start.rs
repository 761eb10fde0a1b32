//! A user's first minutes: an empty state folder, many commands at once, another user's account.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;

use banger_e2e::{BUSYBOX, Backend, Nobody, busybox_tar, in_world, in_world_with_archive};

#[test]
fn many_commands_at_once_on_an_empty_home_start_one_daemon() {
    in_world(|world| {
        let lists: Vec<_> =
            (0..8).map(|_| world.background(&["vm", "list", "--format", "json"])).collect();
        for list in lists {
            list.end().succeeds().prints_only("[]\n");
        }
        world.banger(["daemon", "stop"]).succeeds();
        assert!(
            !world.home().join("run/banger.sock").exists(),
            "a daemon that was told to stop leaves no socket"
        );
    });
}

#[test]
fn an_ordinary_user_has_all_of_it_without_root() {
    in_world_with_archive(|world| {
        let nobody = Nobody::of(world);
        let home = nobody.home();
        let as_nobody = |args: &[&str]| nobody.banger(args);
        match Backend::here() {
            Backend::Qemu => {
                let tar = busybox_tar(home, "busybox.tar");
                as_nobody(&["kernel", "import", "--from-apt", "linux-image-cloud-amd64"])
                    .succeeds();
                as_nobody(&["image", "import", tar.to_str().unwrap(), "--name", BUSYBOX])
                    .succeeds();
            }
            // There is no archive where this backend is tested.
            Backend::Firecracker => nobody.give_artifacts(),
        }
        as_nobody(&["vm", "run", "--rm", "--image", BUSYBOX, "--memory", "256M", "--", "id", "-u"])
            .succeeds()
            .prints_only("0\n");
        as_nobody(&["vm", "run", "-d", "--name", "one", "--image", BUSYBOX, "--memory", "256M"])
            .succeeds();
        as_nobody(&["vm", "stop", "one"]).succeeds();
        as_nobody(&["vm", "delete", "one"]).succeeds();
        as_nobody(&["doctor"]).succeeds();
        as_nobody(&["daemon", "stop"]).succeeds();
        let left = |folder: &Path| std::fs::read_dir(folder).unwrap().count();
        assert_eq!(left(&home.join("state/vms")) + left(&home.join("run/vms")), 0);
    });
}
