//! Bridge, guard, tap and way out together, with traffic: the host, guests and the world are network namespaces of the test's
//! own.

mod exposed;
mod ipv6;
mod peers;

mod firewalls;
mod uplinks;

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use super::rules::{self, Before, Found, Rules, WayOut};
use super::{bridge, guard, nat, netlink, nft, tap};
use super::{in_own_network, test_mark};
use crate::mark::{Installation, Mark};
use crate::network::{Mac, Network};
use crate::{Guard, Held, Nat, Tap, command};

const IP_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";
const ACCEPT_REDIRECTS: &str = "/proc/sys/net/ipv4/conf/all/accept_redirects";
pub(super) const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 213, 4, 1);
pub(super) const GUEST: Ipv4Addr = Ipv4Addr::new(10, 213, 4, 2);
pub(super) const OTHER_GUEST: Ipv4Addr = Ipv4Addr::new(10, 213, 4, 3);
pub(super) const HOST_OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub(super) const SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// Long enough for any machine, and shorter than what waits for it is worth.
pub(super) const SOON: Duration = Duration::from_secs(10);

pub(super) fn network() -> Network {
    Network { number: 0, gateway: GATEWAY, prefix: 22, mtu: 1500, peers: false, ipv6: None }
}

/// Another one, whose guests reach each other.
fn team() -> Network {
    let gateway = Ipv4Addr::new(10, 213, 8, 1);
    Network { number: 1, gateway, prefix: 22, mtu: 1500, peers: true, ipv6: None }
}

const MEMBER: Ipv4Addr = Ipv4Addr::new(10, 213, 8, 2);
const OTHER_MEMBER: Ipv4Addr = Ipv4Addr::new(10, 213, 8, 3);

pub(super) fn guard_of(mark: &Mark, address: Ipv4Addr) -> Guard {
    guard_in(network(), mark, address)
}

fn guard_in(network: Network, mark: &Mark, address: Ipv4Addr) -> Guard {
    Guard { mark: mark.clone(), network, address, mac: Mac::of(mark), exposed: [].into() }
}

/// Another VM of the same installation.
fn another(mark: &Mark) -> Mark {
    Mark::new(mark.installation().clone(), test_mark().vm().clone())
}

pub(super) fn nat_of(mark: &Mark, address: Ipv4Addr) -> Nat {
    Nat { mark: mark.clone(), network: network(), address, only: None }
}

pub(super) fn ip(line: &str) -> String {
    command::run("ip", &line.split(' ').collect::<Vec<_>>()).unwrap()
}

pub(super) fn ruleset() -> String {
    command::run("nft", &["list", "ruleset"]).unwrap()
}

/// Every setting of IPv4.
fn settings() -> String {
    command::run("sysctl", &["-a", "-r", "^net.ipv4"]).unwrap()
}

fn forwards() -> bool {
    fs::read_to_string(IP_FORWARD).unwrap() == "1\n"
}

/// A host that does not forward, whatever this machine does.
pub(super) fn on_a_host(test: impl FnOnce() + Send) {
    in_own_network(|| {
        fs::write(IP_FORWARD, "0").unwrap();
        fs::write(ACCEPT_REDIRECTS, "1").unwrap();
        ip("link set lo up");
        test();
    });
}

/// A network namespace beside the host's.
pub(super) struct Beside(File);

impl Beside {
    fn new() -> Self {
        let make = || {
            #[expect(unsafe_code, reason = "unshare(2) can take files away from a thread")]
            // SAFETY: open files stay shared (CLONE_FILES is not given).
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
            ip("link set lo up");
            File::open("/proc/thread-self/ns/net").unwrap()
        };
        Self(std::thread::scope(|scope| scope.spawn(make).join()).unwrap())
    }

