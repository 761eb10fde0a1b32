//! The network of VMs: who reaches whom, by which name, and that nothing of it stays. What there is beside that is in
//! `networks.rs`.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::net::TcpListener;

use banger_e2e::{Backend, Outside, World, echo, echoing, in_world, told};

fn asks(world: &World, name: &str) -> String {
    let zone = format!("{name}.vm");
    let answer = world.program(
        "dig",
        &["@127.0.0.1", "-p", "42069", "+tries=1", "+noall", "+comments", "+answer", &zone],
    );
    answer.succeeds().text()
}

#[test]
fn a_vm_has_an_address_and_a_name_as_long_as_it_runs_and_reaches_nothing_else_unasked() {
    in_world(|world| {
        let one = echoing(world, "one", &[]);
        let two = echoing(world, "two", &[]);
        assert_ne!(one, two);
        assert_eq!((echo(&one), echo(&two)), ("hello".into(), "hello".into()));

        let resolved = |name: &str| {
            let command = format!("busybox nslookup {name}.vm");
            world.banger(["vm", "exec", "one", "--", "sh", "-c", &command])
        };
        resolved("two").succeeds().prints(&two);
        // sudo and others want to know who they are.
        world
            .banger(["vm", "exec", "one", "--", "cat", "/etc/hosts"])
            .succeeds()
            .prints(&format!("{one}\tone.vm one"));
        if Backend::here() == Backend::Qemu {
            assert!(asks(world, "one").contains(&one));
            assert!(asks(world, "none").contains("NXDOMAIN"));
        }

        // Another guest, a service of the host on all its addresses, the metadata address of clouds.
        let service = TcpListener::bind("0.0.0.0:0").unwrap();
        let port = service.local_addr().unwrap().port();
        let gateway = world.banger(["network", "show", "default", "--format", "json"]).json();
        let gateway = gateway["gateway"].as_str().unwrap().to_owned();
        for (address, port) in [(two.as_str(), 7), (&gateway, port), ("169.254.169.254", 80)] {
            let (status, said) = told(world, "one", address, port);
            assert_ne!((status, said.as_str()), (0, "hello"), "{address}");
            assert_ne!(status, 0, "{address}");
        }

        world.banger(["vm", "stop", "two"]).succeeds();
        assert!(!resolved("two").text().contains(&two));
        world.banger(["vm", "start", "two"]).succeeds();
        assert_eq!(world.vm("two")["address"], two.as_str(), "it keeps its address");
        resolved("two").succeeds().prints(&two);
    });
}

#[test]
fn a_vm_reaches_beyond_the_host_only_while_it_may() {
    in_world(|world| {
        let outside = Outside::connect();
        let port = outside.serve(16);
        echoing(world, "in", &[]);
        echoing(world, "out", &["--nat"]);
        let told = |name: &str| told(world, name, Outside::ADDRESS, port);
        assert_ne!(told("in").0, 0);
        assert_eq!(told("out"), (0, Outside::HOST.to_owned()), "under the host's address");

        world.banger(["vm", "set", "in", "--nat", "on"]).succeeds().prints("nat on");
        assert_eq!(told("in"), (0, Outside::HOST.to_owned()));
        world.banger(["vm", "set", "in", "out", "--nat", "off"]).succeeds();
        assert_ne!(told("in").0, 0);
        assert_ne!(told("out").0, 0);

        // It is remembered over a restart of the VM, and of the daemon.
        world.banger(["vm", "set", "out", "--nat", "on"]).succeeds();
        world.banger(["daemon", "stop"]).succeeds();
        world.banger(["vm", "restart", "out"]).succeeds();
        assert_eq!(told("out"), (0, Outside::HOST.to_owned()));
        world.delete_all();
        outside.disconnect();
    });
}

#[test]
fn names_are_answered_again_by_the_next_daemon() {
    in_world(|world| {
        let one = echoing(world, "one", &[]);
        world.kill_daemon();
        world.banger(["vm", "list"]).succeeds();
        assert_eq!(echo(&one), "hello");
        world
            .banger(["vm", "exec", "one", "--", "busybox", "nslookup", "one.vm"])
            .succeeds()
            .prints(&one);
    });
}
