//! Services of guests reached by ports of the host: published, forwarded, listed; with a network and without one.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::{PermissionsExt, chown};
use std::time::Duration;

use banger_e2e::{BUSYBOX, Backend, Outcome, SYSTEMD, World, built, in_world, wait_until};
use rustix::process::Signal;

const PATIENCE: Duration = Duration::from_secs(60);

/// On the guest's loopback: echoes at 7 (TCP) and 5300 (UDP), and at 9 one that ends its direction first, then counts what
/// it gets. On all its addresses: a web page at 80. Ends when all are there; they go on.
const SERVICES: &[u8] = br#"
use Socket;
sub listening {
    my ($port, $address) = @_;
    socket(my $socket, PF_INET, SOCK_STREAM, 0) or die $!;
    setsockopt($socket, SOL_SOCKET, SO_REUSEADDR, 1);
    bind($socket, sockaddr_in($port, $address)) or die $!;
    listen($socket, 128) or die $!;
    return $socket;
}
my ($echo, $count, $page) = (listening(7, INADDR_LOOPBACK), listening(9, INADDR_LOOPBACK), listening(80, INADDR_ANY));
socket(my $datagrams, PF_INET, SOCK_DGRAM, 0) or die $!;
bind($datagrams, sockaddr_in(5300, INADDR_LOOPBACK)) or die $!;
sub all { my ($to, $bytes) = @_; my $at = 0; $at += syswrite($to, $bytes, length($bytes) - $at, $at) while $at < length $bytes }
sub serve {
    my ($socket, $what) = @_;
    return if fork;
    $SIG{CHLD} = 'IGNORE';
    while (accept(my $client, $socket)) {
        if (!fork) { $what->($client); exit }
        close $client;
    }
}
open STDIN, '<', '/dev/null'; open STDOUT, '>', '/dev/null'; open STDERR, '>', '/dev/null';
serve($echo, sub { my ($c) = @_; my $b; all($c, $b) while sysread($c, $b, 65536) });
serve($page, sub { my ($c) = @_; sysread($c, my $b, 65536); all($c, "HTTP/1.0 200 OK\r\n\r\nhello\n") });
serve($count, sub {
    my ($c) = @_; my ($b, $n) = ('', 0);
    all($c, "that is all"); shutdown($c, 1);
    $n += length $b while sysread($c, $b, 65536);
    open my $file, '>', '/run/count.new'; print $file $n; close $file; rename '/run/count.new', '/run/count';
});
if (!fork) { while (defined(my $from = recv($datagrams, my $b, 65536, 0))) { send($datagrams, $b, 0, $from) } }
"#;

fn serve(world: &World) {
    world.banger_with(&["vm", "exec", "web", "--", "perl", "-"], SERVICES).succeeds();
}

fn connect(port: u16) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn refused(port: u16) -> bool {
    connect(port).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

/// Whether all that is sent comes back, and the end after it.
fn echoes(port: u16, content: &[u8]) -> bool {
    let Ok(mut stream) = connect(port) else { return false };
    let mut sending = stream.try_clone().unwrap();
    let mut answer = Vec::new();
    std::thread::scope(|scope| {
        // One that breaks off shows in what comes back.
        scope.spawn(move || {
            drop(sending.write_all(content).and_then(|()| sending.shutdown(Shutdown::Write)));
        });
        drop(stream.read_to_end(&mut answer));
    });
    answer == content
}

fn page(port: u16) -> String {
    let mut stream = connect(port).unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).unwrap();
    page
}

/// Another's connections and bytes for each: no two have the same.
fn content(number: usize, length: usize) -> Vec<u8> {
    let mut state = u32::try_from(number).unwrap() + 1;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    std::iter::repeat_with(next).take(length).collect()
}