    /// What is opened inside stays inside.
    pub(super) fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let enter = || {
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(self.0.as_fd(), kind).unwrap();
            work()
        };
        std::thread::scope(|scope| scope.spawn(enter).join()).unwrap()
    }

    /// A cable from the host's device `name` to `eth0` in here.
    fn connect(&self, name: &str, mac: &str, address: &str) {
        let here = format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd());
        ip(&format!("link add {name} type veth peer name eth0 address {mac} netns {here}"));
        self.inside(|| {
            ip(&format!("address add {address} dev eth0"));
            ip("link set eth0 up");
        });
    }

    /// A guest of the bridge, behind a device that has the name of a tap.
    pub(super) fn guest(mark: &Mark, address: Ipv4Addr) -> Self {
        Self::guest_in(network(), mark, address)
    }

    fn guest_in(network: Network, mark: &Mark, address: Ipv4Addr) -> Self {
        bridge::acquire(mark.installation(), &network).unwrap();
        guard::acquire(&guard_in(network, mark, address)).unwrap();
        let guest = Self::new();
        guest.connect(&mark.to_string(), &Mac::of(mark).to_string(), &format!("{address}/22"));
        let index = |name: &str| netlink::link(name).unwrap().unwrap().index;
        let port = index(&mark.to_string());
        netlink::attach(port, index(&network.bridge(mark.installation()))).unwrap();
        netlink::isolate(port, !network.peers).unwrap();
        netlink::bring_up(port).unwrap();
        guest.inside(|| ip(&format!("route add default via {}", network.gateway)));
        guest
    }

    /// A server's network, which knows the way to guests.
    pub(super) fn world() -> Self {
        let world = Self::new();
        world.connect("uplink", "02:00:00:00:00:77", &format!("{SERVER}/24"));
        ip(&format!("address add {HOST_OUTSIDE}/24 dev uplink"));
        ip("link set uplink up");
        world.inside(|| ip(&format!("route add default via {HOST_OUTSIDE}")));
        world
    }

    pub(super) fn listen(&self, address: Ipv4Addr) -> (TcpListener, SocketAddr) {
        let listener = self.inside(|| TcpListener::bind((address, 0)).unwrap());
        let at = listener.local_addr().unwrap();
        (listener, at)
    }

    pub(super) fn dial(&self, to: impl Into<SocketAddr>) -> Result<TcpStream, ErrorKind> {
        let to = to.into();
        self.inside(|| TcpStream::connect_timeout(&to, SOON)).map_err(|error| error.kind())
    }
}

#[test]
fn what_was_made_is_listed_and_found_right_the_next_time() {
    on_a_host(|| {
        let mark = test_mark();
        let installation = mark.installation();
        let member = another(&mark);
        guard::acquire(&guard_of(&mark, GUEST)).unwrap();
        guard::acquire(&guard_in(team(), &member, MEMBER)).unwrap();
        nat::acquire(&nat_of(&mark, GUEST)).unwrap();
        let found = nft::read(installation).unwrap();
        assert!(found.is_current, "nft lists what was written in the words it was written in");
        let rules = Rules {
            guards: [
                (mark.clone(), (Mac::of(&mark), GUEST)),
                (member.clone(), (Mac::of(&member), MEMBER)),
            ]
            .into(),
            ipv6: [].into(),
            peers: [(member.clone(), (1, MEMBER))].into(),
            exposed: [].into(),
            ways_out: [(mark.clone(), WayOut { address: GUEST, only: None, ipv6: None })].into(),
            before: Some(Before { accepted_redirects: true, forwarding: [].into() }),
            before_ipv6: None,
        };
        assert_eq!(found.rules, rules);
        let before = ruleset();
        guard::acquire(&guard_of(&mark, GUEST)).unwrap();
        nat::acquire(&nat_of(&mark, GUEST)).unwrap();
        guard::acquire(&guard_in(team(), &member, MEMBER)).unwrap();
        assert_eq!(ruleset(), before);
        guard::release(&member).unwrap();
        let rules = nft::read(installation).unwrap().rules;
        assert!(rules.peers.is_empty());
        assert!(guard::list(&rules).eq([Held::Guard { mark: mark.clone() }]));
        assert!(nat::list(&rules).eq([Held::Nat { mark }]));
    });
}

