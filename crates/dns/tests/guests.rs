//! The guests' server: what it answers by itself, and what it asks of which nameservers.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use banger_dns::{Guests, Names, Sockets, Subnet, serve_authoritative};
use support::{Packet, SOON, Server, WEB, code, dig, id, is_truncated};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

/// Where nameservers are: all of them at one port, as they are at 53.
const FIRST: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 6);
const SECOND: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 7);

/// A resolv.conf and the settings that name it.
struct Host {
    folder: tempfile::TempDir,
    settings: Guests,
}

impl Host {
    fn new(port: u16) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut settings = Guests::new(support::subnets());
        settings.resolv_conf = folder.path().join("resolv.conf");
        settings.upstream_port = port;
        Self { folder, settings }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("resolv.conf")
    }

    fn nameservers(self, servers: &[Ipv4Addr]) -> Self {
        std::fs::write(self.path(), lines(servers)).unwrap();
        self
    }

    fn serve(&self) -> Server {
        Server::guests(self.settings.clone())
    }
}

fn lines(servers: &[Ipv4Addr]) -> String {
    servers.iter().map(|server| format!("nameserver {server}\n")).collect()
}

/// A real nameserver, of the zone `example`, whose `www` is `address`.
fn nameserver(at: SocketAddrV4, address: Ipv4Addr) -> (u16, Names) {
    let sockets = Sockets::bind(at).unwrap();
    let port = sockets.address().port();
    let names = Names::new("example").unwrap();
    names.set("www", address).unwrap();
    tokio::spawn(serve_authoritative(sockets, names.clone(), CancellationToken::new()));
    (port, names)
}

fn at(address: Ipv4Addr, port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(address, port)
}

/// A nameserver that fails: it answers each packet with those that `answers` makes of it.
async fn failing(
    at: SocketAddrV4,
    answers: impl Fn(Vec<u8>) -> Vec<Vec<u8>> + Send + 'static,
) -> (u16, Arc<Mutex<Vec<Vec<u8>>>>) {
    let socket = UdpSocket::bind(at).await.unwrap();
    let port = socket.local_addr().unwrap().port();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&seen);
    tokio::spawn(async move {
        let mut packet = vec![0; 65_535];
        while let Ok((length, client)) = socket.recv_from(&mut packet).await {
            kept.lock().unwrap().push(packet[..length].to_vec());
            for answer in answers(packet[..length].to_vec()) {
                socket.send_to(&answer, client).await.unwrap();
            }
        }
    });
    (port, seen)
}

/// The answer to a query that a server would give: no records, this code.
fn coded(mut query: Vec<u8>, code: u8) -> Vec<u8> {
    query[2] |= 0x80;
    query[3] = 0x80 | code;
    query
}

async fn client(server: &Server) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(server.address).await.unwrap();
    socket
}

async fn received(socket: &UdpSocket) -> Vec<u8> {
    let mut answer = vec![0; 65_535];
    let length = timeout(SOON, socket.recv(&mut answer)).await.unwrap().unwrap();
    answer.truncate(length);
    answer
}

#[tokio::test]
async fn our_names_are_ours_and_all_else_comes_from_the_hosts_nameserver() {
    let (port, _) = nameserver(at(FIRST, 0), Ipv4Addr::new(192, 0, 2, 80));
    let host = Host::new(port).nameservers(&[FIRST]);
    let server = host.serve();
    for transport in ["+notcp", "+tcp"] {
        let ours = server.asked(&format!("{transport} WEB.vm")).await;
        assert_eq!(ours, "NOERROR\nqr aa rd ra\nWEB.vm. 0 IN A 10.213.0.2");
        let theirs = server.asked(&format!("{transport} www.EXAMPLE")).await;
        assert_eq!(theirs, "NOERROR\nqr aa rd\nwww.EXAMPLE. 0 IN A 192.0.2.80");
        assert!(server.asked(&format!("{transport} other.example")).await.starts_with("NXDOMAIN"));
        assert!(server.asked(&format!("{transport} other.vm")).await.starts_with("NXDOMAIN"));
    }
}

