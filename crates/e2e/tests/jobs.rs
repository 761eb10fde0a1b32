//! `vm exec -d`, `vm jobs`, `vm attach`: commands that go on in a guest when nobody is there.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::io::Write;

use banger_e2e::{BUSYBOX, World, in_world};
use rustix::process::Signal;

#[test]
fn a_job_outlives_its_clients_the_daemon_and_a_restart() {
    in_world(|world| {
        world.start(BUSYBOX, "one");
        world.each(&[
            (
                "one_that_nobody_attends_is_kept_with_its_end",
                one_that_nobody_attends_is_kept_with_its_end,
            ),
            (
                "whoever_attaches_sees_all_of_it_and_leaves_it_be",
                whoever_attaches_sees_all_of_it_and_leaves_it_be,
            ),
            (
                "a_shell_with_a_terminal_is_left_and_found_again",
                a_shell_with_a_terminal_is_left_and_found_again,
            ),
            ("stdin_reaches_one_that_keeps_it_open", stdin_reaches_one_that_keeps_it_open),
            ("one_is_ended_by_a_signal", one_is_ended_by_a_signal),
            (
                "what_cannot_be_is_refused_and_leaves_no_job",
                what_cannot_be_is_refused_and_leaves_no_job,
            ),
            ("only_the_newest_of_much_output_is_kept", only_the_newest_of_much_output_is_kept),
            ("the_plug_pulled_keeps_what_was_synced", the_plug_pulled_keeps_what_was_synced),
        ]);
    });
}

/// Its number.
fn job(world: &World, flags: &[&str], script: &str) -> String {
    let words = [&["-q", "vm", "exec", "-d"], flags, &["one", "--", "sh", "-c", script]].concat();
    let started = world.banger_with(&words, b"");
    started.succeeds().text().trim().to_owned()
}

fn shown(world: &World, number: &str) -> serde_json::Value {
    let jobs = world.banger(["vm", "jobs", "one", "--format", "json"]).succeeds().json();
    let jobs = jobs.as_array().unwrap();
    let number: u64 = number.parse().unwrap();
    jobs.iter().find(|job| job["number"] == number).unwrap().clone()
}

/// The status of a job that is about to end, by attaching to it.
fn ends(world: &World, number: &str, status: i32) -> String {
    world.banger(["vm", "attach", "-n", "one", number]).exits(status).text()
}

fn one_that_nobody_attends_is_kept_with_its_end(world: &World) {
    let number = job(world, &["-e", "WORD=given"], "echo out $WORD; echo err >&2; exit 7");
    assert_eq!(ends(world, &number, 7), "out given\n");
    assert_eq!(shown(world, &number)["state"], "ended");
    assert_eq!(shown(world, &number)["exit"]["status"], 7);
    let log = world.banger(["vm", "logs", "one", "--job", &number]);
    log.succeeds().prints_only("out given\n");
    assert_eq!(log.errors(), "err\n");
    world.banger(["vm", "jobs", "one"]).succeeds().prints("exit 7");
}

fn whoever_attaches_sees_all_of_it_and_leaves_it_be(world: &World) {
    let script = "echo first; while [ ! -e /tmp/go ]; do sleep 0.1; done; echo last";
    let number = job(world, &[], script);
    let mut watching = world.background(&["vm", "attach", "-n", "one", &number]);
    assert_eq!(watching.line(), "first");
    watching.signal(Signal::KILL);
    drop(watching.end());
    // Its client, and the daemon that carried it, are gone.
    world.kill_daemon();
    let mut again = world.background(&["vm", "logs", "-f", "one", "--job", &number]);
    assert_eq!(again.line(), "first");
    assert_eq!(shown(world, &number)["state"], "running");
    world.banger(["vm", "exec", "one", "--", "touch", "/tmp/go"]).succeeds();
    assert_eq!(again.line(), "last");
    again.end().succeeds();
    assert_eq!(ends(world, &number, 0), "first\nlast\n");
}

