//! Networks beside the default one and what surrounds them: peers, subnets, zones, firewalls of the host's, services of the host.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use banger_e2e::{BUSYBOX, Outcome, Outside, World, echo, echoing, in_world, told};

const PATIENCE: Duration = Duration::from_secs(60);

/// Runs a line of shell in a guest.
fn sh(world: &World, name: &str, line: &str) -> Outcome {
    world.banger(["vm", "exec", name, "--", "sh", "-c", line])
}

/// What a guest gets back from port 7 of another one, which it may know by name.
fn answered(world: &World, from: &str, to: &str) -> Option<String> {
    answered_at(world, from, to, 7)
}

fn answered_at(world: &World, from: &str, to: &str, port: u16) -> Option<String> {
    // Its name is asked for by itself: a static program has no resolver of its own for more.
    let resolve =
        format!("busybox nslookup {to} | busybox awk '/^Address/ {{ a = $NF }} END {{ print a }}'");
    let address = match to.parse::<Ipv4Addr>() {
        Ok(_) => to.to_owned(),
        Err(_) => sh(world, from, &resolve).succeeds().text().trim().to_owned(),
    };
    let outcome = sh(world, from, &format!("echo hello | busybox nc -w 5 {address} {port}"));
    let said = outcome.text().trim().to_owned();
    (outcome.status == Some(0) && !said.is_empty()).then_some(said)
}

#[test]
fn peers_reach_each_other_by_name_under_their_own_addresses_and_others_reach_neither() {
    in_world(|world| {
        world
            .banger(["network", "create", "team", "--allow-peers"])
            .succeeds()
            .prints("team: created");
        let one = echoing(world, "one", &["--network", "team"]);
        let two = echoing(world, "two", &["--network", "team"]);
        let apart = echoing(world, "apart", &[]);
        assert_eq!(world.vm("one")["network"], "team");
        assert_eq!(world.vm("apart")["network"], "default");

        let hello = Some("hello".to_owned());
        assert_eq!(answered(world, "one", "two.vm"), hello);
        assert_eq!(answered(world, "two", "one.vm"), hello);
        for (from, to) in [("apart", &one), ("apart", &two), ("one", &apart)] {
            assert_eq!(answered(world, from, to), None, "{from} to {to}");
        }
        let lookup = |from: &str, name: &str| sh(world, from, &format!("busybox nslookup {name}"));
        assert!(!lookup("apart", "two.vm").text().contains(&two), "another network's names");
        assert!(!lookup("one", "apart.vm").text().contains(&apart), "another network's names");

        // Under an address that nobody has, a peer is not heard; it is under its own before and after.
        let none: Ipv4Addr = two.parse().unwrap();
        let none = Ipv4Addr::from_bits(none.to_bits() + 100);
        let spoof = format!(
            "busybox ip address add {none}/32 dev eth0 && busybox ip route add {two}/32 dev eth0 src {none}"
        );
        sh(world, "one", &spoof).succeeds();
        assert_eq!(answered(world, "one", &two), None);
        sh(world, "one", &format!("busybox ip route delete {two}/32")).succeeds();
        assert_eq!(answered(world, "one", &two), hello);

        world.banger(["network", "delete", "team"]).exits(1).complains("one, two");
        world.banger(["network", "delete", "default"]).exits(1).complains("default stays");
        world.banger(["vm", "stop", "two"]).succeeds();
        world.banger(["network", "delete", "team"]).exits(1);
        world.banger(["vm", "delete", "one", "two"]).succeeds();
        world.banger(["network", "delete", "team"]).succeeds();
        world
            .banger(["vm", "run", "--rm", "--image", BUSYBOX, "--network", "team", "--", "true"])
            .exits(125)
            .complains("there is no network team");
    });
}

#[test]
fn a_network_that_meets_another_or_the_host_is_refused_by_what_it_meets() {
    in_world(|world| {
        let create =
            |args: &[&str]| world.banger_with(&[&["network", "create"], args].concat(), b"");
        create(&["a", "--subnet", "10.9.0.0/24", "--mtu", "1400"]).succeeds();
        let shown = world.banger(["network", "show", "a", "--format", "json"]).json();
        assert_eq!(shown["subnet"], "10.9.0.0/24");
        assert_eq!((&shown["mtu"], &shown["peers"]), (&1400.into(), &false.into()));
        world.program("ip", &["address", "add", "10.77.0.1/24", "dev", "lo"]).succeeds();
        for (args, said) in [
            (&["b", "--subnet", "10.9.0.128/25"][..], "the network a, 10.9.0.0/24"),
            (&["b", "--subnet", "10.77.0.0/16"], "10.77.0.1/24 on lo"),
            (&["b", "--subnet", "8.8.8.0/24"], "is not private"),
            (&["b", "--mtu", "100"], "576..=65521"),
            (&["B"], "only a-z"),
            (&["a"], "already a network a"),
            (&["default"], "banger's own"),
        ] {
            let refused = create(args);
            assert_ne!(refused.status, Some(0), "{refused}");
            refused.complains(said);
        }
        world.program("ip", &["address", "delete", "10.77.0.1/24", "dev", "lo"]).succeeds();
        world.banger(["network", "list", "-q"]).succeeds().prints_only("default\na\n");
        // One that is chosen meets none that was, and the number of one that is gone is used again.
        create(&["b", "--allow-peers"]).succeeds();
        let bridge = |name: &str| {
            let shown = world.banger(["network", "show", name, "--format", "json"]).json();
            shown["bridge"].as_str().unwrap().to_owned()
        };
        let (first, second) = (bridge("a"), bridge("b"));
        assert!(first.ends_with("-net1") && second.ends_with("-net2"), "{first}, {second}");
        world.banger(["network", "delete", "a"]).succeeds();
        create(&["c"]).succeeds();
        assert_eq!(bridge("c"), first);
        world.banger(["network", "delete", "b", "c"]).succeeds();
        world.banger(["network", "show", "b"]).exits(1).complains("there is no network b");
    });
}

