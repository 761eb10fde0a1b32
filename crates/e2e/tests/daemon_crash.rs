//! The daemon dies without warning: running VMs live on, half-made ones leave nothing.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::time::Duration;

use banger_e2e::{BUSYBOX, World, in_world, wait_until};
use rustix::process::{Signal, kill_process};

const SOON: Duration = Duration::from_secs(60);

#[test]
fn a_running_vm_is_adopted_with_the_same_boot_id() {
    in_world(|world| {
        world.start(BUSYBOX, "one");
        let boot_id = world
            .banger(["vm", "exec", "one", "--", "cat", "/proc/sys/kernel/random/boot_id"])
            .succeeds()
            .text();
        let vmm = world.vmm_pids();
        world.kill_daemon();
        assert_eq!(world.vmm_pids(), vmm, "the VM does not notice");
        // The next command starts a daemon.
        let again = world
            .banger(["vm", "exec", "one", "--", "cat", "/proc/sys/kernel/random/boot_id"])
            .succeeds()
            .text();
        assert_eq!(again, boot_id);
        assert_eq!(world.vmm_pids(), vmm);
        assert_eq!(world.state("one"), "running");
        world.banger(["vm", "stop", "one"]).succeeds();
    });
}

#[test]
fn a_daemon_that_is_told_to_stop_leaves_its_vms_running() {
    in_world(|world| {
        world.start(BUSYBOX, "one");
        let boot_id = world.vm("one")["boot_id"].clone();
        world.banger(["daemon", "stop"]).succeeds();
        world.banger(["daemon", "status"]).exits(1);
        assert!(!world.vmm_pids().is_empty());
        world.banger(["vm", "exec", "one", "--", "true"]).succeeds();
        assert_eq!(world.vm("one")["boot_id"], boot_id);
    });
}

#[test]
fn a_vm_that_died_while_no_daemon_ran_is_cleaned_up_by_the_next() {
    in_world(|world| {
        world.start(BUSYBOX, "one");
        let vmm = world.vmm_pids();
        world.kill_daemon();
        for pid in vmm {
            kill_process(pid, Signal::KILL).unwrap();
        }
        wait_until("the VMM is gone", SOON, || world.vmm_pids().is_empty());
        world.wait_for_state("one", "stopped", SOON);
        assert!(
            world.vm("one")["problem"]["message"].as_str().unwrap().contains("while no daemon ran")
        );
        world.banger(["vm", "start", "one"]).succeeds();
    });
}

/// Kills the daemon this long after a start begins, then sees that the VM is adopted or failed, and nothing is left over.
fn a_start_interrupted_after(world: &World, pause: Duration) {
    let run = world
        .background(&["vm", "run", "-d", "--name", "one", "--image", BUSYBOX, "--memory", "256M"]);
    let begun = std::time::Instant::now();
    wait_until("the moment", pause + SOON, || begun.elapsed() >= pause);
    world.kill_daemon();
    drop(run.end());
    wait_until("it is settled", Duration::from_secs(120), || {
        world.vms().iter().all(|vm| vm["state"] == "running" || vm["state"] == "stopped")
    });
    world.no_strays();
    for vm in world.vms() {
        if vm["state"] == "running" {
            world.banger(["vm", "exec", "one", "--", "true"]).succeeds();
        } else {
            assert!(world.vmm_pids().is_empty(), "{vm}");
        }
    }
    world.delete_all();
    world.nothing_is_left();
}

#[test]
fn a_daemon_killed_at_any_moment_of_a_start_leaves_a_running_vm_or_none() {
    in_world(|world| {
        world.banger(["daemon", "start"]).succeeds();
        for milliseconds in [0, 2, 5, 10, 20, 40, 100, 500, 1500, 2500] {
            a_start_interrupted_after(world, Duration::from_millis(milliseconds));
        }
    });
}

#[test]
fn an_ephemeral_vm_does_not_outlive_the_daemon_that_held_its_session() {
    in_world(|world| {
        let run = world.ephemeral_session();
        world.kill_daemon();
        run.end().exits(125);
        wait_until("the VM is deleted", SOON, || world.vms().is_empty());
        assert!(world.processes().is_empty());
    });
}

#[test]
fn strays_are_shown_by_doctor_and_released_when_asked() {
    in_world(|world| {
        world.start(BUSYBOX, "one");
        world.kill_daemon();
        // The database is lost; the installation's id beside it is not.
        for file in ["banger.db", "banger.db-wal", "banger.db-shm"] {
            drop(std::fs::remove_file(world.home().join("state").join(file)));
        }
        assert!(world.vms().is_empty());
        assert!(!world.vmm_pids().is_empty(), "a new database ends no VM by itself");
        world.banger(["doctor"]).exits(1).prints("banger doctor --fix");
        world.banger(["doctor", "--fix"]).succeeds();
        assert!(world.processes().is_empty());
    });
}