#[test]
fn a_vm_that_is_known_otherwise_is_an_error() {
    on_a_host(|| {
        let mark = test_mark();
        let other = Mark::new(mark.installation().clone(), test_mark().vm().clone());
        guard::acquire(&guard_of(&mark, GUEST)).unwrap();
        nat::acquire(&nat_of(&mark, GUEST)).unwrap();
        for wrong in [
            guard_of(&mark, OTHER_GUEST),
            guard_of(&other, GUEST),
            Guard { mac: Mac::of(&other), ..guard_of(&mark, GUEST) },
        ] {
            guard::acquire(&wrong).unwrap_err();
        }
        nat::acquire(&nat_of(&mark, OTHER_GUEST)).unwrap_err();
        nat::acquire(&nat_of(&other, GUEST)).unwrap_err();
        guard::acquire(&guard_of(&other, OTHER_GUEST)).unwrap();
        nat::acquire(&nat_of(&other, OTHER_GUEST)).unwrap();
    });
}

#[test]
fn the_host_is_what_it_was_when_all_is_released() {
    on_a_host(|| {
        // What is up changes by itself for a second or so.
        ip("link add mine type veth peer name mine2");
        ip("address add 192.0.2.1/24 dev mine");
        ip("route add blackhole 198.51.100.0/24");
        let mine = "table inet mine {\n\tchain forward {\n\t\ttype filter hook forward priority filter; policy drop;\n\t}\n}";
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), mine).unwrap();
        command::run("nft", &["-f", file.path().to_str().unwrap()]).unwrap();
        let state = || {
            let links = ip("-d link");
            [ruleset(), links, ip("address"), ip("route show table all"), settings()]
        };
        // What a host that forwards loses.
        fs::write(ACCEPT_REDIRECTS, "0").unwrap();
        fs::write("/proc/sys/net/ipv4/conf/mine/forwarding", "1").unwrap();
        let before = state();
        let mark = test_mark();
        let other = Mark::new(mark.installation().clone(), test_mark().vm().clone());
        let [member, other_member] = [another(&mark), another(&mark)];
        for (network, mark, address) in [
            (network(), &mark, GUEST),
            (network(), &other, OTHER_GUEST),
            (team(), &member, MEMBER),
            (team(), &other_member, OTHER_MEMBER),
        ] {
            bridge::acquire(mark.installation(), &network).unwrap();
            guard::acquire(&guard_in(network, mark, address)).unwrap();
            tap::acquire(&Tap { mark: mark.clone(), uid: 1_900_000_000, network }).unwrap();
            nat::acquire(&Nat { mark: mark.clone(), network, address, only: None }).unwrap();
        }
        assert!(forwards());
        for mark in [&mark, &member, &other, &other_member] {
            for _twice in 0..2 {
                nat::release(mark).unwrap();
                tap::release(mark).unwrap();
                guard::release(mark).unwrap();
                bridge::release(mark.installation(), 0).unwrap();
                bridge::release(mark.installation(), 1).unwrap();
            }
        }
        assert_eq!(state(), before);
    });
}

#[test]
fn a_guest_is_refused_by_the_host_at_once_but_for_names() {
    on_a_host(|| {
        let mark = test_mark();
        let guest = Beside::guest(&mark, GUEST);
        let _world = Beside::world();
        let service = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let port = service.local_addr().unwrap().port();
        for host in [GATEWAY, HOST_OUTSIDE] {
            assert_eq!(guest.dial((host, port)).unwrap_err(), ErrorKind::ConnectionRefused);
        }
        let udp = guest.inside(|| UdpSocket::bind((GUEST, 0)).unwrap());
        udp.set_read_timeout(Some(SOON)).unwrap();
        udp.connect((GATEWAY, port)).unwrap();
        udp.send(b"x").unwrap();
        assert_eq!(udp.recv(&mut [0; 9]).unwrap_err().kind(), ErrorKind::ConnectionRefused);

        let names = TcpListener::bind((GATEWAY, rules::DNS_PORT)).unwrap();
        let _asked = guest.dial((GATEWAY, 53)).unwrap();
        assert_eq!(names.accept().unwrap().1.ip(), GUEST);
        let wrong_ways = [(GATEWAY, rules::DNS_PORT), (HOST_OUTSIDE, 53)];
        for there in wrong_ways {
            assert_eq!(guest.dial(there).unwrap_err(), ErrorKind::ConnectionRefused, "{there:?}");
        }
        let names = UdpSocket::bind((GATEWAY, rules::DNS_PORT)).unwrap();
        names.set_read_timeout(Some(SOON)).unwrap();
        udp.connect((GATEWAY, 53)).unwrap();
        udp.send(b"who").unwrap();
        let (_, asker) = names.recv_from(&mut [0; 9]).unwrap();
        names.send_to(b"me", asker).unwrap();
        assert_eq!(
            udp.recv(&mut [0; 9]).unwrap(),
            2,
            "the answer comes from the port that was asked"
        );
    });
}

