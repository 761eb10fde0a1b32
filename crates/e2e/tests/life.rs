//! The life of a VM: create, start, stop, restart, kill, delete, prune, and what it survives.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::time::Duration;

use banger_e2e::{BUSYBOX, in_world, wait_until};
use rustix::process::{Signal, kill_process};

const SOON: Duration = Duration::from_secs(60);

#[test]
fn a_vm_goes_through_all_its_states_and_back() {
    in_world(|world| {
        world
            .banger(["vm", "create", "--name", "one", "--image", BUSYBOX, "--memory", "256M"])
            .succeeds();
        assert_eq!(world.state("one"), "stopped");
        world
            .banger(["vm", "exec", "one", "--", "true"])
            .exits(125)
            .complains("banger vm start one");
        world.banger(["vm", "start", "one"]).succeeds();
        assert_eq!(world.state("one"), "running");
        let first = world.vm("one")["boot_id"].clone();
        world.banger(["vm", "start", "one"]).succeeds();
        assert_eq!(world.vm("one")["boot_id"], first, "starting what runs changes nothing");
        world.banger(["vm", "restart", "one"]).succeeds();
        assert_ne!(world.vm("one")["boot_id"], first);
        world.banger(["vm", "kill", "one"]).succeeds();
        assert_eq!(world.state("one"), "stopped");
        world.banger(["vm", "delete", "one"]).succeeds();
        world.banger(["vm", "show", "one"]).exits(1).complains("there is no VM \"one\"");
    });
}

#[test]
fn stop_loses_no_write_that_nobody_synced() {
    in_world(|world| {
        world.start(BUSYBOX, "one");
        let write = "seq 1 200000 > /root/numbers; sha256sum /root/numbers";
        let before = world.banger(["vm", "exec", "one", "--", "sh", "-c", write]).succeeds().text();
        world.banger(["vm", "stop", "one"]).succeeds();
        // The guest unmounted its disk.
        world.disk_is_clean("one");
        world.banger(["vm", "start", "one"]).succeeds();
        let after = world
            .banger(["vm", "exec", "one", "--", "sha256sum", "/root/numbers"])
            .succeeds()
            .text();
        assert_eq!(before, after);
    });
}

#[test]
fn deleting_what_runs_works_and_takes_all_of_it() {
    in_world(|world| {
        world.start(BUSYBOX, "one");
        assert!(!world.processes().is_empty());
        world.banger(["vm", "delete", "one"]).succeeds();
        assert!(world.processes().is_empty());
    });
}

#[test]
fn many_names_at_once_and_the_good_ones_go_on() {
    in_world(|world| {
        for name in ["a", "b"] {
            world.banger(["vm", "create", "--name", name, "--image", BUSYBOX]).succeeds();
        }
        let deleted = world.banger(["vm", "delete", "a", "no-such", "b"]);
        deleted.exits(1).complains("no-such");
        assert!(world.vms().is_empty(), "{deleted}");
    });
}

#[test]
fn a_beginning_of_a_name_or_id_is_enough_when_it_is_the_only_one() {
    in_world(|world| {
        for name in ["alpha-1", "alpha-2"] {
            world.banger(["vm", "create", "--name", name, "--image", BUSYBOX]).succeeds();
        }
        world.banger(["vm", "show", "alpha-"]).exits(1).complains("several VMs begin with");
        let id = world.vm("alpha-2")["id"].as_str().unwrap().to_owned();
        assert_eq!(world.vm(&id)["name"], "alpha-2");
        world
            .banger(["vm", "create", "--name", "alpha-1", "--image", BUSYBOX])
            .exits(1)
            .complains("already a VM named alpha-1");
    });
}

#[test]
fn prune_takes_what_does_not_run_and_says_what_it_freed() {
    in_world(|world| {
        world.start(BUSYBOX, "runs");
        world.banger(["vm", "create", "--name", "rests", "--image", BUSYBOX]).succeeds();
        world.banger(["vm", "prune"]).exits(1).complains("-f");
        let pruned = world.banger(["vm", "prune", "-f"]);
        pruned.succeeds().prints("rests").prints("freed");
        assert_eq!(world.vms().len(), 1);
        assert_eq!(world.state("runs"), "running");
    });
}

#[test]
fn a_vmm_that_dies_is_noticed_and_its_claims_are_released() {
    in_world(|world| {
        world.start(BUSYBOX, "one");
        for pid in world.vmm_pids() {
            kill_process(pid, Signal::KILL).unwrap();
        }
        world.wait_for_state("one", "stopped", SOON);
        assert!(world.processes().is_empty());
        world.banger(["vm", "start", "one"]).succeeds();
    });
}

#[test]
fn a_guest_that_powers_itself_off_is_stopped() {
    in_world(|world| {
        world.start(BUSYBOX, "one");
        drop(world.banger(["vm", "exec", "one", "--", "sh", "-c", "kill -38 1; sleep 60"]));
        world.wait_for_state("one", "stopped", SOON);
    });
}

#[test]
fn stop_kills_a_guest_that_does_not_answer() {
    in_world(|world| {
        world.start(BUSYBOX, "one");
        for pid in world.vmm_pids() {
            kill_process(pid, Signal::STOP).unwrap();
        }
        world.banger(["vm", "stop", "one", "--deadline", "1s"]).succeeds().complains("killed");
        assert_eq!(world.state("one"), "stopped");
    });
}

#[test]
fn stopping_cancels_a_start() {
    in_world(|world| {
        let run = world.background(&["vm", "run", "-d", "--name", "one"]);
        wait_until("the VMM runs", SOON, || !world.vmm_pids().is_empty());
        world.banger(["vm", "stop", "one"]).succeeds();
        assert_eq!(world.state("one"), "stopped");
        run.end().exits(125).complains("cancelled");
    });
}

#[test]
fn deleting_cancels_a_start_and_wins() {
    in_world(|world| {
        let run = world.background(&["vm", "run", "-d", "--name", "one"]);
        wait_until("the VMM runs", SOON, || !world.vmm_pids().is_empty());
        world.banger(["vm", "delete", "one"]).succeeds();
        assert!(world.vms().is_empty());
        assert!(world.processes().is_empty());
        run.end().exits(125);
    });
}
