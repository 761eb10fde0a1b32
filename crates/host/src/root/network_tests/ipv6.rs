//! IPv6 of guests: who is heard, who reaches whom, and that a host is afterwards what it was, with what it learnt from routers.

use std::collections::BTreeMap;
use std::net::{Ipv6Addr, SocketAddrV6};

use super::*;
use crate::root::{forwarding_ipv6, ipv6_taken};

const PREFIX: Ipv6Addr = Ipv6Addr::new(0xfd12, 0x3456, 0x789a, 0, 0, 0, 0, 0);
const HOST_OUTSIDE_6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const SERVER_6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);
const SETTINGS: &str = "/proc/sys/net/ipv6/conf";
const IPV6: [u8; 2] = [0x86, 0xdd];

fn network() -> Network {
    Network { ipv6: Some(PREFIX), ..super::network() }
}

fn team() -> Network {
    let mut octets = PREFIX.octets();
    octets[7] = 1;
    Network { ipv6: Some(octets.into()), ..super::team() }
}

fn of(address: Ipv4Addr) -> Ipv6Addr {
    network().ipv6_of(address).unwrap()
}

fn gateway() -> Ipv6Addr {
    network().ipv6_gateway().unwrap()
}

fn nat_of(mark: &Mark, address: Ipv4Addr) -> Nat {
    Nat { network: network(), ..super::nat_of(mark, address) }
}

/// A host that has IPv6 and does not forward it, whatever this machine does.
fn on_a_host(test: impl FnOnce() + Send) {
    super::on_a_host(|| {
        for (device, setting, value) in
            [("all", "forwarding", "0"), ("default", "accept_ra", "1"), ("lo", "accept_ra", "1")]
        {
            fs::write(format!("{SETTINGS}/{device}/{setting}"), value).unwrap();
        }
        test();
    });
}

fn forwards() -> bool {
    fs::read_to_string(format!("{SETTINGS}/all/forwarding")).unwrap() == "1\n"
}

/// Of each device, what forwarding changes.
fn settings() -> BTreeMap<String, String> {
    let names = ["forwarding", "accept_ra", "accept_redirects", "autoconf", "disable_ipv6"];
    let devices = fs::read_dir(SETTINGS).unwrap().map(|entry| entry.unwrap().path());
    let all = devices.flat_map(|device| names.map(|name| device.join(name)));
    all.map(|path| (path.display().to_string(), fs::read_to_string(path).unwrap())).collect()
}

/// As its agent sets it up.
fn guest_in(network: Network, mark: &Mark, address: Ipv4Addr) -> Beside {
    let guest = Beside::guest_in(network, mark, address);
    let own = network.ipv6_of(address).unwrap();
    let gateway = network.ipv6_gateway().unwrap();
    let prefix = if network.peers { 64 } else { 128 };
    guest.inside(|| {
        ip(&format!("address add {own}/{prefix} dev eth0 nodad"));
        if !network.peers {
            ip(&format!("-6 route add {gateway}/128 dev eth0"));
        }
        ip(&format!("-6 route add default via {gateway} dev eth0"));
    });
    guest
}

fn guest(mark: &Mark, address: Ipv4Addr) -> Beside {
    guest_in(network(), mark, address)
}

fn world() -> Beside {
    let world = Beside::world();
    ip(&format!("address add {HOST_OUTSIDE_6}/64 dev uplink nodad"));
    world.inside(|| {
        ip(&format!("address add {SERVER_6}/64 dev eth0 nodad"));
        ip(&format!("-6 route add default via {HOST_OUTSIDE_6}"));
    });
    world
}

fn listen(beside: &Beside, address: Ipv6Addr) -> (TcpListener, SocketAddr) {
    let listener = beside.inside(|| TcpListener::bind((address, 0)).unwrap());
    let at = listener.local_addr().unwrap();
    (listener, at)
}

