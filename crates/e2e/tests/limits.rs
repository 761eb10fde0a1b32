//! Limits and bad input: each refused by name, with what to do next, nothing half made and nothing lost.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use banger_e2e::{BUSYBOX, Backend, PANICKING, in_world, wait_until};

#[test]
fn a_damaged_database_is_said_to_be_and_is_not_touched() {
    in_world(|world| {
        world.start(BUSYBOX, "one");
        world.banger(["daemon", "stop"]).succeeds();
        let database = world.home().join("state/banger.db");
        let good = std::fs::read(&database).unwrap();
        std::fs::write(&database, b"not a database, but long enough to be looked at".repeat(100))
            .unwrap();
        let refused = world.banger(["vm", "list"]);
        refused.exits(1).complains("banger.db").complains("try:");
        assert!(std::fs::read(&database).unwrap().starts_with(b"not a database"));
        let doctor = world.banger(["doctor"]);
        doctor.exits(1).prints("FAIL").prints("banger.db");
        assert!(!world.vmm_pids().is_empty(), "the VM does not notice");
        std::fs::write(&database, good).unwrap();
        world.banger(["vm", "exec", "one", "--", "true"]).succeeds();
    });
}

#[test]
fn a_newer_database_is_refused() {
    in_world(|world| {
        let database = world.home().join("state/banger.db");
        let connection = rusqlite::Connection::open(&database).unwrap();
        let known: u32 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap();
        connection.pragma_update(None, "user_version", 999).unwrap();
        world.banger(["vm", "list"]).exits(1).complains("of a newer banger").complains("999");
        connection.pragma_update(None, "user_version", known).unwrap();
        world.banger(["vm", "list"]).succeeds();
    });
}

#[test]
fn a_client_of_another_version_is_refused_by_name() {
    in_world(|world| {
        world.banger(["daemon", "start"]).succeeds();
        let mut socket = UnixStream::connect(world.home().join("run/banger.sock")).unwrap();
        socket
            .write_all(b"GET /v1/vms HTTP/1.1\r\nHost: banger\r\nConnection: close\r\nbanger-version: 999 9.9.9\r\n\r\n")
            .unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        assert!(answer.contains("this daemon is of another version"), "{answer}");
        assert!(answer.contains("banger daemon stop"), "{answer}");
    });
}

#[test]
fn a_full_disk_is_said_to_be_and_nothing_half_made_stays() {
    in_world(|world| {
        world.banger(["daemon", "start"]).succeeds();
        let small = |folder: &str| {
            let folder = world.home().join(folder);
            std::fs::create_dir_all(&folder).unwrap();
            let options = "size=64k,mode=700";
            let mounted = folder.to_str().unwrap();
            world.program("mount", &["-t", "tmpfs", "-o", options, "none", mounted]).succeeds();
            folder
        };
        let full = small(Backend::here().fills());
        world
            .banger(["vm", "run", "--rm", "--", "true"])
            .exits(125)
            .complains("No space left")
            .complains("vm prune");
        // A start that failed leaves its VM to be looked at; a creation that failed leaves none.
        world.delete_all();
        world.nothing_is_left();
        world.program("umount", &[full.to_str().unwrap()]).succeeds();
        let images = world.home().join("state/images");
        let tar = world.home().join("image.tar");
        world
            .program(
                "tar",
                &["--create", "--file", tar.to_str().unwrap(), "-C", "/bin/..", "bin/busybox"],
            )
            .succeeds();
        small("state/images");
        world
            .banger(["image", "import", tar.to_str().unwrap(), "--name", "small"])
            .exits(1)
            .complains("space");
        assert_eq!(std::fs::read_dir(&images).unwrap().count(), 0);
        world.program("umount", &[images.to_str().unwrap()]).succeeds();
        world.banger(["image", "show", "small"]).exits(1);
        world.banger(["vm", "run", "--rm", "--image", BUSYBOX, "--", "true"]).succeeds();
    });
}

