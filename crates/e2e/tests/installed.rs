//! The supported way to run: a daemon that is an ordinary user's, root's helper, VMs in jails, all under systemd.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::HashMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use banger_e2e::{BUSYBOX, Installed, SYSTEMD, as_root, installed, run, wait_until};
use rustix::process::{Pid, Signal, kill_process};

/// The most that the end of a VMM may take to be seen and cleaned up after, on a host that is itself emulated on a busy machine.
const SEEN: Duration = Duration::from_secs(30);
/// A guest that boots twice emulated.
const BOOTED: Duration = Duration::from_secs(240);

/// `/proc/PID/status` as a table.
fn status(pid: Pid) -> HashMap<String, String> {
    let text = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).unwrap();
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    lines.map(|(key, value)| (key.to_owned(), value.trim().to_owned())).collect()
}

fn link(pid: Pid, name: &str) -> String {
    let path = format!("/proc/{}/{name}", pid.as_raw_nonzero());
    fs::read_link(path).unwrap().display().to_string()
}

#[test]
#[ignore = "needs the test host"]
fn a_user_runs_vms_without_sudo_and_a_vmm_can_do_nothing_but_run_its_guest() {
    installed(|banger| {
        banger
            .banger(["vm", "run", "--rm", "--image", BUSYBOX, "--memory", "256M", "--", "id"])
            .succeeds()
            .prints("uid=0(root)");
        banger.start(SYSTEMD, "one");
        let [vmm] = banger.vmm_pids()[..] else { panic!("one VM, one process") };
        let about = status(vmm);
        let ids: Vec<&str> = about["Uid"].split_whitespace().collect();
        assert!(ids.iter().all(|id| id.parse::<u32>().unwrap() >= 1_900_000_000), "{ids:?}");
        assert_eq!(about["Uid"], about["Gid"]);
        assert_eq!(about["Groups"], "");
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            let none = "0000000000000000";
            assert!(about[set] == none || set == "CapBnd", "{set} is {}", about[set]);
        }
        assert_eq!(about["Seccomp"], "2");
        assert_eq!(about["NoNewPrivs"], "1");
        let group = fs::read_to_string(format!("/proc/{}/cgroup", vmm.as_raw_nonzero())).unwrap();
        assert!(group.starts_with("0::/banger/bg"), "{group}");
        assert!(
            link(vmm, "root").starts_with("/var/lib/banger/jails/firecracker/bg")
                || link(vmm, "root") == "/"
        );
        assert_eq!(
            fs::read_dir(format!("/proc/{}/root/etc", vmm.as_raw_nonzero()))
                .ok()
                .map(Iterator::count),
            None
        );
        // A second VM's process is another user.
        banger.start(BUSYBOX, "two");
        let users: Vec<String> =
            banger.vmm_pids().into_iter().map(|pid| status(pid)["Uid"].clone()).collect();
        assert_eq!(users.len(), 2);
        assert_ne!(users[0], users[1]);
        // The host reaches it, and it reaches beyond the host when it may: the helper's unit lets that be.
        let serve =
            "busybox nc -ll -p 7 -e cat & until busybox netstat -tln | grep -q :7; do :; done";
        banger.banger(["vm", "exec", "two", "--", "sh", "-c", serve]).succeeds();
        let address = banger.vm("two")["address"].as_str().unwrap().to_owned();
        let mut stream = TcpStream::connect((address, 7)).unwrap();
        stream.write_all(b"hello").unwrap();
        stream.read_exact(&mut [0; 5]).unwrap();
        let forwards = || fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap();
        let before = forwards();
        banger.banger(["vm", "set", "two", "--nat", "on"]).succeeds();
        assert_eq!(forwards(), "1\n");
        banger.banger(["vm", "set", "two", "--nat", "off"]).succeeds();
        assert_eq!(forwards(), before);
        // Nor is the daemon root.
        let daemon = banger.unit_pid("bangerd.service").unwrap();
        assert_ne!(status(daemon)["Uid"].split_whitespace().next(), Some("0"));
        assert_eq!(status(daemon)["CapEff"], "0000000000000000");
        banger.banger(["doctor"]).succeeds();
    });
}

#[test]
#[ignore = "needs the test host"]
fn another_user_gets_a_refusal_from_both_sockets() {
    installed(|banger| {
        let ask = "import socket, sys\n\
                   kind = socket.SOCK_SEQPACKET if 'helper' in sys.argv[1] else socket.SOCK_STREAM\n\
                   s = socket.socket(socket.AF_UNIX, kind)\n\
                   try:\n s.connect(sys.argv[1])\n s.sendall(b'{}')\n print(len(s.recv(1000)))\n\
                   except PermissionError: print('refused')\n\
                   except ConnectionError: print(0)";
        let sockets = ["/run/banger/banger.sock", "/run/banger-helper.sock"];
        for socket in sockets {
            let asked = banger.stranger(&["python3", "-c", ask, socket]);
            asked.succeeds().prints_only("refused\n");
        }
        // Also where the files' modes would let them in: the peer's user is what counts.
        for path in ["/run/banger", sockets[0], sockets[1]] {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
            fs::set_permissions(path, mode).unwrap();
        }
        let daemon = banger.stranger(&["python3", "-c", ask, sockets[0]]);
        daemon.succeeds().prints_only("0\n");
        let helper = "import socket\ns = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n\
                      s.connect('/run/banger-helper.sock')\ns.sendall(b'{\"version\":1,\"act\":\"list\"}')\n\
                      print(s.recv(1000).decode())";
        let asked = banger.stranger(&["python3", "-c", helper]);
        assert!(!asked.text().contains("held"), "{asked}");
        as_root(&["system", "restart"]).succeeds();
    });
}

