//! The host's server as dig sees it, and what only sockets show.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::net::{Ipv4Addr, SocketAddrV4};

use banger_dns::{BindError, Sockets};
use support::{Packet, SOON, Server, WEB, code, id, is_truncated};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// The lines that dig prints, the zone's serial replaced.
async fn asked(server: &Server, arguments: &str) -> String {
    let answer = server.asked(arguments).await;
    let mut lines = Vec::new();
    for line in answer.lines() {
        let mut words: Vec<&str> = line.split(' ').collect();
        if words.get(3) == Some(&"SOA") {
            words[6] = "SERIAL";
        }
        lines.push(words.join(" "));
    }
    lines.join("\n")
}

const SOA: &str = "vm. 0 IN SOA vm. vm. SERIAL 3600 3600 604800 0";

#[tokio::test]
async fn names_have_their_addresses_and_addresses_their_names() {
    let server = Server::authoritative();
    for transport in ["+notcp", "+tcp"] {
        assert_eq!(
            asked(&server, &format!("{transport} web.vm A")).await,
            "NOERROR\nqr aa rd\nweb.vm. 0 IN A 10.213.0.2"
        );
        assert_eq!(
            asked(&server, &format!("{transport} -x 10.213.1.3")).await,
            "NOERROR\nqr aa rd\n3.1.213.10.in-addr.arpa. 0 IN PTR db.prod.vm."
        );
    }
}

#[tokio::test]
async fn a_name_is_answered_in_the_case_it_was_asked_in() {
    let server = Server::authoritative();
    assert_eq!(asked(&server, "WeB.vM").await, "NOERROR\nqr aa rd\nWeB.vM. 0 IN A 10.213.0.2");
}

#[tokio::test]
async fn a_zone_has_its_soa_and_its_server() {
    let server = Server::authoritative();
    assert_eq!(asked(&server, "vm SOA").await, format!("NOERROR\nqr aa rd\n{SOA}"));
    assert_eq!(asked(&server, "vm NS").await, "NOERROR\nqr aa rd\nvm. 0 IN NS vm.");
    assert_eq!(asked(&server, "vm A").await, format!("NOERROR\nqr aa rd\n{SOA}"));
    assert_eq!(
        asked(&server, "0.213.10.in-addr.arpa NS").await,
        "NOERROR\nqr aa rd\n0.213.10.in-addr.arpa. 0 IN NS 0.213.10.in-addr.arpa."
    );
}

#[tokio::test]
async fn what_is_not_there_is_denied_with_the_zones_soa() {
    let server = Server::authoritative();
    for nothing in ["web.vm AAAA", "web.vm MX", "web.vm HTTPS", "web.vm SOA", "prod.vm A"] {
        assert_eq!(asked(&server, nothing).await, format!("NOERROR\nqr aa rd\n{SOA}"), "{nothing}");
    }
    for unknown in ["other.vm A", "x.web.vm A", "other.vm ANY", "a.b.c.vm AAAA"] {
        assert_eq!(
            asked(&server, unknown).await,
            format!("NXDOMAIN\nqr aa rd\n{SOA}"),
            "{unknown}"
        );
    }
    assert_eq!(
        asked(&server, "-x 10.213.3.77").await,
        "NXDOMAIN\nqr aa rd\n3.213.10.in-addr.arpa. 0 IN SOA \
         3.213.10.in-addr.arpa. 3.213.10.in-addr.arpa. SERIAL 3600 3600 604800 0"
    );
}

#[tokio::test]
async fn any_gets_one_set_of_records() {
    let server = Server::authoritative();
    assert_eq!(
        asked(&server, "+notcp web.vm ANY").await,
        "NOERROR\nqr aa rd\nweb.vm. 0 IN A 10.213.0.2"
    );
    assert_eq!(asked(&server, "+notcp vm ANY").await, format!("NOERROR\nqr aa rd\n{SOA}"));
}

#[tokio::test]
async fn what_is_not_for_this_server_is_refused() {
    let server = Server::authoritative();
    for foreign in
        ["example.com A", "xvm A", ". NS", "-x 10.213.4.1", "-x 127.0.0.1", "version.bind CH TXT"]
    {
        assert_eq!(asked(&server, foreign).await, "REFUSED\nqr rd", "{foreign}");
    }
    for transfer in ["+notcp vm AXFR", "+notcp vm IXFR=1"] {
        assert_eq!(asked(&server, transfer).await, "REFUSED\nqr", "{transfer}");
    }
    let transfer = server.dig("+tcp vm AXFR").await;
    assert!(transfer.contains("Transfer failed"), "{transfer}");
    for opcode in ["NOTIFY", "UPDATE", "STATUS", "IQUERY", "15"] {
        let answer = asked(&server, &format!("+opcode={opcode} web.vm SOA")).await;
        assert!(answer.starts_with("NOTIMP\nqr rd"), "{opcode}: {answer}");
    }
}