#[test]
fn what_was_made_for_ipv6_is_found_right_the_next_time_and_nothing_of_it_stays() {
    on_a_host(|| {
        let mark = test_mark();
        let installation = mark.installation();
        let member = another(&mark);
        let before = (settings(), ip("-6 route show table all"));
        for (network, mark, address) in [(network(), &mark, GUEST), (team(), &member, MEMBER)] {
            bridge::acquire(installation, &network).unwrap();
            guard::acquire(&guard_in(network, mark, address)).unwrap();
            tap::acquire(&Tap { mark: mark.clone(), uid: 1_900_000_000, network }).unwrap();
        }
        nat::acquire(&nat_of(&mark, GUEST)).unwrap();
        let found = nft::read(installation).unwrap();
        assert!(found.is_current, "nft lists what was written in the words it was written in");
        let addresses =
            [(mark.clone(), of(GUEST)), (member.clone(), team().ipv6_of(MEMBER).unwrap())];
        assert_eq!(found.rules.ipv6, addresses.into());
        assert_eq!(found.rules.ways_out[&mark].ipv6, Some(of(GUEST)));
        assert!(found.rules.before_ipv6.is_some());
        let written = ruleset();
        guard::acquire(&guard_in(network(), &mark, GUEST)).unwrap();
        nat::acquire(&nat_of(&mark, GUEST)).unwrap();
        bridge::acquire(installation, &network()).unwrap();
        assert_eq!(ruleset(), written);
        let error = guard::acquire(&guard_of(&mark, GUEST)).unwrap_err();
        assert!(crate::error::chain(&error).contains("already"), "another address than it has");

        // What somebody has changed is written anew, with what it was for.
        let table = rules::table(installation);
        let stray = format!("{{ {mark} . 7 }}");
        for harm in [
            &["flush", "set", "bridge", &table, "neighbours_ipv6"][..],
            &["add", "element", "bridge", &table, "neighbours_ipv6", &stray],
            &["flush", "chain", "inet", &table, "guest_ipv6"],
            &["flush", "chain", "bridge", &table, "guest_ipv6"],
        ] {
            command::run("nft", harm).unwrap();
            assert!(!nft::read(installation).unwrap().is_current, "{harm:?}");
            nft::change(installation, |_| Ok(())).unwrap();
            assert_eq!(ruleset(), written, "{harm:?}");
        }
        for mark in [&mark, &member] {
            nat::release(mark).unwrap();
            tap::release(mark).unwrap();
            guard::release(mark).unwrap();
        }
        for number in [0, 1] {
            bridge::release(installation, number).unwrap();
        }
        assert_eq!(ruleset(), "");
        assert_eq!((settings(), ip("-6 route show table all")), before);
    });
}

#[test]
fn a_prefix_that_the_host_has_otherwise_is_refused_by_name_and_one_that_leads_everywhere_is_not() {
    on_a_host(|| {
        let mark = test_mark();
        ip("link add eth9 type veth peer name eth8");
        ip("link set eth9 up");
        ip("link set eth8 up");
        for (add, remove, said) in [
            (
                "-6 route add fd12:3456:789a::/48 dev eth9",
                "-6 route del fd12:3456:789a::/48",
                "fd12:3456:789a::/64 overlaps the route fd12:3456:789a::/48 through eth9 of this host",
            ),
            (
                "address add fd12:3456:789a::9/128 dev eth8 nodad",
                "address del fd12:3456:789a::9/128 dev eth8",
                "overlaps the address fd12:3456:789a::9/128 on eth8",
            ),
        ] {
            ip(add);
            let error = bridge::acquire(mark.installation(), &network()).unwrap_err();
            assert!(crate::error::chain(&error).contains(said), "{}", crate::error::chain(&error));
            assert!(ipv6_taken(mark.installation(), 0, PREFIX).unwrap().is_some());
            ip(remove);
        }
        ip("-6 route add default dev eth9");
        ip("-6 route add fd00::/8 dev eth9");
        ip("-6 route add unreachable fd12:3456:789a::/48");
        assert_eq!(ipv6_taken(mark.installation(), 0, PREFIX).unwrap(), None);
        bridge::acquire(mark.installation(), &network()).unwrap();
        assert_eq!(ipv6_taken(mark.installation(), 0, PREFIX).unwrap(), None, "its own");
        let name = network().bridge(mark.installation());
        let shown = ip(&format!("-6 address show dev {name}"));
        let addresses: Vec<&str> = shown.lines().filter(|line| line.contains("inet6")).collect();
        assert_eq!(addresses.len(), 2, "none of the kernel's own making: {shown}");
        assert!(shown.contains("fd12:3456:789a::1/64") && shown.contains("fe80::1/64"), "{shown}");
        assert_eq!(fs::read_to_string(format!("{SETTINGS}/{name}/accept_ra")).unwrap(), "0\n");
    });
}