/// The VM does not notice what the act does to daemon and helper.
#[track_caller]
fn unnoticed(banger: &Installed, what: &str, act: impl FnOnce()) {
    let (boot_id, vmms) = (banger.boot_id("one"), banger.vmm_pids());
    act();
    assert_eq!(banger.boot_id("one"), boot_id, "{what}");
    assert_eq!(banger.vmm_pids(), vmms, "{what}");
    assert_eq!(banger.vm("one")["state"], "running", "{what}");
}

#[test]
#[ignore = "needs the test host"]
fn every_program_of_the_host_knows_a_vm_by_its_name_as_long_as_it_runs() {
    installed(|banger| {
        banger.start(BUSYBOX, "named");
        let address = banger.vm("named")["address"].as_str().unwrap().to_owned();
        let asked = || banger.owner(&["getent", "ahostsv4", "named.vm"]);
        let is_known = || asked().text().contains(&address);
        // No start waits for the resolver, nor does its restart for anybody.
        wait_until("systemd-resolved is told", SEEN, is_known);
        banger.banger(["doctor"]).prints("systemd-resolved asks for NAME.vm");
        run("systemctl", &["restart", "systemd-resolved"]);
        wait_until("systemd-resolved remembers", SEEN, is_known);
        banger.banger(["vm", "stop", "named"]).succeeds();
        asked().exits(2);
        banger.banger(["vm", "start", "named"]).succeeds();
        wait_until("systemd-resolved is told again", SEEN, is_known);
        banger.delete_all();
        asked().exits(2);
    });
}

#[test]
#[ignore = "needs the test host"]
fn a_vm_lives_through_restart_crash_and_upgrade_of_daemon_and_helper() {
    installed(|banger| {
        banger.start(BUSYBOX, "one");
        let systemctl = |verb: &str, unit: &str| run("systemctl", &[verb, unit]);
        for unit in ["bangerd.service", "banger-helper.service"] {
            unnoticed(banger, unit, || systemctl("restart", unit));
            let pid = banger.unit_pid(unit).unwrap();
            unnoticed(banger, &format!("{unit} is killed"), || {
                kill_process(pid, Signal::KILL).unwrap();
                wait_until("it is restarted", Duration::from_secs(20), || {
                    unit != "bangerd.service" || banger.unit_pid(unit).is_some_and(|now| now != pid)
                });
            });
        }
        unnoticed(banger, "system restart", || {
            as_root(&["system", "restart"]).succeeds();
        });
        unnoticed(banger, "a reinstall", || {
            as_root(&["system", "install", "--owner", "dev"]).succeeds();
        });
        banger.banger(["vm", "stop", "one"]).succeeds();
        banger.banger(["vm", "start", "one"]).succeeds();
    });
}

#[test]
#[ignore = "needs the test host"]
fn a_vmm_that_is_killed_is_seen_and_cleaned_up_after() {
    installed(|banger| {
        banger.start(BUSYBOX, "one");
        let begun = Instant::now();
        for pid in banger.vmm_pids() {
            kill_process(pid, Signal::KILL).unwrap();
        }
        banger.wait_for_state("one", "stopped", SEEN);
        println!("a killed VMM's VM is stopped after {} ms", begun.elapsed().as_millis());
        banger.no_strays();
        banger.banger(["vm", "delete", "one"]).succeeds();
        banger.no_strays();
    });
}

#[test]
#[ignore = "needs the test host"]
fn a_helper_killed_at_any_moment_of_a_start_or_a_stop_leaves_nothing() {
    installed(|banger| {
        for milliseconds in [0, 200, 450, 800, 1500] {
            let pause = Duration::from_millis(milliseconds);
            std::thread::scope(|scope| {
                let run = scope.spawn(|| {
                    drop(banger.banger([
                        "vm", "run", "-d", "--image", BUSYBOX, "--memory", "256M", "--name", "one",
                    ]));
                });
                let begun = Instant::now();
                wait_until("the moment", pause + BOOTED, || begun.elapsed() >= pause);
                if let Some(helper) = banger.unit_pid("banger-helper.service") {
                    let _gone = kill_process(helper, Signal::KILL);
                }
                run.join().unwrap();
            });
            for vm in banger.vms() {
                assert!(vm["state"] == "running" || vm["state"] == "stopped", "{vm}");
            }
            banger.no_strays();
            banger.delete_all();
            banger.no_strays();
        }
    });
}
