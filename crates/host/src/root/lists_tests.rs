//! VMs with a list, with traffic: as [`super::network_tests`], with servers at several addresses.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use banger_api::Cidr;
use serde_json::json;

use super::network_tests::{
    Beside, GATEWAY, GUEST, HOST_OUTSIDE, OTHER_GUEST, SERVER, SOON, guard_of, ip, nat_of,
    on_a_host, ruleset,
};
use super::{bridge, guard, nat, nft, rules, test_mark};
use crate::mark::Mark;
use crate::{Nat, command};

/// Beside [`SERVER`].
const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 3);
const NONE: ErrorKind = ErrorKind::HostUnreachable;

fn listed(mark: &Mark, address: Ipv4Addr, only: &[&str]) -> Nat {
    let only = only.iter().map(|cidr| Cidr::parse(cidr).unwrap()).collect();
    Nat { only: Some(only), ..nat_of(mark, address) }
}

fn open(mark: &Mark, address: Ipv4Addr, seconds: u32) {
    nat::open(mark, &[address].into(), seconds).unwrap();
}

/// A guest with a list, and two servers beyond the host.
struct Scene {
    mark: Mark,
    guest: Beside,
    world: Beside,
    server: TcpListener,
    neighbour: TcpListener,
}

impl Scene {
    fn new(only: &[&str]) -> Self {
        let mark = test_mark();
        let guest = Beside::guest(&mark, GUEST);
        let world = Beside::world();
        world.inside(|| ip(&format!("address add {NEIGHBOUR}/24 dev eth0")));
        nat::acquire(&listed(&mark, GUEST, only)).unwrap();
        let ((server, _), (neighbour, _)) = (world.listen(SERVER), world.listen(NEIGHBOUR));
        Self { mark, guest, world, server, neighbour }
    }

    fn dial(&self, to: &TcpListener) -> Result<TcpStream, ErrorKind> {
        self.guest.dial(to.local_addr().unwrap())
    }

    /// A connection, by both of its ends.
    fn connected(&self, to: &TcpListener) -> (TcpStream, TcpStream) {
        (self.dial(to).unwrap(), to.accept().unwrap().0)
    }
}

/// How many of the two ends are heard by the other.
fn heard((one, other): &mut (TcpStream, TcpStream)) -> usize {
    let is_heard = |from: &mut TcpStream, to: &mut TcpStream| {
        to.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        from.write_all(b"x").is_ok() && to.read_exact(&mut [0; 1]).is_ok()
    };
    usize::from(is_heard(one, other)) + usize::from(is_heard(other, one))
}

/// Whether both are.
fn talk(connection: &mut (TcpStream, TcpStream)) -> bool {
    heard(connection) == 2
}

#[test]
fn a_list_is_found_right_the_next_time_and_nothing_of_it_stays() {
    on_a_host(|| {
        let before = ruleset();
        let mark = test_mark();
        let claim =
            listed(&mark, GUEST, &["203.0.113.0/24", "203.0.113.7", "198.51.100.7", "10.0.0.0/8"]);
        guard::acquire(&guard_of(&mark, GUEST)).unwrap();
        nat::acquire(&claim).unwrap();
        let found = nft::read(mark.installation()).unwrap();
        assert!(found.is_current, "nft lists what was written in the words it was written in");
        let only: BTreeSet<Cidr> = ["203.0.113.0/24", "198.51.100.7", "10.0.0.0/8"]
            .map(|cidr| Cidr::parse(cidr).unwrap())
            .into();
        assert_eq!(
            found.rules.ways_out[&mark].only,
            Some(only),
            "what is in another is not twice there"
        );
        let made = ruleset();
        nat::acquire(&claim).unwrap();
        assert_eq!(ruleset(), made);
        nat::acquire(&listed(&mark, GUEST, &["203.0.113.0/24"])).unwrap_err();
        nat::acquire(&nat_of(&mark, GUEST)).unwrap_err();

        open(&mark, SERVER, 60);
        for _twice in 0..2 {
            nat::release(&mark).unwrap();
        }
        let found = nft::read(mark.installation()).unwrap();
        assert!(found.is_current);
        assert_eq!((found.rules.ways_out.len(), found.passing.allowed.len()), (0, 0));
        guard::release(&mark).unwrap();
        assert_eq!(ruleset(), before);
    });
}

