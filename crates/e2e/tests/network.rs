//! The network of VMs: who reaches whom, by which name, and that nothing of it stays.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use banger_e2e::{BUSYBOX, Backend, Outside, World, in_world};

const PATIENCE: Duration = Duration::from_secs(60);

/// A VM that answers on port 7 with what it is sent.
fn echoing(world: &World, name: &str, more: &[&str]) -> String {
    let fixed = ["vm", "run", "-d", "--name", name, "--image", BUSYBOX, "--memory", "256M"];
    world.banger_with(&[&fixed[..], more].concat(), b"").succeeds();
    let serve = "busybox nc -ll -p 7 -e cat & until busybox netstat -tln | grep -q :7; do :; done";
    world.banger(["vm", "exec", name, "--", "sh", "-c", serve]).succeeds();
    world.vm(name)["address"].as_str().unwrap().to_owned()
}

/// What the host gets back from port 7 of a VM.
fn echo(address: &str) -> String {
    let mut stream = TcpStream::connect((address, 7)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"hello").unwrap();
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

/// What a guest is told by a server, or how its attempt ended.
fn told(world: &World, name: &str, address: &str, port: u16) -> (i32, String) {
    let command = format!("busybox nc -w 20 {address} {port} </dev/null");
    let outcome = world.banger(["vm", "exec", name, "--", "sh", "-c", &command]);
    (outcome.status.unwrap_or(-1), outcome.text().trim().to_owned())
}

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
fn a_firewall_that_keeps_a_vm_in_is_named_and_told_what_to_let_through() {
    in_world(|world| {
        let outside = Outside::connect();
        let port = outside.serve(2);
        let chain = "{ type filter hook forward priority 0; }";
        let strict = format!(
            "add table inet strict; add chain inet strict through {chain}; \
             add rule inet strict through reject with icmpx admin-prohibited"
        );
        world.program("nft", &[&strict]).succeeds();
        let in_the_way = "chain through of table inet strict: reject with icmpx admin-prohibited";
        let run =
            ["vm", "run", "-d", "--name", "out", "--nat", "--image", BUSYBOX, "--memory", "256M"];
        let begun = world.banger_with(&run, b"");
        begun.succeeds().complains("a firewall of this host is in the way").complains(in_the_way);
        assert_ne!(told(world, "out", Outside::ADDRESS, port).0, 0);
        world.banger(["vm", "set", "out", "--nat", "on"]).succeeds().complains(in_the_way);

        let finding = || {
            let report = world.banger(["doctor", "--format", "json"]).json();
            let findings = report["findings"].as_array().unwrap();
            findings.iter().find(|finding| finding["check"] == "firewall").unwrap().clone()
        };
        let remedy = finding()["remedy"].as_str().unwrap().to_owned();
        for command in remedy.split('`').filter_map(|part| part.strip_prefix("sudo ")) {
            world.program("sh", &["-c", command]).succeeds();
        }
        assert_eq!(finding()["verdict"], "PASS");
        assert_eq!(told(world, "out", Outside::ADDRESS, port), (0, Outside::HOST.to_owned()));
        let again = world.banger(["vm", "set", "out", "--nat", "on"]);
        assert!(!again.succeeds().errors().contains("firewall"), "{}", again.errors());
        world.program("nft", &["delete table inet strict"]).succeeds();
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
