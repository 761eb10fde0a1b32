//! A TCP connection over a stream. An end (FIN) is passed on in its direction alone, a break as a reset; each direction is
//! read no faster than it is written.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional};
use tokio::net::TcpStream;

use crate::pieces::{self, Piece};

/// What is read at once, in bytes. A guest may have little memory, and many connections.
const CHUNK: usize = 16 * 1024;

/// Carries a connection until both directions have ended, or either side breaks.
pub async fn carry<S: AsyncRead + AsyncWrite>(mut connection: TcpStream, stream: S) {
    // Small questions and answers are the rule, and nobody here waits for more to send.
    connection.set_nodelay(true).ok();
    breaks_when_dropped(&connection, true);
    let (mut from_stream, mut to_stream) = tokio::io::split(stream);
    let (mut from_connection, mut to_connection) = connection.split();
    let there = async {
        let mut piece = Piece::with_room(CHUNK);
        loop {
            let length = from_connection.read(piece.room()).await?;
            piece.write(length, &mut to_stream).await?;
            if length == 0 {
                return Ok::<_, io::Error>(());
            }
        }
    };
    let back = async {
        let mut buffer = vec![0; CHUNK];
        loop {
            let mut left = pieces::length(&mut from_stream).await?;
            if left == 0 {
                return to_connection.shutdown().await;
            }
            while left > 0 {
                let room = left.min(CHUNK);
                let read = from_stream.read(&mut buffer[..room]).await?;
                if read == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                to_connection.write_all(&buffer[..read]).await?;
                left -= read;
            }
        }
    };
    if tokio::try_join!(there, back).is_ok() {
        breaks_when_dropped(&connection, false);
        // Both sides know that it is over; a stream that cannot be closed is closed.
        drop(to_stream.shutdown().await);
    }
}

/// Carries one connection over another, as it is: until both directions have ended, or either breaks, and then both do.
pub async fn join(mut one: TcpStream, mut other: TcpStream) {
    for side in [&one, &other] {
        side.set_nodelay(true).ok();
        breaks_when_dropped(side, true);
    }
    if copy_bidirectional(&mut one, &mut other).await.is_ok() {
        breaks_when_dropped(&one, false);
        breaks_when_dropped(&other, false);
    }
}

/// Ends a connection so that the other side sees that it broke (RST).
pub fn reset(connection: TcpStream) {
    breaks_when_dropped(&connection, true);
    drop(connection);
}

/// Whether close(2), also that of a process that dies, resets the connection (SO_LINGER of 0, tcp(7)). So nothing that is
/// cut off looks like an end.
fn breaks_when_dropped(connection: &TcpStream, breaks: bool) {
    // A connection that is gone already needs none.
    rustix::net::sockopt::set_socket_linger(connection, breaks.then_some(Duration::ZERO)).ok();
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    async fn within<T>(work: impl Future<Output = T>) -> T {
        let most = Duration::from_secs(30);
        tokio::time::timeout(most, work).await.expect("it happens before the deadline")
    }

    /// Two ends of a TCP connection that is carried over a stream in the middle; the stream can be cut.
    async fn carried() -> (TcpStream, TcpStream, tokio::task::JoinHandle<()>) {
        let (one, other) = tokio::io::duplex(1000);
        let (client, near) = pair().await;
        let (far, service) = pair().await;
        let near = tokio::spawn(carry(near, one));
        drop(tokio::spawn(carry(far, other)));
        (client, service, near)
    }

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        (client.unwrap(), accepted.unwrap().0)
    }

    #[tokio::test]
    async fn each_direction_ends_by_itself_and_the_other_goes_on() {
        for client_first in [true, false] {
            let (client, service, carrying) = carried().await;
            let (mut first, mut second) =
                if client_first { (client, service) } else { (service, client) };
            first.write_all(b"all of it").await.unwrap();
            first.shutdown().await.unwrap();
            let mut said = String::new();
            within(second.read_to_string(&mut said)).await.unwrap();
            assert_eq!(said, "all of it");
            // Far more than all buffers on the way.
            let answer = vec![7; 1 << 20];
            let both = async {
                tokio::join!(
                    async {
                        second.write_all(&answer).await?;
                        second.shutdown().await
                    },
                    async {
                        let mut got = Vec::new();
                        first.read_to_end(&mut got).await.map(|_| got)
                    }
                )
            };
            let (wrote, got) = within(both).await;
            wrote.unwrap();
            assert_eq!(got.unwrap(), answer);
            within(carrying).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_broken_stream_is_a_reset_and_no_end() {
        let (mut client, mut service, carrying) = carried().await;
        client.write_all(b"half of").await.unwrap();
        let mut half = [0; 7];
        service.read_exact(&mut half).await.unwrap();
        carrying.abort();
        for side in [&mut service, &mut client] {
            let error = within(side.read(&mut half)).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        }
    }

    #[tokio::test]
    async fn a_reset_is_passed_on_as_one() {
        let (mut client, mut service, carrying) = carried().await;
        client.write_all(b"half of").await.unwrap();
        let mut half = [0; 7];
        service.read_exact(&mut half).await.unwrap();
        reset(client);
        within(carrying).await.unwrap();
        let error = within(service.read(&mut half)).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn a_joined_connection_ends_in_one_direction_by_itself_and_breaks_in_both() {
        let (mut client, near) = pair().await;
        let (far, mut service) = pair().await;
        let joining = tokio::spawn(join(near, far));
        client.write_all(b"all of it").await.unwrap();
        client.shutdown().await.unwrap();
        let mut said = String::new();
        within(service.read_to_string(&mut said)).await.unwrap();
        service.write_all(b"an answer").await.unwrap();
        drop(service);
        said.clear();
        within(client.read_to_string(&mut said)).await.unwrap();
        assert_eq!(said, "an answer");
        within(joining).await.unwrap();

        let (mut client, near) = pair().await;
        let (far, mut service) = pair().await;
        let joining = tokio::spawn(join(near, far));
        client.write_all(b"half of").await.unwrap();
        let mut half = [0; 7];
        within(service.read_exact(&mut half)).await.unwrap();
        reset(client);
        let error = within(service.read(&mut half)).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        within(joining).await.unwrap();
    }

    #[tokio::test]
    async fn a_side_that_does_not_read_stops_the_other() {
        let (mut client, _service, _carrying) = carried().await;
        // Until the sockets and the stream are full; without backpressure all 64 MiB would go.
        let chunk = vec![0; 1 << 20];
        let mut sent = 0;
        let sending = async {
            while sent < 64 << 20 {
                sent += client.write(&chunk).await.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(1), sending).await.unwrap_err();
        assert!(sent < 64 << 20);
    }
}