#[test]
fn a_host_without_the_vmm_is_told_what_to_do() {
    in_world(|world| {
        let (program, remedy) = Backend::here().program();
        let script = format!(
            "mount --bind /dev/null {}; banger vm run --rm --image {BUSYBOX} -- true; echo status $?; \
             banger vm list; banger doctor; banger daemon stop",
            program.display()
        );
        let told = world.program("unshare", &["--mount", "sh", "-c", &script]);
        told.succeeds()
            .prints("status 125")
            .complains(program.file_name().unwrap().to_str().unwrap())
            .complains("banger doctor");
        told.prints(remedy);
        world.delete_all();
    });
}

#[test]
fn a_kernel_that_panics_is_named_in_the_vms_record() {
    in_world(|world| {
        drop(world.banger([
            "vm", "run", "-d", "--name", "bad", "--image", PANICKING, "--memory", "256M",
        ]));
        world.wait_for_state("bad", "stopped", Duration::from_secs(60));
        let shown = world.vm("bad").to_string();
        assert!(shown.contains("Kernel panic"), "{shown}");
        wait_until("nothing runs", Duration::from_secs(20), || world.processes().is_empty());
    });
}

#[test]
fn what_is_no_image_and_no_kernel_is_refused() {
    in_world(|world| {
        let junk = world.home().join("junk");
        std::fs::write(&junk, b"junk".repeat(1000)).unwrap();
        let junk = junk.to_str().unwrap();
        world.banger(["image", "import", junk, "--name", "junk"]).exits(1).complains(junk);
        world.banger(["kernel", "import", junk]).exits(1).complains("neither a bzImage");
        world
            .banger(["image", "import", "/no/such.tar", "--name", "junk"])
            .exits(1)
            .complains("/no/such.tar");
        world
            .banger(["kernel", "import", "--from-apt", "no-such-package"])
            .exits(1)
            .complains("no-such-package");
        world.banger(["image", "build", "--debian", "Not A Release"]).exits(1);
        world.banger(["image", "show", "junk"]).exits(1).complains("there is no image junk");
        let left =
            |folder: &str| std::fs::read_dir(world.home().join(folder)).unwrap().flatten().count();
        assert_eq!(left("state/images"), 3, "the template's three");
        assert_eq!(left("state/kernels"), 1);
    });
}

#[test]
fn what_is_in_use_is_not_deleted() {
    in_world(|world| {
        world.banger(["vm", "create", "--name", "user", "--image", BUSYBOX]).succeeds();
        world
            .banger(["image", "delete", BUSYBOX])
            .exits(1)
            .complains("is used by user")
            .complains("vm delete user");
        let kernel = world.vm("user")["kernel"].as_str().unwrap().to_owned();
        world.banger(["kernel", "delete", &kernel]).exits(1).complains("is used by user");
        world.banger(["vm", "delete", "user"]).succeeds();
        world.banger(["image", "delete", BUSYBOX]).succeeds();
        world
            .banger(["vm", "create", "--image", BUSYBOX])
            .exits(1)
            .complains("there is no image busybox");
    });
}

#[test]
fn only_the_owner_may_speak_to_the_daemon() {
    in_world(|world| {
        world.banger(["daemon", "start"]).succeeds();
        let socket = world.home().join("run/banger.sock");
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &std::fs::metadata(&socket).unwrap().permissions(),
        );
        assert_eq!(mode & 0o777, 0o600);
        // Even with the files opened up, another user's connection is closed unread.
        let open_up = "chmod 755 \"$1\" \"$1/..\" \"$1/../..\" && chmod 666 \"$1/banger.sock\"";
        let run = world.home().join("run");
        world.program("sh", &["-c", open_up, "-", run.to_str().unwrap()]).succeeds();
        let ask = "import socket,sys\ns=socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\n\
                   try:\n s.sendall(b'GET /v1/vms HTTP/1.1\\r\\nHost: b\\r\\nConnection: close\\r\\n\\r\\n')\n \
                   d=s.recv(100)\nexcept ConnectionError: d=b''\nprint(len(d))";
        let asked = world.program(
            "setpriv",
            &[
                "--reuid",
                "65534",
                "--clear-groups",
                "/usr/bin/python3",
                "-c",
                ask,
                socket.to_str().unwrap(),
            ],
        );
        asked.succeeds().prints_only("0\n");
    });
}
