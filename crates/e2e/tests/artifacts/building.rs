//! Images and kernels from the distribution's archive: where apt reaches one.

use std::time::Duration;

use banger_e2e::{in_world_with_archive, wait_until};

#[test]
fn a_daemon_killed_while_it_builds_an_image_leaves_no_program_no_mount_and_no_file() {
    in_world_with_archive(|world| {
        let build = world.background(&["image", "build", "--debian", "bookworm", "--name", "new"]);
        let images = world.home().join("state/images");
        let unpacking = || {
            let scratch = std::fs::read_dir(&images).unwrap().flatten().map(|entry| entry.path());
            let below = scratch.filter_map(|path| std::fs::read_dir(path).ok()).flatten().flatten();
            below.into_iter().any(|root| root.path().join("usr/bin").exists())
        };
        wait_until("packages are being unpacked", Duration::from_secs(120), unpacking);
        world.kill_daemon();
        build.end().exits(1);
        assert!(!world.working_programs().is_empty(), "something worked for it");
        world.banger(["image", "show", "new"]).exits(1);
        assert_eq!(world.working_programs(), Vec::<String>::new());
        let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
        assert!(!mounts.contains(world.home().to_str().unwrap()), "{mounts}");
        let hidden = std::fs::read_dir(&images).unwrap().flatten().map(|entry| entry.file_name());
        let left: Vec<_> = hidden.filter(|name| name.to_string_lossy().starts_with('.')).collect();
        assert!(left.is_empty(), "{left:?}");
    });
}