#[test]
fn the_host_reaches_a_guest_and_nobody_else_does() {
    on_a_host(|| {
        let mark = test_mark();
        let guest = Beside::guest(&mark, GUEST);
        let world = Beside::world();
        nat::acquire(&nat_of(&mark, GUEST)).unwrap();
        let (listener, at) = guest.listen(GUEST);
        let mut from_host = TcpStream::connect_timeout(&at, SOON).unwrap();
        let (mut in_guest, _) = listener.accept().unwrap();
        in_guest.write_all(b"hi").unwrap();
        from_host.read_exact(&mut [0; 2]).unwrap();
        assert_eq!(world.dial(at).unwrap_err(), ErrorKind::HostUnreachable);
    });
}

#[test]
fn a_guest_gets_out_while_it_has_a_way_out_and_is_told_no_before_and_after() {
    on_a_host(|| {
        let mark = test_mark();
        let guest = Beside::guest(&mark, GUEST);
        let other_mark = Mark::new(mark.installation().clone(), test_mark().vm().clone());
        let other = Beside::guest(&other_mark, OTHER_GUEST);
        let world = Beside::world();
        let (listener, server) = world.listen(SERVER);
        let none = ErrorKind::HostUnreachable;
        assert_eq!(guest.dial(server).unwrap_err(), none, "before");

        nat::acquire(&nat_of(&mark, GUEST)).unwrap();
        let mut in_guest = guest.dial(server).unwrap();
        let (mut in_world, peer) = listener.accept().unwrap();
        assert_eq!(peer.ip(), HOST_OUTSIDE, "it is the host that the server sees");
        in_world.write_all(b"hi").unwrap();
        in_guest.read_exact(&mut [0; 2]).unwrap();
        assert_eq!(other.dial(server).unwrap_err(), none, "the other guest has none");
        let (_there, at) = other.listen(OTHER_GUEST);
        assert_eq!(
            guest.dial(at).unwrap_err(),
            ErrorKind::ConnectionRefused,
            "guests are not the world"
        );
        ip("address add 169.254.0.1/16 dev uplink");
        world.inside(|| ip("address add 169.254.169.254/16 dev eth0"));
        assert_eq!(guest.dial(([169, 254, 169, 254], server.port())).unwrap_err(), none);

        nat::release(&mark).unwrap();
        assert!(!forwards());
        assert_eq!(guest.dial(server).unwrap_err(), none, "after");
        // What was open is closed too.
        in_guest.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        in_world.write_all(b"more").unwrap();
        assert!(in_guest.read(&mut [0; 2]).is_err());
    });
}

#[test]
fn a_guest_without_a_guard_reaches_nobody() {
    on_a_host(|| {
        let mark = test_mark();
        let guest = Beside::guest(&mark, GUEST);
        let names = TcpListener::bind((GATEWAY, rules::DNS_PORT)).unwrap();
        guest.dial((GATEWAY, 53)).unwrap();
        names.accept().unwrap();
        let other = Mark::new(mark.installation().clone(), test_mark().vm().clone());
        guard::acquire(&guard_of(&other, OTHER_GUEST)).unwrap();
        guard::release(&mark).unwrap();
        let to = SocketAddr::from((GATEWAY, 53));
        let short = Duration::from_millis(300);
        let dialled = guest.inside(|| TcpStream::connect_timeout(&to, short));
        assert_eq!(dialled.unwrap_err().kind(), ErrorKind::TimedOut);
    });
}

