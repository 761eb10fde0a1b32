//! Labels, names and sizes, as a user gives them and sees them.

#![expect(clippy::unwrap_used, reason = "where a test unwraps, it claims")]

mod support;

use snapbox::str;
use support::World;

fn asked(world: &World) -> Vec<String> {
    let mut asked = world.requests().clone();
    asked.retain(|request| !request.starts_with("GET /v1/vms ") && !request.contains("/v1/daemon"));
    asked.sort();
    asked
}

#[test]
fn a_list_has_the_vms_with_all_the_labels() {
    let world = World::with_daemon();
    for (labels, names) in [
        (&["ci"][..], "db\nold\n"),
        (&["ci=1"], "db\n"),
        (&["ci", "team=data"], "db\n"),
        (&["ci=2", "team"], ""),
        (&["no-such"], ""),
    ] {
        let flags = labels.iter().flat_map(|label| ["--label", *label]);
        let words: Vec<&str> = ["vm", "list", "-q"].into_iter().chain(flags).collect();
        world.banger(&words).assert().code(0).stderr_eq("").stdout_eq(names);
    }
}

#[test]
fn verbs_take_labels_in_the_place_of_names_and_never_both() {
    let world = World::with_daemon();
    world.banger(&["vm", "delete", "--label", "ci"]).assert().code(0);
    assert_eq!(asked(&world), ["DELETE /v1/vms/db ", "DELETE /v1/vms/old "]);
    world.requests().clear();
    world
        .banger(&["vm", "stop", "--label", "ci=3", "--label", "team"])
        .assert()
        .code(0)
        .stdout_eq("")
        .stderr_eq("no VM has the labels ci=3 and team\n");
    for verb in ["start", "stop", "restart", "kill", "delete"] {
        world.banger(&["vm", verb, "web", "--label", "ci"]).assert().code(2);
        world.banger(&["vm", verb]).assert().code(2);
    }
    assert_eq!(asked(&world), [""; 0]);
}

#[test]
fn what_is_no_label_is_refused_before_anything_is_asked() {
    let world = World::with_daemon();
    for (words, rule) in [
        (&["vm", "run", "--label", "ci"][..], "write KEY=VALUE"),
        (&["vm", "create", "--label", "CI=1"], "only a-z, 0-9"),
        (&["vm", "set", "web", "--label", "ci"], "write KEY=VALUE"),
        (&["vm", "set", "web", "--unlabel", "ci=1"], "only a-z, 0-9"),
        (&["vm", "delete", "--label", ""], "1 to 63 characters"),
        (&["vm", "rename", "web", "Web"], "a DNS label"),
        (&["vm", "set", "web", "--disk", "0"], "more than zero"),
    ] {
        let refused = world.banger(words).output().unwrap();
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && said.contains(rule), "{words:?}: {said}");
    }
    assert!(world.requests().is_empty());
}

#[test]
fn what_is_changed_is_said_as_it_is_now() {
    let world = World::with_daemon();
    let set =
        ["vm", "set", "db", "--memory", "1G", "--disk", "8G", "--label", "ci=1", "--unlabel", "x"];
    world
        .banger(&set)
        .assert()
        .code(0)
        .stdout_eq("db: memory 1 GiB, disk 8 GiB, labels ci=1, team=data\n");
    world.banger(&["vm", "rename", "web", "site"]).assert().code(0);
    assert!(world.saw(r#"POST /v1/vms/web/rename {"name":"site"}"#));
    world.banger(&["vm", "show", "db"]).assert().code(0).stdout_eq(str![[r#"
name     db
...
egress   none
labels   ci=1, team=data
created  [..] (2d ago)

"#]]);
}

#[test]
fn what_vms_use_is_a_row_each_with_units() {
    let world = World::with_daemon();
    world.banger(&["vm", "stats"]).assert().code(0).stderr_eq("").stdout_eq(str![[r#"
NAME  CPU   MEMORY           HOST MEM  DISK             RECEIVED  SENT
web   130%  400 MiB / 1 GiB  700 MiB   300 MiB / 8 GiB  5 MiB     2 KiB

"#]]);
    world.banger(&["vm", "stats", "web", "db"]).assert().code(1).stdout_eq("").stderr_eq(str![[
        r#"
error: VM db is stopped, and uses nothing but its disk

"#
    ]]);
    let output = world.banger(&["vm", "stats", "--format", "json"]).output().unwrap();
    let all: Vec<banger_api::stats::Stats> = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(all[0].cpu_percent, 130);
}