#[test]
fn a_guest_is_refused_by_the_host_at_once_by_ipv6_too() {
    on_a_host(|| {
        let mark = test_mark();
        let guest = guest(&mark, GUEST);
        let _world = world();
        let service = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
        let port = service.local_addr().unwrap().port();
        for port in [port, 53, rules::DNS_PORT] {
            let dialled = guest.dial((gateway(), port)).unwrap_err();
            assert_eq!(dialled, ErrorKind::ConnectionRefused);
        }
        assert_eq!(guest.dial((HOST_OUTSIDE_6, port)).unwrap_err(), ErrorKind::ConnectionRefused);
        nat::acquire(&nat_of(&mark, GUEST)).unwrap();
        assert_eq!(guest.dial((HOST_OUTSIDE_6, port)).unwrap_err(), ErrorKind::ConnectionRefused);
        // By the bridge's own link, under the guest's address.
        let scope = guest.inside(|| netlink::link("eth0").unwrap().unwrap().index);
        let link_local = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
        guest.inside(|| ip("-6 route add fe80::1/128 dev eth0 metric 1"));
        let from = guest.inside(|| ip("-6 route get fe80::1 oif eth0"));
        let short = Duration::from_millis(500);
        let to = SocketAddrV6::new(link_local, port, 0, scope);
        let dialled = guest.inside(|| TcpStream::connect_timeout(&to.into(), short));
        assert!(dialled.is_err(), "{from}");
        guest.inside(|| {
            ip(&format!("-6 route replace fe80::1/128 dev eth0 metric 1 src {}", of(GUEST)))
        });
        let dialled = guest.inside(|| TcpStream::connect_timeout(&to.into(), SOON));
        assert_eq!(dialled.unwrap_err().kind(), ErrorKind::ConnectionRefused);

        let udp = guest.inside(|| UdpSocket::bind((of(GUEST), 0)).unwrap());
        udp.set_read_timeout(Some(SOON)).unwrap();
        udp.connect((gateway(), port)).unwrap();
        udp.send(b"x").unwrap();
        assert_eq!(udp.recv(&mut [0; 9]).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    });
}

#[test]
fn the_host_reaches_a_guest_by_ipv6_and_nobody_else_does() {
    on_a_host(|| {
        let mark = test_mark();
        let guest = guest(&mark, GUEST);
        let world = world();
        let (listener, at) = listen(&guest, of(GUEST));
        for with_a_way_out in [false, true] {
            if with_a_way_out {
                nat::acquire(&nat_of(&mark, GUEST)).unwrap();
                assert!(forwards());
            }
            let mut from_host = TcpStream::connect_timeout(&at, SOON).unwrap();
            let (mut in_guest, _) = listener.accept().unwrap();
            in_guest.write_all(b"hi").unwrap();
            from_host.read_exact(&mut [0; 2]).unwrap();
        }
        assert_eq!(world.dial(at).unwrap_err(), ErrorKind::PermissionDenied);
    });
}

#[test]
fn a_guest_gets_out_by_ipv6_while_it_has_a_way_out_and_is_told_no_before_and_after() {
    on_a_host(|| {
        let mark = test_mark();
        let other_mark = another(&mark);
        let [guest, other] = [guest(&mark, GUEST), guest(&other_mark, OTHER_GUEST)];
        let world = world();
        let (listener, server) = listen(&world, SERVER_6);
        let (_there, of_other) = listen(&other, of(OTHER_GUEST));
        let none = ErrorKind::ConnectionRefused;
        assert_eq!(guest.dial(server).unwrap_err(), none, "before");
        assert_eq!(guest.dial(of_other).unwrap_err(), ErrorKind::ConnectionRefused);
        let list = vec![banger_api::Cidr::parse("203.0.113.0/24").unwrap()];
        nat::acquire(&Nat { only: Some(list), ..nat_of(&mark, GUEST) }).unwrap();
        assert_eq!(guest.dial(server).unwrap_err(), none, "with a list, which is of IPv4");
        assert!(!forwards());
        nat::release(&mark).unwrap();

        nat::acquire(&nat_of(&mark, GUEST)).unwrap();
        let mut in_guest = guest.dial(server).unwrap();
        let (mut in_world, peer) = listener.accept().unwrap();
        assert_eq!(peer.ip(), HOST_OUTSIDE_6, "it is the host that the server sees");
        in_world.write_all(b"hi").unwrap();
        in_guest.read_exact(&mut [0; 2]).unwrap();
        assert_eq!(other.dial(server).unwrap_err(), none, "the other guest has none");
        for _more_than_the_kernel_says_by_icmp in 0..10 {
            assert_eq!(
                guest.dial(of_other).unwrap_err(),
                ErrorKind::ConnectionRefused,
                "guests are not the world"
            );
        }
        for metadata in ["fd00:ec2::254", "fd20:ce::254"] {
            ip(&format!("-6 route add {metadata}/128 via {SERVER_6}"));
            world.inside(|| ip(&format!("address add {metadata}/128 dev eth0 nodad")));
            let metadata: Ipv6Addr = metadata.parse().unwrap();
            let (_there, at) = listen(&world, metadata);
            assert_eq!(guest.dial(at).unwrap_err(), none, "{metadata}");
        }

        nat::release(&mark).unwrap();
        assert!(!forwards());
        assert_eq!(guest.dial(server).unwrap_err(), none, "after");
        // Also while the host forwards for another one, and what was open is closed.
        nat::acquire(&nat_of(&other_mark, OTHER_GUEST)).unwrap();
        assert_eq!(guest.dial(server).unwrap_err(), none);
        in_guest.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        in_world.write_all(b"more").unwrap();
        assert!(in_guest.read(&mut [0; 2]).is_err());
    });
}

#[test]
fn peers_reach_each_other_by_ipv6_and_no_guest_of_another_network() {
    on_a_host(|| {
        let mark = test_mark();
        let members = [another(&mark), another(&mark)];
        let stranger = guest(&mark, GUEST);
        let [one, two] = [(&members[0], MEMBER), (&members[1], OTHER_MEMBER)]
            .map(|(mark, address)| guest_in(team(), mark, address));
        let own = |address| team().ipv6_of(address).unwrap();
        let [(at_one, of_one), (at_two, of_two), (_there, of_stranger)] = [
            listen(&one, own(MEMBER)),
            listen(&two, own(OTHER_MEMBER)),
            listen(&stranger, of(GUEST)),
        ];
        let all_is_right = |how| {
            for (from, own, to, listener) in
                [(&one, own(MEMBER), of_two, &at_two), (&two, own(OTHER_MEMBER), of_one, &at_one)]
            {
                from.dial(to).unwrap_or_else(|error| panic!("{how}: {error}"));
                assert_eq!(listener.accept().unwrap().1.ip(), own, "{how}, under its own address");
            }
            for (from, to) in [(&one, of_stranger), (&stranger, of_one), (&stranger, of_two)] {
                assert_eq!(from.dial(to).unwrap_err(), ErrorKind::ConnectionRefused, "{how}");
            }
        };
        for (setting, how) in [("1", "with br_netfilter"), ("0", "from port to port")] {
            let is_set =
                fs::write("/proc/sys/net/bridge/bridge-nf-call-ip6tables", setting).is_ok();
            if is_set || setting == "0" {
                all_is_right(how);
            }
        }
        nat::acquire(&Nat {
            mark: members[0].clone(),
            network: team(),
            address: MEMBER,
            only: None,
        })
        .unwrap();
        all_is_right("where the host forwards");
        // Without its guard a peer is nobody's.
        guard::release(&members[0]).unwrap();
        let dialled =
            two.inside(|| TcpStream::connect_timeout(&of_one, Duration::from_millis(300)));
        assert!(dialled.is_err());
    });
}

/// An IPv6 packet of ICMPv6 (RFC 4443) with the hop limit that neighbours want.
fn icmpv6(from: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> Vec<u8> {
    let mut message = message.to_vec();
    let length = u16::try_from(message.len()).unwrap();
    let pseudo = [&from.octets()[..], &to.octets(), &[0, 0], &length.to_be_bytes(), &[0, 0, 0, 58]];
    let sum = checksum(&[&pseudo.concat()[..], &message].concat());
    message[2..4].copy_from_slice(&sum);
    let head = [&[0x60, 0, 0, 0][..], &length.to_be_bytes(), &[58, 255]].concat();
    [&head[..], &from.octets(), &to.octets(), &message].concat()
}

fn echo_6(from: Ipv6Addr, to: Ipv6Addr, number: u8) -> Vec<u8> {
    icmpv6(from, to, &[128, 0, 0, 0, 0, 1, 0, number])
}

/// That `target` has this hardware address: an answer that overrides what was known (RFC 4861, 4.4).
fn advert(target: Ipv6Addr, mac: [u8; 6]) -> Vec<u8> {
    let head = [136, 0, 0, 0, 0x60, 0, 0, 0];
    [&head[..], &target.octets(), &[2, 1], &mac].concat()
}

/// A router's advertisement for so many seconds (RFC 4861, 4.2).
fn router_advert(seconds: u16) -> Vec<u8> {
    let [high, low] = seconds.to_be_bytes();
    vec![134, 0, 0, 0, 64, 0, high, low, 0, 0, 0, 0, 0, 0, 0, 0]
}

/// The number of an answered echo request.
fn answered_6(frame: &[u8]) -> Option<u8> {
    let is_one = frame.get(..2) == Some(&IPV6) && frame.get(42) == Some(&129);
    frame.get(49).copied().filter(|_| is_one)
}

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

#[test]
fn an_ipv6_packet_of_anothers_is_heard_by_nobody_and_a_guest_says_of_its_own_address_only_that_it_has_it()
 {
    on_a_host(|| {
        let mark = test_mark();
        let own = Mac::of(&mark).bytes();
        let other = [2, 0, 0, 0, 0, 9];
        let mut wire = Wire::in_network(network(), &mark, GUEST);
        let bridge = network().bridge(mark.installation());
        // So that the host answers without a question, and what it believes of others can be seen.
        ip(&format!(
            "-6 neigh replace {} lladdr {} dev {bridge} nud stale",
            of(GUEST),
            Mac::of(&mark)
        ));
        ip(&format!(
            "-6 neigh replace {} lladdr 02:00:00:00:00:09 dev {bridge} nud stale",
            of(OTHER_GUEST)
        ));
        wire.say(own, &IPV6, &icmpv6(of(GUEST), gateway(), &advert(of(OTHER_GUEST), own)));
        wire.say(own, &IPV6, &icmpv6(of(OTHER_GUEST), gateway(), &advert(of(OTHER_GUEST), own)));
        let link_local = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);
        for (mac, from, number) in [
            (own, of(OTHER_GUEST), 1),
            (own, link_local, 2),
            (own, Ipv6Addr::LOCALHOST, 3),
            (other, of(GUEST), 4),
        ] {
            wire.say(mac, &IPV6, &echo_6(from, gateway(), number));
        }
        // Another address of the host's is not the gateway.
        ip(&format!("address add {HOST_OUTSIDE_6}/128 dev lo nodad"));
        wire.say(own, &IPV6, &echo_6(of(GUEST), HOST_OUTSIDE_6, 8));
        wire.say(own, &IPV6, &echo_6(of(GUEST), gateway(), 5));
        let answer = wire.hear(|frame| answered_6(frame).is_some());
        assert_eq!(answered_6(&answer), Some(5));
        let known = ip(&format!("-6 neigh show {}", of(OTHER_GUEST)));
        assert!(known.contains("02:00:00:00:00:09"), "{known}");

        // What it says of itself is believed.
        wire.say(own, &IPV6, &icmpv6(of(GUEST), gateway(), &advert(of(GUEST), other)));
        let end = Instant::now() + SOON;
        let is_believed =
            || ip(&format!("-6 neigh show {}", of(GUEST))).contains("02:00:00:00:00:09");
        while !is_believed() {
            assert!(Instant::now() < end, "{}", ip("-6 neigh"));
        }
        guard::release(&mark).unwrap();
        ip(&format!(
            "-6 neigh replace {} lladdr {} dev {bridge} nud stale",
            of(GUEST),
            Mac::of(&mark)
        ));
        wire.say(own, &IPV6, &echo_6(of(GUEST), gateway(), 7));
        assert!(
            !wire.hear_within(Duration::from_millis(300), |frame| answered_6(frame) == Some(7))
        );
    });
}

#[test]
fn a_peer_hears_no_router_and_no_neighbour_but_the_one_that_speaks() {
    on_a_host(|| {
        let mark = test_mark();
        let [one, two] = [another(&mark), another(&mark)];
        let mut asker = Wire::in_network(team(), &one, MEMBER);
        let mut asked = Wire::in_network(team(), &two, OTHER_MEMBER);
        let own = Mac::of(&one).bytes();
        let [from, to] = [MEMBER, OTHER_MEMBER].map(|it| team().ipv6_of(it).unwrap());
        let router = team().ipv6_gateway().unwrap();
        let redirect = [&[137, 0, 0, 0, 0, 0, 0, 0][..], &from.octets(), &router.octets()].concat();
        let solicit =
            |target: Ipv6Addr| [&[135, 0, 0, 0, 0, 0, 0, 0][..], &target.octets()].concat();
        let link_local = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);
        for (from, message) in [
            (from, router_advert(1800)),
            (link_local, router_advert(1800)),
            (from, redirect),
            (from, advert(router, own)),
            (from, advert(to, own)),
            (router, advert(router, own)),
            // A question for groups of hearers (MLD), and one whether an address is free.
            (link_local, vec![130, 0, 0, 0, 0, 100, 0, 0]),
            (Ipv6Addr::UNSPECIFIED, solicit(to)),
        ] {
            asker.say(own, &IPV6, &icmpv6(from, ALL_NODES, &message));
        }
        // Hidden behind another header.
        let mut hidden = icmpv6(from, ALL_NODES, &router_advert(1800));
        hidden[5] += 8;
        hidden[6] = 60;
        hidden.splice(40..40, [58, 0, 1, 4, 0, 0, 0, 0]);
        asker.say(own, &IPV6, &hidden);
        asker.say(own, &IPV6, &icmpv6(from, ALL_NODES, &advert(from, own)));
        asker.say(own, &IPV6, &icmpv6(from, ALL_NODES, &solicit(to)));
        asker.say(own, &IPV6, &echo_6(from, to, 9));
        let mut heard = Vec::new();
        asked.hear(|frame| {
            let is_askers =
                frame.get(..2) == Some(&IPV6) && frame.get(10..26) == Some(&from.octets());
            if is_askers {
                heard.push(frame[42]);
            }
            is_askers && frame[42] == 128
        });
        assert_eq!(heard, [136, 135, 128]);
    });
}

