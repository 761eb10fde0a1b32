//! Ten thousand packets that are random or broken on purpose: each gets the code that is right for it, and the server
//! goes on.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::path::{Path, PathBuf};

use banger_dns::{Guests, property};
use support::{Numbers, Packet, SOON, Server, code, id};
use tokio::net::UdpSocket;
use tokio::time::timeout;

const NOERROR: u8 = 0;
const FORMERR: u8 = 1;
const SERVFAIL: u8 = 2;
const NXDOMAIN: u8 = 3;
const NOTIMP: u8 = 4;
const REFUSED: u8 = 5;

/// A packet, and the codes of which its answer has one; none for no answer.
type Case = (Vec<u8>, Vec<u8>);

fn case(numbers: &mut Numbers, kind: usize, id: u16) -> Case {
    let question = |name: &str| Packet::question(id, name, 1);
    let named = |body: &[u8]| {
        let mut packet = question("");
        packet.body.splice(..1, body.iter().copied());
        packet.bytes()
    };
    match kind {
        0 => (question("web.vm").bytes(), vec![NOERROR]),
        1 => (question("absent.vm").edns(1232, 0, &[]).bytes(), vec![NXDOMAIN]),
        FOREIGN => (question("example.com").bytes(), vec![REFUSED]),
        // Cut somewhere after the header.
        3 => {
            let whole = question("web.vm").edns(1232, 0, &[0, 9, 0, 2, 1, 2]).bytes();
            (whole[..12 + numbers.below(whole.len() - 12)].to_vec(), vec![FORMERR])
        }
        4 => ((0..numbers.below(12)).map(|_| numbers.byte()).collect(), vec![]),
        5 => {
            let mut response = question("web.vm");
            response.flags |= 0x8000;
            (response.bytes(), vec![])
        }
        6 => {
            let mut other = question("web.vm");
            other.flags = u16::try_from(1 + numbers.below(15)).unwrap() << 11;
            (other.bytes(), vec![NOTIMP])
        }
        7 => {
            let mut questions = question("web.vm");
            questions.body.extend(questions.body.clone());
            questions.counts[0] = 2;
            (questions.bytes(), vec![FORMERR])
        }
        8 => {
            let mut none = question("");
            none.body.clear();
            none.counts[0] = 0;
            (none.bytes(), vec![FORMERR])
        }
        // A pointer to itself; to each other; behind the end; one of a kind that is not defined; a label that goes on.
        9 => (named(b"\xc0\x0c"), vec![FORMERR]),
        10 => (named(b"\xc0\x0e\xc0\x0c"), vec![FORMERR]),
        11 => (named(b"\xff\xff"), vec![FORMERR]),
        12 => (named(b"\x80\x00"), vec![FORMERR]),
        13 => (named(b"\x3fabc"), vec![FORMERR]),
        // A name of more than 255 octets.
        14 => (question(&["abcdefghi"; 30].join(".")).bytes(), vec![FORMERR]),
        15 => {
            let twice = question("web.vm").edns(1232, 0, &[]).edns(1232, 0, &[]);
            (twice.bytes(), vec![FORMERR])
        }
        // BADVERS is 16: its lower half is in the header.
        16 => {
            let version = 1 + u8::try_from(numbers.below(255)).unwrap();
            (question("web.vm").edns(1232, version, &[]).bytes(), vec![NOERROR])
        }
        // An option that is longer than the record.
        17 => (question("web.vm").edns(1232, 0, &[0, 9, 0, 9, 1]).bytes(), vec![FORMERR]),
        18 => {
            let mut counts = question("web.vm");
            counts.counts[1 + numbers.below(3)] = u16::try_from(1 + numbers.below(60_000)).unwrap();
            (counts.bytes(), vec![FORMERR])
        }
        19 => {
            let mut more = question("web.vm").bytes();
            more.extend((0..1 + numbers.below(40)).map(|_| numbers.byte()));
            (more, vec![FORMERR])
        }
        20 => {
            let mut class = question("web.vm");
            let at = class.body.len() - 1;
            class.body[at] = 2 + u8::try_from(numbers.below(250)).unwrap();
            (class.bytes(), vec![REFUSED])
        }
        21 => {
            // Any octets in a label are a name, if none that is there.
            let label: Vec<u8> = (0..1 + numbers.below(63)).map(|_| numbers.byte()).collect();
            let length = u8::try_from(label.len()).unwrap();
            (named(&[&[length][..], &label, b"\x02vm\x00"].concat()), vec![NXDOMAIN])
        }
        // A pointer into the header, which is a name if its id is a label.
        22 => {
            let mut into_the_header = Packet { counts: [1, 0, 0, 0], ..question("") };
            into_the_header.body.splice(..1, *b"\xc0\x03");
            (into_the_header.bytes(), vec![FORMERR])
        }
        // An OPT of another name than the root's.
        23 => {
            let mut named = question("web.vm").edns(1232, 0, &[]);
            named.body.splice(12..13, *b"\x02vm\x00");
            (named.bytes(), vec![FORMERR])
        }
        // All at random but for what makes it a query of ours.
        _ => {
            let mut noise: Vec<u8> = (0..12 + numbers.below(600)).map(|_| numbers.byte()).collect();
            noise[..2].copy_from_slice(&id.to_be_bytes());
            noise[2] &= 0x07;
            (noise, vec![FORMERR])
        }
    }
}