#[test]
fn forwarding_that_was_there_or_was_taken_back_is_left_alone() {
    on_a_host(|| {
        let mark = test_mark();
        fs::write(IP_FORWARD, "1").unwrap();
        nat::acquire(&nat_of(&mark, GUEST)).unwrap();
        nat::release(&mark).unwrap();
        assert!(forwards(), "it was there");
        fs::write(IP_FORWARD, "0").unwrap();
        nat::acquire(&nat_of(&mark, GUEST)).unwrap();
        fs::write(IP_FORWARD, "0").unwrap();
        nat::release(&mark).unwrap();
        assert!(!forwards(), "somebody turned it off");
        assert_eq!(ruleset(), "");
    });
}

#[test]
fn of_two_installations_the_last_one_makes_the_host_what_it_was() {
    on_a_host(|| {
        let [first, second, third] = [test_mark(), test_mark(), test_mark()];
        // The bridge of a network without a way out.
        bridge::acquire(third.installation(), &network()).unwrap();
        fs::write(ACCEPT_REDIRECTS, "0").unwrap();
        fs::write("/proc/sys/net/ipv4/conf/lo/forwarding", "1").unwrap();
        let before = settings();
        nat::acquire(&nat_of(&first, GUEST)).unwrap();
        nat::acquire(&nat_of(&second, GUEST)).unwrap();
        nat::release(&first).unwrap();
        assert!(forwards(), "the other one needs it");
        nat::release(&second).unwrap();
        assert_eq!(settings(), before);
        assert_eq!(ruleset(), "");
    });
}

#[test]
fn a_crash_between_the_rules_and_the_setting_is_made_good() {
    on_a_host(|| {
        let mark = test_mark();
        nat::acquire(&nat_of(&mark, GUEST)).unwrap();
        // Died before it turned forwarding on: who comes next does.
        fs::write(IP_FORWARD, "0").unwrap();
        nat::acquire(&nat_of(&mark, GUEST)).unwrap();
        assert!(forwards());
        // Died after the last element had gone, before the setting was what it was.
        guard::acquire(&guard_of(&mark, GUEST)).unwrap();
        let only_remove = |rules: &mut Rules| {
            rules.ways_out.clear();
            Ok(())
        };
        nft::change(mark.installation(), only_remove).unwrap();
        assert!(forwards());
        guard::release(&mark).unwrap();
        assert!(!forwards());
        assert_eq!(ruleset(), "");
    });
}

#[test]
fn rules_that_are_not_what_this_version_writes_are_written_anew_with_what_they_were_for() {
    on_a_host(|| {
        let mark = test_mark();
        let installation = mark.installation();
        let other = Mark::new(installation.clone(), test_mark().vm().clone());
        guard::acquire(&guard_of(&mark, GUEST)).unwrap();
        nat::acquire(&nat_of(&mark, GUEST)).unwrap();
        let written = ruleset();
        let table = rules::table(installation);
        for harm in [
            &["flush", "chain", "inet", &table, "guest_to_host"][..],
            &["add", "chain", "bridge", &table, "another"],
            &["add", "rule", "bridge", &table, "guest_arp", "accept"],
            &["insert", "rule", "inet", &table, "guest_to_world", "accept"],
            &["add", "element", "bridge", &table, "peers", &format!("{{ {mark} }}")],
        ] {
            command::run("nft", harm).unwrap();
            assert!(!nft::read(installation).unwrap().is_current, "{harm:?}");
            guard::acquire(&guard_of(&other, OTHER_GUEST)).unwrap();
            guard::release(&other).unwrap();
            assert_eq!(ruleset(), written, "{harm:?}");
        }
        command::run("nft", &["delete", "table", "inet", &table]).unwrap();
        guard::release(&mark).unwrap();
        assert_eq!(ruleset(), "", "half of it was there");
        nat::release(&mark).unwrap();
    });
}

