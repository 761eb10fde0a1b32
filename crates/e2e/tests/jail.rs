//! The jailer fails on purpose, or dies.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use banger_e2e::{BUSYBOX, World, in_world};

/// A world whose jailer is this script, of this mode, in a folder that only root can write to.
fn with_jailer(script: &str, mode: u32, body: impl FnOnce(&World)) {
    let folder = tempfile::tempdir_in("/root").unwrap();
    let jailer = folder.path().join("jailer");
    fs::write(&jailer, script).unwrap();
    fs::set_permissions(&jailer, fs::Permissions::from_mode(mode)).unwrap();
    in_world(|world| {
        let config = world.home().join("config/config.toml");
        let text = fs::read_to_string(&config).unwrap();
        let line = format!("jailer_path = {jailer:?}");
        let lines = text.lines().map(|l| if l.starts_with("jailer_path") { &line } else { l });
        fs::write(&config, lines.collect::<Vec<_>>().join("\n")).unwrap();
        body(world);
    });
}

#[test]
#[ignore = "needs the test host"]
fn a_jailer_that_dies_before_it_executes_firecracker_leaves_nothing() {
    with_jailer("#!/bin/sh\nkill -9 $$\n", 0o755, |world| {
        world
            .banger(["vm", "run", "-d", "--image", BUSYBOX, "--name", "one"])
            .exits(125)
            .complains("ended");
        world.wait_for_state("one", "stopped", Duration::from_secs(30));
        world.no_strays();
        world.banger(["vm", "delete", "one"]).succeeds();
        world.nothing_is_left();
    });
}

#[test]
#[ignore = "needs the test host"]
fn programs_that_others_can_write_to_are_not_run_as_root() {
    with_jailer("#!/bin/sh\n", 0o777, |world| {
        world
            .banger(["vm", "run", "--rm", "--image", BUSYBOX, "--", "true"])
            .exits(125)
            .complains("jailer");
        world.banger(["doctor"]).exits(1).prints("jailer");
    });
}
