//! The guests' server with a gate: which questions leave it, and what is seen of the answers before they are sent.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use banger_dns::{Gate, Guests, Judgement};
use futures_util::future::{BoxFuture, FutureExt as _};
use support::Server;
use tokio::net::UdpSocket;

/// Where the nameserver is.
const UPSTREAM: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 6);

/// What the gate was told: who, what, and the addresses with their times.
type Told = (Ipv4Addr, String, Vec<(Ipv4Addr, u32)>);

/// Watches `listed.example`, lets `free.example` pass, refuses all else, and says no to every answer if it is `shut`.
#[derive(Debug, Default)]
struct Noted {
    shut: bool,
    /// Guests reach IPv6 addresses.
    ipv6: AtomicBool,
    told: Mutex<Vec<Told>>,
}

impl Gate for Noted {
    fn judge(&self, _guest: Ipv4Addr, name: &str) -> Judgement {
        match name {
            "listed.example" => Judgement::Watched,
            "free.example" => Judgement::Free,
            _ => Judgement::Refused,
        }
    }

    fn reaches_ipv6(&self, _guest: Ipv4Addr) -> bool {
        self.ipv6.load(Ordering::Relaxed)
    }

    fn answered<'a>(
        &'a self,
        guest: Ipv4Addr,
        name: &'a str,
        addresses: &'a [(Ipv4Addr, u32)],
    ) -> BoxFuture<'a, bool> {
        self.told.lock().unwrap().push((guest, name.to_owned(), addresses.to_vec()));
        async { !self.shut }.boxed()
    }
}

/// A nameserver that answers everything with an alias and two addresses, one of which may be kept for a day; it notes what it is
/// asked.
async fn nameserver() -> (u16, Arc<Mutex<Vec<Vec<u8>>>>) {
    let socket = UdpSocket::bind((UPSTREAM, 0)).await.unwrap();
    let port = socket.local_addr().unwrap().port();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&asked);
    tokio::spawn(async move {
        let mut packet = [0; 1232];
        while let Ok((length, client)) = socket.recv_from(&mut packet).await {
            noted.lock().unwrap().push(packet[..length].to_vec());
            // Without the OPT record, which is the last 11 octets if there is one.
            let has_opt = packet[11] == 1;
            let mut answer = packet[..length - if has_opt { 11 } else { 0 }].to_vec();
            answer[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 3, 0, 0, 0, 0]);
            let record = |name: &[u8], kind: u8, seconds: u32, data: &[u8]| {
                let length = u16::try_from(data.len()).unwrap().to_be_bytes();
                [name, &[0, kind, 0, 1], &seconds.to_be_bytes(), &length, data].concat()
            };
            let alias = [1, b'a', 0];
            answer.extend(record(&[0xc0, 12], 5, 60, &alias));
            answer.extend(record(&alias, 1, 86_400, &[203, 0, 113, 7]));
            answer.extend(record(&alias, 1, 5, &[203, 0, 113, 8]));
            socket.send_to(&answer, client).await.unwrap();
        }
    });
    (port, asked)
}

struct Scene {
    _folder: tempfile::TempDir,
    server: Server,
    gate: Arc<Noted>,
    asked: Arc<Mutex<Vec<Vec<u8>>>>,
}

async fn scene(shut: bool) -> Scene {
    let (port, asked) = nameserver().await;
    let folder = tempfile::tempdir().unwrap();
    let gate = Arc::new(Noted { shut, ..Noted::default() });
    let mut settings = Guests::new(support::subnets());
    settings.resolv_conf = folder.path().join("resolv.conf");
    std::fs::write(&settings.resolv_conf, format!("nameserver {UPSTREAM}\n")).unwrap();
    settings.upstream_port = port;
    let shared: Arc<dyn Gate> = gate.clone();
    settings.gate = Some(shared);
    Scene { _folder: folder, server: Server::guests(settings), gate, asked }
}

