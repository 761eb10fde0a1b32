//! Root's claims with the real jailer, the real Firecracker and a guest of 60 bytes. They run on any machine with
//! /dev/kvm, as root, whether its KVM is hardware or not.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use banger_host::root::{AGENT_SOCKET, API_SOCKET};
use banger_host::{Claim, Held, Mark, Root};
use common::{api, in_world, toy};
use rustix::process::Signal;

const UID: u32 = 1_900_000_000;

/// The lines of a `status` in /proc (proc_pid_status(5)) that begin so.
fn status(path: &str, name: &str) -> String {
    let text = fs::read_to_string(path).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim_start_matches(':').split_whitespace().collect::<Vec<_>>().join(" ")
}

fn pid(mark: &Mark) -> i32 {
    banger_host::root::watch_jailed(mark).unwrap().unwrap().pid()
}

#[test]
fn a_jailed_vmm_has_its_own_user_its_jail_its_cgroup_and_nothing_else() {
    in_world(|world| {
        let vm = world.toy_vm(UID);
        let mut console = vm.make(&world.root);
        api::boot(&world.root, &vm.mark);
        console.wait_for(toy::UP);
        assert_eq!(
            console.said.find(toy::UP),
            Some(0),
            "nobody but the guest speaks: {}",
            console.said
        );

        let pid = pid(&vm.mark);
        let own = format!("/proc/{pid}/status");
        let ids = [UID.to_string(), UID.to_string(), UID.to_string(), UID.to_string()].join(" ");
        assert_eq!(status(&own, "Uid"), ids);
        assert_eq!(status(&own, "Gid"), ids);
        assert_eq!(status(&own, "Groups"), "");
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(status(&own, set), "0000000000000000", "{set}");
        }
        let mut threads = 0;
        for thread in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
            let own = format!("{}/status", thread.unwrap().path().display());
            assert_eq!(status(&own, "Seccomp"), "2", "{}", status(&own, "Name"));
            assert_eq!(status(&own, "NoNewPrivs"), "1", "{}", status(&own, "Name"));
            threads += 1;
        }
        assert!(threads >= 3, "the API's, the VMM's and the guest's: {threads}");

        let jail = fs::metadata(world.jail_path(&vm.mark)).unwrap();
        let root = fs::metadata(format!("/proc/{pid}/root/")).unwrap();
        assert_eq!((root.dev(), root.ino()), (jail.dev(), jail.ino()));
        let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        assert!(cgroup.lines().any(|line| line == format!("0::/banger/{}", vm.mark)), "{cgroup}");
        assert_eq!(fs::read(format!("/proc/{pid}/environ")).unwrap(), b"");
        assert_eq!(fs::read_link(format!("/proc/{pid}/fd/0")).unwrap().to_str(), Some("/dev/null"));
        assert_eq!(
            rustix::process::getsid(rustix::process::Pid::from_raw(pid))
                .unwrap()
                .as_raw_nonzero()
                .get(),
            pid
        );
    });
}

#[test]
fn every_claim_can_be_repeated_is_listed_and_goes_whatever_the_order() {
    in_world(|world| {
        let vm = world.toy_vm(UID + 1);
        let _console = vm.make(&world.root);
        let first = pid(&vm.mark);
        let _console = vm.make(&world.root);
        assert_eq!(pid(&vm.mark), first, "it was there and right");

        let mut wanted: Vec<Held> = vm.claims.iter().map(Claim::held).collect();
        wanted.push(vm.held());
        wanted.sort();
        assert_eq!(world.root.list().unwrap(), wanted);
        assert_eq!(world.another_root().list().unwrap(), wanted);

        for _ in 0..2 {
            world.release_all(&vm);
            assert_eq!(world.root.list().unwrap(), []);
        }
        assert!(banger_host::root::watch_jailed(&vm.mark).unwrap().is_none());
    });
}

