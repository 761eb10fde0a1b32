//! The kinds of disks: laid over the image, a snapshot of its device, and sharing the image's blocks.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::os::unix::fs::MetadataExt;

use banger_e2e::{BUSYBOX, Backend, SYSTEMD, World, in_world, in_world_at, run};

fn disk_driver(world: &World) -> String {
    let report = world.banger(["doctor", "--format", "json"]).json();
    let findings = report["findings"].as_array().unwrap().clone();
    let storage = findings.iter().find(|finding| finding["check"] == "storage").unwrap();
    storage["text"].as_str().unwrap().split(':').next().unwrap().to_owned()
}

/// Bytes of the guest's root filesystem that are free, in MiB.
fn free_mib(world: &World, name: &str) -> u64 {
    let df = world
        .banger(["vm", "exec", name, "--", "df", "-m", "--output=avail", "/"])
        .succeeds()
        .text();
    df.lines().last().unwrap().trim().parse().unwrap()
}

#[test]
fn a_disk_that_shares_the_images_blocks_boots_grows_and_leaves_the_image_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (file, mount) = (folder.path().join("btrfs"), folder.path().join("mount"));
    std::fs::create_dir(&mount).unwrap();
    std::fs::File::create(&file).unwrap().set_len(6 << 30).unwrap();
    let [file, mount_text] = [file.to_str().unwrap(), mount.to_str().unwrap()];
    run("mkfs.btrfs", &["-q", file]);
    run("mount", &["-o", "loop", file, mount_text]);
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        in_world_at(&mount, |world| {
            assert_eq!(disk_driver(world), "reflink");
            let image = std::fs::read_dir(world.home().join("state/images")).unwrap().flatten();
            let before: Vec<_> =
                image.map(|e| (e.path(), e.metadata().unwrap().mtime_nsec())).collect();
            world
                .banger(["vm", "run", "-d", "--name", "one", "--image", SYSTEMD, "--disk", "5G"])
                .succeeds();
            world
                .banger(["vm", "exec", "one", "--", "sh", "-c", "echo kept > /root/file"])
                .succeeds();
            // The image's filesystem is small; the guest has grown it to the disk.
            assert!(free_mib(world, "one") > 3000, "{} MiB are free", free_mib(world, "one"));
            world.banger(["vm", "restart", "one"]).succeeds();
            world
                .banger(["vm", "exec", "one", "--", "cat", "/root/file"])
                .succeeds()
                .prints_only("kept\n");
            for (path, mtime) in before {
                assert_eq!(
                    std::fs::metadata(&path).unwrap().mtime_nsec(),
                    mtime,
                    "{}",
                    path.display()
                );
            }
            world
                .banger(["vm", "run", "--rm", "--image", BUSYBOX, "--disk", "100M", "--", "true"])
                .exits(125);
        });
    }));
    run("umount", &["--lazy", mount_text]);
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn a_disk_has_its_own_size_and_costs_only_what_is_written() {
    in_world(|world| {
        assert_eq!(disk_driver(world), Backend::here().disk_driver());
        world.banger(["vm", "run", "-d", "--name", "one", "--disk", "20G"]).succeeds();
        assert!(free_mib(world, "one") > 18_000);
        world
            .banger([
                "vm",
                "exec",
                "one",
                "--",
                "dd",
                "if=/dev/zero",
                "of=/root/big",
                "bs=1M",
                "count=50",
            ])
            .succeeds();
        world.banger(["vm", "stop", "one"]).succeeds();
        let disk = std::fs::metadata(world.vm_folder("one").join("disk.ext4")).unwrap();
        assert!(disk.len() >= 20 << 30);
        assert!(disk.blocks() * 512 < 300 << 20, "{} bytes are allocated", disk.blocks() * 512);
    });
}

#[test]
fn files_of_the_image_can_be_changed_removed_and_installed_over() {
    in_world(|world| {
        world.start(SYSTEMD, "one");
        let script = "set -e; rm /etc/motd; mv /usr/bin/git /usr/bin/got; /usr/bin/got --version; chown 5:6 /etc/hosts; \
                      ln /bin/true /bin/truth; stat -c %u:%g /etc/hosts; test ! -e /etc/motd; setcap -h >/dev/null 2>&1 || true; \
                      mkdir /opt/a && mv /opt/a /opt/b && ls /opt";
        world
            .banger(["vm", "exec", "one", "--", "sh", "-c", script])
            .succeeds()
            .prints("5:6\n")
            .prints("b\n");
        world
            .banger(["vm", "exec", "one", "--", "getcap", "/usr/bin/ping"])
            .succeeds()
            .prints("cap_net_raw=ep");
    });
}