#[test]
fn published_ports_lead_to_the_guests_loopback_as_long_as_it_runs() {
    in_world(|world| {
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = format!("{}:80", other.local_addr().unwrap().port());
        let run = ["vm", "run", "-d", "--name", "web", "--image", SYSTEMD, "--init", "none"];
        let with = |ports: &[&str]| world.banger_with(&[&run[..], ports].concat(), b"");
        with(&["-p", "8080:80", "-p", &taken]).exits(125).complains("another program listens");
        assert!(world.vms().is_empty(), "nothing was made");

        let ports =
            ["-p", "8080:80", "-p", "7007:7", "-p", "5300/udp", "-p", "0:9", "-p", "7001:1"];
        with(&ports).succeeds();
        serve(world);
        let published = world.vm("web")["published"].as_array().unwrap().clone();
        let chosen = published.iter().find(|port| port["guest"] == 9).unwrap();
        let chosen = u16::try_from(chosen["host"].as_u64().unwrap()).unwrap();

        assert!(page(8080).ends_with("hello\n"));
        assert!(echoes(7007, b"hello"));
        datagrams_come_back(5300);
        each_direction_ends_by_itself(world, chosen);
        many_at_once_carry_what_they_are_given(7007);
        let nobody = connect(7001).unwrap().read(&mut [0]).unwrap_err();
        assert_eq!(nobody.kind(), ErrorKind::ConnectionReset);

        let create = ["vm", "run", "-d", "--name", "two", "--image", BUSYBOX, "-p", "8080:1"];
        world.banger(create).exits(125).complains("VM web publishes it");
        assert_eq!(world.vms().len(), 1);
        ports_are_listed(world);
        ports_change_while_it_runs(world);
        a_forward_lasts_until_it_is_interrupted(world);

        world.kill_daemon();
        // A process that dies loses its memory, by which it is known to be gone, before its files.
        wait_until("the ports are closed", PATIENCE, || refused(7007));
        world.banger(["vm", "list"]).succeeds();
        wait_until("the ports are back", PATIENCE, || echoes(7007, b"again"));

        world.banger(["vm", "stop", "web"]).succeeds();
        assert!(refused(7007) && refused(chosen));
        world.banger(["vm", "forward", "web", "0:7"]).exits(1).complains("is stopped");
        world.banger(["vm", "start", "web"]).succeeds();
        serve(world);
        assert!(echoes(7007, b"after a restart"));
        each_direction_ends_by_itself(world, chosen);
    });
}

fn datagrams_come_back(port: u16) {
    for number in 0..3 {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let sent = content(number, 1000 * number);
        socket.send_to(&sent, ("127.0.0.1", port)).unwrap();
        let mut answer = [0; 65536];
        let length = socket.recv(&mut answer).unwrap();
        assert_eq!(answer[..length], sent);
    }
}

/// The service ends its direction first, and still gets everything.
fn each_direction_ends_by_itself(world: &World, port: u16) {
    let mut stream = connect(port).unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).unwrap();
    assert_eq!(said, "that is all");
    stream.write_all(&content(0, 300_000)).unwrap();
    drop(stream);
    let count = "until [ -e /run/count ]; do :; done; cat /run/count; rm /run/count";
    world.banger(["vm", "exec", "web", "--", "sh", "-c", count]).succeeds().prints_only("300000");
}

fn many_at_once_carry_what_they_are_given(port: u16) {
    const MANY: usize = 64;
    let each = (Backend::here().much() / MANY).min(1 << 20);
    let whole: Vec<bool> = std::thread::scope(|scope| {
        let begin = |number| scope.spawn(move || echoes(port, &content(number, each)));
        let all: Vec<_> = (0..MANY).map(begin).collect();
        all.into_iter().map(|connection| connection.join().unwrap()).collect()
    });
    assert_eq!(whole, [true; MANY]);
}

