//! Datagrams over streams: each client's have a stream of their own, so that what the service answers finds its way back.
//! A stream on which nothing passes for a while ends; the client's next datagram opens another.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UdpSocket;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::listen::Dial;
use crate::pieces::{self, LONGEST, Piece};

/// How long a client's stream lives without a datagram in either direction.
const IDLE: Duration = Duration::from_secs(60);

/// Datagrams of one client that wait for the stream; more are lost, as UDP may lose them.
const WAITING: usize = 64;

/// Passes on what comes in, until the socket fails. What is under way ends with this future.
pub(crate) async fn serve<D: Dial>(
    socket: UdpSocket,
    limit: Arc<Semaphore>,
    dial: D,
) -> io::Result<()> {
    serve_with(socket, limit, dial, IDLE).await
}

async fn serve_with<D: Dial>(
    socket: UdpSocket,
    limit: Arc<Semaphore>,
    dial: D,
    idle: Duration,
) -> io::Result<()> {
    let socket = Arc::new(socket);
    let mut clients: HashMap<SocketAddr, mpsc::Sender<Vec<u8>>> = HashMap::new();
    let mut sessions = JoinSet::new();
    let mut buffer = vec![0; LONGEST];
    loop {
        let (length, client) = tokio::select! {
            received = socket.recv_from(&mut buffer) => match received {
                Ok(received) => received,
                // The answer to an answer of ours that nobody waits for any more (ICMP).
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
                Err(error) => return Err(error),
            },
            Some(_) = sessions.join_next() => {
                clients.retain(|_, datagrams| !datagrams.is_closed());
                continue;
            }
        };
        let datagram = buffer[..length].to_vec();
        let datagram = match clients.get(&client).map(|known| known.try_send(datagram)) {
            Some(Ok(()) | Err(mpsc::error::TrySendError::Full(_))) => continue,
            Some(Err(mpsc::error::TrySendError::Closed(datagram))) => datagram,
            None => buffer[..length].to_vec(),
        };
        let Ok(permit) = Arc::clone(&limit).try_acquire_owned() else { continue };
        let (sender, datagrams) = mpsc::channel(WAITING);
        drop(sender.try_send(datagram));
        clients.insert(client, sender);
        let (socket, stream) = (Arc::clone(&socket), dial.dial());
        sessions.spawn(async move {
            if let Some(stream) = stream.await {
                session(&socket, client, datagrams, stream, idle).await;
            }
            drop(permit);
        });
    }
}

/// One client's datagrams, until the stream ends or nothing has passed for a while.
async fn session(
    socket: &UdpSocket,
    client: SocketAddr,
    mut datagrams: mpsc::Receiver<Vec<u8>>,
    stream: impl AsyncRead + AsyncWrite,
    idle: Duration,
) {
    let (mut from_stream, mut to_stream) = tokio::io::split(stream);
    let (passed, passing) = watch::channel(());
    let there = async {
        let mut piece = Piece::with_room(LONGEST);
        while let Some(datagram) = datagrams.recv().await {
            piece.room()[..datagram.len()].copy_from_slice(&datagram);
            piece.write(datagram.len(), &mut to_stream).await?;
            passed.send_replace(());
        }
        Ok::<_, io::Error>(())
    };
    let back = async {
        let mut buffer = vec![0; LONGEST];
        loop {
            let datagram = pieces::read(&mut buffer, &mut from_stream).await?;
            // One that cannot be sent is lost.
            drop(socket.send_to(datagram, client).await);
            passed.send_replace(());
        }
    };
    until_one_ends(there, back, silence(passing, idle)).await;
}