#[test]
fn tables_that_nothing_is_in_are_removed_by_a_release() {
    on_a_host(|| {
        let mark = test_mark();
        let table = rules::table(mark.installation());
        command::run("nft", &["add", "table", "bridge", &table]).unwrap();
        guard::release(&mark).unwrap();
        assert_eq!(ruleset(), "");
        let nothing =
            rules::change(mark.installation(), &Found::default(), &Rules::default(), true);
        assert_eq!(nothing, None);
    });
}

#[test]
fn a_subnet_that_the_host_has_otherwise_is_refused_by_name_before_anything_is_made() {
    on_a_host(|| {
        let mark = test_mark();
        ip("link add eth9 type veth peer name eth8");
        ip("link set eth9 up");
        ip("link set eth8 up");
        ip("address add 192.0.2.1/24 dev eth9");
        let refused = || {
            let error = bridge::acquire(mark.installation(), &network()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::AddrInUse);
            assert!(bridge::list(mark.installation()).unwrap().is_empty());
            crate::error::chain(&error)
        };
        for (add, remove, said) in [
            (
                "route add 10.213.0.0/16 dev eth9",
                "route del 10.213.0.0/16",
                "10.213.4.0/22 overlaps the route 10.213.0.0/16 through eth9 of this host",
            ),
            (
                "route add 10.213.6.0/24 via 192.0.2.9 table 77",
                "route flush table 77",
                "overlaps the route 10.213.6.0/24 through eth9",
            ),
            (
                "address add 10.213.7.1/32 dev eth8",
                "address del 10.213.7.1/32 dev eth8",
                "overlaps the address 10.213.7.1/32 on eth8",
            ),
        ] {
            ip(add);
            let text = refused();
            assert!(text.contains(said), "{text}");
            ip(remove);
        }
        // These lead everywhere or nowhere.
        ip("route add default via 192.0.2.9");
        ip("route add 0.0.0.0/1 via 192.0.2.9");
        ip("route add unreachable 10.0.0.0/8");
        bridge::acquire(mark.installation(), &network()).unwrap();
        bridge::acquire(mark.installation(), &network()).unwrap();
        let another = Installation::random().unwrap();
        let error = bridge::acquire(&another, &network()).unwrap_err();
        assert!(
            crate::error::chain(&error).contains("on bg"),
            "the bridge of another installation"
        );
        let overlapping = Network { number: 1, gateway: [10, 213, 7, 1].into(), ..network() };
        let error = bridge::acquire(mark.installation(), &overlapping).unwrap_err();
        assert!(
            crate::error::chain(&error).contains("-net0"),
            "another network of the same installation"
        );
        let taken = bridge::taken_subnets(mark.installation(), 0).unwrap();
        assert!(taken.iter().all(|taken| !network().overlaps(taken.address, taken.prefix)
            || taken.what.contains("10.0.0.0/8")));
        assert!(taken.iter().any(|taken| taken.what == "the address 192.0.2.1/24 on eth9"));
    });
}

#[test]
fn a_bridge_has_the_gateways_address_and_changes_it_when_nobody_is_in_it() {
    on_a_host(|| {
        let mark = test_mark();
        let name = network().bridge(mark.installation());
        // As a version made it that knew no addresses.
        netlink::add_bridge(&name, Mac::of(&mark)).unwrap();
        bridge::acquire(mark.installation(), &network()).unwrap();
        let addresses = || ip(&format!("-4 -o address show dev {name}"));
        assert!(addresses().contains("10.213.4.1/22"), "{}", addresses());
        let mac = Mac::of_bridge(mark.installation(), 0).to_string();
        assert_eq!(
            fs::read_to_string(format!("/sys/class/net/{name}/address")).unwrap().trim(),
            mac
        );

        let moved = Network { gateway: [10, 213, 8, 1].into(), mtu: 1400, ..network() };
        bridge::acquire(mark.installation(), &moved).unwrap();
        assert!(addresses().contains("10.213.8.1/22") && !addresses().contains("10.213.4.1"));
        assert_eq!(fs::read_to_string(format!("/sys/class/net/{name}/mtu")).unwrap(), "1400\n");

        tap::acquire(&Tap { mark: mark.clone(), uid: 1_900_000_000, network: moved }).unwrap();
        assert_eq!(fs::read_to_string(format!("/sys/class/net/{mark}/mtu")).unwrap(), "1400\n");
        assert_eq!(
            fs::read_to_string(format!("/sys/class/net/{name}/address")).unwrap().trim(),
            mac
        );
        let error = bridge::acquire(mark.installation(), &network()).unwrap_err();
        assert!(crate::error::chain(&error).contains("stop them"), "{error}");
        assert!(addresses().contains("10.213.8.1/22"), "{}", addresses());
    });
}

