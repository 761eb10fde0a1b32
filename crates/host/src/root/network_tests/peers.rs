//! Networks whose guests reach each other: who hears whom there, and that no claim makes one of both kinds.

use super::*;

/// Whether the rules for what is forwarded look at what bridges pass (br_netfilter).
const BRIDGE_NF: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";

#[test]
fn guests_of_a_network_of_peers_reach_each_other_and_no_guest_of_another_network() {
    on_a_host(|| {
        let mark = test_mark();
        let members = [another(&mark), another(&mark)];
        let stranger = Beside::guest(&mark, GUEST);
        let one = Beside::guest_in(team(), &members[0], MEMBER);
        let two = Beside::guest_in(team(), &members[1], OTHER_MEMBER);
        // It leads elsewhere.
        nat::acquire(&Nat {
            mark: members[0].clone(),
            network: team(),
            address: MEMBER,
            only: None,
        })
        .unwrap();
        let [(at_one, of_one), (at_two, of_two), (_there, of_stranger)] =
            [one.listen(MEMBER), two.listen(OTHER_MEMBER), stranger.listen(GUEST)];
        let all_is_right = |how| {
            for (from, own, to, listener) in
                [(&one, MEMBER, of_two, &at_two), (&two, OTHER_MEMBER, of_one, &at_one)]
            {
                from.dial(to).unwrap_or_else(|error| panic!("{how}: {error}"));
                assert_eq!(listener.accept().unwrap().1.ip(), own, "{how}, under its own address");
            }
            for (from, to) in [(&one, of_stranger), (&stranger, of_one), (&stranger, of_two)] {
                assert_eq!(from.dial(to).unwrap_err(), ErrorKind::ConnectionRefused, "{how}");
            }
        };
        // With br_netfilter, what the bridge passes goes by the rules for what is forwarded. Docker brings it, and a kernel
        // without it passes frames as one where it is off.
        for (setting, how) in [("1", "with br_netfilter"), ("0", "from port to port")] {
            let is_set = fs::write(BRIDGE_NF, setting).is_ok();
            if is_set || setting == "0" {
                all_is_right(how);
            }
        }
        // As a guest may do that sends all to its gateway.
        one.inside(|| ip(&format!("route add {OTHER_MEMBER}/32 via {}", team().gateway)));
        two.inside(|| ip(&format!("route add {MEMBER}/32 via {}", team().gateway)));
        all_is_right("through the host");
        // Without its guard a peer is nobody's.
        guard::release(&members[0]).unwrap();
        let dialled =
            two.inside(|| TcpStream::connect_timeout(&of_one, Duration::from_millis(300)));
        assert!(dialled.is_err());
    });
}

#[test]
fn guests_of_one_network_all_reach_each_other_or_none_does() {
    on_a_host(|| {
        let mark = test_mark();
        let [other, third] = [another(&mark), another(&mark)];
        let installation = mark.installation();
        for (there, wanted) in [(false, true), (true, false)] {
            let [there, wanted] = [there, wanted].map(|peers| Network { peers, ..network() });
            // Without guests it is changed.
            bridge::acquire(installation, &wanted).unwrap();
            bridge::acquire(installation, &there).unwrap();
            guard::acquire(&guard_in(there, &mark, GUEST)).unwrap();
            let tap =
                |mark: &Mark, network| Tap { mark: mark.clone(), uid: 1_900_000_000, network };
            tap::acquire(&tap(&mark, there)).unwrap();
            for error in [
                bridge::acquire(installation, &wanted).unwrap_err(),
                tap::acquire(&tap(&other, wanted)).unwrap_err(),
            ] {
                assert!(crate::error::chain(&error).contains("stop them"), "{error}");
            }
            for (mark, address) in [(&mark, GUEST), (&third, OTHER_GUEST)] {
                let error = guard::acquire(&guard_in(wanted, mark, address)).unwrap_err();
                assert!(crate::error::chain(&error).contains("reach each other"), "{error}");
            }
            tap::release(&mark).unwrap();
            guard::release(&mark).unwrap();
            bridge::release(installation, 0).unwrap();
        }
        assert_eq!(ruleset(), "");
    });
}

#[test]
fn a_peer_hears_what_is_asked_under_the_askers_own_address_and_the_host_does_not_answer_for_it() {
    on_a_host(|| {
        let [one, two] = {
            let mark = test_mark();
            [another(&mark), mark]
        };
        let mut asker = Wire::in_network(team(), &one, MEMBER);
        let mut asked = Wire::in_network(team(), &two, OTHER_MEMBER);
        let [own, other] = [&one, &two].map(|mark| Mac::of(mark).bytes());
        for (mac, inner, sender) in [
            (own, own, Ipv4Addr::new(10, 213, 8, 9)),
            (own, own, team().gateway),
            (own, own, OTHER_MEMBER),
            (own, other, MEMBER),
            (other, own, MEMBER),
            (own, own, MEMBER),
        ] {
            asker.say(mac, &ARP, &arp(inner, sender, OTHER_MEMBER));
        }
        let is_asked = |frame: &[u8]| {
            frame.get(..2) == Some(&ARP) && frame.get(26..30) == Some(&OTHER_MEMBER.octets())
        };
        let heard = asked.hear(is_asked);
        assert_eq!((&heard[10..16], &heard[16..20]), (&own[..], &MEMBER.octets()[..]));
        // In their order, so that what is heard of these is all that is.
        for (mac, sender, number) in [(own, OTHER_GUEST, 1), (other, MEMBER, 2), (own, MEMBER, 3)] {
            asker.say(mac, &IPV4, &echo_to(OTHER_MEMBER, sender, number));
        }
        let mut more = 0;
        let ping = asked.hear(|frame| {
            more += usize::from(is_asked(frame));
            frame.get(..2) == Some(&IPV4) && frame.get(18..22) == Some(&OTHER_MEMBER.octets())
        });
        assert_eq!((more, ping[29]), (0, 3), "one question and one packet came");
        let answered = |frame: &[u8]| is_answer_for(OTHER_MEMBER, frame);
        assert!(!asker.hear_within(Duration::from_millis(300), answered));
    });
}
