//! A host whose way to the world changes: guests with a way out go the new way with their next connection, and nothing of
//! ours has to be told.

use std::net::IpAddr;

use super::*;

/// Two ways to the same server: by `uplink`, the first world's, and by `other`.
struct Scene {
    guest: Beside,
    first: Beside,
    second: Beside,
}

const OTHER_OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const OTHER_ROUTER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
/// Whom both worlds have.
const EVERYWHERE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);

impl Scene {
    fn play(test: impl FnOnce(&Self) + Send) {
        on_a_host(|| {
            let mark = test_mark();
            let guest = Beside::guest(&mark, GUEST);
            nat::acquire(&nat_of(&mark, GUEST)).unwrap();
            let first = Beside::world();
            let second = Beside::new();
            second.connect("other", "02:00:00:00:00:88", &format!("{OTHER_ROUTER}/24"));
            ip(&format!("address add {OTHER_OUTSIDE}/24 dev other"));
            ip("link set other up");
            second.inside(|| ip(&format!("route add default via {OTHER_OUTSIDE}")));
            for world in [&first, &second] {
                world.inside(|| ip(&format!("address add {EVERYWHERE}/32 dev lo")));
            }
            ip(&format!("route add default via {SERVER}"));
            test(&Self { guest, first, second });
        });
    }

    /// A connection of the guest's to a server of this world, its two ends, and who the server sees.
    fn reaches(&self, world: &Beside) -> (TcpStream, TcpStream, IpAddr) {
        let (listener, server) = world.listen(EVERYWHERE);
        let here = self.guest.dial(server).unwrap();
        let (there, peer) = listener.accept().unwrap();
        (here, there, peer.ip())
    }
}

/// Whether what is said at one end comes out at the other.
fn holds((here, there): (&mut TcpStream, &mut TcpStream)) {
    here.write_all(b"hi").unwrap();
    there.read_exact(&mut [0; 2]).unwrap();
}

/// How a connection ends that has lost its way, for one who goes on to send: with an error, not with silence. The kernel forgets
/// it a moment after its address has gone (`iterate_cleanup_work` of nf_nat_masquerade.c), and until then it goes on.
fn ends(mut here: TcpStream) -> ErrorKind {
    here.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let end = Instant::now() + SOON;
    loop {
        let said = here.write_all(b"more").and_then(|()| here.read(&mut [0; 9]));
        match said {
            Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < end => {}
            Err(error) => return error.kind(),
            Ok(length) => panic!("{length} bytes of an answer that nobody gave"),
        }
    }
}

#[test]
fn a_new_default_route_is_taken_by_the_next_connection_and_ends_the_old_ones_at_once() {
    Scene::play(|scene| {
        let (mut here, mut there, seen) = scene.reaches(&scene.first);
        assert_eq!(seen, HOST_OUTSIDE);
        holds((&mut here, &mut there));
        ip(&format!("route replace default via {OTHER_ROUTER}"));
        let (.., seen) = scene.reaches(&scene.second);
        assert_eq!(seen, OTHER_OUTSIDE, "under the address of the new way");
        // Its packets would come from an address that the new way does not lead back to. The kernel forgets a masqueraded
        // connection whose device is another (nf_nat_oif_changed), and the server does not know the one that begins instead.
        assert_eq!(ends(here), ErrorKind::ConnectionReset);
    });
}

#[test]
fn a_vpn_that_comes_up_is_taken_and_when_it_goes_the_old_way_is() {
    Scene::play(|scene| {
        let (mut old, mut at_old, _) = scene.reaches(&scene.first);
        // As VPNs do it: the default route stays, and two halves are more exact.
        for half in ["0.0.0.0/1", "128.0.0.0/1"] {
            ip(&format!("route add {half} via {OTHER_ROUTER} dev other"));
        }
        let (mut here, mut there, seen) = scene.reaches(&scene.second);
        assert_eq!(seen, OTHER_OUTSIDE);
        holds((&mut here, &mut there));
        ip("link delete other");
        let (.., seen) = scene.reaches(&scene.first);
        assert_eq!(seen, HOST_OUTSIDE);
        // The server of the old way does not know the VPN's connection. One that said nothing meanwhile has lost nothing.
        assert_eq!(ends(here), ErrorKind::ConnectionReset);
        holds((&mut old, &mut at_old));
    });
}

#[test]
fn an_address_that_the_host_loses_ends_what_left_under_it() {
    Scene::play(|scene| {
        let (mut here, mut there, seen) = scene.reaches(&scene.first);
        assert_eq!(seen, HOST_OUTSIDE);
        holds((&mut here, &mut there));
        // The same device, another lease.
        ip(&format!("address delete {HOST_OUTSIDE}/24 dev uplink"));
        ip("address add 192.0.2.7/24 dev uplink");
        ip(&format!("route add default via {SERVER}"));
        scene.first.inside(|| ip("route replace default via 192.0.2.7"));
        let (.., seen) = scene.reaches(&scene.first);
        assert_eq!(seen, Ipv4Addr::new(192, 0, 2, 7));
        assert_eq!(ends(here), ErrorKind::ConnectionReset);
    });
}
