//! How the daemon is started, and what is shown when it does not start. The daemons here are a few lines of shell.

#![expect(clippy::unwrap_used, reason = "where a test unwraps, it claims")]

mod support;

use std::process::Stdio;

use snapbox::str;
use support::World;

#[test]
fn a_daemon_that_says_why_it_cannot_start_is_believed() {
    World::with_program("fails").banger(&["vm", "list"]).assert().code(1).stdout_eq("").stderr_eq(
        str![[r#"
error: the database is newer than this daemon
  it is of version 9
try: install the newer one again

"#]],
    );
}

#[test]
fn a_daemon_that_dies_silently_shows_the_end_of_its_log_and_no_older_line() {
    let world = World::with_program("dies");
    let screen = str![[r#"
error: the daemon ended while it started
  thread main panicked
try: see [..]/state/bangerd.log

"#]];
    world.banger(&["vm", "list"]).assert().code(1).stderr_eq(screen.clone());
    world.banger(&["vm", "list"]).assert().code(1).stderr_eq(screen);
}

#[test]
fn doctor_and_json_report_it_too() {
    let world = World::with_program("fails");
    world.banger(&["doctor"]).assert().code(1).stdout_eq(str![[r#"
FAIL  daemon  the database is newer than this daemon: it is of version 9
              try: install the newer one again

"#]]);
    world.banger(&["vm", "list", "--format", "json"]).assert().code(1).stdout_eq("").stderr_eq(str![[r#"
{"code":"damaged","message":"the database is newer than this daemon","causes":["it is of version 9"],"remedy":"install the newer one again"}

"#]]);
}

#[test]
fn a_started_daemon_is_on_its_own_and_holds_no_file_of_ours() {
    let world = World::with_program("tells");
    // A lock that our shell holds while banger runs, as `flock 9` does.
    let lock = std::fs::File::create(world.home().join("lock")).unwrap();
    let mut child = world.spawn_with_file(&["vm", "list"], lock.into(), 9, Stdio::null());
    // It said that it was ready and then was not there: that is an error, not a hang.
    assert_eq!(child.wait().unwrap().code(), Some(1));
    let log = std::fs::read_to_string(world.home().join("state/bangerd.log")).unwrap();
    for line in ["fd 0 /dev/null", "leads its session", "in /", "BANGER_READY_FD=3"] {
        assert!(log.lines().any(|found| found == line), "{line} is missing in:\n{log}");
    }
    assert!(log.contains("fd 3 pipe:"), "{log}");
    assert!(!log.contains("/lock"), "the lock was inherited:\n{log}");
}