#[tokio::test]
async fn edns_is_answered_by_version_0_and_unknown_options_are_passed_over() {
    let server = Server::authoritative();
    let answer = server.dig("+edns=0 +bufsize=4096 +dnssec web.vm").await;
    assert!(answer.contains("; EDNS: version: 0, flags: do; udp: 1232"), "{answer}");
    let answer =
        server.dig("+ednsopt=65001:abcdef +nsid +cookie +subnet=192.0.2.0/24 web.vm").await;
    assert!(answer.contains("status: NOERROR") && answer.contains("10.213.0.2"), "{answer}");
    assert!(!answer.contains("OPT=") && !answer.contains("COOKIE"), "{answer}");
    let answer = server.dig("+edns=1 +noednsnegotiation web.vm").await;
    assert!(answer.contains("status: BADVERS"), "{answer}");
    assert!(answer.contains("; EDNS: version: 0"), "{answer}");
    assert!(!server.dig("+noedns web.vm").await.contains("EDNS"));
}

#[tokio::test]
async fn the_next_query_sees_a_change() {
    let server = Server::authoritative();
    let fresh = Ipv4Addr::new(10, 213, 2, 9);
    assert_eq!(asked(&server, "new.vm").await, format!("NXDOMAIN\nqr aa rd\n{SOA}"));
    server.names.set("new", fresh).unwrap();
    assert_eq!(server.dig("+short new.vm").await, "10.213.2.9\n");
    server.names.remove("web");
    assert_eq!(asked(&server, "web.vm").await, format!("NXDOMAIN\nqr aa rd\n{SOA}"));
    server.names.replace([("web", WEB)]).unwrap();
    assert_eq!(server.dig("+short web.vm").await, "10.213.0.2\n");
    assert_eq!(server.dig("+short new.vm").await, "");
}

/// An address with more names than fit.
#[tokio::test]
async fn an_answer_that_is_too_long_is_truncated_to_nothing_and_whole_over_tcp() {
    let server = Server::authoritative();
    for number in 0..100 {
        server.names.set(&format!("alias-{number}"), WEB).unwrap();
    }
    for edns in ["+noedns", "+bufsize=1232", "+bufsize=65535"] {
        let answer = server.dig(&format!("+ignore {edns} -x 10.213.0.2")).await;
        assert!(answer.contains("flags: qr aa tc rd") && answer.contains("ANSWER: 0,"), "{answer}");
    }
    let answer = server.dig("+short -x 10.213.0.2").await;
    assert_eq!(answer.lines().count(), 101);
}

async fn exchanged(socket: &UdpSocket, packet: &[u8]) -> Vec<u8> {
    socket.send(packet).await.unwrap();
    let mut answer = vec![0; 65_535];
    let length = timeout(SOON, socket.recv(&mut answer)).await.unwrap().unwrap();
    answer.truncate(length);
    answer
}

#[tokio::test]
async fn a_response_is_never_answered() {
    let server = Server::authoritative();
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(server.address).await.unwrap();
    let mut response = Packet::question(1, "web.vm", 1);
    response.flags |= 0x8000;
    for packet in [response.bytes(), vec![0; 11], Vec::new()] {
        socket.send(&packet).await.unwrap();
    }
    // One socket is served in the order of its packets: what comes first is the answer to the last.
    assert_eq!(id(&exchanged(&socket, &Packet::question(2, "web.vm", 1).bytes()).await), 2);
}

#[tokio::test]
async fn an_answer_is_as_long_as_its_client_takes_and_never_longer() {
    let server = Server::authoritative();
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(server.address).await.unwrap();
    let question = || Packet::question(1, "2.0.213.10.in-addr.arpa", 12);
    // A client cannot say that it takes less than 512 octets, nor more than 1232.
    let clients = [
        (question().bytes(), 512),
        (question().edns(0, 0, &[]).bytes(), 512),
        (question().edns(800, 0, &[]).bytes(), 800),
        (question().edns(65_535, 0, &[]).bytes(), 1232),
    ];
    let mut longest = [0; 4];
    for number in 0..60 {
        for ((packet, limit), longest) in clients.iter().zip(&mut longest) {
            let answer = exchanged(&socket, packet).await;
            assert!(answer.len() <= *limit, "{} of {limit}", answer.len());
            if !is_truncated(&answer) {
                *longest = answer.len();
            }
        }
        server.names.set(&format!("a-name-of-some-length-{number:02}"), WEB).unwrap();
    }
    // Less than one more name is left.
    for ((_, limit), longest) in clients.iter().zip(longest) {
        assert!(longest + 44 > *limit, "{longest} of {limit}");
    }
}