#[test]
fn an_address_is_reached_only_after_it_was_opened_and_its_neighbour_not() {
    on_a_host(|| {
        let scene = Scene::new(&[]);
        assert_eq!(scene.dial(&scene.server).unwrap_err(), NONE, "before");
        open(&scene.mark, SERVER, 60);
        let (_guest, mut in_world) = scene.connected(&scene.server);
        assert_eq!(in_world.peer_addr().unwrap().ip(), HOST_OUTSIDE, "under the host's address");
        assert!(in_world.write_all(b"x").is_ok());
        assert_eq!(scene.dial(&scene.neighbour).unwrap_err(), NONE);
        let other = Mark::new(scene.mark.installation().clone(), test_mark().vm().clone());
        let beside = Beside::guest(&other, OTHER_GUEST);
        nat::acquire(&listed(&other, OTHER_GUEST, &[])).unwrap();
        assert_eq!(
            beside.dial(scene.server.local_addr().unwrap()).unwrap_err(),
            NONE,
            "the other guest's list is its own"
        );
    });
}

#[test]
fn a_subnet_of_the_list_is_reached_and_what_is_beside_it_not() {
    on_a_host(|| {
        let scene = Scene::new(&["192.0.2.3"]);
        assert!(talk(&mut scene.connected(&scene.neighbour)));
        assert_eq!(scene.dial(&scene.server).unwrap_err(), NONE);
        nat::release(&scene.mark).unwrap();
        nat::acquire(&listed(&scene.mark, GUEST, &["192.0.2.0/30"])).unwrap();
        assert!(talk(&mut scene.connected(&scene.server)));
    });
}

#[test]
fn a_connection_outlives_the_time_of_its_name_and_a_new_one_does_not() {
    on_a_host(|| {
        let scene = Scene::new(&[]);
        open(&scene.mark, SERVER, 1);
        let mut connection = scene.connected(&scene.server);
        assert!(talk(&mut connection));
        while !nft::read(scene.mark.installation()).unwrap().passing.allowed.is_empty() {}
        assert_eq!(scene.dial(&scene.server).unwrap_err(), NONE);
        assert!(talk(&mut connection));
    });
}

#[test]
fn what_a_narrower_list_does_not_have_ends_and_what_it_has_goes_on() {
    on_a_host(|| {
        let scene = Scene::new(&["192.0.2.3"]);
        open(&scene.mark, SERVER, 60);
        let mut by_name = scene.connected(&scene.server);
        let mut by_address = scene.connected(&scene.neighbour);
        assert!(talk(&mut by_name) && talk(&mut by_address));
        nat::release(&scene.mark).unwrap();
        nat::acquire(&listed(&scene.mark, GUEST, &[])).unwrap();
        open(&scene.mark, SERVER, 60);
        assert_eq!(heard(&mut by_address), 0, "neither of its ends is heard");
        assert!(talk(&mut by_name));
        nat::release(&scene.mark).unwrap();
        nat::acquire(&listed(&scene.mark, GUEST, &["192.0.2.3"])).unwrap();
        assert_eq!(heard(&mut by_name), 0);
    });
}

#[test]
fn other_peoples_dns_is_refused_whatever_the_list_says() {
    on_a_host(|| {
        let scene = Scene::new(&["192.0.2.0/24"]);
        open(&scene.mark, SERVER, 60);
        for port in [53, 853] {
            let _there = scene.world.inside(|| TcpListener::bind((SERVER, port)).unwrap());
            assert_eq!(scene.guest.dial((SERVER, port)).unwrap_err(), NONE, "{port}");
            let udp = scene.guest.inside(|| UdpSocket::bind((GUEST, 0)).unwrap());
            udp.set_read_timeout(Some(SOON)).unwrap();
            udp.connect((SERVER, port)).unwrap();
            udp.send(b"who").unwrap();
            assert_eq!(udp.recv(&mut [0; 9]).unwrap_err().kind(), NONE, "{port}");
        }
        let names = TcpListener::bind((GATEWAY, rules::DNS_PORT)).unwrap();
        let _asked = scene.guest.dial((GATEWAY, 53)).unwrap();
        names.accept().unwrap();
    });
}

#[test]
fn clouds_credentials_and_other_guests_are_refused_whatever_is_open() {
    on_a_host(|| {
        let scene = Scene::new(&["10.0.0.0/8"]);
        ip("address add 169.254.0.1/16 dev uplink");
        scene.world.inside(|| ip("address add 169.254.169.254/16 dev eth0"));
        let metadata = Ipv4Addr::new(169, 254, 169, 254);
        open(&scene.mark, metadata, 60);
        let (_there, at) = scene.world.listen(metadata);
        assert_eq!(scene.guest.dial(at).unwrap_err(), NONE);
        let other = Mark::new(scene.mark.installation().clone(), test_mark().vm().clone());
        let beside = Beside::guest(&other, OTHER_GUEST);
        let (_there, at) = beside.listen(OTHER_GUEST);
        assert_eq!(scene.guest.dial(at).unwrap_err(), ErrorKind::ConnectionRefused);
    });
}

