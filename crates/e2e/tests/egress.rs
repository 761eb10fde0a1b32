//! What a VM may reach beyond its host, by names and by addresses: with a machine beyond the host that serves at several addresses
//! and answers for names.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use banger_e2e::{BUSYBOX, Outside, World, in_world};

/// Two addresses of the machine beyond the host, and their names.
const SITE: (&str, &str) = ("203.0.113.3", "203-0-113-3.example");
const NEIGHBOUR: (&str, &str) = ("203.0.113.4", "203-0-113-4.example");

/// A daemon whose host asks the machine beyond it for names, whatever this one does.
fn start_daemon(world: &World) {
    let resolv_conf = world.home().join("resolv.conf");
    std::fs::write(&resolv_conf, format!("nameserver {}\n", Outside::ADDRESS)).unwrap();
    let script = "mount --bind \"$0\" /etc/resolv.conf && exec banger daemon start";
    let path = resolv_conf.to_str().unwrap();
    world.program("unshare", &["--mount", "sh", "-c", script, path]).succeeds();
}

fn in_guest(world: &World, command: &str) -> (i32, String) {
    let outcome = world.banger(["vm", "exec", "box", "--", "sh", "-c", command]);
    (outcome.status.unwrap_or(-1), outcome.text().trim().to_owned())
}

/// Whether the guest gets to a server beyond the host.
fn reaches(world: &World, address: &str, port: u16) -> bool {
    let (status, said) = in_guest(world, &format!("busybox nc -w 20 {address} {port} </dev/null"));
    let is_told = (status, said.as_str()) == (0, Outside::HOST);
    assert!(is_told || said.is_empty() || status != 0, "{status}: {said}");
    is_told
}

/// Whether the guest learns the address of a name, and not that it is refused.
fn resolves(world: &World, (address, name): (&str, &str)) -> bool {
    // One question: of two at once, busybox takes the answer that comes first for both.
    let (_, said) = in_guest(world, &format!("busybox nslookup -type=a {name} 2>&1"));
    assert_ne!(said.contains(address), said.contains("REFUSED"), "{said}");
    said.contains(&format!("Address: {address}")) || said.contains(&format!("Address 1: {address}"))
}

fn set(world: &World, policy: &str) {
    world
        .banger(["vm", "set", "box", "--egress", policy])
        .succeeds()
        .prints(&format!("box: egress {policy}"));
    assert_eq!(world.vm("box")["egress"], policy);
}

#[test]
fn a_vm_reaches_what_its_list_names_and_nothing_else_and_what_it_was_refused_is_told() {
    in_world(|world| {
        let outside = Outside::connect();
        outside.add_address(SITE.0);
        outside.add_address(NEIGHBOUR.0);
        outside.answer_names();
        let site = outside.serve_at(SITE.0, 64);
        let neighbour = outside.serve_at(NEIGHBOUR.0, 64);
        start_daemon(world);

        let make = ["vm", "run", "-d", "--name", "box", "--image", BUSYBOX, "--memory", "256M"];
        let contradiction = [&make[..], &["--nat", "--egress", "none"]].concat();
        let refused = world.banger_with(&contradiction, b"");
        assert_ne!(refused.status, Some(0));
        refused.complains("--nat is the same as --egress all");
        assert_eq!(world.vms().len(), 0);

        let policy = format!("allow:{}", SITE.1);
        world.banger_with(&[&make[..], &["--egress", &policy]].concat(), b"").succeeds();
        assert!(!reaches(world, SITE.0, site), "nobody has asked for its name");
        assert!(resolves(world, SITE));
        assert!(reaches(world, SITE.0, site));
        assert!(!resolves(world, NEIGHBOUR));
        assert!(!reaches(world, NEIGHBOUR.0, neighbour));

        // Other people's DNS: UDP, TCP, and the port of DNS over TLS.
        let elsewhere = format!("busybox nslookup -type=a {} {} 2>&1", SITE.1, Outside::ADDRESS);
        assert!(!in_guest(world, &elsewhere).1.contains(SITE.0));
        for port in [53, 853] {
            assert!(!reaches(world, Outside::ADDRESS, port));
        }
        let told = world.banger(["vm", "logs", "--network", "box"]).succeeds().text();
        for line in [
            format!("  refused  name  {}", NEIGHBOUR.1),
            format!("  refused  tcp   {}:{site}", SITE.0),
            format!("  refused  tcp   {}:{neighbour}", NEIGHBOUR.0),
            format!("  refused  udp   {}:53", Outside::ADDRESS),
            format!("  refused  tcp   {}:853", Outside::ADDRESS),
        ] {
            assert!(told.lines().any(|told| told.ends_with(&line)), "{line}\n{told}");
        }

        // Live, both ways.
        set(world, &format!("{policy},{}", NEIGHBOUR.0));
        assert!(reaches(world, NEIGHBOUR.0, neighbour) && reaches(world, SITE.0, site));
        set(world, "allow:203.0.113.4/31");
        assert!(reaches(world, NEIGHBOUR.0, neighbour));
        assert!(!reaches(world, SITE.0, site) && !resolves(world, SITE));
        set(world, "none");
        assert!(!reaches(world, NEIGHBOUR.0, neighbour));
        set(world, "all");
        assert!(reaches(world, NEIGHBOUR.0, neighbour) && reaches(world, SITE.0, site));
        set(world, &policy);
        assert!(!reaches(world, NEIGHBOUR.0, neighbour) && !reaches(world, SITE.0, site));

        // Kept over a restart of the daemon, and of the VM.
        world.banger(["daemon", "stop"]).succeeds();
        start_daemon(world);
        assert!(resolves(world, SITE) && reaches(world, SITE.0, site));
        assert!(!resolves(world, NEIGHBOUR) && !reaches(world, NEIGHBOUR.0, neighbour));
        world.banger(["vm", "restart", "box"]).succeeds();
        assert!(!reaches(world, SITE.0, site), "its opening has gone with the VM's run");
        assert!(resolves(world, SITE) && reaches(world, SITE.0, site));
        assert!(!reaches(world, NEIGHBOUR.0, neighbour));
        assert_eq!(world.vm("box")["egress"], policy.as_str());
        world.delete_all();
        outside.disconnect();
    });
}