#[tokio::test]
async fn a_name_that_is_refused_is_asked_of_nobody_and_the_reason_is_told() {
    let scene = scene(false).await;
    for arguments in
        ["other.example", "other.example +tcp", "listed.example.other.example", "-x 8.8.8.8"]
    {
        let answer = scene.server.dig(arguments).await;
        assert!(answer.contains("status: REFUSED"), "{answer}");
        assert!(answer.contains("EDE: 15 (Blocked)"), "{answer}");
    }
    let answer = scene.server.dig("other.example +noedns").await;
    assert!(answer.contains("status: REFUSED") && !answer.contains("EDE"), "{answer}");
    assert_eq!(scene.asked.lock().unwrap().len(), 0);
    assert_eq!(scene.gate.told.lock().unwrap().len(), 0);
}

#[tokio::test]
async fn names_of_vms_are_nobodys_to_refuse() {
    let scene = scene(false).await;
    let answer = scene.server.asked("web.vm").await;
    assert!(answer.contains("NOERROR") && answer.contains(&support::WEB.to_string()), "{answer}");
}

#[tokio::test]
async fn the_host_has_a_name_for_guests_whatever_they_may_ask_for() {
    let scene = scene(true).await;
    for name in ["host.banger.internal", "HOST.banger.internal +tcp"] {
        let answer = scene.server.asked(name).await;
        assert!(answer.starts_with("NOERROR\nqr aa rd ra\n"), "{answer}");
        assert!(answer.contains(" 0 IN A 127.0.0.5"), "its own address: {answer}");
    }
    let none = scene.server.asked("host.banger.internal AAAA").await;
    assert!(none.starts_with("NOERROR") && none.contains(" IN SOA "), "{none}");
    assert!(scene.server.asked("other.banger.internal").await.starts_with("REFUSED"));
    assert_eq!(scene.asked.lock().unwrap().len(), 0, "nobody else is asked");
    let for_the_host = Server::authoritative();
    assert_eq!(for_the_host.asked("host.banger.internal").await, "REFUSED\nqr rd");
}

#[tokio::test]
async fn an_answer_is_seen_with_all_its_addresses_and_no_time_is_longer_than_they_are_open() {
    let scene = scene(false).await;
    for (count, arguments) in ["LISTED.example", "listed.example +noedns"].into_iter().enumerate() {
        let answer = scene.server.asked(arguments).await;
        assert!(answer.contains("A 203.0.113.7") && answer.contains("A 203.0.113.8"), "{answer}");
        assert!(answer.contains("3600") && !answer.contains("86400"), "{answer}");
        let told = scene.gate.told.lock().unwrap();
        let (_, name, addresses) = &told[count];
        assert_eq!(name, "listed.example");
        let [first, second] = [7, 8].map(|last| Ipv4Addr::new(203, 0, 113, last));
        assert_eq!(*addresses, [(first, 3600), (second, 5)]);
    }
}

#[tokio::test]
async fn an_answer_that_the_gate_does_not_let_through_has_failed() {
    let scene = scene(true).await;
    let answer = scene.server.asked("listed.example").await;
    assert!(answer.contains("SERVFAIL") && !answer.contains("203.0.113"), "{answer}");
    let answer = scene.server.asked("free.example").await;
    assert!(answer.contains("NOERROR") && answer.contains("86400"), "{answer}");
    assert_eq!(scene.gate.told.lock().unwrap().len(), 1, "what is free is not watched");
}

#[tokio::test]
async fn ipv6_addresses_are_for_who_reaches_them_at_that_moment() {
    let scene = scene(false).await;
    for reaches in [false, true, false] {
        scene.gate.ipv6.store(reaches, Ordering::Relaxed);
        let before = scene.asked.lock().unwrap().len();
        let answer = scene.server.asked("free.example AAAA").await;
        assert!(answer.starts_with("NOERROR"), "{answer}");
        assert_eq!(scene.asked.lock().unwrap().len() - before, usize::from(reaches));
    }
}

#[tokio::test]
async fn it_is_told_who_asks() {
    let scene = scene(false).await;
    let query = support::Packet::question(7, "listed.example", 1);
    let client = UdpSocket::bind("127.0.0.9:0").await.unwrap();
    client.send_to(&query.bytes(), scene.server.address).await.unwrap();
    let mut packet = [0; 1232];
    let (length, _) = client.recv_from(&mut packet).await.unwrap();
    assert_eq!(support::code(&packet[..length]), 0);
    assert_eq!(scene.gate.told.lock().unwrap()[0].0, Ipv4Addr::new(127, 0, 0, 9));
}
