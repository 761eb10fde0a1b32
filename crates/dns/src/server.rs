//! Sockets in, packets out: UDP, and TCP with many queries on a connection (RFC 7766). What is answered is decided in
//! [`crate::respond`].
//!
//! A server ends when it is told to, or when its future is dropped, and everything it started ends with it. No client
//! can end it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::forward::Forwarder;
use crate::gate::{self, Gate, Judgement};
use crate::limits::{Limits, Permit};
use crate::names::Names;
use crate::respond::{Asker, Query, Reply, Transport, respond};
use crate::sockets::Sockets;
use crate::subnet::Subnet;

/// No UDP packet is larger.
const BUFFER_BYTES: usize = 65_535;

/// For how long a connection may be idle, and how long a message may take (RFC 7766, 6.2.3).
const IDLE: Duration = Duration::from_secs(10);

/// Connections of all clients, and of one.
const MOST_CONNECTIONS: usize = 128;
const MOST_CONNECTIONS_PER_CLIENT: usize = 16;

/// Answers of one connection that wait for its client to take them; until then no more of its queries are read.
const MOST_UNSENT: usize = 32;

/// How long to wait for a connection's end when the process has no descriptors left.
const WITHOUT_DESCRIPTORS: Duration = Duration::from_secs(1);

/// Whom a guests' server answers, and how it finds what it does not know.
#[derive(Debug, Clone)]
pub struct Guests {
    /// Clients of these subnets are answered, with the names of machines in them; all others are refused.
    pub subnets: Vec<Subnet>,
    /// Where the host's nameservers are, looked at before each query.
    pub resolv_conf: PathBuf,
    /// The nameservers' port, 53 but for tests: resolv.conf names none.
    pub upstream_port: u16,
    /// Guests have IPv6. Without, they get no IPv6 addresses either, which would lead nowhere. A gate decides it of each guest.
    pub ipv6: bool,
    /// After it a question has failed.
    pub deadline: Duration,
    /// Questions to nameservers that may be under way, of all clients and of one. What is more fails at once. Each has
    /// a socket per nameserver, three at most, of the descriptors that the process may have.
    pub most_queries: usize,
    pub most_queries_per_client: usize,
    /// Who may ask for which other name. Everybody for all without one.
    pub gate: Option<Arc<dyn Gate>>,
}

impl Guests {
    /// With the host's own resolv.conf, and no IPv6.
    #[must_use]
    pub fn new(subnets: Vec<Subnet>) -> Self {
        Self {
            subnets,
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
            upstream_port: 53,
            ipv6: false,
            deadline: Duration::from_secs(5),
            most_queries: 128,
            most_queries_per_client: 32,
            gate: None,
        }
    }
}

/// Answers for `names` and nothing else, to anybody who can reach the address, until `stop`.
///
/// # Errors
/// When the sockets cannot be used.
pub async fn serve_authoritative(
    sockets: Sockets,
    names: Names,
    stop: CancellationToken,
) -> io::Result<()> {
    serve(sockets, Service { names, guests: None, idle: IDLE }, stop).await
}

/// Answers guests for `names`, and for all else with what the host's nameservers say, until `stop`.
///
/// # Errors
/// When the sockets cannot be used.
pub async fn serve_guests(
    sockets: Sockets,
    names: Names,
    settings: Guests,
    stop: CancellationToken,
) -> io::Result<()> {
    let own = sockets.ip();
    let forwarder = Forwarder::new(&settings, own);
    let guests = ForGuests { settings, own, forwarder };
    serve(sockets, Service { names, guests: Some(guests), idle: IDLE }, stop).await
}

struct Service {
    names: Names,
    guests: Option<ForGuests>,
    /// For how long a connection may be idle.
    idle: Duration,
}

struct ForGuests {
    settings: Guests,
    own: Ipv4Addr,
    forwarder: Forwarder,
}

/// What becomes of a packet.
enum Outcome {
    Nothing,
    Send(Vec<u8>),
    Forward(Admitted),
}

/// A query that is on its way to nameservers.
struct Admitted {
    query: Box<Query>,
    permit: Permit,
    /// Who asks, if the gate is to see the answer.
    watched: Option<Ipv4Addr>,
}

impl Service {
    fn handle(&self, packet: &[u8], client: IpAddr, transport: Transport) -> Outcome {
        match respond(packet, &self.names, self.asker(client), transport) {
            Reply::Silence => Outcome::Nothing,
            Reply::Now(answer) => Outcome::Send(answer),
            Reply::Ask(query) => self.admit(query, client),
        }
    }