#[test]
fn a_guest_is_paused_saved_and_goes_on_in_another_jail() {
    in_world(|world| {
        let source = world.toy_vm(UID + 2);
        let mut console = source.make(&world.root);
        api::boot(&world.root, &source.mark);
        console.wait_for(&format!("{}abc", toy::UP));
        api::call(&world.root, &source.mark, "PATCH", "/vm", r#"{"state":"Paused"}"#);
        // What it said before it was paused may still be in the pipe; then it is silent.
        console.listen(Duration::from_millis(50));
        let before = console.said.clone();
        console.listen(Duration::from_millis(300));
        assert_eq!(console.said, before, "a paused guest says nothing");
        let save = r#"{"snapshot_type":"Full","snapshot_path":"state","mem_file_path":"memory"}"#;
        api::call(&world.root, &source.mark, "PUT", "/snapshot/create", save);

        let mut copy = world.toy_vm(UID + 3);
        for name in ["state", "memory"] {
            let bytes = fs::read(world.jail_path(&source.mark).join(name)).unwrap();
            let file = world.put(&format!("snapshots/{name}"), &bytes);
            for claim in &mut copy.claims {
                if let Claim::Jail(jail) = claim {
                    jail.files.push(banger_host::root::JailFile {
                        name: name.into(),
                        source: file.clone(),
                    });
                }
            }
        }
        world.root.release(&source.held()).unwrap();

        let mut console = copy.make(&world.root);
        let load = format!(
            r#"{{"snapshot_path":"state","mem_backend":{{"backend_path":"memory","backend_type":"File"}},"network_overrides":[{{"iface_id":"eth0","host_dev_name":"{}"}}],"resume_vm":true}}"#,
            copy.mark
        );
        api::call(&world.root, &copy.mark, "PUT", "/snapshot/load", &load);
        console.wait_until("more letters", |said| said.len() >= 3);
        // The letter that it was saying when it was paused may be said once more: KVM leaves an `out` when it is entered
        // again, and may be saved before.
        let letters = format!("{0}{0}", ('a'..='z').collect::<String>() + "\n");
        let last = before.chars().last().unwrap();
        let at = letters.find(last).unwrap();
        let goes_on = [at, at + 1].iter().any(|&at| letters[at..].starts_with(&console.said[..3]));
        assert!(goes_on, "{before:?} goes on with {:?}", console.said);
        api::call(&world.root, &copy.mark, "GET", "/", "");
    });
}

#[test]
fn a_killed_vmm_is_seen_to_end_and_starts_again_in_the_same_jail() {
    in_world(|world| {
        let vm = world.toy_vm(UID + 4);
        let mut console = vm.make(&world.root);
        api::boot(&world.root, &vm.mark);
        console.wait_for(toy::UP);
        let watched = banger_host::root::watch_jailed(&vm.mark).unwrap().unwrap();
        assert!(watched.wait(Duration::ZERO).is_err(), "it lives");
        world.root.signal(&vm.mark, Signal::KILL).unwrap();
        watched.wait(Duration::from_secs(10)).unwrap();
        assert!(banger_host::root::watch_jailed(&vm.mark).unwrap().is_none());
        assert!(!world.root.list().unwrap().contains(&vm.held()));
        world.root.signal(&vm.mark, Signal::KILL).unwrap();
        assert!(console.rest().starts_with(toy::UP));

        let mut console = vm.start(&world.root);
        api::boot(&world.root, &vm.mark);
        console.wait_for(toy::UP);
    });
}

#[test]
fn a_vmm_goes_on_when_nobody_reads_its_log_any_more() {
    in_world(|world| {
        let vm = world.toy_vm(UID + 30);
        let mut console = vm.make(&world.root);
        api::boot(&world.root, &vm.mark);
        console.wait_for(toy::UP);
        drop(console);
        for state in ["Paused", "Resumed", "Paused"] {
            let body = format!(r#"{{"state":"{state}"}}"#);
            api::call(&world.root, &vm.mark, "PATCH", "/vm", &body);
        }
        assert!(api::call(&world.root, &vm.mark, "GET", "/", "").contains("Paused"));
    });
}

#[test]
fn a_console_that_is_no_pipe_or_cannot_be_written_to_is_refused() {
    in_world(|world| {
        let vm = world.toy_vm(UID + 31);
        for claim in &vm.claims {
            world.root.acquire(claim, None).unwrap();
        }
        let start = |console| world.root.acquire(&Claim::JailedVmm(vm.vmm.clone()), Some(console));
        let file = fs::File::create(world.folder.path().join("file")).unwrap();
        assert!(start(file.into()).is_err());
        let (read_end, _write_end) = std::io::pipe().unwrap();
        assert!(start(read_end.into()).is_err());
        assert!(banger_host::root::watch_jailed(&vm.mark).unwrap().is_none());
    });
}

#[test]
fn the_guests_socket_can_be_connected_to() {
    in_world(|world| {
        let vm = world.toy_vm(UID + 5);
        let _console = vm.make(&world.root);
        assert!(world.root.connect(&vm.mark, AGENT_SOCKET).is_err(), "there is no vsock yet");
        api::boot(&world.root, &vm.mark);
        world.root.connect(&vm.mark, AGENT_SOCKET).unwrap();
        assert!(world.root.connect(&vm.mark, "kernel").is_err(), "that is no socket");
    });
}

#[test]
fn a_jailer_that_fails_says_how_it_ended_and_its_words_are_in_the_log() {
    in_world(|world| {
        let vm = world.toy_vm(UID + 6);
        for claim in &vm.claims {
            world.root.acquire(claim, None).unwrap();
        }
        let jailer = &world.root.places().firecracker.jailer;
        fs::write(jailer, "#!/bin/sh\necho no jail today >&2\nexit 7\n").unwrap();
        let (console, end) = common::console::Console::new();
        let error = world.root.acquire(&Claim::JailedVmm(vm.vmm.clone()), Some(end)).unwrap_err();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.contains("exit status: 7"), "{cause}");
        assert_eq!(console.rest(), "no jail today\n");
        world.root.release(&vm.held()).unwrap();
    });
}

#[test]
fn programs_that_others_could_change_are_not_run() {
    in_world(|world| {
        let vm = world.toy_vm(UID + 7);
        for claim in &vm.claims {
            world.root.acquire(claim, None).unwrap();
        }
        let programs = world.root.places().firecracker.clone();
        for program in [&programs.jailer, &programs.firecracker] {
            std::os::unix::fs::chown(program, Some(1000), None).unwrap();
            let (console, end) = common::console::Console::new();
            let error =
                world.root.acquire(&Claim::JailedVmm(vm.vmm.clone()), Some(end)).unwrap_err();
            assert!(error.to_string().contains("trust the program"), "{error}");
            assert_eq!(console.rest(), "");
            std::os::unix::fs::chown(program, Some(0), None).unwrap();
        }
    });
}

#[test]
fn without_its_cgroup_or_its_jail_no_vmm_is_started() {
    in_world(|world| {
        let vm = world.toy_vm(UID + 8);
        let start = |root: &Root| {
            let (console, end) = common::console::Console::new();
            let error = root.acquire(&Claim::JailedVmm(vm.vmm.clone()), Some(end)).unwrap_err();
            assert_eq!(console.rest(), "");
            error.to_string()
        };
        assert!(start(&world.root).contains("cgroup"));
        world.root.acquire(&vm.claims[0], None).unwrap();
        start(&world.root);
        assert!(world.root.acquire(&Claim::JailedVmm(vm.vmm.clone()), None).is_err(), "no console");
    });
}

#[test]
fn ten_vms_at_once_do_not_touch_each_other() {
    in_world(|world| {
        let vms: Vec<_> = (10..20).map(|number| world.toy_vm(UID + number)).collect();
        std::thread::scope(|scope| {
            for vm in &vms {
                scope.spawn(|| drop(vm.make(&world.root)));
            }
        });
        // Each keeps a processor busy until it is paused; in an emulated host more than two at once are too much.
        for two in vms.chunks(2) {
            std::thread::scope(|scope| {
                for vm in two {
                    scope.spawn(|| {
                        api::boot(&world.root, &vm.mark);
                        api::call(&world.root, &vm.mark, "PATCH", "/vm", r#"{"state":"Paused"}"#);
                    });
                }
            });
        }
        let (gone, stay) = vms.split_at(5);
        std::thread::scope(|scope| {
            for vm in gone {
                scope.spawn(|| world.release_all(vm));
            }
        });
        for vm in gone {
            assert!(banger_host::root::watch_jailed(&vm.mark).unwrap().is_none());
        }
        for vm in stay {
            assert!(api::call(&world.root, &vm.mark, "GET", "/", "").contains("Paused"));
        }
    });
}

#[test]
fn an_old_socket_of_the_api_does_not_pass_for_a_new_one() {
    in_world(|world| {
        let vm = world.toy_vm(UID + 9);
        for claim in &vm.claims {
            world.root.acquire(claim, None).unwrap();
        }
        let path = world.jail_path(&vm.mark).join(API_SOCKET);
        let old = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let _console = vm.start(&world.root);
        assert!(api::call(&world.root, &vm.mark, "GET", "/", "").contains("Not started"));
        drop(old);
    });
}
