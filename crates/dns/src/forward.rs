//! A guest's question to the host's nameservers.
//!
//! Each question goes to the first of them from a port of its own with an id of its own, so that who does not see it has
//! 2^32 guesses for an answer. Who is silent for a while gets company: the next one is asked too, and the first answer is
//! taken. Each is asked twice, in case a packet was lost, and has one socket: of these there are not many.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::limits::{Limits, Permit};
use crate::respond::{Query, Reply, Verdict};
use crate::server::Guests;
use crate::upstreams::Upstreams;

/// For how long the next nameserver waits for the one before it, at most.
const LONGEST_STAGGER: Duration = Duration::from_secs(1);

/// More than any answer to what we say we take. The kernel cuts a longer one, which is relayed truncated all the same.
const BUFFER_BYTES: usize = 4096;

pub(crate) struct Forwarder {
    deadline: Duration,
    upstreams: Mutex<Upstreams>,
    limits: Limits,
}

impl Forwarder {
    pub(crate) fn new(settings: &Guests, own: Ipv4Addr) -> Self {
        let path = settings.resolv_conf.clone();
        Self {
            deadline: settings.deadline,
            upstreams: Mutex::new(Upstreams::new(path, settings.upstream_port, own)),
            limits: Limits::new(settings.most_queries, settings.most_queries_per_client),
        }
    }

    /// None when as many questions are under way as may be.
    pub(crate) fn admit(&self, client: IpAddr) -> Option<Permit> {
        self.limits.admit(client)
    }

    /// The answer, at the latest when the deadline has passed.
    pub(crate) async fn ask(&self, query: &Query) -> Reply {
        let servers = self.upstreams().now();
        let answer = timeout(self.deadline, self.first_answer(query, &servers)).await;
        match answer {
            Ok(Some(answer)) => query.relay(answer),
            Ok(None) => query.failed(),
            Err(_) => {
                let mut upstreams = self.upstreams();
                for server in servers {
                    upstreams.heard(server, false);
                }
                drop(upstreams);
                query.failed()
            }
        }
    }

    fn upstreams(&self) -> MutexGuard<'_, Upstreams> {
        self.upstreams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// None when all have failed.
    async fn first_answer(&self, query: &Query, servers: &[SocketAddr]) -> Option<Vec<u8>> {
        let count = u32::try_from(servers.len().max(1)).unwrap_or(u32::MAX);
        let stagger = (self.deadline / count / 2).min(LONGEST_STAGGER);
        // When all of them have been asked.
        let again = stagger * count;
        let mut waiting = servers.iter().copied().peekable();
        let mut running = FuturesUnordered::new();
        // Those that were waited for in vain, and may still answer.
        let mut slow: Vec<SocketAddr> = Vec::new();
        let mut latest = None;
        loop {
            if let Some(server) = waiting.next() {
                latest = Some(server);
                running.push(async move { (server, exchange(query, server, again).await) });
            }
            let ended = if waiting.peek().is_some() {
                timeout(stagger, running.next()).await
            } else {
                Ok(running.next().await)
            };
            match ended {
                Ok(Some((server, Ok(answer)))) => {
                    let mut upstreams = self.upstreams();
                    for silent in slow.into_iter().filter(|slow| *slow != server) {
                        upstreams.heard(silent, false);
                    }
                    upstreams.heard(server, true);
                    return Some(answer);
                }
                Ok(Some((server, Err(error)))) => {
                    tracing::debug!(%server, %error, "a nameserver did not answer");
                    self.upstreams().heard(server, false);
                }
                Ok(None) => return None,
                Err(_) => slow.extend(latest),
            }
        }
    }
}

/// Asks one nameserver, `again` when it is silent for that long, and waits until it has answered or failed.
async fn exchange(query: &Query, server: SocketAddr, again: Duration) -> io::Result<Vec<u8>> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // Port 0: any, which Linux chooses at random. Connected: the kernel drops what others send, and says when nobody listens.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    let id = random_id()?;
    let question = query.question(id).ok_or(io::ErrorKind::InvalidInput)?;
    socket.send(&question).await?;
    let answer = match timeout(again, answer(&socket, query, id)).await {
        Ok(answer) => answer?,
        Err(_) => {
            socket.send(&question).await?;
            answer(&socket, query, id).await?
        }
    };
    drop(socket);
    match answer {
        Some(answer) => Ok(answer),
        None => exchange_tcp(query, server).await,
    }
}

/// The answer that a nameserver sends; None if it is to be fetched over TCP.
async fn answer(socket: &UdpSocket, query: &Query, id: u16) -> io::Result<Option<Vec<u8>>> {
    let mut packet = vec![0; BUFFER_BYTES];
    loop {
        let length = socket.recv(&mut packet).await?;
        match query.judge(id, &packet[..length]) {
            Verdict::NotOurs => {}
            Verdict::Answer => {
                packet.truncate(length);
                return Ok(Some(packet));
            }
            Verdict::Truncated => return Ok(None),
            Verdict::Useless => return Err(io::Error::other("it answered that it cannot")),
        }
    }
}

async fn exchange_tcp(query: &Query, server: SocketAddr) -> io::Result<Vec<u8>> {
    let id = random_id()?;
    let question = query.question(id).ok_or(io::ErrorKind::InvalidInput)?;
    let length = u16::try_from(question.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut stream = TcpStream::connect(server).await?;
    stream.write_all(&[&length.to_be_bytes()[..], &question].concat()).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await?;
    match query.judge(id, &answer) {
        Verdict::Answer => Ok(answer),
        _ => Err(io::Error::other("its answer over TCP was none")),
    }
}

fn random_id() -> io::Result<u16> {
    let mut id = [0; 2];
    rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())?;
    Ok(u16::from_ne_bytes(id))
}