/// A tap that the test holds open, as a VMM does: it says and hears whole frames.
struct Wire(File);

const PLAIN: [u8; 10] = [0; 10];
const ARP: [u8; 2] = [8, 6];
const IPV4: [u8; 2] = [8, 0];
/// The number of the echo request that begins.
const FIRST: u8 = 99;

impl Wire {
    fn new(mark: &Mark) -> Self {
        Self::in_network(network(), mark, GUEST)
    }

    fn in_network(network: Network, mark: &Mark, address: Ipv4Addr) -> Self {
        bridge::acquire(mark.installation(), &network).unwrap();
        guard::acquire(&guard_in(network, mark, address)).unwrap();
        let claim = Tap { mark: mark.clone(), uid: 1_900_000_000, network };
        tap::acquire(&claim).unwrap();
        let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun").unwrap();
        tap::open_there(&file, &mark.to_string()).unwrap();
        Self(file).until_it_works(network, mark, address)
    }

    /// Frames are lost until the kernel has seen that somebody has the tap open.
    fn until_it_works(mut self, network: Network, mark: &Mark, address: Ipv4Addr) -> Self {
        ip(&format!("address replace {HOST_OUTSIDE}/32 dev lo"));
        let end = Instant::now() + SOON;
        let own = Mac::of(mark).bytes();
        while Instant::now() < end {
            // For the host to know the VM. Any address of the host's would do.
            self.say(own, &ARP, &arp(own, address, HOST_OUTSIDE));
            self.say(own, &IPV4, &echo_to(network.gateway, address, FIRST));
            if self.hear_within(Duration::from_millis(100), |frame| {
                echo_answered(frame) == Some(FIRST)
            }) {
                return self;
            }
        }
        panic!("nothing comes")
    }

    /// A frame to everybody.
    fn say(&mut self, from: [u8; 6], kind: &[u8], body: &[u8]) {
        let frame = [&PLAIN[..], &[0xff; 6], &from, kind, body].concat();
        self.0.write_all(&frame).unwrap();
    }

    /// The next frame that is one of these, from its kind on.
    fn hear(&mut self, is_one: impl FnMut(&[u8]) -> bool) -> Vec<u8> {
        self.next(SOON, is_one).expect("a frame comes")
    }

    fn hear_within(&mut self, most: Duration, is_one: impl FnMut(&[u8]) -> bool) -> bool {
        self.next(most, is_one).is_some()
    }

    fn next(&mut self, most: Duration, mut is_one: impl FnMut(&[u8]) -> bool) -> Option<Vec<u8>> {
        let end = Instant::now() + most;
        loop {
            let left = Timespec::try_from(end.saturating_duration_since(Instant::now())).unwrap();
            if poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&left)).unwrap() == 0 {
                return None;
            }
            let mut frame = [0; 2048];
            let length = self.0.read(&mut frame).unwrap();
            if is_one(&frame[22..length]) {
                return Some(frame[22..length].to_vec());
            }
        }
    }
}

/// Whether somebody says that it has this address.
fn is_answer_for(address: Ipv4Addr, frame: &[u8]) -> bool {
    frame.get(..10) == Some(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 2])
        && frame.get(16..20) == Some(&address.octets())
}

/// The number of an answered echo request.
fn echo_answered(frame: &[u8]) -> Option<u8> {
    let is_one = frame.get(..2) == Some(&IPV4) && frame.get(22) == Some(&0);
    frame.get(29).copied().filter(|number| is_one && *number != 0)
}

/// An ARP request (RFC 826).
fn arp(mac: [u8; 6], sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4, 0, 1];
    [&head[..], &mac, &sender.octets(), &[0; 6], &target.octets()].concat()
}

