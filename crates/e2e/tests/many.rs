//! Many VMs at once on a small machine, and the daemon dying in the middle.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::time::Duration;

use banger_e2e::{BUSYBOX, Backend, Background, World, in_world, wait_until};

/// Translated guests, two booting at a time, beside whatever else the machine does.
const BOOTED: Duration = Duration::from_secs(600);

/// Begins to start all of them at once, with the smallest guest: what is under test is the host's side.
fn start_all(world: &World) -> (Vec<String>, Vec<Background>) {
    let names: Vec<String> = (0..Backend::here().many()).map(|n| format!("vm-{n}")).collect();
    let start = |name: &String| {
        world.background(&[
            "vm", "run", "-d", "--image", BUSYBOX, "--memory", "256M", "--name", name,
        ])
    };
    let starts = names.iter().map(start).collect();
    (names, starts)
}

#[test]
fn many_vms_started_at_once_all_become_ready() {
    in_world(|world| {
        let (names, starts) = start_all(world);
        for start in starts {
            start.end().succeeds();
        }
        for name in &names {
            assert_eq!(world.state(name), "running");
            world
                .banger(["vm", "exec", name, "--", "hostname"])
                .succeeds()
                .prints_only(&format!("{name}\n"));
        }
        // All of them go at once, too.
        world.delete_all();
        assert!(world.processes().is_empty());
    });
}

#[test]
fn a_daemon_killed_while_many_vms_start_leaves_each_of_them_running_or_stopped() {
    in_world(|world| {
        let (names, starts) = start_all(world);
        let half = names.len() / 2;
        wait_until("half of them run", BOOTED, || world.vmm_pids().len() >= half);
        world.kill_daemon();
        for start in starts {
            drop(start.end());
        }
        let settled = |vm: &serde_json::Value| vm["state"] == "running" || vm["state"] == "stopped";
        wait_until("all are settled", BOOTED, || world.vms().iter().all(settled));
        let running: Vec<_> =
            world.vms().into_iter().filter(|vm| vm["state"] == "running").collect();
        assert!(running.len() >= half - 2, "{} were adopted", running.len());
        assert_eq!(
            world.vmm_pids().len(),
            running.len(),
            "one VMM for each that runs, none for the others"
        );
        world.no_strays();
        for vm in &running {
            world.banger(["vm", "exec", vm["name"].as_str().unwrap(), "--", "true"]).succeeds();
        }
    });
}