#[tokio::test]
async fn a_guest_without_ipv6_gets_no_ipv6_addresses_and_nobody_is_asked_for_them() {
    let (port, seen) = failing(at(FIRST, 0), |query| vec![coded(query, 3)]).await;
    let mut host = Host::new(port).nameservers(&[FIRST]);
    let server = host.serve();
    assert_eq!(server.asked("www.example AAAA").await, "NOERROR\nqr rd ra");
    assert_eq!(seen.lock().unwrap().len(), 0);
    host.settings.ipv6 = true;
    assert!(host.serve().asked("www.example AAAA").await.starts_with("NXDOMAIN"));
    assert_eq!(seen.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn what_concerns_the_resolver_itself_is_not_passed_on() {
    let (port, seen) = failing(at(FIRST, 0), |query| vec![coded(query, 0)]).await;
    let host = Host::new(port).nameservers(&[FIRST]);
    let server = host.serve();
    assert_eq!(server.asked("_dns.resolver.arpa SVCB").await, "NOERROR\nqr rd ra");
    assert_eq!(server.asked("+notcp example.com ANY").await, "NOTIMP\nqr rd ra");
    assert_eq!(server.asked("+notcp example.com AXFR").await, "REFUSED\nqr ra");
    assert_eq!(server.asked("version.bind CH TXT").await, "REFUSED\nqr rd ra");
    assert_eq!(seen.lock().unwrap().len(), 0);
}

#[tokio::test]
async fn a_question_is_passed_on_without_the_guests_options_and_under_another_id() {
    let (port, seen) = failing(at(FIRST, 0), |query| vec![coded(query, 0)]).await;
    let host = Host::new(port).nameservers(&[FIRST]);
    let server = host.serve();
    server.dig("+qid=4711 +subnet=192.0.2.0/24 +cookie +dnssec +cd Www.Example").await;
    server.dig("+qid=4711 +noedns Www.Example").await;
    let seen = seen.lock().unwrap().clone();
    let question = Packet { flags: 0x0130, ..Packet::question(0, "Www.Example", 1) };
    let mut expected = question.edns(1232, 0, &[]).bytes();
    expected[12 + 13 + 4 + 7] = 0x80; // DO
    assert_eq!(seen[0][2..], expected[2..]);
    let plain = Packet { flags: 0x0120, ..Packet::question(0, "Www.Example", 1) };
    assert_eq!(seen[1][2..], plain.bytes()[2..]);
    assert!(seen.iter().any(|packet| id(packet) != 4711));
}

#[tokio::test]
async fn the_nameservers_are_those_of_now() {
    let (port, _) = nameserver(at(FIRST, 0), Ipv4Addr::new(192, 0, 2, 1));
    nameserver(at(SECOND, port), Ipv4Addr::new(192, 0, 2, 2));
    let host = Host::new(port).nameservers(&[FIRST]);
    let server = host.serve();
    assert_eq!(server.dig("+short www.example").await, "192.0.2.1\n");
    std::fs::write(host.path(), lines(&[SECOND])).unwrap();
    assert_eq!(server.dig("+short www.example").await, "192.0.2.2\n");
    // As resolvconf and VPN clients do it: a link to another file.
    let vpn = host.folder.path().join("vpn");
    std::fs::write(&vpn, lines(&[FIRST])).unwrap();
    let link = host.folder.path().join("link");
    std::os::unix::fs::symlink(&vpn, &link).unwrap();
    std::fs::rename(&link, host.path()).unwrap();
    assert_eq!(server.dig("+short www.example").await, "192.0.2.1\n");
}

#[tokio::test]
async fn a_nameserver_that_is_silent_is_passed_over_and_then_asked_last() {
    let (port, silent) = failing(at(FIRST, 0), |_| Vec::new()).await;
    nameserver(at(SECOND, port), WEB);
    let host = Host::new(port).nameservers(&[FIRST, SECOND]);
    let server = host.serve();
    assert_eq!(server.dig("+short www.example").await, "10.213.0.2\n");
    assert_eq!(silent.lock().unwrap().len(), 1);
    assert_eq!(server.dig("+short www.example").await, "10.213.0.2\n");
    assert_eq!(silent.lock().unwrap().len(), 1, "it was silent just now");
}

#[tokio::test]
async fn a_nameserver_that_is_not_there_or_cannot_is_passed_over_at_once() {
    for code in [None, Some(2), Some(4), Some(5)] {
        let port = match code {
            // Nobody listens where the second one does.
            None => nameserver(at(SECOND, 0), WEB).0,
            Some(code) => {
                let (port, _) = failing(at(FIRST, 0), move |query| vec![coded(query, code)]).await;
                nameserver(at(SECOND, port), WEB);
                port
            }
        };
        let mut host = Host::new(port).nameservers(&[FIRST, SECOND]);
        host.settings.deadline = Duration::from_secs(3600);
        let server = host.serve();
        let begun = Instant::now();
        assert_eq!(server.dig("+short www.example").await, "10.213.0.2\n", "{code:?}");
        assert!(begun.elapsed() < Duration::from_secs(1), "{code:?}: {:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn a_lost_packet_is_sent_again() {
    let count = Mutex::new(0);
    let (port, _) = failing(at(FIRST, 0), move |query| {
        let mut count = count.lock().unwrap();
        *count += 1;
        if *count == 1 { Vec::new() } else { vec![coded(query, 3)] }
    })
    .await;
    let host = Host::new(port).nameservers(&[FIRST]);
    assert!(host.serve().asked("www.example").await.starts_with("NXDOMAIN"));
}

#[tokio::test]
async fn without_an_answer_the_query_fails_when_its_time_is_over() {
    let (port, silent) = failing(at(FIRST, 0), |_| Vec::new()).await;
    let mut host = Host::new(port).nameservers(&[FIRST]);
    host.settings.deadline = Duration::from_millis(300);
    let server = host.serve();
    let begun = Instant::now();
    assert_eq!(server.asked("www.example").await, "SERVFAIL\nqr rd ra");
    assert!(begun.elapsed() >= Duration::from_millis(300));
    assert_eq!(silent.lock().unwrap().len(), 2);
    // With nobody to ask it fails at once.
    let mut host = Host::new(1).nameservers(&[FIRST]);
    host.settings.deadline = Duration::from_secs(3600);
    assert_eq!(host.serve().asked("www.example").await, "SERVFAIL\nqr rd ra");
}

#[tokio::test]
async fn an_answer_to_another_question_is_not_taken() {
    let (port, _) = failing(at(FIRST, 0), |query| {
        let answer = coded(query, 0);
        let mut other_id = answer.clone();
        other_id[0] ^= 1;
        let mut other_name = answer.clone();
        other_name[13] ^= 1;
        let mut other_type = answer.clone();
        other_type[12 + 13 + 1] = 16;
        let mut query_again = answer.clone();
        query_again[2] &= 0x7f;
        let (short, no_question) = (answer[..5].to_vec(), [&answer[..5], &[0; 7]].concat());
        vec![other_id, other_name, other_type, query_again, short, no_question, coded(answer, 3)]
    })
    .await;
    let host = Host::new(port).nameservers(&[FIRST]);
    assert_eq!(host.serve().asked("+noedns www.example").await, "NXDOMAIN\nqr rd ra");
}

#[tokio::test]
async fn an_answer_from_another_address_is_not_taken() {
    let stranger = UdpSocket::bind("127.0.0.66:0").await.unwrap();
    let socket = UdpSocket::bind(at(FIRST, 0)).await.unwrap();
    let host = Host::new(socket.local_addr().unwrap().port()).nameservers(&[FIRST]);
    let server = host.serve();
    let client = client(&server).await;
    client.send(&Packet::question(5, "www.example", 1).bytes()).await.unwrap();
    let mut query = vec![0; 1500];
    let (length, asker) = timeout(SOON, socket.recv_from(&mut query)).await.unwrap().unwrap();
    query.truncate(length);
    stranger.send_to(&coded(query.clone(), 0), asker).await.unwrap();
    socket.send_to(&coded(query, 3), asker).await.unwrap();
    let answer = received(&client).await;
    assert_eq!((id(&answer), code(&answer)), (5, 3));
}

/// Every answer is of `length` octets; over UDP it is announced only.
async fn long_answers(length: usize) -> u16 {
    let (port, _) = failing(at(FIRST, 0), |query| {
        let mut answer = coded(query, 0);
        answer[2] |= 2;
        vec![answer]
    })
    .await;
    let listener = TcpListener::bind(at(FIRST, port)).await.unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut query = vec![0; usize::from(stream.read_u16().await.unwrap())];
            stream.read_exact(&mut query).await.unwrap();
            let mut answer = coded(query, 0);
            answer.resize(length, 7);
            stream.write_u16(u16::try_from(length).unwrap()).await.unwrap();
            stream.write_all(&answer).await.unwrap();
        }
    });
    port
}

#[tokio::test]
async fn a_long_answer_is_fetched_over_tcp_and_truncated_for_who_asked_over_udp() {
    for (length, whole) in [(500, true), (2000, false)] {
        let port = long_answers(length).await;
        let host = Host::new(port).nameservers(&[FIRST]);
        let server = host.serve();
        let question = Packet::question(9, "www.example", 1).bytes();
        let socket = client(&server).await;
        socket.send(&question).await.unwrap();
        let answer = received(&socket).await;
        assert_eq!((id(&answer), is_truncated(&answer)), (9, !whole));
        assert_eq!(answer.len() == length, whole);
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_u16(u16::try_from(question.len()).unwrap()).await.unwrap();
        stream.write_all(&question).await.unwrap();
        let told = timeout(SOON, stream.read_u16()).await.unwrap().unwrap();
        assert_eq!(usize::from(told), length);
    }
}

#[tokio::test]
async fn a_slow_question_does_not_hold_up_the_next_on_its_connection() {
    let (port, _) = failing(at(FIRST, 0), |_| Vec::new()).await;
    let mut host = Host::new(port).nameservers(&[FIRST]);
    host.settings.deadline = Duration::from_millis(500);
    let server = host.serve();
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    for (id, name) in [(1, "www.example"), (2, "web.vm")] {
        let question = Packet::question(id, name, 1).bytes();
        stream.write_u16(u16::try_from(question.len()).unwrap()).await.unwrap();
        stream.write_all(&question).await.unwrap();
    }
    let mut order = Vec::new();
    for _ in 0..2 {
        let length = timeout(SOON, stream.read_u16()).await.unwrap().unwrap();
        let mut answer = vec![0; usize::from(length)];
        stream.read_exact(&mut answer).await.unwrap();
        order.push((id(&answer), code(&answer)));
    }
    assert_eq!(order, [(2, 0), (1, 2)]);
}

#[tokio::test]
async fn a_nameserver_that_is_ourselves_is_not_asked() {
    let mut host = Host::new(53).nameservers(&[Ipv4Addr::new(127, 0, 0, 5)]);
    host.settings.deadline = Duration::from_secs(3600);
    assert_eq!(host.serve().asked("www.example").await, "SERVFAIL\nqr rd ra");
}

#[tokio::test]
async fn who_is_no_guest_is_refused_and_so_is_our_own_address() {
    let (port, seen) = failing(at(FIRST, 0), |query| vec![coded(query, 0)]).await;
    let mut host = Host::new(port).nameservers(&[FIRST]);
    host.settings.subnets = vec![Subnet::new(Ipv4Addr::new(127, 0, 0, 5), 30).unwrap()];
    let server = host.serve();
    let hidden = server.asked("-b 127.0.0.6 web.vm").await;
    assert!(hidden.starts_with("NXDOMAIN"), "it is in no network of this guest's: {hidden}");
    for stranger in ["127.0.0.1", "127.0.0.8", "127.0.0.5"] {
        for name in ["web.vm", "www.example"] {
            let answer = server.asked(&format!("-b {stranger} {name}")).await;
            assert_eq!(answer, "REFUSED\nqr rd", "{stranger} {name}");
        }
    }
    assert_eq!(seen.lock().unwrap().len(), 0);
}

#[tokio::test]
async fn one_guest_with_many_questions_leaves_room_for_others() {
    let (port, seen) = failing(at(FIRST, 0), |_| Vec::new()).await;
    let mut host = Host::new(port).nameservers(&[FIRST]);
    host.settings.most_queries_per_client = 3;
    host.settings.deadline = Duration::from_secs(3600);
    let server = host.serve();
    let socket = client(&server).await;
    for id in 0..4 {
        socket.send(&Packet::question(id, "www.example", 1).bytes()).await.unwrap();
    }
    let refused = received(&socket).await;
    assert_eq!((id(&refused), code(&refused)), (3, 2));
    // Our own names are not of that count.
    socket.send(&Packet::question(9, "web.vm", 1).bytes()).await.unwrap();
    assert_eq!(code(&received(&socket).await), 0);
    let other = UdpSocket::bind("127.0.0.2:0").await.unwrap();
    other.connect(server.address).await.unwrap();
    other.send(&Packet::question(20, "other.example", 1).bytes()).await.unwrap();
    let passed_on = async {
        while !seen.lock().unwrap().iter().any(|packet| packet[12..].starts_with(b"\x05other")) {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, passed_on).await.unwrap();
}

#[tokio::test]
async fn a_host_without_a_resolv_conf_is_asked_itself() {
    let (port, _) = nameserver(at(Ipv4Addr::LOCALHOST, 0), WEB);
    let host = Host::new(port);
    let server = host.serve();
    let address = SocketAddr::from(server.address);
    assert_eq!(dig(address, "+short www.example").await, "10.213.0.2\n");
}
