//! The host comes to a port of the guest's: the service is connected to here, on whichever of the guest's addresses it
//! listens, and what it says is carried over the request's own stream (`banger_forward`).

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use banger_api::ports::{GuestPort, Protocol, UPGRADE};
use banger_api::{Code, Problem};
use banger_forward::{MOST_CONNECTIONS, carry, carry_datagrams};
use bytes::Bytes;
use http::header::{CONNECTION, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::sockets;

/// How long a service of the guest's has to take a connection.
const DEADLINE: Duration = Duration::from_secs(10);

/// Connections at once: as many as the host has, and those that it has given up and whose service does not take what is
/// under way. More streams than the channel bears would end it.
pub(crate) const MOST: usize = MOST_CONNECTIONS + 64;

/// A connection to a service.
enum Service {
    Connection(TcpStream),
    Datagrams(UdpSocket),
}

/// Connects, then makes the request a stream to the service; or says why not.
pub(crate) async fn upgrade(
    request: Request<Incoming>,
    connections: &Arc<Semaphore>,
) -> Result<Response<Full<Bytes>>, (StatusCode, Problem)> {
    let wants = request.headers().get(http::header::UPGRADE);
    let port = request.uri().query().and_then(GuestPort::of_query);
    let (Some(port), true) = (port, wants.is_some_and(|value| value == UPGRADE)) else {
        let message = format!("/v1/connect?protocol=tcp|udp&port=PORT is upgraded to {UPGRADE}");
        return Err((StatusCode::BAD_REQUEST, Problem::new(Code::Invalid, message)));
    };
    let permit = Arc::clone(connections).try_acquire_owned().map_err(|_| {
        let message = format!("the guest has {MOST} connections to its ports already");
        (StatusCode::SERVICE_UNAVAILABLE, Problem::new(Code::Guest, message))
    })?;
    let service = connect(port).await.map_err(|error| {
        let message = match error.kind() {
            ErrorKind::ConnectionRefused => format!("nothing listens on port {port} of the guest"),
            _ => format!("cannot connect to port {port} of the guest"),
        };
        (StatusCode::BAD_GATEWAY, Problem::new(Code::Guest, message).cause(&error))
    })?;
    drop(tokio::spawn(async move {
        // An upgrade that fails is a connection that has ended.
        if let Ok(upgraded) = hyper::upgrade::on(request).await {
            let stream = TokioIo::new(upgraded);
            match service {
                Service::Connection(connection) => carry(connection, stream).await,
                Service::Datagrams(socket) => carry_datagrams(socket, stream).await,
            }
        }
        drop(permit);
    }));
    let mut reply = Response::new(Full::default());
    *reply.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = reply.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(http::header::UPGRADE, HeaderValue::from_static(UPGRADE));
    Ok(reply)
}

async fn connect(port: GuestPort) -> io::Result<Service> {
    match port.protocol {
        Protocol::Tcp => {
            let connection = timeout(DEADLINE, connect_tcp(port)).await;
            connection.map_err(|_| io::Error::from(ErrorKind::TimedOut))?.map(Service::Connection)
        }
        Protocol::Udp => {
            let mut addresses = addresses(port).await?.into_iter();
            // Nobody is there yet: it may come while datagrams are lost.
            let address = addresses.next().unwrap_or(Ipv4Addr::LOCALHOST.into());
            let any: IpAddr = match address {
                IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            };
            let socket = UdpSocket::bind((any, 0)).await?;
            socket.connect((address, port.port)).await?;
            Ok(Service::Datagrams(socket))
        }
    }
}

/// By the guest's loopback, where most services are; else where the service listens.
pub(crate) async fn connect_tcp(port: GuestPort) -> io::Result<TcpStream> {
    for address in LOOPBACK {
        if let Ok(connection) = TcpStream::connect((address, port.port)).await {
            return Ok(connection);
        }
    }
    let mut last = io::Error::from(ErrorKind::ConnectionRefused);
    for address in addresses(port).await? {
        match TcpStream::connect((address, port.port)).await {
            Ok(connection) => return Ok(connection),
            Err(error) => last = error,
        }
    }
    Err(last)
}

const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// Where a service at that port is reached from within the guest: the loopback addresses first.
async fn addresses(port: GuestPort) -> io::Result<Vec<IpAddr>> {
    let waiting =
        tokio::task::spawn_blocking(sockets::waiting).await.map_err(io::Error::other)??;
    let at_port = waiting
        .into_iter()
        .filter(|socket| socket.port == port.port && socket.protocol == port.protocol);
    Ok(ways(at_port.map(|socket| socket.address)))
}

fn ways(bound: impl Iterator<Item = IpAddr>) -> Vec<IpAddr> {
    let mut ways: Vec<IpAddr> = bound
        .flat_map(|address| match address {
            IpAddr::V4(address) if address.is_unspecified() => vec![LOOPBACK[0]],
            // Also of IPv4, unless its program or the system has said otherwise (ipv6(7), IPV6_V6ONLY).
            IpAddr::V6(address) if address.is_unspecified() => LOOPBACK.to_vec(),
            address => vec![address],
        })
        .collect();
    ways.sort_by_key(|address| (!LOOPBACK.contains(address), *address));
    ways.dedup();
    ways
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_reached_by_the_guests_loopback_where_that_is_possible() {
        let check = |bound: &[&str], expected: &[&str]| {
            let parsed = |texts: &[&str]| -> Vec<IpAddr> {
                texts.iter().map(|text| text.parse().unwrap()).collect()
            };
            assert_eq!(ways(parsed(bound).into_iter()), parsed(expected));
        };
        check(&[], &[]);
        check(&["0.0.0.0", "::"], &["127.0.0.1", "::1"]);
        check(&["::"], &["127.0.0.1", "::1"]);
        check(&["10.213.0.2"], &["10.213.0.2"]);
        check(&["10.213.0.2", "::1", "127.0.0.1"], &["127.0.0.1", "::1", "10.213.0.2"]);
    }
}