/// An ICMP echo request to the gateway.
fn echo(sender: Ipv4Addr, number: u8) -> Vec<u8> {
    echo_to(GATEWAY, sender, number)
}

fn echo_to(target: Ipv4Addr, sender: Ipv4Addr, number: u8) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 1, 0, 0];
    packet.extend(sender.octets());
    packet.extend(target.octets());
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum);
    let mut message = vec![8, 0, 0, 0, 0, 1, 0, number];
    let sum = checksum(&message);
    message[2..4].copy_from_slice(&sum);
    packet.extend(message);
    packet
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    (!u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap()).to_be_bytes()
}

#[test]
fn a_frame_with_anothers_address_is_heard_by_nobody() {
    on_a_host(|| {
        let mark = test_mark();
        let own = Mac::of(&mark).bytes();
        let other = [2, 0, 0, 0, 0, 9];
        let mut wire = Wire::new(&mark);
        // Of what is asked, only the last is asked under the VM's own addresses: its answer is the first that comes.
        for (mac, inner, sender) in [
            (own, own, OTHER_GUEST),
            (own, own, GATEWAY),
            (own, own, Ipv4Addr::UNSPECIFIED),
            (own, other, GUEST),
            (other, own, GUEST),
            (other, other, GUEST),
            (own, own, GUEST),
        ] {
            wire.say(mac, &ARP, &arp(inner, sender, GATEWAY));
        }
        let answer = wire.hear(|frame| is_answer_for(GATEWAY, frame));
        let bridge = Mac::of_bridge(mark.installation(), 0).bytes();
        assert_eq!(answer[10..16], bridge);
        assert_eq!((&answer[20..26], &answer[26..30]), (&own[..], &GUEST.octets()[..]));

        let tagged = [0x81, 0, 0, 1, 8, 0];
        for (mac, kind, sender, number) in [
            (own, &IPV4[..], OTHER_GUEST, 1),
            (own, &IPV4, Ipv4Addr::LOCALHOST, 2),
            (other, &IPV4, GUEST, 3),
            (own, &tagged, GUEST, 4),
            (own, &IPV4, GUEST, 5),
        ] {
            wire.say(mac, kind, &echo(sender, number));
        }
        let mut more = 0;
        let answer = wire.hear(|frame| {
            more += usize::from(is_answer_for(GATEWAY, frame));
            echo_answered(frame).is_some_and(|number| number != FIRST)
        });
        assert_eq!(more, 0, "one question was answered");
        assert_eq!(echo_answered(&answer), Some(5));
    });
}

#[test]
fn the_host_answers_for_other_guests_so_that_its_rules_can_say_no() {
    on_a_host(|| {
        let mark = test_mark();
        let mut wire = Wire::new(&mark);
        wire.say(Mac::of(&mark).bytes(), &ARP, &arp(Mac::of(&mark).bytes(), GUEST, OTHER_GUEST));
        let answer = wire.hear(|frame| is_answer_for(OTHER_GUEST, frame));
        assert_eq!(answer[10..16], Mac::of_bridge(mark.installation(), 0).bytes());
    });
}

#[test]
fn a_tap_that_stays_when_its_guard_goes_passes_nothing() {
    on_a_host(|| {
        let mark = test_mark();
        let own = Mac::of(&mark).bytes();
        let mut wire = Wire::new(&mark);
        wire.say(own, &ARP, &arp(own, GUEST, GATEWAY));
        wire.hear(|frame| is_answer_for(GATEWAY, frame));
        guard::release(&mark).unwrap();
        guard::release(&mark).unwrap();
        let rules = nft::read(mark.installation()).unwrap().rules;
        assert_eq!(guard::list(&rules).count(), 0);
        wire.say(own, &ARP, &arp(own, GUEST, GATEWAY));
        let answered = |frame: &[u8]| is_answer_for(GATEWAY, frame);
        assert!(!wire.hear_within(Duration::from_millis(300), answered));
        tap::release(&mark).unwrap();
        assert_eq!(ruleset(), "");
    });
}