    fn asker(&self, client: IpAddr) -> Asker<'_> {
        let Some(guests) = &self.guests else { return Asker::Host };
        let settings = &guests.settings;
        let guest = match client {
            // The host asks from our own address: so does its resolver when it sends us what it should know, a loop.
            IpAddr::V4(client) => {
                client != guests.own && settings.subnets.iter().any(|s| s.contains(client))
            }
            IpAddr::V6(_) => false,
        };
        match guest {
            true => {
                // Whom a gate does not let have them is told when it asks for some.
                let ipv6 = settings.ipv6 || settings.gate.is_some();
                Asker::Guest { ipv6, subnets: &settings.subnets, host: guests.own }
            }
            false => Asker::Stranger,
        }
    }

    fn admit(&self, query: Box<Query>, client: IpAddr) -> Outcome {
        let Some(guests) = &self.guests else { return sent(query.failed()) };
        if let (Some(gate), IpAddr::V4(guest)) = (&guests.settings.gate, client)
            && query.is_for_ipv6()
            && !gate.reaches_ipv6(guest)
        {
            return sent(query.absent());
        }
        let watched = match (&guests.settings.gate, client) {
            (None, _) => None,
            (Some(gate), IpAddr::V4(guest)) => match gate.judge(guest, &query.plain_name()) {
                Judgement::Free => None,
                Judgement::Watched => Some(guest),
                Judgement::Refused => return sent(query.blocked()),
            },
            (Some(_), IpAddr::V6(_)) => return sent(query.blocked()),
        };
        match guests.forwarder.admit(client) {
            Some(permit) => Outcome::Forward(Admitted { query, permit, watched }),
            None => sent(query.failed()),
        }
    }

    /// The answer to a query that was admitted.
    async fn ask(&self, admitted: Admitted) -> Option<Vec<u8>> {
        let Admitted { query, permit, watched } = admitted;
        let guests = self.guests.as_ref()?;
        let mut reply = guests.forwarder.ask(&query).await;
        if let (Some(gate), Some(guest), Reply::Now(answer)) =
            (&guests.settings.gate, watched, &mut reply)
        {
            let may_have_it = match gate::addresses(answer) {
                Some(found) if found.is_empty() => true,
                Some(found) => gate.answered(guest, &query.plain_name(), &found).await,
                None => false,
            };
            if !may_have_it {
                reply = query.failed();
            }
        }
        drop(permit);
        match reply {
            Reply::Now(answer) => Some(answer),
            Reply::Silence | Reply::Ask(_) => None,
        }
    }
}

fn sent(reply: Reply) -> Outcome {
    match reply {
        Reply::Now(answer) => Outcome::Send(answer),
        Reply::Silence | Reply::Ask(_) => Outcome::Nothing,
    }
}

async fn serve(sockets: Sockets, service: Service, stop: CancellationToken) -> io::Result<()> {
    let udp = UdpSocket::from_std(sockets.udp)?;
    let tcp = TcpListener::from_std(sockets.tcp)?;
    let service = Arc::new(service);
    let both = async { tokio::join!(serve_udp(udp, &service), serve_tcp(tcp, &service)) };
    stop.run_until_cancelled(both).await;
    Ok(())
}

async fn serve_udp(socket: UdpSocket, service: &Arc<Service>) {
    let socket = Arc::new(socket);
    // The first answer is sent without waiting, which needs that the runtime has seen that it can be.
    if let Err(error) = socket.writable().await {
        tracing::error!(%error, "the DNS server's socket is not writable");
    }
    let mut forwards = JoinSet::new();
    let mut packet = vec![0; BUFFER_BYTES];
    loop {
        let (length, client) = tokio::select! {
            received = socket.recv_from(&mut packet) => match received {
                Ok(received) => received,
                Err(error) => {
                    // Of one packet, or of one client that is gone: the socket stays.
                    tracing::debug!(%error, "cannot receive a DNS query");
                    continue;
                }
            },
            Some(ended) = forwards.join_next() => {
                log_panic(ended);
                continue;
            }
        };
        match service.handle(&packet[..length], client.ip(), Transport::Udp) {
            Outcome::Nothing => {}
            Outcome::Send(answer) => send(&socket, &answer, client),
            Outcome::Forward(admitted) => {
                let (socket, service) = (Arc::clone(&socket), Arc::clone(service));
                forwards.spawn(async move {
                    if let Some(answer) = service.ask(admitted).await {
                        send(&socket, &answer, client);
                    }
                });
            }
        }
    }
}

/// Sends, or does not when the socket is full: a client asks again, and nobody waits for another.
fn send(socket: &UdpSocket, answer: &[u8], client: SocketAddr) {
    if let Err(error) = socket.try_send_to(answer, client) {
        tracing::debug!(%error, %client, "cannot send a DNS answer");
    }
}

fn log_panic(ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a DNS query's task failed");
    }
}