fn a_shell_with_a_terminal_is_left_and_found_again(world: &World) {
    let started = world.banger(["-q", "vm", "exec", "-d", "-t", "one", "--", "sh"]);
    let number = started.succeeds().text().trim().to_owned();
    let mut terminal = world.terminal(&["vm", "attach", "one", &number], 30, 100);
    terminal.types("stty size; KEPT=yes\n");
    terminal.shows("30 100");
    terminal.types("\u{1d}");
    terminal.shows("goes on");
    assert_eq!(terminal.ends(), Some(0));
    let mut terminal = world.terminal(&["vm", "attach", "one", &number], 40, 120);
    terminal.shows("30 100");
    terminal.types("stty size; echo kept: $KEPT\n");
    terminal.shows("40 120");
    terminal.shows("kept: yes");
    terminal.types("echo be''gun; sleep 1000\n");
    terminal.shows("begun");
    terminal.types("\u{3}");
    terminal.types("exit 5\n");
    assert_eq!(terminal.ends(), Some(5));
}

fn stdin_reaches_one_that_keeps_it_open(world: &World) {
    // Without -i it reads the end of file.
    let number = job(world, &[], "cat; echo end");
    assert_eq!(ends(world, &number, 0), "end\n");
    let number = job(world, &["-i"], "wc -c");
    let mut attached = world.background(&["vm", "attach", "one", &number]);
    let mut stdin = attached.stdin();
    // More than is ever under way, in two parts of two clients.
    stdin.write_all(&vec![b'x'; 700_000]).unwrap();
    drop(stdin);
    let ended = attached.end();
    ended.succeeds();
    assert_eq!(ended.text().trim(), "700000");
}

fn one_is_ended_by_a_signal(world: &World) {
    let number =
        job(world, &[], "trap 'echo asked; exit 9' TERM; echo ready; while :; do sleep 0.1; done");
    let mut watching = world.background(&["vm", "attach", "-n", "one", &number]);
    assert_eq!(watching.line(), "ready");
    world.banger(["vm", "jobs", "one", "--end", &number]).succeeds();
    assert_eq!(watching.line(), "asked");
    watching.end().exits(9);
    let again = world.banger(["vm", "jobs", "one", "--end", &number]);
    again.exits(1).complains(&format!("job {number} has ended"));
    let number = job(world, &["--timeout", "1s"], "sleep 1000");
    ends(world, &number, 124);
    assert_eq!(shown(world, &number)["exit"]["timed_out"], true);
}

fn what_cannot_be_is_refused_and_leaves_no_job(world: &World) {
    let count = || world.banger(["-q", "vm", "jobs", "one"]).succeeds().text().lines().count();
    let before = count();
    let none = world.banger(["vm", "exec", "-d", "one", "--", "no-such-program"]);
    none.exits(125).complains("no-such-program");
    assert_eq!(count(), before);
    world.banger(["vm", "attach", "one", "999"]).exits(125).complains("there is no job 999");
    world.banger(["vm", "logs", "one", "--job", "999"]).exits(1).complains("there is no job 999");
}

fn only_the_newest_of_much_output_is_kept(world: &World) {
    let number = job(world, &[], "dd if=/dev/zero bs=1M count=30 2> /dev/null; echo; echo the end");
    // Who follows and keeps up sees all of it; whoever does not is given what is kept.
    let followed = ends(world, &number, 0);
    assert!(followed.ends_with("\nthe end\n") && followed.len() > 8 << 20, "{}", followed.len());
    let kept = world.banger(["vm", "logs", "one", "--job", &number]).succeeds().text();
    assert!(kept.ends_with("\nthe end\n"), "{}", kept.len());
    assert!((8 << 20..20 << 20).contains(&kept.len()), "{}", kept.len());
    assert!(shown(world, &number)["dropped_bytes"].as_u64().unwrap() > 10 << 20);
}

fn the_plug_pulled_keeps_what_was_synced(world: &World) {
    let number = job(world, &[], "echo before; sync; echo synced; exec sleep 1000");
    let mut watching = world.background(&["vm", "attach", "-n", "one", &number]);
    assert_eq!(watching.line(), "before");
    assert_eq!(watching.line(), "synced");
    watching.signal(Signal::KILL);
    drop(watching.end());
    world.banger(["vm", "kill", "one"]).succeeds();
    world.banger(["vm", "start", "one"]).succeeds();
    assert_eq!(shown(world, &number)["state"], "lost");
    let log = world.banger(["vm", "logs", "one", "--job", &number]);
    log.prints("before\n").complains("the guest went off");
    let next: u32 = job(world, &[], "true").parse().unwrap();
    assert!(next > number.parse().unwrap());
}