/// The other end: what comes over the stream goes to the service that `socket` is connected to, and its answers back.
pub async fn carry_datagrams(socket: UdpSocket, stream: impl AsyncRead + AsyncWrite) {
    let (mut from_stream, mut to_stream) = tokio::io::split(stream);
    let (passed, passing) = watch::channel(());
    let there = async {
        let mut buffer = vec![0; LONGEST];
        loop {
            let datagram = pieces::read(&mut buffer, &mut from_stream).await?;
            // Nobody listens (yet), or it is too long: it is lost.
            drop(socket.send(datagram).await);
            passed.send_replace(());
        }
    };
    let back = async {
        let mut piece = Piece::with_room(LONGEST);
        loop {
            match socket.recv(piece.room()).await {
                Ok(length) => piece.write(length, &mut to_stream).await?,
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
                Err(error) => return Err::<(), io::Error>(error),
            }
            passed.send_replace(());
        }
    };
    until_one_ends(there, back, silence(passing, IDLE)).await;
}

/// How it ended is nobody's business: datagrams that are not answered say enough.
async fn until_one_ends(
    there: impl Future<Output = io::Result<()>>,
    back: impl Future<Output = io::Result<()>>,
    silence: impl Future<Output = ()>,
) {
    tokio::select! {
        ended = there => drop(ended),
        ended = back => drop(ended),
        () = silence => {}
    }
}

/// Returns when nothing has passed for a while.
async fn silence(mut passing: watch::Receiver<()>, idle: Duration) {
    while let Ok(Ok(())) = timeout(idle, passing.changed()).await {}
}

#[cfg(test)]
mod tests {
    use tokio::io::DuplexStream;

    use super::*;
    use crate::{Listener, Transport};

    /// A service that answers each datagram with its sender's port and its content.
    async fn service() -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        drop(tokio::spawn(async move {
            let mut buffer = vec![0; LONGEST];
            loop {
                let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
                let answer = [&from.port().to_be_bytes(), &buffer[..length]].concat();
                socket.send_to(&answer[..answer.len().min(60_000)], from).await.unwrap();
            }
        }));
        address
    }

    /// Where datagrams to that service are taken.
    fn listening(service: SocketAddr) -> SocketAddr {
        let listener =
            Listener::bind("127.0.0.1:0".parse().unwrap(), Transport::Datagrams).unwrap();
        let address = listener.address().unwrap();
        let dial = move || dialed(service);
        drop(tokio::spawn(listener.serve(Arc::new(Semaphore::new(2)), dial)));
        address
    }

    /// A stream to that service.
    async fn dialed(service: SocketAddr) -> Option<DuplexStream> {
        let (near, far) = tokio::io::duplex(1000);
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(service).await.unwrap();
        drop(tokio::spawn(carry_datagrams(socket, far)));
        Some(near)
    }

    async fn client(of: SocketAddr) -> UdpSocket {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(of).await.unwrap();
        socket
    }

    async fn ask(client: &UdpSocket, what: &[u8]) -> (u16, Vec<u8>) {
        client.send(what).await.unwrap();
        let mut answer = vec![0; LONGEST];
        let length = client.recv(&mut answer).await.unwrap();
        (u16::from_be_bytes([answer[0], answer[1]]), answer[2..length].to_vec())
    }

    #[tokio::test]
    async fn each_client_gets_its_own_answers_and_keeps_its_place() {
        let address = listening(service().await);
        let (one, two) = (client(address).await, client(address).await);
        let (port, answer) = ask(&one, b"one").await;
        let (other, _) = ask(&two, b"two").await;
        assert_eq!(answer, b"one");
        assert_ne!(port, other);
        assert_eq!(ask(&one, b"").await, (port, Vec::new()), "an empty datagram is one");
        let long = vec![9; 50_000];
        assert_eq!(ask(&two, &long).await, (other, long));
    }

    #[tokio::test]
    async fn a_silent_client_makes_room_for_another() {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let limit = Arc::new(Semaphore::new(1));
        let (service, idle) = (service().await, Duration::from_millis(100));
        let dial = move || dialed(service);
        drop(tokio::spawn(serve_with(socket, Arc::clone(&limit), dial, idle)));
        let one = client(address).await;
        ask(&one, b"").await;
        let room = timeout(IDLE / 2, limit.acquire()).await.expect("it is not for ever");
        drop(room.unwrap());
        let two = client(address).await;
        assert_eq!(ask(&two, b"two").await.1, b"two");
    }
}