fn ports_are_listed(world: &World) {
    let ports = world.banger(["vm", "ports", "web", "--format", "json"]).succeeds().json();
    let listening = |port: u16| {
        let all = ports["listening"].as_array().unwrap();
        all.iter().find(|socket| socket["port"] == port).unwrap().clone()
    };
    let (page, echo, datagrams) = (listening(80), listening(7), listening(5300));
    assert_eq!(page["process"], "perl");
    assert_eq!(page["url"], "http://web.vm:80");
    assert_eq!((&echo["address"], &echo["url"]), (&"127.0.0.1".into(), &serde_json::Value::Null));
    assert_eq!(echo["reached_at"], "127.0.0.1:7007");
    assert_eq!(datagrams["protocol"], "udp");
    assert_eq!(ports["published"].as_array().unwrap().len(), 5);
    world.banger(["vm", "ports", "web"]).succeeds().prints("127.0.0.1:7001, but nothing listens");
}

fn ports_change_while_it_runs(world: &World) {
    let set = ["vm", "set", "web", "--unpublish", "8080", "--publish", "8081:80"];
    world.banger(set).succeeds().prints("127.0.0.1:8081:80");
    assert!(refused(8080));
    assert!(page(8081).ends_with("hello\n"));
    world.banger(["vm", "set", "web", "--publish", "8080:80", "--publish", "7007:1"]).exits(1);
    assert!(refused(8080), "all or nothing");
    assert!(echoes(7007, b"as before"));
}

fn a_forward_lasts_until_it_is_interrupted(world: &World) {
    let mut forward = world.background(&["vm", "forward", "web", "0:7", "0:5300/udp"]);
    let mut port = |end: &str| -> u16 {
        let line = forward.line();
        let port = line.strip_prefix("127.0.0.1:").and_then(|line| line.strip_suffix(end));
        port.unwrap_or_else(|| panic!("{line}")).parse().unwrap()
    };
    let (echo, datagrams) = (port(" -> web:7"), port(" -> web:5300/udp"));
    assert!(echoes(echo, &content(1, 1 << 20)));
    datagrams_come_back(datagrams);
    forward.signal(Signal::INT);
    forward.end().succeeds();
    assert!(refused(echo));
}

#[test]
fn an_ordinary_users_guest_without_a_network_is_reached_too() {
    const NOBODY: u32 = 65534;
    in_world(|world| {
        let home = world.home().join("nobody");
        std::fs::create_dir(&home).unwrap();
        chown(&home, Some(NOBODY), Some(NOBODY)).unwrap();
        // The way to it is the test's own folder, which is private.
        for folder in home.ancestors().skip(1).take(2) {
            std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o711)).unwrap();
        }
        world.give_artifacts(&home, NOBODY);
        // Who may use KVM is in its group (Debian's udev rules); QEMU translates without it.
        let groups = match Backend::here() {
            Backend::Qemu => "65534",
            Backend::Firecracker => "kvm",
        };
        let as_nobody = |args: &[&str]| -> Outcome {
            let banger = built().join("banger");
            let home = format!("BANGER_HOME={}", home.display());
            let user = ["--reuid", "65534", "--regid", "65534", "--groups", groups, "env", "-i"];
            let program = [home.as_str(), "HOME=/nonexistent", banger.to_str().unwrap()];
            world.program("setpriv", &[&user[..], &program[..], args].concat())
        };
        let run = ["vm", "run", "-d", "--name", "web", "--image", BUSYBOX, "--memory", "256M"];
        let low = as_nobody(&[&run[..], &["-p", "80:7"]].concat());
        low.exits(125).complains("ip_unprivileged_port_start=80");
        as_nobody(&[&run[..], &["-p", "7007:7"]].concat()).succeeds();
        let serve = "busybox nc -ll -p 7 -e cat & \
                     until busybox netstat -tln | grep -q :7; do :; done";
        as_nobody(&["vm", "exec", "web", "--", "sh", "-c", serve]).succeeds();
        assert!(echoes(7007, b"hello"));
        as_nobody(&["vm", "ports", "web"]).succeeds().prints("127.0.0.1:7007");
        as_nobody(&["vm", "delete", "web"]).succeeds();
        assert!(refused(7007));
        as_nobody(&["daemon", "stop"]).succeeds();
    });
}
