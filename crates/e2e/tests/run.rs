//! `vm run`: the one command.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::time::Duration;

use banger_e2e::{BUSYBOX, PANICKING, SYSTEMD, in_world, wait_until};
use rustix::process::Signal;

#[test]
fn run_prints_what_the_command_prints_and_leaves_nothing() {
    in_world(|world| {
        world
            .banger(["vm", "run", "--rm", "--", "uname", "-r"])
            .succeeds()
            .prints("cloud-amd64")
            .complains("spec: image debian:bookworm, ");
        assert!(world.vms().is_empty());
        assert!(world.processes().is_empty());
    });
}

#[test]
fn the_status_is_the_commands() {
    in_world(|world| {
        let run = |script: &str| {
            world.banger(["vm", "run", "--rm", "--image", BUSYBOX, "--", "sh", "-c", script])
        };
        run("exit 42").exits(42);
        run("kill -9 $$").exits(128 + 9);
        world.banger(["vm", "run", "--rm", "--image", BUSYBOX, "--", "no-such-program"]).exits(127);
        world.banger(["vm", "run", "--rm", "--image", BUSYBOX, "--", "/etc/passwd"]).exits(126);
        assert!(world.vms().is_empty());
    });
}

#[test]
fn the_default_image_boots_to_a_system_that_runs_and_has_its_tools() {
    in_world(|world| {
        world.banger(["vm", "run", "-d", "--name", "one", "--wait", "init"]).succeeds();
        let exec = |command: &str| world.banger(["vm", "exec", "one", "--", "sh", "-c", command]);
        exec("systemctl is-system-running").succeeds().prints_only("running\n");
        exec("apt-get --version").succeeds().prints("apt ");
        exec("git --version").succeeds().prints("git version");
        exec("python3 -c 'print(6 * 7)'").succeeds().prints_only("42\n");
        exec("hostname").succeeds().prints_only("one\n");
        exec("ls /proc/1/exe -l").succeeds().prints("systemd");
        // Graceful, by systemd's own shutdown; and what was written before it is there after it.
        exec("echo kept > /root/file").succeeds();
        world.banger(["vm", "stop", "one"]).succeeds();
        assert_eq!(world.state("one"), "stopped");
        let console = world.banger(["vm", "logs", "one"]).succeeds().text();
        assert!(!console.contains("Kernel panic"), "{console}");
        world.banger(["vm", "start", "one"]).succeeds();
        exec("cat /root/file").succeeds().prints_only("kept\n");
    });
}

#[test]
fn a_vm_without_rm_stays_and_says_how_to_go_on() {
    in_world(|world| {
        let ran = world.banger(["vm", "run", "--name", "stays", "--image", BUSYBOX, "--", "true"]);
        ran.succeeds();
        assert_eq!(world.state("stays"), "running");
    });
}

#[test]
fn what_cannot_be_combined_is_refused_before_anything_is_made() {
    in_world(|world| {
        world.banger(["vm", "run", "-d", "--rm"]).exits(125).complains("--rm");
        world.banger(["vm", "run", "-d", "--", "true"]).exits(125);
        world.banger(["vm", "run", "--cpus", "0", "--", "true"]).exits(125).complains("--cpus");
        world.banger(["vm", "run", "--memory", "0", "--", "true"]).exits(125).complains("--memory");
        world.banger(["vm", "run", "--disk", "4GB", "--", "true"]).exits(125).complains("--disk");
        world
            .banger(["vm", "run", "--name", "Not_A_Label", "--", "true"])
            .exits(125)
            .complains("DNS label");
        world
            .banger(["vm", "run", "--image", "nothing", "--", "true"])
            .exits(125)
            .complains("there is no image nothing");
        world.banger(["vm", "run", "--memory", "1M", "--", "true"]).exits(125).complains("128 MiB");
        assert!(world.vms().is_empty());
    });
}

#[test]
fn a_guest_that_panics_is_explained_and_kept_without_anything_that_runs() {
    in_world(|world| {
        let ran = world.banger([
            "vm", "run", "--rm", "--name", "bad", "--image", PANICKING, "--", "sleep", "1000",
        ]);
        // Its init ends while the command runs, or before the guest is ready: either way the reader is told.
        assert_ne!(ran.status, Some(0), "{ran}");
        wait_until("nothing runs", Duration::from_secs(20), || world.processes().is_empty());
    });
}

#[test]
fn ctrl_c_while_booting_with_rm_leaves_nothing() {
    in_world(|world| {
        let run =
            world.background(&["vm", "run", "--rm", "--image", SYSTEMD, "--", "sleep", "1000"]);
        wait_until("the VMM runs", Duration::from_secs(30), || !world.vmm_pids().is_empty());
        run.signal(Signal::INT);
        run.end().exits(130);
        wait_until("the VM is deleted", Duration::from_secs(20), || world.vms().is_empty());
        assert!(world.processes().is_empty());
    });
}

#[test]
fn a_session_whose_client_is_killed_takes_its_vm_with_it() {
    in_world(|world| {
        let run = world.ephemeral_session();
        run.signal(Signal::KILL);
        drop(run.end());
        wait_until("the VM is deleted", Duration::from_secs(20), || world.vms().is_empty());
        assert!(world.processes().is_empty());
    });
}