#[test]
fn a_host_that_forwards_for_guests_goes_on_listening_to_its_router_and_is_afterwards_what_it_was() {
    on_a_host(|| {
        let [first, second] = [test_mark(), test_mark()];
        ip("tuntap add dev uplink mode tap vnet_hdr");
        let tap = OpenOptions::new().read(true).write(true).open("/dev/net/tun").unwrap();
        tap::open_there(&tap, "uplink").unwrap();
        let mut router = Wire(tap);
        ip("link set uplink up");
        ip("link add router type veth peer name deaf");
        for (device, setting, value) in [
            ("router", "forwarding", "1"),
            ("deaf", "accept_ra", "0"),
            ("uplink", "accept_ra", "1"),
        ] {
            fs::write(format!("{SETTINGS}/{device}/{setting}"), value).unwrap();
        }
        let before = settings();
        let link_local = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x99);
        let mut advertise = |seconds: u16, comes: bool| {
            let mac = [2, 0, 0, 0, 0, 0x99];
            let end = Instant::now() + SOON;
            let has_route = || ip("-6 route show default").contains("via fe80::99");
            // Frames are lost until the kernel has seen that somebody has the tap open.
            while has_route() != comes {
                assert!(Instant::now() < end, "the host does not listen: {}", ip("-6 route"));
                router.say(mac, &IPV6, &icmpv6(link_local, ALL_NODES, &router_advert(seconds)));
                router.hear_within(Duration::from_millis(50), |_| false);
            }
        };
        let is_there = || ip("-6 route show default").contains("via fe80::99");
        advertise(1800, true);
        nat::acquire(&nat_of(&first, GUEST)).unwrap();
        assert!(forwards() && is_there(), "{}", ip("-6 route"));
        nat::acquire(&nat_of(&second, GUEST)).unwrap();
        advertise(0, false);
        advertise(1800, true);
        let value =
            |device: &str| fs::read_to_string(format!("{SETTINGS}/{device}/accept_ra")).unwrap();
        assert_eq!(value("deaf"), "0\n");
        assert_eq!(value("router"), "1\n", "it is a router's and believes nobody, as before");
        // As after a crash between the rules and the settings.
        fs::write(format!("{SETTINGS}/all/forwarding"), "0").unwrap();
        nat::acquire(&nat_of(&first, GUEST)).unwrap();
        assert!(forwards());
        nat::release(&first).unwrap();
        assert!(forwards(), "the other installation needs it");
        nat::release(&second).unwrap();
        assert_eq!(settings(), before);
        assert!(is_there(), "{}", ip("-6 route"));
        assert_eq!(ruleset(), "");
    });
}

