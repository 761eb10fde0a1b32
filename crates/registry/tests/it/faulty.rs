//! A proxy before a real registry that fails on demand: it cuts, stalls, lies. What it is not told to spoil, it hands on
//! as it is.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http_body_util::{BodyExt, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_LENGTH, HeaderName, HeaderValue, RANGE};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

/// What happens to one answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    Forward,
    /// Another status, with this header.
    Status(u16, Option<(&'static str, &'static str)>),
    /// The connection ends after so many bytes of the content.
    Cut(usize),
    /// Nothing comes after so many bytes of the content, and the connection stays.
    Stall(usize),
    /// The content ends properly after so many bytes, without its length said.
    End(usize),
    /// All of it comes, whatever part was wanted.
    IgnoreRange,
    /// One byte is another.
    Lie,
    /// More comes than there is.
    More,
}

/// One request that came.
#[derive(Debug, Clone)]
pub(crate) struct Hit {
    pub(crate) path: String,
    pub(crate) range: Option<String>,
    pub(crate) authorization: Option<String>,
}

pub(crate) struct Faulty {
    pub(crate) address: String,
    hits: Arc<Mutex<Vec<Hit>>>,
}

type Rule = dyn Fn(&str, usize) -> Act + Send + Sync;

impl Faulty {
    /// Stands before the registry at `upstream`. `rule` says what to do, by the path and by how often that was asked for
    /// before.
    pub(crate) async fn before(
        upstream: &str,
        rule: impl Fn(&str, usize) -> Act + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let hits = Arc::<Mutex<Vec<Hit>>>::default();
        let shared = Arc::new(Shared {
            upstream: upstream.to_owned(),
            rule: Box::new(rule),
            hits: Arc::clone(&hits),
            counts: Mutex::default(),
        });
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shared = Arc::clone(&shared);
                tokio::spawn(async move {
                    let service = service_fn(|request| shared.answer(request));
                    let server = hyper::server::conn::http1::Builder::new();
                    // That a connection is cut is what this is for.
                    drop(server.serve_connection(TokioIo::new(stream), service).await);
                });
            }
        });
        Self { address, hits }
    }

    /// The requests for what has this in its path.
    pub(crate) fn hits(&self, part: &str) -> Vec<Hit> {
        let hits = self.hits.lock().unwrap();
        hits.iter().filter(|hit| hit.path.contains(part)).cloned().collect()
    }
}

struct Shared {
    upstream: String,
    rule: Box<Rule>,
    hits: Arc<Mutex<Vec<Hit>>>,
    counts: Mutex<HashMap<String, usize>>,
}

type Content = BoxBody<Bytes, io::Error>;

impl Shared {
    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Content>, Infallible> {
        let path = request.uri().path().to_owned();
        let header = |name: &str| {
            request.headers().get(name).map(|value| value.to_str().unwrap().to_owned())
        };
        let hit = Hit {
            path: path.clone(),
            range: header("range"),
            authorization: header("authorization"),
        };
        self.hits.lock().unwrap().push(hit);
        let before = {
            let mut counts = self.counts.lock().unwrap();
            let count = counts.entry(path.clone()).or_default();
            *count += 1;
            *count - 1
        };
        let act = (self.rule)(&path, before);
        if let Act::Status(status, header) = act {
            let mut response = Response::new(content(vec![], None));
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            if let Some((name, value)) = header {
                response
                    .headers_mut()
                    .insert(HeaderName::from_static(name), HeaderValue::from_static(value));
            }
            return Ok(response);
        }
        let (status, mut headers, mut bytes) = self.forward(&request, act).await;
        let last = match act {
            Act::Cut(at) => {
                bytes.truncate(at);
                Some(Last::Cut)
            }
            Act::Stall(at) => {
                bytes.truncate(at);
                Some(Last::Stall)
            }
            Act::End(at) => {
                bytes.truncate(at);
                headers.remove(CONTENT_LENGTH);
                None
            }
            Act::Lie => {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
                None
            }
            Act::More => {
                bytes.extend_from_slice(b"more");
                headers.remove(CONTENT_LENGTH);
                None
            }
            _ => None,
        };
        let mut response = Response::new(content(bytes, last));
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        Ok(response)
    }

    async fn forward(
        &self,
        request: &Request<Incoming>,
        act: Act,
    ) -> (StatusCode, hyper::HeaderMap, Vec<u8>) {
        let url = format!("http://{}{}", self.upstream, request.uri());
        let mut headers = request.headers().clone();
        headers.remove("host");
        if act == Act::IgnoreRange {
            headers.remove(RANGE);
        }
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(no_tls())
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .unwrap();
        let answer =
            client.request(request.method().clone(), url).headers(headers).send().await.unwrap();
        let (status, headers) = (answer.status(), answer.headers().clone());
        (status, headers, answer.bytes().await.unwrap().to_vec())
    }
}

/// The client wants to know how to speak TLS, which it does not here.
fn no_tls() -> rustls::ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth()
}

enum Last {
    Cut,
    Stall,
}

fn content(bytes: Vec<u8>, last: Option<Last>) -> Content {
    let pieces: Vec<Result<Frame<Bytes>, io::Error>> =
        bytes.chunks(64 << 10).map(|it| Ok(Frame::data(Bytes::copy_from_slice(it)))).collect();
    let pieces = stream::iter(pieces);
    match last {
        None => BodyExt::boxed(StreamBody::new(pieces)),
        // hyper hands on what came before only when it is asked again, so the end waits a turn.
        Some(Last::Cut) => {
            let cut = stream::once(async {
                tokio::task::yield_now().await;
                Err(io::Error::other("cut"))
            });
            BodyExt::boxed(StreamBody::new(pieces.chain(cut)))
        }
        Some(Last::Stall) => BodyExt::boxed(StreamBody::new(pieces.chain(stream::pending()))),
    }
}