async fn framed(stream: &mut TcpStream) -> Vec<u8> {
    let length = timeout(SOON, stream.read_u16()).await.unwrap().unwrap();
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await.unwrap();
    answer
}

fn frame(packet: &[u8]) -> Vec<u8> {
    [&u16::try_from(packet.len()).unwrap().to_be_bytes()[..], packet].concat()
}

#[tokio::test]
async fn one_connection_carries_many_queries_and_they_may_come_in_pieces() {
    let server = Server::authoritative();
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let all: Vec<u8> =
        (0..500).flat_map(|n| frame(&Packet::question(n, "web.vm", 1).bytes())).collect();
    let (mut reader, mut writer) = stream.split();
    let write = async {
        for piece in all.chunks(777) {
            writer.write_all(piece).await.unwrap();
        }
    };
    let read = async {
        for expected in 0..500 {
            let length = timeout(SOON, reader.read_u16()).await.unwrap().unwrap();
            let mut answer = vec![0; usize::from(length)];
            reader.read_exact(&mut answer).await.unwrap();
            assert_eq!((id(&answer), code(&answer)), (expected, 0));
        }
    };
    tokio::join!(write, read);
    // The client's half is closed: so is the server's.
    stream.shutdown().await.unwrap();
    assert_eq!(timeout(SOON, stream.read(&mut [0; 1])).await.unwrap().unwrap(), 0);
}

#[tokio::test]
async fn a_client_with_many_connections_leaves_room_for_its_next_ones() {
    let server = Server::authoritative();
    let mut open = Vec::new();
    for _ in 0..16 {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(&frame(&Packet::question(1, "web.vm", 1).bytes())).await.unwrap();
        assert_eq!(id(&framed(&mut stream).await), 1);
        open.push(stream);
    }
    let mut refused = TcpStream::connect(server.address).await.unwrap();
    assert!(matches!(timeout(SOON, refused.read(&mut [0; 1])).await.unwrap(), Ok(0) | Err(_)));
    open.clear();
    // The server learns of the ends one after the other.
    let again = async {
        loop {
            let mut stream = TcpStream::connect(server.address).await.unwrap();
            let question = frame(&Packet::question(2, "web.vm", 1).bytes());
            if stream.write_all(&question).await.is_ok() && stream.read_u16().await.is_ok() {
                return;
            }
        }
    };
    timeout(SOON, again).await.unwrap();
}

#[tokio::test]
async fn a_server_ends_when_it_is_told_and_its_port_is_free() {
    let server = Server::authoritative();
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(&frame(&Packet::question(1, "web.vm", 1).bytes())).await.unwrap();
    framed(&mut stream).await;
    server.stop.cancel();
    timeout(SOON, server.task).await.unwrap().unwrap().unwrap();
    assert!(matches!(timeout(SOON, stream.read(&mut [0; 1])).await.unwrap(), Ok(0) | Err(_)));
    assert_eq!(Sockets::bind(server.address).unwrap().address(), server.address);
}

#[tokio::test]
async fn a_server_whose_future_is_dropped_ends_its_connections() {
    let server = Server::authoritative();
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(&frame(&Packet::question(1, "web.vm", 1).bytes())).await.unwrap();
    framed(&mut stream).await;
    server.task.abort();
    assert!(matches!(timeout(SOON, stream.read(&mut [0; 1])).await.unwrap(), Ok(0) | Err(_)));
}

#[test]
fn an_address_that_is_not_there_yet_can_be_bound_and_none_at_all_cannot() {
    // TEST-NET-2 (RFC 5737) is on no host.
    let address = SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 7), 0);
    let sockets = Sockets::bind(address).unwrap();
    assert_ne!(sockets.address().port(), 0);
    let taken = Sockets::bind(sockets.address()).unwrap_err();
    assert_eq!(
        taken.to_string(),
        format!("cannot open the DNS server's sockets at {}", sockets.address())
    );
    let none = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);
    assert!(matches!(Sockets::bind(none), Err(BindError::NoAddress(_))));
}