const KINDS: usize = 25;
const FOREIGN: usize = 2;

/// `foreign` is the code for a name that is not ours.
async fn ten_thousand(server: &Server, foreign: u8) {
    let mut numbers = Numbers(0x1234_5678_9abc_def1);
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(server.address).await.unwrap();
    let mut answer = vec![0; 65_535];
    for number in 0..10_000_u16 {
        let kind = numbers.below(KINDS);
        let (packet, mut codes) = case(&mut numbers, kind, number);
        if kind == FOREIGN {
            codes = vec![foreign];
        }
        property::holds(&packet, &server.names);
        socket.send(&packet).await.unwrap();
        if codes.is_empty() {
            continue;
        }
        let length = timeout(SOON, socket.recv(&mut answer)).await.unwrap().unwrap();
        assert_eq!(id(&answer[..length]), number, "kind {kind}: {packet:02x?}");
        assert!(codes.contains(&code(&answer)), "kind {kind}: {} to {packet:02x?}", code(&answer));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_hosts_server_answers_ten_thousand_packets_each_as_is_right() {
    let server = Server::authoritative();
    ten_thousand(&server, REFUSED).await;
    assert_eq!(server.dig("+short web.vm").await, "10.213.0.2\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_guests_server_answers_ten_thousand_packets_each_as_is_right() {
    let mut settings = Guests::new(support::subnets());
    // Nobody is asked: there is only ourselves.
    let folder = tempfile::tempdir().unwrap();
    settings.resolv_conf = folder.path().join("resolv.conf");
    std::fs::write(&settings.resolv_conf, "nameserver 127.0.0.5\n").unwrap();
    let server = Server::guests(settings);
    ten_thousand(&server, SERVFAIL).await;
    assert_eq!(server.dig("+short web.vm").await, "10.213.0.2\n");
}

/// The fuzzer's seeds, as they are and with octets changed at random: nothing is known of the answer but that it is one.
#[test]
fn a_packet_that_was_changed_at_random_is_answered_by_an_answer_to_it() {
    let names = property::table();
    let mut numbers = Numbers(0xfeed_5eed_0000_0001);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds/dns_packet");
    let seeds = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut seeds: Vec<PathBuf> = seeds.collect();
    seeds.sort();
    for seed in seeds {
        let seed = std::fs::read(seed).unwrap();
        property::holds(&seed, &names);
        for _ in 0..2000 {
            let mut packet = seed.clone();
            for _ in 0..1 + numbers.below(4) {
                let place = numbers.below(packet.len());
                packet[place] = numbers.byte();
            }
            property::holds(&packet, &names);
        }
    }
}
