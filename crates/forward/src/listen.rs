//! Where clients come to: a socket that is bound at once, so that a port that is taken is known before anything else is
//! done, and served later.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::{tcp, udp};

/// What is carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Connections,
    /// UDP.
    Datagrams,
}

/// How a stream to the service is had: `None` when there is none, and whoever was asked has said why.
pub trait Dial: Send + 'static {
    type Stream: AsyncRead + AsyncWrite + Send + 'static;

    fn dial(&self) -> impl Future<Output = Option<Self::Stream>> + Send + 'static;
}

impl<D, F, S> Dial for D
where
    D: Fn() -> F + Send + 'static,
    F: Future<Output = Option<S>> + Send + 'static,
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    type Stream = S;

    fn dial(&self) -> impl Future<Output = Option<S>> + Send + 'static {
        self()
    }
}

/// A bound socket. What comes before it is served waits in the kernel.
#[derive(Debug)]
pub enum Listener {
    Connections(TcpListener),
    Datagrams(UdpSocket),
}

impl Listener {
    /// Binds at once. In a runtime.
    ///
    /// # Errors
    /// What bind(2) says.
    pub fn bind(address: SocketAddr, transport: Transport) -> io::Result<Self> {
        match transport {
            Transport::Connections => {
                let listener = std::net::TcpListener::bind(address)?;
                listener.set_nonblocking(true)?;
                TcpListener::from_std(listener).map(Self::Connections)
            }
            Transport::Datagrams => {
                let socket = std::net::UdpSocket::bind(address)?;
                socket.set_nonblocking(true)?;
                UdpSocket::from_std(socket).map(Self::Datagrams)
            }
        }
    }

    /// Where it is bound, with the port that the kernel chose for 0.
    ///
    /// # Errors
    /// What getsockname(2) says.
    pub fn address(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Connections(listener) => listener.local_addr(),
            Self::Datagrams(socket) => socket.local_addr(),
        }
    }

    /// Carries what comes in over a stream each, as many at once as `limit` allows: connections that are more wait, new
    /// clients' datagrams are lost. Everything ends with this future.
    ///
    /// # Errors
    /// When the socket fails.
    pub async fn serve<D: Dial>(self, limit: Arc<Semaphore>, dial: D) -> io::Result<()> {
        match self {
            Self::Connections(listener) => connections(listener, limit, dial).await,
            Self::Datagrams(socket) => udp::serve(socket, limit, dial).await,
        }
    }
}

async fn connections<D: Dial>(
    listener: TcpListener,
    limit: Arc<Semaphore>,
    dial: D,
) -> io::Result<()> {
    let mut carried = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = carried.join_next() => continue,
        };
        let connection = match accepted {
            Ok((connection, _)) => connection,
            // One that was gone before it was taken (accept(2), "Error handling").
            Err(error) if is_of_the_connection(&error) => continue,
            Err(error) => return Err(error),
        };
        let permit = Arc::clone(&limit).acquire_owned().await.map_err(io::Error::other)?;
        let stream = dial.dial();
        carried.spawn(async move {
            match stream.await {
                Some(stream) => tcp::carry(connection, stream).await,
                None => tcp::reset(connection),
            }
            drop(permit);
        });
    }
}

fn is_of_the_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    [ConnectionAborted, ConnectionReset, Interrupted].contains(&error.kind())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio::net::TcpStream;

    use super::*;

    async fn listening<D: Dial>(dial: D) -> SocketAddr {
        let listener =
            Listener::bind("127.0.0.1:0".parse().unwrap(), Transport::Connections).unwrap();
        let address = listener.address().unwrap();
        drop(tokio::spawn(listener.serve(Arc::new(Semaphore::new(1)), dial)));
        address
    }

    #[tokio::test]
    async fn a_connection_that_leads_nowhere_is_reset() {
        let address = listening(|| async { None::<DuplexStream> }).await;
        let mut client = TcpStream::connect(address).await.unwrap();
        let error = client.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn a_connection_beyond_the_limit_waits_for_its_turn() {
        let address = listening(|| async {
            let (near, mut far) = tokio::io::duplex(1000);
            drop(tokio::spawn(async move {
                // A service that says one byte, and waits for its client's end.
                far.write_all(&[0, 1, b'x', 0, 0]).await.unwrap();
                let mut rest = Vec::new();
                far.read_to_end(&mut rest).await.unwrap();
            }));
            Some(near)
        })
        .await;
        let mut first = TcpStream::connect(address).await.unwrap();
        assert_eq!(first.read_u8().await.unwrap(), b'x');
        let mut second = TcpStream::connect(address).await.unwrap();
        let early = tokio::time::timeout(std::time::Duration::from_millis(200), second.read_u8());
        early.await.unwrap_err();
        drop(first);
        assert_eq!(second.read_u8().await.unwrap(), b'x');
    }
}
