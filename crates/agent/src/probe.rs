//! What a service of the guest's speaks, as far as it is HTTP: it is asked for its first page, as any browser would.

use std::time::Duration;

use banger_api::ports::{GuestPort, Listening, Protocol, Scheme};
use futures_util::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::guest_port::connect_tcp;

/// How long a service has to answer. A translated guest is slow.
const DEADLINE: Duration = Duration::from_secs(3);

/// No more services are asked: a guest with more of them is not looked at by people.
const MOST: usize = 64;

const QUESTION: &[u8] =
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: banger\r\nAccept: */*\r\nConnection: close\r\n\r\n";

/// What is read of an answer, in bytes.
const ENOUGH: usize = 1024;

/// Asks those that are TCP, all at once.
pub(crate) async fn ask(listening: &mut [Listening]) {
    let services =
        listening.iter_mut().filter(|socket| socket.protocol == Protocol::Tcp).take(MOST);
    join_all(services.map(async |socket| {
        let port = GuestPort { protocol: Protocol::Tcp, port: socket.port };
        socket.speaks = scheme(&timeout(DEADLINE, answer(port)).await.unwrap_or_default());
    }))
    .await;
}

/// The beginning of an answer; nothing when there is none.
async fn answer(port: GuestPort) -> Vec<u8> {
    let mut answer = Vec::new();
    let Ok(mut stream) = connect_tcp(port).await else { return answer };
    if stream.write_all(QUESTION).await.is_err() {
        return answer;
    }
    // Many wait for more than they got, or talk on: the first words mostly decide.
    while answer.len() < ENOUGH && !is_decided(&answer) {
        match stream.read_buf(&mut answer).await {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
    }
    answer
}

/// Whether more bytes change nothing.
fn is_decided(answer: &[u8]) -> bool {
    answer.len() >= STATUS_ENDS && !(answer.starts_with(BEGINS) && answer[8..].starts_with(REFUSED))
}

const BEGINS: &[u8] = b"HTTP/1.";
const REFUSED: &[u8] = b" 400 ";
/// `HTTP/1.1 400 ` has as many bytes.
const STATUS_ENDS: usize = 13;

/// A TLS server answers what is not TLS with an alert (RFC 8446, 5.1 and 6); many web servers with a page that says so.
fn scheme(answer: &[u8]) -> Option<Scheme> {
    const ALERT: &[u8] = &[21, 3];
    if answer.starts_with(ALERT) {
        return Some(Scheme::Https);
    }
    if !answer.starts_with(BEGINS) {
        return None;
    }
    let refused = answer.get(8..).is_some_and(|rest| rest.starts_with(REFUSED));
    let text = String::from_utf8_lossy(answer);
    let names_https = text.contains("HTTPS") || text.contains("SSL-enabled");
    Some(if refused && names_https { Scheme::Https } else { Scheme::Http })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_speaks_shows_in_its_first_words() {
        for (answer, expected) in [
            (&b"HTTP/1.1 200 OK\r\n"[..], Some(Scheme::Http)),
            (b"HTTP/1.0 404 Not Found\r\n\r\nno HTTPS here", Some(Scheme::Http)),
            (b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n", Some(Scheme::Https)),
            (b"HTTP/1.1 400 Bad Request\r\n\r\nYou're speaking plain HTTP to an SSL-enabled server port.", Some(Scheme::Https)),
            (b"\x15\x03\x01\0\x02\x02\x46", Some(Scheme::Https)),
            (b"SSH-2.0-OpenSSH_9.2p1\r\n", None),
            (b"", None),
            (b"HTTP/1.\xff\xff", Some(Scheme::Http)),
        ] {
            assert_eq!(scheme(answer), expected, "{}", String::from_utf8_lossy(answer));
        }
    }
}
