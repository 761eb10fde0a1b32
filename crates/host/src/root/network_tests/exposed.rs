//! Ports of the gateway that lead to services of the host: from whom, to where, and from nobody else.

use std::net::SocketAddrV4;

use super::*;

fn exposing<const N: usize>(mark: &Mark, address: Ipv4Addr, ports: [u16; N]) -> Guard {
    Guard { exposed: ports.into(), ..guard_of(mark, address) }
}

#[test]
fn a_port_leads_further_for_the_guest_that_it_is_exposed_to_and_for_nobody_else() {
    on_a_host(|| {
        let mark = test_mark();
        let guest = Beside::guest(&mark, GUEST);
        let other = Beside::guest(&another(&mark), OTHER_GUEST);
        let _world = Beside::world();
        // On all of the host's addresses: the rules keep guests from it, not where it listens.
        let service = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let port = service.local_addr().unwrap().port();
        let further = TcpListener::bind((GATEWAY, rules::EXPOSE_PORT)).unwrap();
        let is_refused = |from: &Beside, there: (Ipv4Addr, u16)| {
            assert_eq!(from.dial(there).unwrap_err(), ErrorKind::ConnectionRefused, "{there:?}");
        };
        is_refused(&guest, (GATEWAY, port));

        guard::acquire(&exposing(&mark, GUEST, [port, 5432])).unwrap();
        let _asked = guest.dial((GATEWAY, port)).unwrap();
        let (connection, from) = further.accept().unwrap();
        assert_eq!(from.ip(), GUEST);
        let asked = rustix::net::sockopt::ip_original_dst(&connection).unwrap();
        assert_eq!(asked, SocketAddrV4::new(GATEWAY, port), "which port it asked is known");
        for there in [(GATEWAY, port ^ 1), (GATEWAY, rules::EXPOSE_PORT), (HOST_OUTSIDE, port)] {
            is_refused(&guest, there);
        }
        for there in [(GATEWAY, port), (GATEWAY, rules::EXPOSE_PORT), (HOST_OUTSIDE, port)] {
            is_refused(&other, there);
        }

        guard::acquire(&guard_of(&mark, GUEST)).unwrap();
        is_refused(&guest, (GATEWAY, port));
    });
}

#[test]
fn ports_that_lead_further_are_found_right_the_next_time_and_go_with_their_guard() {
    on_a_host(|| {
        let [mark, other] = {
            let mark = test_mark();
            [another(&mark), mark]
        };
        let installation = mark.installation();
        guard::acquire(&guard_of(&other, OTHER_GUEST)).unwrap();
        let without = ruleset();
        guard::acquire(&exposing(&mark, GUEST, [80, 5432])).unwrap();
        let found = nft::read(installation).unwrap();
        assert!(found.is_current, "nft lists what was written in the words it was written in");
        let wanted = [80, 5432].map(|port| (mark.clone(), GUEST, port));
        assert_eq!(found.rules.exposed, wanted.into());
        let written = ruleset();
        guard::acquire(&exposing(&mark, GUEST, [80, 5432])).unwrap();
        assert_eq!(ruleset(), written);

        // Of a VM under another's address, of none, and of nobody who is known.
        let table = rules::table(installation);
        let nobody = another(&mark);
        for (from, whose) in [
            (GUEST, format!("comment \"{other}\"")),
            (Ipv4Addr::new(10, 213, 4, 9), format!("comment \"{nobody}\"")),
            (GUEST, String::new()),
        ] {
            let element = format!("{{ {from} . 22 {whose} }}");
            command::run("nft", &["add", "element", "inet", &table, "exposed", &element]).unwrap();
            assert!(!nft::read(installation).unwrap().is_current, "{element}");
            guard::acquire(&exposing(&mark, GUEST, [80, 5432])).unwrap();
            assert_eq!(ruleset(), written, "{element}");
        }
        guard::release(&mark).unwrap();
        assert_eq!(ruleset(), without);
        guard::release(&other).unwrap();
        assert_eq!(ruleset(), "");
    });
}

#[test]
fn a_guard_of_before_ports_were_exposed_is_one_without_and_is_written_as_it_was() {
    let mark = Mark::parse("bg0000-00000000").unwrap();
    let old = r#"{"mark":"bg0000-00000000","network":{"number":0,"gateway":"10.213.4.1","prefix":22,"mtu":1500},"address":"10.213.4.2","mac":"02:00:00:00:00:00"}"#;
    let read: Guard = serde_json::from_str(old).unwrap();
    assert_eq!(read, guard_of(&mark, GUEST));
    assert_eq!(serde_json::to_string(&read).unwrap(), old);
    let with = exposing(&mark, GUEST, [5432]);
    let text = serde_json::to_string(&with).unwrap();
    assert_eq!(serde_json::from_str::<Guard>(&text).unwrap(), with);
}
