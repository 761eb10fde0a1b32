//! An ordinary user's way out: by passt, of this host nothing, and nothing of it stays whatever dies.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use banger_e2e::{BUSYBOX, Backend, Nobody, Outside, World, in_world, pids_named, run, wait_until};
use rustix::process::{Pid, Signal, kill_process};

const SOON: Duration = Duration::from_secs(60);
/// Where clouds keep credentials.
const METADATA: &str = "169.254.169.254";

/// What a server tells a guest, or nothing. Debian 12's passt does not tell
/// a guest that has said that it sends no more when the other end does so, too: this one does not say it.
fn told(nobody: &Nobody<'_>, host: &str, port: u16) -> String {
    asks(nobody, 20, host, port)
}

/// Whether nobody tells it anything. What is dropped is not answered, so the guest does not wait long.
fn is_dropped(nobody: &Nobody<'_>, host: &str, port: u16) -> bool {
    asks(nobody, 1, host, port).is_empty()
}

fn asks(nobody: &Nobody<'_>, seconds: u32, host: &str, port: u16) -> String {
    // A stdin that does not end. Made anew after a guest that was killed: its disk need not have had it yet.
    let open = "[ -p /open ] || busybox mkfifo /open";
    let command = format!("{open}; busybox nc -w {seconds} {host} {port} <>/open");
    nobody.banger(&["vm", "exec", "box", "--", "sh", "-c", &command]).text().trim().to_owned()
}

fn in_guest(nobody: &Nobody<'_>, command: &str) {
    nobody.banger(&["vm", "exec", "box", "--", "sh", "-c", command]).succeeds();
}

fn processes(world: &World, kind: &str) -> Vec<Pid> {
    pids_named(&format!("banger-{kind}:bg{}-", world.installation()))
}

#[track_caller]
fn kill(pids: &[Pid]) {
    assert_eq!(pids.len(), 1, "{pids:?}");
    kill_process(pids[0], Signal::KILL).unwrap();
}

#[test]
fn an_ordinary_user_is_let_out_by_passt_and_nothing_of_it_stays_whatever_dies() {
    in_world(|world| {
        let nobody = Nobody::of(world);
        nobody.give_artifacts();
        let make = ["vm", "run", "-d", "--name", "box", "--image", BUSYBOX, "--memory", "256M"];
        let with = |more: &[&str]| nobody.banger(&[&make[..], more].concat());
        if Backend::here() == Backend::Firecracker {
            with(&["--nat"]).complains("passt serves QEMU only");
            nobody.banger(&["daemon", "stop"]).succeeds();
            return;
        }
        // A device is no file that could be started: for this daemon there is no passt.
        nobody.start_daemon(&[("/dev/null", "/usr/bin/passt")]);
        with(&["--nat"]).complains("apt-get install passt");
        nobody.banger(&["doctor"]).succeeds().prints("passt is not installed");
        nobody.banger(&["vm", "list", "--format", "json"]).succeeds().prints_only("[]\n");
        nobody.banger(&["daemon", "stop"]).succeeds();

        let outside = Outside::connect();
        outside.answer_names();
        outside.add_address(METADATA);
        run("ip", &["route", "add", METADATA, "dev", "cable"]);
        let port = outside.serve(16);
        let metadata = outside.serve_at(METADATA, 16);
        let resolv_conf = world.home().join("resolv.conf");
        std::fs::write(&resolv_conf, format!("nameserver {}\n", Outside::ADDRESS)).unwrap();
        nobody.start_daemon(&[(resolv_conf.to_str().unwrap(), "/etc/resolv.conf")]);
        nobody.banger(&["doctor"]).succeeds().prints("beyond this host by passt");
        with(&["--egress", "allow:github.com"]).complains("lists need a network device");
        with(&["--nat", "--expose", "5432"]).complains("--expose: VMs have no network here");

        let published = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        with(&["--nat", "-p", &format!("{published}:7")]).succeeds();
        let echo =
            "busybox nc -ll -p 7 -e cat & until busybox netstat -tln | grep -q :7; do :; done";
        in_guest(&nobody, echo);
        assert_eq!(told(&nobody, Outside::ADDRESS, port), Outside::HOST, "by address");
        assert_eq!(told(&nobody, "203-0-113-1.example", port), Outside::HOST, "by name");
        let mut stream = TcpStream::connect(("127.0.0.1", published)).unwrap();
        stream.write_all(b"hello").unwrap();
        let mut answer = [0; 5];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"hello");

        // A guest that wants to reach this host, and may do in itself what it likes.
        let service = TcpListener::bind("0.0.0.0:0").unwrap();
        let own = service.local_addr().unwrap().port();
        service.set_nonblocking(true).unwrap();
        in_guest(
            &nobody,
            "busybox ip address del 127.0.0.1/8 dev lo; busybox ip route add 127.0.0.0/8 via 10.212.255.1; \
             echo 1 >/proc/sys/net/ipv4/conf/all/route_localnet",
        );
        for address in ["127.0.0.1", Outside::HOST, "10.212.255.1"] {
            assert!(is_dropped(&nobody, address, own), "{address}");
            let nobody_came = service.accept().unwrap_err();
            assert_eq!(nobody_came.kind(), std::io::ErrorKind::WouldBlock, "{address}");
        }
        assert!(is_dropped(&nobody, METADATA, metadata));

        // The daemon dies: the network goes on, and the next one has it.
        let status = nobody.banger(&["daemon", "status", "--format", "json"]).json();
        let pid = i32::try_from(status["pid"].as_i64().unwrap()).unwrap();
        kill(&[Pid::from_raw(pid).unwrap()]);
        assert_eq!(told(&nobody, Outside::ADDRESS, port), Outside::HOST);
        // The VMM dies, and all of it with it.
        kill(&processes(world, "vmm"));
        wait_until("nothing runs", SOON, || world.processes().is_empty());

        // passt dies: the guest is without a network, and goes on.
        nobody.banger(&["vm", "start", "box"]).succeeds();
        kill(&processes(world, "passt"));
        wait_until("the fence has ended", SOON, || processes(world, "fence").is_empty());
        assert!(is_dropped(&nobody, Outside::ADDRESS, port));
        nobody.banger(&["vm", "stop", "box"]).succeeds();
        assert_eq!(world.processes(), Vec::<String>::new());

        // Closed at once, opened by a start.
        nobody.banger(&["vm", "start", "box"]).succeeds();
        assert_eq!(told(&nobody, Outside::ADDRESS, port), Outside::HOST);
        nobody.banger(&["vm", "set", "box", "--nat", "off"]).succeeds();
        assert_eq!((processes(world, "passt"), processes(world, "fence")), (vec![], vec![]));
        assert!(is_dropped(&nobody, Outside::ADDRESS, port));
        nobody.banger(&["vm", "set", "box", "--nat", "on"]).complains("when it starts");
        nobody.banger(&["vm", "restart", "box"]).succeeds();
        let devices = ["vm", "exec", "box", "--", "ls", "/sys/class/net"];
        nobody.banger(&devices).succeeds().prints_only("lo\n");

        nobody.banger(&["vm", "delete", "box"]).succeeds();
        nobody.banger(&["doctor"]).succeeds();
        nobody.banger(&["daemon", "stop"]).succeeds();
        outside.disconnect();
    });
}