#[test]
fn names_end_with_the_zone_that_is_configured() {
    in_world(|world| {
        let config = world.home().join("config/config.toml");
        let before = std::fs::read_to_string(&config).unwrap();
        std::fs::write(&config, format!("{before}\n[network]\nzone = \"lab.example\"\n")).unwrap();
        let one = echoing(world, "one", &[]);
        sh(world, "one", "cat /etc/hosts")
            .succeeds()
            .prints(&format!("{one}\tone.lab.example one"));
        sh(world, "one", "busybox nslookup one.lab.example").succeeds().prints(&one);
        assert!(!sh(world, "one", "busybox nslookup one.vm").text().contains(&one));
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

/// On the host's loopback: it says back what it is told, when that has ended.
fn service() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        while let Ok((mut client, _)) = listener.accept() {
            let mut said = Vec::new();
            if client.read_to_end(&mut said).is_ok() {
                client.write_all(&said).ok();
            }
        }
    });
    port
}

#[test]
fn a_service_of_the_host_is_reached_by_the_vm_that_it_is_exposed_to_alone() {
    const HOST: &str = "host.banger.internal";
    in_world(|world| {
        let (port, kept_from_all) = (service(), service());
        // Nothing listens there.
        let nothing = {
            let nobody = TcpListener::bind("127.0.0.1:0").unwrap();
            nobody.local_addr().unwrap().port()
        };
        let [exposed, empty] = [port, nothing].map(|port| port.to_string());
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let held = silent.local_addr().unwrap().port();
        let held_text = held.to_string();
        let flags = ["--expose", &exposed, "--expose", &empty, "--expose", &held_text];
        echoing(world, "one", &flags);
        let two = echoing(world, "two", &[]);
        let mut all = [port, nothing, held];
        all.sort_unstable();
        assert_eq!(world.vm("one")["exposed"], serde_json::json!(all));
        assert_eq!(world.vm("two")["exposed"], serde_json::json!([]));

        let hello = Some("hello".to_owned());
        let all_is_right = |when: &str| {
            assert_eq!(answered_at(world, "one", HOST, port), hello, "{when}");
            for (from, there) in [("one", kept_from_all), ("one", nothing), ("two", port)] {
                assert_eq!(answered_at(world, from, HOST, there), None, "{when}, {from}");
            }
        };
        all_is_right("at first");
        // What guests reach the host's services by is nothing to anybody who comes by himself.
        let gateway = world.banger(["network", "show", "default", "--format", "json"]).json();
        let gateway: Ipv4Addr = gateway["gateway"].as_str().unwrap().parse().unwrap();
        assert_eq!(answered_at(world, "two", &gateway.to_string(), 42070), None);
        let mut stranger = TcpStream::connect((gateway, 42070)).unwrap();
        stranger.set_read_timeout(Some(PATIENCE)).unwrap();
        assert!(!matches!(stranger.read(&mut [0; 1]), Ok(1..)), "nobody answers the host there");

        // Rules that somebody loosens lead nowhere: the daemon knows by itself what is exposed to whom.
        let bridge = world.banger(["network", "show", "default", "--format", "json"]).json();
        let table = bridge["bridge"].as_str().unwrap().strip_suffix("-net0").unwrap().to_owned();
        let element = format!("add element inet {table} exposed {{ {two} . {port} }}");
        world.program("nft", &[&element]).succeeds();
        assert_eq!(answered_at(world, "two", HOST, port), None);

        world.kill_daemon();
        world.banger(["vm", "list"]).succeeds();
        all_is_right("with the next daemon");

        // A guest that is killed says no good-bye.
        let hold = format!("busybox sleep 600 | busybox nc {gateway} {held} >/dev/null 2>&1 &");
        sh(world, "one", &hold).succeeds();
        let (mut open, _) = silent.accept().unwrap();
        open.set_read_timeout(Some(PATIENCE)).unwrap();
        world.banger(["vm", "kill", "one"]).succeeds();
        let ended = open.read(&mut [0; 1]);
        assert_eq!(ended.unwrap_err().kind(), ErrorKind::ConnectionReset, "it ends with the VM");
        world.banger(["vm", "start", "one"]).succeeds();
        all_is_right("after a restart");

        for (wrong, said) in [("53", "port 53 cannot be exposed"), ("42070", "banger's own")] {
            let refused = ["vm", "create", "--name", "x", "--image", BUSYBOX, "--expose", wrong];
            world.banger_with(&refused, b"").exits(1).complains(said);
        }
        assert_eq!(echo(&two), "hello");
    });
}
