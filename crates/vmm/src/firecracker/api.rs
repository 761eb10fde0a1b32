//! Firecracker's API as a client speaks it: HTTP/1.1 with JSON on a unix socket, one connection for all requests, each
//! with a deadline. Firecracker runs what a stranger gave us, so what it answers is bounded.

use std::os::unix::net::UnixStream;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HOST};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::timeout;

use crate::VmmError;

/// No answer of Firecracker's is longer, in bytes.
const LONGEST_ANSWER: usize = 64 << 10;
/// No sentence of Firecracker's is shown longer, in characters.
const LONGEST_FAULT: usize = 1000;

#[derive(Debug)]
pub(super) struct Api(SendRequest<Full<Bytes>>);

type Cause = Box<dyn std::error::Error + Send + Sync>;

impl Api {
    pub(super) async fn connect(stream: UnixStream) -> Result<Self, VmmError> {
        let begun = async {
            stream.set_nonblocking(true)?;
            let stream = tokio::net::UnixStream::from_std(stream)?;
            Ok::<_, Cause>(handshake(TokioIo::new(stream)).await?)
        };
        let (requests, connection) = begun
            .await
            .map_err(|cause| VmmError::Broken { call: "the first request".to_owned(), cause })?;
        // It ends with `requests`; its errors are theirs.
        drop(tokio::spawn(connection));
        Ok(Self(requests))
    }

    pub(super) async fn put(
        &mut self,
        path: &str,
        body: &Value,
        deadline: Duration,
    ) -> Result<(), VmmError> {
        self.call(Method::PUT, path, Some(body), deadline).await.map(drop)
    }

    pub(super) async fn patch(
        &mut self,
        path: &str,
        body: &Value,
        deadline: Duration,
    ) -> Result<(), VmmError> {
        self.call(Method::PATCH, path, Some(body), deadline).await.map(drop)
    }

    pub(super) async fn get<T: DeserializeOwned>(
        &mut self,
        path: &str,
        deadline: Duration,
    ) -> Result<T, VmmError> {
        let answer = self.call(Method::GET, path, None, deadline).await?;
        serde_json::from_slice(&answer)
            .map_err(|cause| VmmError::Answer { call: format!("GET {path}"), cause })
    }

    async fn call(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        deadline: Duration,
    ) -> Result<Bytes, VmmError> {
        let call = format!("{method} {path}");
        let exchanged = timeout(deadline, self.exchange(method, path, body)).await;
        let (status, answer) = match exchanged {
            Err(_) => return Err(VmmError::Late { call, seconds: deadline.as_secs() }),
            Ok(Err(cause)) => return Err(VmmError::Broken { call, cause }),
            Ok(Ok(exchanged)) => exchanged,
        };
        if status.is_success() {
            return Ok(answer);
        }
        Err(VmmError::Refused { call, status: status.as_u16(), fault: fault(&answer) })
    }

    async fn exchange(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(StatusCode, Bytes), Cause> {
        let body = body.map_or_else(Bytes::new, |body| Bytes::from(body.to_string()));
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "firecracker")
            .header(ACCEPT, "application/json")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))?;
        self.0.ready().await?;
        let (head, answer) = self.0.send_request(request).await?.into_parts();
        let answer = Limited::new(answer, LONGEST_ANSWER).collect().await?.to_bytes();
        Ok((head.status, answer))
    }
}

/// What is wrong, as Firecracker says it: `{"fault_message": "…"}`, or whatever else it sent.
fn fault(answer: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Fault {
        fault_message: String,
    }
    let said = match serde_json::from_slice(answer) {
        Ok(Fault { fault_message }) => fault_message,
        Err(_) => String::from_utf8_lossy(answer).into_owned(),
    };
    let said = said.trim();
    if said.is_empty() {
        "it does not say why".to_owned()
    } else {
        said.chars().take(LONGEST_FAULT).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use serde_json::json;

    use super::*;

    /// A Firecracker that reads one request and answers with these bytes, then hangs up if there are any.
    fn answering(answer: &'static [u8]) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        std::thread::spawn(move || {
            let mut theirs = theirs;
            let mut request = [0; 4096];
            if theirs.read(&mut request).unwrap() > 0 && answer.is_empty() {
                // Says nothing until we hang up.
                assert_eq!(theirs.read(&mut request).unwrap(), 0);
            }
            // A client that has had enough may be gone.
            theirs.write_all(answer).ok();
        });
        ours
    }

    async fn put(answer: &'static [u8], deadline: Duration) -> Result<(), VmmError> {
        let mut api = Api::connect(answering(answer)).await.unwrap();
        api.put("/vsock", &json!({}), deadline).await
    }

    const SOON: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn a_refusal_says_what_was_asked_and_why_not() {
        let answer = b"HTTP/1.1 400 \r\nContent-Length: 39\r\n\r\n{\"fault_message\":\"No such device: x.\"}\n";
        let error = put(answer, SOON).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "Firecracker refuses PUT /vsock with status 400: No such device: x."
        );
    }

    #[tokio::test]
    async fn a_refusal_without_a_reason_still_says_what_was_asked() {
        for (answer, said) in [
            (&b"HTTP/1.1 500 x\r\nContent-Length: 0\r\n\r\n"[..], "it does not say why"),
            (b"HTTP/1.1 500 x\r\nContent-Length: 5\r\n\r\n<no>\n", "<no>"),
        ] {
            let error = put(answer, SOON).await.unwrap_err().to_string();
            assert_eq!(error, format!("Firecracker refuses PUT /vsock with status 500: {said}"));
        }
    }

    #[tokio::test]
    async fn a_connection_that_breaks_says_at_which_call() {
        for answer in [&b"HTTP/1.1 204 \r\nCont"[..], b"rubbish\r\n\r\n"] {
            let error = put(answer, SOON).await.unwrap_err();
            assert_eq!(error.to_string(), "the connection to Firecracker broke at PUT /vsock");
            assert!(std::error::Error::source(&error).is_some());
        }
    }

    #[tokio::test]
    async fn an_answer_that_never_comes_is_not_waited_for() {
        let error = put(b"", Duration::from_millis(50)).await.unwrap_err();
        assert!(matches!(error, VmmError::Late { .. }), "{error}");
    }

    #[tokio::test]
    async fn an_answer_without_an_end_is_not_read_to_it() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let endless = std::thread::spawn(move || {
            theirs.write_all(b"HTTP/1.1 400 x\r\nContent-Length: 99999999\r\n\r\n").unwrap();
            let mut sent = 0_usize;
            while theirs.write_all(&[b'x'; 4096]).is_ok() {
                sent += 4096;
            }
            sent
        });
        let mut api = Api::connect(ours).await.unwrap();
        let error = api.put("/vsock", &json!({}), SOON).await.unwrap_err();
        assert!(matches!(error, VmmError::Broken { .. }), "{error}");
        drop(api);
        let sent = tokio::task::spawn_blocking(|| endless.join().unwrap()).await.unwrap();
        assert!(sent < 99_999_999, "{sent}");
    }

    #[tokio::test]
    async fn an_answer_that_is_not_understood_says_to_what() {
        let answer = b"HTTP/1.1 200 \r\nContent-Length: 16\r\n\r\n{\"state\":\"Gone\"}";
        let error = super::super::state(answering(answer)).await.unwrap_err();
        assert_eq!(error.to_string(), "what Firecracker answers to GET / is not understood");
    }
}
