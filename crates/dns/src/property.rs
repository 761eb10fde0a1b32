//! What must hold of packets that anybody sends: shared by the test of random packets and by the fuzz target.

use std::net::Ipv4Addr;

use domain::base::iana::Rcode;
use domain::base::{Header, Message};

use crate::gate::{LONGEST_S, addresses};
use crate::names::Names;
use crate::respond::{Asker, Reply, Transport, Verdict, respond};
use crate::subnet::Subnet;

/// A small table to ask.
///
/// # Panics
/// Never: its names are names.
#[must_use]
pub fn table() -> Names {
    let names = Names::new("vm").expect("a zone");
    let gateway = Ipv4Addr::new(10, 213, 0, 1);
    names.set_subnets(vec![Subnet::new(gateway, 22).expect("a subnet")]);
    let address = |last| Ipv4Addr::new(10, 213, 0, last);
    let all = [("web", address(2)), ("www", address(2)), ("db.prod", address(3))];
    names.replace(all).expect("names");
    names
}

/// Asks `packet` of all kinds of servers, and takes it as a nameserver's answer to itself.
///
/// # Panics
/// When an answer is not one to this packet, or longer than the asker takes.
pub fn holds(packet: &[u8], names: &Names) {
    let subnets = [Subnet::new(Ipv4Addr::new(10, 213, 0, 2), 32).expect("a subnet")];
    let host = Ipv4Addr::new(10, 213, 0, 1);
    let guest = |ipv6| Asker::Guest { ipv6, subnets: &subnets, host };
    let askers = [Asker::Host, Asker::Stranger, guest(false), guest(true)];
    for asker in askers {
        for transport in [Transport::Udp, Transport::Tcp] {
            let reply = respond(packet, names, asker, transport);
            let is_query = packet.len() >= 12 && !Header::for_message_slice(packet).qr();
            match reply {
                Reply::Silence => assert!(!is_query),
                Reply::Now(answer) => {
                    assert!(is_query);
                    is_an_answer(packet, &answer, transport);
                }
                Reply::Ask(query) => {
                    assert!(is_query && matches!(asker, Asker::Guest { .. }));
                    let sent = query.question(7).expect("it can be asked");
                    assert_eq!(query.judge(7, &sent), Verdict::NotOurs, "our own question");
                    let mut echoed = packet.to_vec();
                    let header = Header::for_message_slice_mut(&mut echoed);
                    let id = header.id();
                    header.set_qr(true);
                    assert_ne!(query.judge(id, &echoed), Verdict::NotOurs);
                    if let Some(found) = addresses(&mut echoed.clone()) {
                        assert!(found.iter().all(|(_, seconds)| *seconds <= LONGEST_S));
                    }
                    for reply in [query.relay(echoed), query.failed(), query.blocked()] {
                        let Reply::Now(answer) = reply else { panic!("{reply:?}") };
                        is_an_answer(packet, &answer, transport);
                    }
                }
            }
        }
    }
}

fn is_an_answer(asked: &[u8], answer: &[u8], transport: Transport) {
    let most = if transport == Transport::Udp { 1232 } else { 65_535 };
    assert!(answer.len() <= most, "{} octets", answer.len());
    let answer = Message::from_slice(answer).expect("an answer has a header");
    let header = answer.header();
    let expected = Header::for_message_slice(asked);
    assert!(header.qr());
    assert_eq!((header.id(), header.opcode()), (expected.id(), expected.opcode()));
    for record in answer.iter() {
        record.expect("an answer can be read");
    }
    if [Rcode::NOERROR, Rcode::NXDOMAIN].contains(&header.rcode()) {
        let asked = Message::from_slice(asked).expect("it was read");
        assert_eq!(answer.question(), asked.question());
    }
}
