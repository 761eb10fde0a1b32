//! What becomes of a VM from day to day: other names and sizes, standing still and going on.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant, SystemTime};

use banger_e2e::{BUSYBOX, Background, World, echoing, in_world, wait_until};
use rustix::process::Signal;

const SOON: Duration = Duration::from_secs(60);
/// The guest says something some twenty times within this.
const SILENCE: Duration = Duration::from_secs(2);

fn sh(world: &World, name: &str, command: &str) -> String {
    world.banger(["vm", "exec", name, "--", "sh", "-c", command]).succeeds().text()
}

/// The lines that a program says, as they come.
fn lines(mut program: Background) -> Receiver<String> {
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        loop {
            let line = program.line();
            if line.is_empty() || sender.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

/// The last line from `last` on, after which nothing comes for a time.
fn last_of(lines: &Receiver<String>, mut last: String) -> String {
    loop {
        match lines.recv_timeout(SILENCE) {
            Ok(line) => last = line,
            Err(RecvTimeoutError::Timeout) => return last,
            Err(RecvTimeoutError::Disconnected) => panic!("it has ended"),
        }
        assert!(last.parse::<u32>().unwrap() < 400, "it never stands still");
    }
}

#[test]
fn a_vm_is_found_by_its_label_and_its_new_name_and_has_its_new_sizes_after_a_restart() {
    in_world(|world| {
        let run = ["vm", "run", "-d", "--image", BUSYBOX, "--memory", "256M", "--cpus", "1"];
        let with = ["--disk", "1G", "--name", "one", "--label", "ci=1", "--label", "team=a b"];
        world.banger_with(&[&run[..], &with[..]].concat(), b"").succeeds();
        world.banger(["vm", "create", "--image", BUSYBOX, "--name", "other"]).succeeds();
        let chosen = |label| world.banger(["vm", "list", "-q", "--label", label]).succeeds().text();
        assert_eq!(
            (chosen("ci"), chosen("team=a b"), chosen("ci=2")),
            ("one\n".into(), "one\n".into(), String::new())
        );

        world
            .banger(["vm", "rename", "one", "other"])
            .exits(1)
            .complains("already a VM named other");
        world.banger(["vm", "rename", "one", "two"]).succeeds();
        let address = world.vm("two")["address"].as_str().unwrap().to_owned();
        let found = |name: &str| {
            let ask = format!("busybox nslookup {name}.vm");
            world.banger(["vm", "exec", "two", "--", "sh", "-c", &ask]).text().contains(&address)
        };
        assert!(found("two") && !found("one"));
        assert_eq!(sh(world, "two", "busybox hostname; cat /etc/hostname"), "two\ntwo\n");
        let hosts = sh(world, "two", "cat /etc/hosts");
        assert!(
            hosts.contains(&format!("{address}\ttwo.vm two")) && !hosts.contains("one"),
            "{hosts}"
        );

        world.banger(["vm", "set", "two", "--disk", "512M"]).exits(1).complains("does not shrink");
        world
            .banger(["vm", "set", "two", "--memory", "1T"])
            .exits(1)
            .complains("than this host has");
        sh(world, "two", "echo kept > /root/kept; sync");
        let sizes = [
            "vm",
            "set",
            "two",
            "--cpus",
            "2",
            "--memory",
            "400M",
            "--disk",
            "1536M",
            "--unlabel",
            "team",
        ];
        world.banger(sizes).succeeds().complains("vm restart two").prints("disk 1.5 GiB");
        let has = "busybox nproc; busybox awk '/MemTotal/ {print int($2 / 1024)}' /proc/meminfo; \
                   busybox df -m / | busybox awk 'END {print $2}'";
        let has = || {
            let text = sh(world, "two", has);
            text.lines().map(|number| number.parse().unwrap()).collect::<Vec<u32>>()
        };
        let before = has();
        assert!(before[0] == 1 && before[1] < 256 && before[2] < 1024, "{before:?}");
        world.banger(["vm", "restart", "two"]).succeeds();
        let after = has();
        assert!(after[0] == 2 && (260..400).contains(&after[1]) && after[2] > 1200, "{after:?}");
        assert_eq!(sh(world, "two", "cat /root/kept"), "kept\n");
        let busy =
            world.background(&["vm", "exec", "two", "--", "sh", "-c", "while :; do :; done"]);
        let stats = || {
            world.banger(["vm", "stats", "two", "--format", "json"]).succeeds().json()[0].clone()
        };
        wait_until("one that works is seen", SOON, || stats()["cpu_percent"].as_u64() >= Some(20));
        assert!(found("two"), "over its network");
        let stats = stats();
        assert!(stats["memory_host_bytes"].as_u64() > Some(50 << 20), "{stats}");
        assert!(stats["guest"]["memory_total_bytes"].as_u64() > Some(260 << 20), "{stats}");
        assert!(stats["disk_host_bytes"].as_u64() > Some(0), "{stats}");
        assert!(stats["network"]["sent_bytes"].as_u64() > Some(0), "{stats}");
        busy.signal(Signal::TERM);
        drop(busy.end());
        world.banger(["vm", "stop", "--label", "ci=1"]).succeeds().prints("two");
        world.banger(["vm", "set", "two", "--disk", "2G"]).succeeds();
        world.disk_is_clean("two");
        world.banger(["vm", "start", "--label", "ci"]).succeeds();
        assert!(has()[2] > 1700, "{:?}", has());

        world.banger(["vm", "delete", "--label", "ci=1"]).succeeds();
        let left: Vec<_> = world.vms().iter().map(|vm| vm["name"].clone()).collect();
        assert_eq!(left, ["other"]);
    });
}

#[test]
fn a_paused_vm_makes_no_progress_and_goes_on_where_it_stood() {
    in_world(|world| {
        world.start(BUSYBOX, "one");
        let boot_id = world.vm("one")["boot_id"].clone();
        let count = "i=0; while :; do i=$((i + 1)); echo $i | busybox tee /root/count; busybox usleep 50000; done";
        let counting = lines(world.background(&["vm", "exec", "one", "--", "sh", "-c", count]));
        let first = counting.recv_timeout(SOON).unwrap();

        world.banger(["vm", "pause", "one"]).succeeds().prints("one: paused");
        let stood: u32 = last_of(&counting, first).parse().unwrap();
        world
            .banger(["vm", "exec", "one", "--", "true"])
            .exits(125)
            .complains("banger vm resume one");
        world.banger(["vm", "start", "one"]).exits(1).complains("banger vm resume one");
        world.banger(["vm", "set", "one", "--label", "a=b"]).succeeds();
        world.banger(["vm", "pause", "one"]).succeeds();
        assert_eq!(world.state("one"), "paused");

        world.banger(["vm", "resume", "one"]).succeeds().prints("one: running");
        assert_eq!(counting.recv_timeout(SOON).unwrap(), (stood + 1).to_string());
        // Its clock is the host's again.
        let guest: u64 = sh(world, "one", "busybox date +%s").trim().parse().unwrap();
        let host = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        assert!(guest.abs_diff(host) < 2, "{guest} in the guest, {host} here");

        // Over the death of the daemon.
        world.banger(["vm", "pause", "one"]).succeeds();
        let vmm = world.vmm_pids();
        world.kill_daemon();
        assert_eq!(world.state("one"), "paused");
        // After the adoption, which had its turn first.
        world.banger(["vm", "set", "one", "--label", "a=c"]).succeeds();
        assert_eq!((world.state("one"), world.vmm_pids()), ("paused".to_owned(), vmm));
        world.banger(["vm", "resume", "one"]).succeeds();
        assert_eq!(sh(world, "one", "cat /proc/sys/kernel/random/boot_id").trim(), boot_id);

        // It can be left like any other state.
        world.banger(["vm", "pause", "one"]).succeeds();
        let stopped = world.banger(["vm", "stop", "one"]);
        stopped.succeeds();
        assert!(!stopped.text().contains("killed"), "{stopped}");
        world.disk_is_clean("one");
        world.banger(["vm", "pause", "one"]).exits(1).complains("is stopped");
        world.banger(["vm", "start", "one"]).succeeds();
        world.banger(["vm", "pause", "one"]).succeeds();
        world.banger(["vm", "delete", "one"]).succeeds();
        wait_until("its VMM is gone", SOON, || world.vmm_pids().is_empty());
    });
}

#[test]
fn a_vm_is_deleted_when_its_time_is_over_and_one_in_which_nothing_goes_on_is_stopped() {
    in_world(|world| {
        let create = ["vm", "create", "--image", BUSYBOX, "--name"];
        let make = |rest: &[&str]| world.banger_with(&[&create[..], rest].concat(), b"");
        make(&["brief", "--ttl", "2s"]).succeeds().complains("brief and its disk are deleted at");
        make(&["late", "--ttl", "3h"]).succeeds();
        make(&["spared", "--ttl", "3h"]).succeeds();
        make(&["kept", "--ttl", "3h"]).succeeds();
        let names = || -> Vec<String> {
            let all = world.vms();
            all.iter().map(|vm| vm["name"].as_str().unwrap().to_owned()).collect()
        };
        wait_until("the first is gone", SOON, || !names().contains(&"brief".to_owned()));
        world.banger(["vm", "set", "spared", "--ttl", "never"]).succeeds();
        assert!(world.vm("spared")["expires_at"].is_null());
        world.banger(["vm", "set", "late", "--ttl", "3s"]).succeeds().prints("late: deleted at");
        world.kill_daemon();
        let until = Instant::now() + Duration::from_secs(4);
        wait_until("no daemon was there when it was time", SOON, || Instant::now() > until);
        wait_until("the next one does it", SOON, || names() == ["kept", "spared"]);
        world.banger(["vm", "list"]).succeeds().prints("(2h left)");

        echoing(world, "idle", &["--auto-stop", "never", "-p", "7007:7"]);
        let mut held = TcpStream::connect("127.0.0.1:7007").unwrap();
        held.write_all(b"x").unwrap();
        held.read_exact(&mut [0]).unwrap();
        world.banger(["vm", "set", "idle", "--auto-stop", "1s"]).succeeds().prints("auto-stop 1s");
        let until = Instant::now() + Duration::from_secs(3);
        wait_until("it would have been stopped", SOON, || Instant::now() > until);
        assert_eq!(world.state("idle"), "running", "a connection is open");
        world.banger(["vm", "exec", "-d", "idle", "--", "sleep", "7"]).succeeds();
        let command = "echo up; sleep 3; echo done";
        let mut session = world.background(&["vm", "exec", "idle", "--", "sh", "-c", command]);
        assert_eq!(session.line(), "up");
        drop(held);
        session.end().succeeds().prints("done");
        let until = Instant::now() + Duration::from_secs(2);
        wait_until("it would have been stopped", SOON, || Instant::now() > until);
        assert_eq!(world.state("idle"), "running", "a job runs");
        world.wait_for_state("idle", "stopped", SOON);
        world.disk_is_clean("idle");
        let stops = world
            .program("sh", &["-c", "grep -c 'vm auto-stop' \"$BANGER_HOME/state/bangerd.log\""]);
        assert_eq!(stops.succeeds().text().trim(), "2", "begun once and done once");

        // A paused one waits for somebody.
        world.banger(["vm", "set", "idle", "--auto-stop", "2s"]).succeeds();
        world.banger(["vm", "start", "idle"]).succeeds();
        world.banger(["vm", "pause", "idle"]).succeeds();
        let until = Instant::now() + Duration::from_secs(4);
        wait_until("it would have been stopped", SOON, || Instant::now() > until);
        assert_eq!(world.state("idle"), "paused");
        world.banger(["vm", "resume", "idle"]).succeeds();
        world.wait_for_state("idle", "stopped", SOON);
    });
}