#[test]
fn what_was_refused_is_told_with_its_time_and_forgotten_with_the_vm() {
    on_a_host(|| {
        let scene = Scene::new(&[]);
        let SocketAddr::V4(at) = scene.server.local_addr().unwrap() else { panic!("it is IPv4") };
        scene.dial(&scene.server).unwrap_err();
        scene.guest.dial((NEIGHBOUR, 53)).unwrap_err();
        let denied = nat::denied(&scene.mark).unwrap();
        let mut what: Vec<_> =
            denied.iter().map(|denied| (denied.address, denied.is_udp, denied.port)).collect();
        what.sort_unstable();
        assert_eq!(what, [(SERVER, false, at.port()), (NEIGHBOUR, false, 53)]);
        assert!(denied.iter().all(|denied| denied.ago_s < 60), "{denied:?}");
        // Without a way out, too; and the tables are not stale for it.
        nat::release(&scene.mark).unwrap();
        scene.guest.dial((SERVER, 7)).unwrap_err();
        assert_eq!(nat::denied(&scene.mark).unwrap().len(), 3);
        assert!(nft::read(scene.mark.installation()).unwrap().is_current);

        let other = Mark::new(scene.mark.installation().clone(), test_mark().vm().clone());
        guard::acquire(&guard_of(&other, OTHER_GUEST)).unwrap();
        guard::release(&scene.mark).unwrap();
        guard::acquire(&guard_of(&scene.mark, GUEST)).unwrap();
        assert_eq!(nat::denied(&scene.mark).unwrap(), []);
        assert_eq!(nat::denied(&other).unwrap(), []);
    });
}

#[test]
fn what_is_open_is_opened_for_longer_and_never_for_less() {
    on_a_host(|| {
        let scene = Scene::new(&[]);
        let left = || {
            let all = nft::read(scene.mark.installation()).unwrap().passing.allowed;
            all[&(GUEST, SERVER)]
        };
        open(&scene.mark, SERVER, 60);
        open(&scene.mark, SERVER, 600);
        assert!(left() > 500, "{}", left());
        open(&scene.mark, SERVER, 60);
        assert!(left() > 500, "{}", left());
    });
}

#[test]
fn nothing_is_opened_to_a_vm_without_a_list_and_not_without_end() {
    on_a_host(|| {
        let mark = test_mark();
        let one = [SERVER].into();
        nat::open(&mark, &one, 60).unwrap_err();
        nat::acquire(&nat_of(&mark, GUEST)).unwrap();
        nat::open(&mark, &one, 60).unwrap_err();
        nat::release(&mark).unwrap();
        nat::acquire(&listed(&mark, GUEST, &[])).unwrap();
        let many: BTreeSet<Ipv4Addr> =
            (0..4096).map(|n| Ipv4Addr::from_bits(0x0800_0000 + n)).collect();
        nat::open(&mark, &many, 60).unwrap();
        let error = nat::open(&mark, &one, 60).unwrap_err();
        assert!(crate::error::chain(&error).contains("more than 4096"), "{error}");
        nat::release(&mark).unwrap();
        assert_eq!(ruleset(), "");
    });
}

#[test]
fn rules_that_are_written_anew_keep_what_is_open() {
    on_a_host(|| {
        let scene = Scene::new(&["192.0.2.3"]);
        open(&scene.mark, SERVER, 60);
        let mut connection = scene.connected(&scene.server);
        let table = format!("bg{}", scene.mark.installation());
        command::run("nft", &["add", "chain", "inet", &table, "strange"]).unwrap();
        assert!(!nft::read(scene.mark.installation()).unwrap().is_current);
        bridge::acquire(scene.mark.installation(), &guard_of(&scene.mark, GUEST).network).unwrap();
        guard::acquire(&guard_of(&scene.mark, GUEST)).unwrap();
        assert!(nft::read(scene.mark.installation()).unwrap().is_current);
        assert!(talk(&mut connection));
        assert!(talk(&mut scene.connected(&scene.server)));
        assert!(talk(&mut scene.connected(&scene.neighbour)));
    });
}

#[test]
fn a_subnet_that_is_nobodys_makes_the_tables_stale() {
    let installation = test_mark().installation().clone();
    let subnet = json!({ "concat": ["10.213.4.2", "203.0.113.7"] });
    let listing = json!({ "nftables": [{ "set": { "name": "subnets", "elem": [subnet] } }] });
    let found = rules::read(&installation, &[listing]);
    assert!(!found.is_current && found.rules.is_empty());
}