async fn serve_tcp(listener: TcpListener, service: &Arc<Service>) {
    let mut connections: JoinSet<()> = JoinSet::new();
    let limits = Limits::new(MOST_CONNECTIONS, MOST_CONNECTIONS_PER_CLIENT);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(ended) = connections.join_next() => {
                log_panic(ended);
                continue;
            }
        };
        match accepted {
            // What is too much is closed at once.
            Ok((stream, client)) => {
                if let Some(permit) = limits.admit(client.ip()) {
                    let service = Arc::clone(service);
                    connections.spawn(async move {
                        converse(stream, client.ip(), &service).await;
                        drop(permit);
                    });
                }
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a DNS connection");
                // Without descriptors the next attempt would fail too, until a connection has ended.
                let ended = timeout(WITHOUT_DESCRIPTORS, next_end(&mut connections)).await;
                if let Ok(ended) = ended {
                    log_panic(ended);
                }
            }
        }
    }
}

/// The end of a task; never, if there is none.
async fn next_end(tasks: &mut JoinSet<()>) -> Result<(), JoinError> {
    match tasks.join_next().await {
        Some(ended) => ended,
        None => std::future::pending().await,
    }
}

/// Answers one connection's queries, each as soon as it can be: an answer may overtake another (RFC 7766, 7).
async fn converse(mut stream: TcpStream, client: IpAddr, service: &Arc<Service>) {
    let (reader, writer) = stream.split();
    let (answers, unsent) = mpsc::channel(MOST_UNSENT);
    let reading = read_queries(reader, client, service, answers);
    tokio::join!(reading, write_answers(writer, unsent, service.idle));
}

/// Until the client has no more, or says nothing for too long, or nothing that is a query.
async fn read_queries(
    mut reader: ReadHalf<'_>,
    client: IpAddr,
    service: &Arc<Service>,
    answers: mpsc::Sender<Vec<u8>>,
) {
    let mut forwards = JoinSet::new();
    let mut packet = Vec::new();
    while let Ok(Ok(())) = timeout(service.idle, read_message(&mut reader, &mut packet)).await {
        // Has to be there before the query is asked, so that what is under way has its place.
        let Ok(place) = answers.clone().reserve_owned().await else { break };
        match service.handle(&packet, client, Transport::Tcp) {
            // A message that is no query: whoever sends it speaks something else.
            Outcome::Nothing => break,
            Outcome::Send(answer) => drop(place.send(answer)),
            Outcome::Forward(admitted) => {
                let service = Arc::clone(service);
                forwards.spawn(async move {
                    if let Some(answer) = service.ask(admitted).await {
                        drop(place.send(answer));
                    }
                });
            }
        }
        while let Some(ended) = forwards.try_join_next() {
            log_panic(ended);
        }
    }
    drop(answers);
    while let Some(ended) = forwards.join_next().await {
        log_panic(ended);
    }
}

async fn read_message(reader: &mut ReadHalf<'_>, packet: &mut Vec<u8>) -> io::Result<()> {
    let length = reader.read_u16().await?;
    packet.resize(usize::from(length), 0);
    reader.read_exact(packet).await?;
    Ok(())
}

/// Until there are no more, or the client does not take them.
async fn write_answers(
    mut writer: WriteHalf<'_>,
    mut unsent: mpsc::Receiver<Vec<u8>>,
    patience: Duration,
) {
    while let Some(answer) = unsent.recv().await {
        let Ok(length) = u16::try_from(answer.len()) else { continue };
        // In one write, so that it is one segment (RFC 7766, 8).
        let message = [&length.to_be_bytes()[..], &answer].concat();
        let Ok(Ok(())) = timeout(patience, writer.write_all(&message)).await else { return };
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::property;

    /// More than anything here takes, unless it hangs.
    const SOON: Duration = Duration::from_secs(10);

    async fn served(idle: Duration) -> (TcpStream, tokio::task::JoinHandle<io::Result<()>>) {
        let sockets = Sockets::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = sockets.address();
        let service = Service { names: property::table(), guests: None, idle };
        let task = tokio::spawn(serve(sockets, service, CancellationToken::new()));
        (TcpStream::connect(address).await.unwrap(), task)
    }

    #[tokio::test]
    async fn a_connection_that_is_idle_or_dawdles_is_closed() {
        let idle = Duration::from_millis(100);
        for sent in [&b""[..], b"\x00", b"\x00\x40abc"] {
            let begun = Instant::now();
            let (mut stream, _task) = served(idle).await;
            stream.write_all(sent).await.unwrap();
            let closed = timeout(SOON, stream.read(&mut [0; 1])).await.unwrap();
            assert!(matches!(closed, Ok(0) | Err(_)), "{closed:?}");
            assert!(begun.elapsed() >= idle);
        }
    }

    /// A client that asks and asks, and reads nothing.
    #[tokio::test]
    async fn a_client_that_takes_no_answers_is_left() {
        let (mut stream, _task) = served(Duration::from_millis(100)).await;
        let question = b"\x00\x18\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\
                         \x03web\x02vm\x00\x00\x01\x00\x01";
        let many = question.repeat(1000);
        let asking = async { while stream.write_all(&many).await.is_ok() {} };
        timeout(SOON, asking).await.unwrap();
    }
}
