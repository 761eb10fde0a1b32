//! Requests to a registry, by the OCI distribution specification 1.1: where it is, how it wants to be asked (the token
//! protocol of the distribution project), and what its answers mean. Tries once; who calls repeats.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{
    ACCEPT, AUTHORIZATION, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue, RANGE, RETRY_AFTER,
    WWW_AUTHENTICATE,
};
use reqwest::{Method, Response, StatusCode, Url};
use serde::Deserialize;
use tokio::sync::{Mutex, OnceCell};

use crate::credentials::{self, Credentials, Home};
use crate::error::{RegistryError, RequestError, is_bad_certificate};
use crate::reference::{DEFAULT_HOST, Reference};
use crate::settings::{Proxies, Settings, is_loopback};
use crate::transport::{self, Transport};

/// Where Docker's registry is.
const DOCKER_HOST: &str = "registry-1.docker.io";
/// Of the text of an error answer and of a token.
const LARGEST_ANSWER: u64 = 256 << 10;
/// A server may ask for so long a pause at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What all requests share.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    /// Follows no redirects: what it sends is a secret, which another host must not get.
    http_with_secrets: reqwest::Client,
    settings: Arc<Settings>,
    home: Arc<Home>,
}

impl Client {
    pub(crate) fn new(
        settings: Arc<Settings>,
        home: Home,
        proxies: &Proxies,
    ) -> Result<Self, RegistryError> {
        let transport = Transport::new(&settings, proxies)?;
        Ok(Self {
            http: transport.client(transport::redirects())?,
            http_with_secrets: transport.client(reqwest::redirect::Policy::none())?,
            settings: Arc::clone(&settings),
            home: Arc::new(home),
        })
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Where an image can be had: the mirrors of its registry, then the registry.
    pub(crate) fn endpoints(&self, reference: &Reference) -> Result<Vec<Endpoint>, RegistryError> {
        let mut endpoints = Vec::new();
        for mirror in self.settings.mirrors.get(reference.host()).into_iter().flatten() {
            endpoints.push(self.mirror(mirror, reference)?);
        }
        let host = reference.host();
        let server = if host == DEFAULT_HOST { DOCKER_HOST } else { host };
        let scheme = if self.settings.insecure.iter().any(|insecure| insecure == host) {
            Some("http")
        } else if is_loopback(host) {
            None
        } else {
            Some("https")
        };
        endpoints.push(Endpoint {
            client: self.clone(),
            host: host.to_owned(),
            server: server.to_owned(),
            path: reference.path().to_owned(),
            scheme: OnceCell::new_with(scheme.map(str::to_owned)),
            found: OnceCell::new(),
            authorization: Mutex::default(),
        });
        Ok(endpoints)
    }

    fn mirror(&self, mirror: &str, reference: &Reference) -> Result<Endpoint, RegistryError> {
        // The text itself may hold a password.
        let refused = |why: &str| RegistryError::Setting {
            setting: "mirrors",
            why: format!("a mirror of {} {why}", reference.host()),
        };
        let url = Url::parse(mirror).map_err(|_| refused("is no URL, as in https://HOST:PORT"))?;
        let Some(host) = url.host_str() else { return Err(refused("has no host")) };
        if !["http", "https"].contains(&url.scheme()) {
            return Err(refused("is neither http nor https"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(refused("has a password in its URL: `docker login` to it instead"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(refused("has more than a host and a path in its URL"));
        }
        let server = match url.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        };
        let prefix = url.path().trim_matches('/');
        let slash = if prefix.is_empty() { "" } else { "/" };
        Ok(Endpoint {
            client: self.clone(),
            host: server.clone(),
            server,
            path: format!("{prefix}{slash}{}", reference.path()),
            scheme: OnceCell::new_with(Some(url.scheme().to_owned())),
            found: OnceCell::new(),
            authorization: Mutex::default(),
        })
    }
}

/// One place where one image can be had.
#[derive(Debug)]
pub(crate) struct Endpoint {
    client: Client,
    /// As people name it, and as its credentials are kept.
    pub(crate) host: String,
    /// `HOST[:PORT]` to connect to.
    server: String,
    /// The image's, in this registry.
    path: String,
    /// A loopback address is asked which one it speaks.
    scheme: OnceCell<String>,
    found: OnceCell<credentials::Found>,
    /// What was last accepted, or at least given.
    authorization: Mutex<Option<HeaderValue>>,
}

/// What a request asks for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Wanted<'a> {
    Manifest(&'a str),
    /// A blob's content from this byte on.
    Blob(&'a str, u64),
}

impl Endpoint {
    /// Asks, with credentials if the registry wants them. The answer's status is 200 or 206.
    pub(crate) async fn get(&self, wanted: Wanted<'_>) -> Result<Body, RequestError> {
        let url = self.url(wanted).await?;
        let mut authorization = self.authorization.lock().await.clone();
        let mut answered = false;
        loop {
            let response = self.send_wanted(&url, wanted, authorization.clone()).await?;
            if response.status() != StatusCode::UNAUTHORIZED || answered {
                return self.judge(response).await;
            }
            answered = true;
            authorization = match self.answer(&response, authorization.as_ref()).await? {
                Some(answer) => Some(answer),
                None => return self.judge(response).await,
            };
        }
    }

    async fn url(&self, wanted: Wanted<'_>) -> Result<Url, RequestError> {
        let scheme = self.scheme.get_or_try_init(|| self.find_scheme()).await?;
        let (kind, version) = match wanted {
            Wanted::Manifest(version) => ("manifests", version),
            Wanted::Blob(digest, _) => ("blobs", digest),
        };
        let text = format!("{scheme}://{}/v2/{}/{kind}/{version}", self.server, self.path);
        Url::parse(&text).map_err(|_| self.protocol("its address is no URL"))
    }

    /// As Docker does for loopback addresses: TLS if it speaks that, else plain HTTP.
    async fn find_scheme(&self) -> Result<String, RequestError> {
        let url = format!("https://{}/v2/", self.server);
        let url = Url::parse(&url).map_err(|_| self.protocol("its address is no URL"))?;
        match self.send(self.client.http.request(Method::GET, url)).await {
            Ok(_) => Ok("https".into()),
            Err(error) => match error {
                RequestError::Send { ref cause, .. } if !is_bad_certificate(cause) => {
                    Ok("http".into())
                }
                error => Err(error),
            },
        }
    }

    async fn send_wanted(
        &self,
        url: &Url,
        wanted: Wanted<'_>,
        authorization: Option<HeaderValue>,
    ) -> Result<Response, RequestError> {
        let mut headers = HeaderMap::new();
        match wanted {
            Wanted::Manifest(_) => {
                use crate::manifest::{DOCKER_INDEX, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};
                for kind in [OCI_INDEX, DOCKER_INDEX, OCI_MANIFEST, DOCKER_MANIFEST] {
                    headers.append(ACCEPT, HeaderValue::from_static(kind));
                }
            }
            Wanted::Blob(_, 0) => {}
            Wanted::Blob(_, from) => {
                let range = HeaderValue::from_str(&format!("bytes={from}-"));
                headers.insert(RANGE, range.expect("figures are good in a header"));
            }
        }
        if let Some(authorization) = authorization {
            headers.insert(AUTHORIZATION, authorization);
        }
        self.send(self.client.http.request(Method::GET, url.clone()).headers(headers)).await
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<Response, RequestError> {
        let after = self.client.settings.connect_timeout() + self.client.settings.stall_timeout();
        match tokio::time::timeout(after, request.send()).await {
            Ok(sent) => sent.map_err(|cause| self.not_sent(cause)),
            Err(_) => Err(RequestError::Stalled { host: self.host.clone(), after }),
        }
    }

    fn not_sent(&self, cause: reqwest::Error) -> RequestError {
        // A URL, after a redirect, may hold a signature that is as good as a password.
        RequestError::Send { host: self.host.clone(), cause: cause.without_url() }
    }

    fn protocol(&self, what: &str) -> RequestError {
        RequestError::Protocol { host: self.host.clone(), what: what.to_owned() }
    }

    /// Whether it is what was asked for.
    async fn judge(&self, response: Response) -> Result<Body, RequestError> {
        let status = response.status();
        let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| {
            let seconds = value.to_str().ok()?.trim().parse().ok()?;
            Some(Duration::from_secs(seconds).min(LONGEST_PAUSE))
        });
        let body =
            Body { host: self.host.clone(), stall: self.client.settings.stall_timeout(), response };
        if status == StatusCode::OK || status == StatusCode::PARTIAL_CONTENT {
            return Ok(body);
        }
        let host = self.host.clone();
        let message = body.read(LARGEST_ANSWER).await.map(|text| message_of(&text));
        let message = message.unwrap_or_default();
        Err(match status {
            StatusCode::NOT_FOUND => RequestError::NotFound { host, message },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => self.denied(message).await,
            _ => RequestError::Status { host, status: status.as_u16(), message, retry_after },
        })
    }

    async fn denied(&self, message: String) -> RequestError {
        let found = self.credentials().await;
        RequestError::Denied {
            host: self.host.clone(),
            with_credentials: found.credentials != Credentials::Anonymous,
            message,
            cause: found.troubles.first().cloned(),
        }
    }

    async fn credentials(&self) -> &credentials::Found {
        let find = || credentials::find(&self.client.home, &self.host, &self.path);
        self.found.get_or_init(find).await
    }

    /// What to say to a registry that wants to know who asks; `None` when there is nothing to say. `said` was refused.
    async fn answer(
        &self,
        response: &Response,
        said: Option<&HeaderValue>,
    ) -> Result<Option<HeaderValue>, RequestError> {
        let mut current = self.authorization.lock().await;
        // Another request has got a new answer meanwhile.
        if current.is_some() && current.as_ref() != said {
            return Ok(current.clone());
        }
        let answer = match challenge(response.headers()) {
            Some(Challenge::Bearer { realm, service, scope }) => {
                let scope = scope.unwrap_or_else(|| format!("repository:{}:pull", self.path));
                Some(self.token(&realm, service.as_deref(), &scope).await?)
            }
            Some(Challenge::Basic) => match &self.credentials().await.credentials {
                Credentials::Password { user, password } => Some(basic(user, password.reveal())),
                _ => None,
            },
            None => return Err(self.protocol("it wants credentials and does not say which kind")),
        };
        current.clone_from(&answer);
        Ok(answer)
    }

    /// A token for this image from where the registry sends us.
    async fn token(
        &self,
        realm: &str,
        service: Option<&str>,
        scope: &str,
    ) -> Result<HeaderValue, RequestError> {
        let mut url = Url::parse(realm).map_err(|_| self.protocol("its realm is no URL"))?;
        let is_encrypted = self.scheme.get().is_some_and(|scheme| scheme == "https");
        let is_local = url.host_str().is_some_and(is_loopback);
        match url.scheme() {
            "https" => {}
            "http" if !is_encrypted || is_local => {}
            _ => return Err(self.protocol("it wants a password to be sent unencrypted")),
        }
        let credentials = &self.credentials().await.credentials;
        let asked = [("service", service), ("scope", Some(scope))];
        let asked = asked.into_iter().filter_map(|(name, value)| Some((name, value?)));
        let request = match credentials {
            Credentials::IdentityToken(token) => {
                // OAuth2 as the distribution project has it: a form, for which any URL's query serves.
                let mut form = url.clone();
                form.query_pairs_mut()
                    .clear()
                    .extend_pairs(asked)
                    .append_pair("grant_type", "refresh_token")
                    .append_pair("client_id", "banger")
                    .append_pair("refresh_token", token.reveal());
                let form = form.query().unwrap_or_default().to_owned();
                self.client
                    .http_with_secrets
                    .request(Method::POST, url)
                    .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                    .body(form)
            }
            Credentials::Password { user, password } => {
                url.query_pairs_mut().extend_pairs(asked);
                let request = self.client.http.request(Method::GET, url);
                request.header(AUTHORIZATION, basic(user, password.reveal()))
            }
            Credentials::Anonymous => {
                url.query_pairs_mut().extend_pairs(asked);
                self.client.http.request(Method::GET, url)
            }
        };
        let body = self.judge(self.send(request).await?).await?.read(LARGEST_ANSWER).await?;
        #[derive(Deserialize)]
        struct Token {
            token: Option<String>,
            access_token: Option<String>,
        }
        // serde's own words quote the answer.
        let token: Token = serde_json::from_slice(&body)
            .map_err(|_| self.protocol("what it sends as a token is not of the right form"))?;
        let token = token.token.or(token.access_token).unwrap_or_default();
        sensitive(&format!("Bearer {token}"))
            .filter(|_| !token.is_empty())
            .ok_or_else(|| self.protocol("it sends a token that cannot be used"))
    }
}

/// The content of an answer, as it comes.
#[derive(Debug)]
pub(crate) struct Body {
    host: String,
    stall: Duration,
    response: Response,
}

impl Body {
    /// The next piece; `None` at the end.
    pub(crate) async fn piece(&mut self) -> Result<Option<Bytes>, RequestError> {
        match tokio::time::timeout(self.stall, self.response.chunk()).await {
            Ok(piece) => piece.map_err(|cause| RequestError::Send {
                host: self.host.clone(),
                cause: cause.without_url(),
            }),
            Err(_) => Err(RequestError::Stalled { host: self.host.clone(), after: self.stall }),
        }
    }

    /// All of it, when it is not larger than `limit`.
    pub(crate) async fn read(mut self, limit: u64) -> Result<Vec<u8>, RequestError> {
        let mut bytes = Vec::new();
        while let Some(piece) = self.piece().await? {
            if (bytes.len() + piece.len()) as u64 > limit {
                return Err(RequestError::TooLarge { host: self.host.clone(), limit });
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes)
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.response.headers().get(name)?.to_str().ok()
    }

    /// The first byte of what follows. A server may ignore that we asked for a part (RFC 9110, 14.2).
    pub(crate) fn first_byte(&self) -> Result<u64, RequestError> {
        if self.response.status() != StatusCode::PARTIAL_CONTENT {
            return Ok(0);
        }
        let range = self.header(CONTENT_RANGE.as_str()).unwrap_or_default();
        let first = range.strip_prefix("bytes ").and_then(|range| range.split('-').next());
        first.and_then(|first| first.parse().ok()).ok_or_else(|| RequestError::Protocol {
            host: self.host.clone(),
            what: "it sends a part and does not say which".into(),
        })
    }
}

enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

/// The challenge that we can answer, tokens before passwords.
fn challenge(headers: &HeaderMap) -> Option<Challenge> {
    let mut basic = None;
    for value in headers.get_all(WWW_AUTHENTICATE) {
        let Ok(challenges) = http_auth::parse_challenges(value.to_str().unwrap_or_default()) else {
            continue;
        };
        for challenge in challenges {
            let parameter = |name: &str| {
                let found =
                    challenge.params.iter().find(|(other, _)| other.eq_ignore_ascii_case(name));
                found.map(|(_, value)| value.to_unescaped())
            };
            if challenge.scheme.eq_ignore_ascii_case("bearer")
                && let Some(realm) = parameter("realm")
            {
                let (service, scope) = (parameter("service"), parameter("scope"));
                return Some(Challenge::Bearer { realm, service, scope });
            }
            if challenge.scheme.eq_ignore_ascii_case("basic") {
                basic = Some(Challenge::Basic);
            }
        }
    }
    basic
}

fn basic(user: &str, password: &str) -> HeaderValue {
    use base64::Engine as _;
    let pair = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
    sensitive(&format!("Basic {pair}")).expect("base64 is good in a header")
}

fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// The first error of an answer, in its own words, cut and without what a terminal would obey.
fn message_of(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Answer {
        errors: Vec<Told>,
    }
    #[derive(Deserialize)]
    struct Told {
        code: Option<String>,
        message: Option<String>,
    }
    let Ok(answer) = serde_json::from_slice::<Answer>(body) else { return String::new() };
    let Some(told) = answer.errors.into_iter().next() else { return String::new() };
    let text = told.message.filter(|text| !text.is_empty()).or(told.code).unwrap_or_default();
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(values: &[&'static str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(WWW_AUTHENTICATE, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn a_token_is_preferred_to_a_password() {
        let both = headers(&[
            "Basic realm=\"x\"",
            "Bearer realm=\"https://a.x/token\",service=\"a.x\",scope=\"repository:b:pull\"",
        ]);
        let Some(Challenge::Bearer { realm, service, scope }) = challenge(&both) else { panic!() };
        assert_eq!(realm, "https://a.x/token");
        assert_eq!(service.as_deref(), Some("a.x"));
        assert_eq!(scope.as_deref(), Some("repository:b:pull"));
        assert!(matches!(challenge(&headers(&["basic realm=x"])), Some(Challenge::Basic)));
        for strange in ["", "Bearer", "Bearer service=\"a\"", "Negotiate", "Bearer realm=\"", "=,,"]
        {
            assert!(challenge(&headers(&[strange])).is_none(), "{strange}");
        }
    }

    #[test]
    fn a_registrys_words_are_cut_and_harmless() {
        let body = br#"{"errors":[{"code":"DENIED","message":"no\u001b[31m way"}]}"#;
        assert_eq!(message_of(body), "no[31m way");
        assert_eq!(message_of(br#"{"errors":[{"code":"DENIED","message":""}]}"#), "DENIED");
        assert_eq!(message_of(b"<html>"), "");
        let long = format!("{{\"errors\":[{{\"message\":\"{}\"}}]}}", "x".repeat(5000));
        assert_eq!(message_of(long.as_bytes()).len(), 200);
    }

    fn client(settings: Settings) -> Client {
        let home = Home::from_environment(|_| None);
        Client::new(Arc::new(settings), home, &Proxies::default()).unwrap()
    }

    #[test]
    fn mirrors_come_before_the_registry() {
        let mirrors = [(
            "docker.io".to_owned(),
            vec!["http://127.0.0.1:5000".to_owned(), "https://mirror.example/hub/".to_owned()],
        )];
        let client = client(Settings { mirrors: mirrors.into(), ..Settings::default() });
        let endpoints = client.endpoints(&"alpine".parse().unwrap()).unwrap();
        let places: Vec<String> = endpoints
            .iter()
            .map(|it| format!("{} {} {}", it.scheme.get().unwrap(), it.server, it.path))
            .collect();
        assert_eq!(
            places,
            [
                "http 127.0.0.1:5000 library/alpine",
                "https mirror.example hub/library/alpine",
                "https registry-1.docker.io library/alpine",
            ]
        );
        assert_eq!(endpoints[2].host, "docker.io");
    }

    #[test]
    fn a_mirror_that_cannot_be_is_refused_without_its_password() {
        for mirror in ["x", "ftp://a", "https://u:SECRET@a", "https://a/?b=SECRET", "unix:/a"] {
            let mirrors = [("docker.io".to_owned(), vec![mirror.to_owned()])];
            let client = client(Settings { mirrors: mirrors.into(), ..Settings::default() });
            let error = client.endpoints(&"alpine".parse().unwrap()).unwrap_err().to_string();
            assert!(error.contains("mirror of docker.io") && !error.contains("SECRET"), "{error}");
        }
    }

    #[test]
    fn authorities_and_proxies_that_cannot_be_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let empty = folder.path().join("empty.pem");
        std::fs::write(&empty, "").unwrap();
        for path in [folder.path().join("absent.pem"), empty] {
            let settings = Settings { ca_files: vec![path.clone()], ..Settings::default() };
            let home = Home::from_environment(|_| None);
            let error = Client::new(Arc::new(settings), home, &Proxies::default()).unwrap_err();
            assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        }
        let proxies = Proxies { https: Some("http://u:SECRET@[x".into()), ..Proxies::default() };
        let home = Home::from_environment(|_| None);
        let error = Client::new(Arc::default(), home, &proxies).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("SECRET"));
    }
}
