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

/// A daemon whose host asks the machine beyond it for names, whatever this one does.
fn start_daemon(world: &World) {
    let resolv_conf = world.home().join("resolv.conf");
    std::fs::write(&resolv_conf, format!("nameserver {}\n", Outside::ADDRESS)).unwrap();
    let script = "mount --bind \"$0\" /etc/resolv.conf && exec banger daemon start";
    let path = resolv_conf.to_str().unwrap();
    world.program("unshare", &["--mount", "sh", "-c", script, path]).succeeds();
}

#[test]
fn a_vm_has_an_ipv6_address_by_which_the_same_holds_and_names_of_the_world_only_where_they_lead() {
    in_world(|world| {
        let outside = Outside::connect();
        outside.connect_ipv6();
        outside.answer_names();
        let port = outside.serve_at(Outside::ADDRESS_6, 16);
        start_daemon(world);
        let one = echoing(world, "one", &[]);
        echoing(world, "two", &["--nat"]);
        let ipv6 = |name: &str| world.vm(name)["ipv6"].as_str().unwrap().to_owned();
        let (one_6, two_6) = (ipv6("one"), ipv6("two"));
        assert_eq!((echo(&one_6), echo(&two_6)), ("hello".into(), "hello".into()));
        let network = world.banger(["network", "show", "default", "--format", "json"]).json();
        let prefix = network["ipv6"].as_str().unwrap().strip_suffix("::/64").unwrap().to_owned();
        assert!(prefix.starts_with("fd") && one_6.starts_with(&prefix), "{prefix} {one_6}");

        // Names, from the host and from guests.
        let dig = |words: &[&str]| {
            let fixed = ["@127.0.0.1", "-p", "42069", "+tries=1", "+short"];
            world.program("dig", &[&fixed[..], words].concat()).succeeds().text()
        };
        assert_eq!(dig(&["one.vm", "AAAA"]).trim(), one_6);
        assert_eq!(dig(&["-x", &one_6]).trim(), "one.vm.");
        let sh =
            |name: &str, line: &str| world.banger(["vm", "exec", name, "--", "sh", "-c", line]);
        let asks = |name: &str, what: &str| {
            sh(name, &format!("busybox nslookup -type=aaaa {what} 2>&1")).text()
        };
        assert!(asks("one", "two.vm").contains(&two_6), "{}", asks("one", "two.vm"));
        assert!(!asks("one", "host.banger.internal").contains(&prefix));
        const SITE: &str = "2001-db8-6--1.example";
        assert!(asks("two", SITE).contains(Outside::ADDRESS_6), "{}", asks("two", SITE));
        assert!(!asks("one", SITE).contains(Outside::ADDRESS_6));

        // The gateway, a service of the host, another guest, the world.
        let gateway = format!("{prefix}::1");
        sh("one", &format!("busybox ping -6 -c 1 -W 20 {gateway}")).succeeds();
        let service = TcpListener::bind("[::]:0").unwrap();
        let service = service.local_addr().unwrap().port();
        let metadata = "fd00:ec2::254";
        for (name, address, port) in [
            ("one", gateway.as_str(), service),
            ("one", &two_6, 7),
            ("two", &one_6, 7),
            ("two", Outside::HOST_6, service),
            ("two", metadata, port),
            ("one", Outside::ADDRESS_6, port),
        ] {
            assert_ne!(told(world, name, address, port).0, 0, "{name} to {address}");
        }
        let from_host = (0, Outside::HOST_6.to_owned());
        assert_eq!(told(world, "two", Outside::ADDRESS_6, port), from_host, "under its address");
        world.banger(["vm", "set", "one", "--nat", "on"]).succeeds();
        assert_eq!(told(world, "one", Outside::ADDRESS_6, port), from_host);
        assert!(asks("one", SITE).contains(Outside::ADDRESS_6));
        world.banger(["vm", "set", "one", "--nat", "off"]).succeeds();
        assert_ne!(told(world, "one", Outside::ADDRESS_6, port).0, 0);
        // While the host has no way there, nobody is sent there; its VMs are where they were.
        outside.lose_ipv6();
        assert!(!asks("two", SITE).contains(Outside::ADDRESS_6));
        assert_eq!(dig(&["one.vm", "AAAA"]).trim(), one_6);

        // Kept over a restart; not there while it does not run.
        world.banger(["vm", "stop", "one"]).succeeds();
        assert_eq!(dig(&["one.vm", "AAAA"]), "");
        world.banger(["vm", "start", "one"]).succeeds();
        assert_eq!((ipv6("one"), world.vm("one")["address"].as_str().unwrap()), (one_6, &*one));

        // A host without IPv6 gives none.
        let turn = |value: &str| {
            let setting = format!("net.ipv6.conf.default.disable_ipv6={value}");
            world.program("sysctl", &["-qw", &setting]).succeeds();
        };
        world.delete_all();
        turn("1");
        echoing(world, "three", &[]);
        assert_eq!(world.vm("three")["ipv6"], serde_json::Value::Null);
        assert_eq!(dig(&["three.vm", "AAAA"]), "");
        assert!(!sh("three", "cat /proc/net/if_inet6").text().contains("eth0"));
        turn("0");
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