#[test]
fn ipv6_forwarding_that_was_there_or_was_taken_back_is_left_alone() {
    on_a_host(|| {
        let mark = test_mark();
        fs::write(format!("{SETTINGS}/all/forwarding"), "1").unwrap();
        let before = settings();
        nat::acquire(&nat_of(&mark, GUEST)).unwrap();
        assert_eq!(settings(), before);
        nat::release(&mark).unwrap();
        assert_eq!(settings(), before, "it was there");
        fs::write(format!("{SETTINGS}/all/forwarding"), "0").unwrap();
        let before = settings();
        nat::acquire(&nat_of(&mark, GUEST)).unwrap();
        fs::write(format!("{SETTINGS}/all/forwarding"), "0").unwrap();
        nat::release(&mark).unwrap();
        assert_eq!(settings(), before, "somebody turned it off");
        // Died after the last element had gone, before the setting was what it was.
        nat::acquire(&nat_of(&mark, GUEST)).unwrap();
        nft::change(mark.installation(), |rules| {
            rules.ways_out.clear();
            Ok(())
        })
        .unwrap();
        assert!(forwards());
        let left = nft::read(mark.installation()).unwrap().rules;
        forwarding_ipv6::settle(mark.installation(), &left).unwrap();
        nat::release(&mark).unwrap();
        assert_eq!(settings(), before);
        assert_eq!(ruleset(), "");
    });
}
