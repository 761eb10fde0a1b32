//! Single files from web servers, for whoever knows their digest and size before: with the settings of registries (time
//! limits, certificates, proxies, repetitions), but without a registry's protocol and without credentials.
//!
//! A file that was cut off goes on where it was, by a range request (RFC 9110, 14). Nothing is a file's until its size
//! and its digest are what was announced; one that has others is removed.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{CONTENT_RANGE, RANGE, RETRY_AFTER};
use reqwest::{Response, StatusCode, Url};

use crate::blobs::{self, StoreError};
use crate::digest::{Digest, Hasher};
use crate::error::{RegistryError, RequestError};
use crate::settings::{Proxies, Settings};
use crate::transport::{self, Transport};

/// A server may ask for so long a pause at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// A transfer that brought so much has not failed in vain: its tries are counted anew.
const WORTHY_BYTES: u64 = 1 << 20;
const PIECE: usize = 256 << 10;

/// What a file must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    pub digest: Digest,
    pub size_bytes: u64,
}

/// What a download tells while it works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DownloadProgress<'a> {
    Bytes { done: u64, total: u64 },
    Note(&'a str),
}

/// Downloads files.
#[derive(Debug, Clone)]
pub struct Downloader {
    http: reqwest::Client,
    settings: Arc<Settings>,
}

impl Downloader {
    /// # Errors
    /// When a setting cannot be used.
    pub fn new(settings: Settings, proxies: &Proxies) -> Result<Self, RegistryError> {
        let http = Transport::new(&settings, proxies)?.client(transport::redirects())?;
        Ok(Self { http, settings: Arc::new(settings) })
    }

    /// The content of something small.
    ///
    /// # Errors
    /// When it cannot be had, or is larger than `limit`.
    pub async fn small(
        &self,
        url: &str,
        limit: u64,
        told: impl Fn(DownloadProgress<'_>),
    ) -> Result<Vec<u8>, RegistryError> {
        let place = Place::parse(url)?;
        let mut attempt = 0;
        loop {
            match self.small_once(&place, limit).await {
                Ok(bytes) => return Ok(bytes),
                Err(cause) => self.again(cause, url, &mut attempt, &told).await?,
            }
        }
    }

    async fn small_once(&self, place: &Place, limit: u64) -> Result<Vec<u8>, RequestError> {
        let mut response = self.ask(place, 0).await?;
        let mut bytes = Vec::new();
        while let Some(piece) = self.piece(place, &mut response).await? {
            if (bytes.len() + piece.len()) as u64 > limit {
                return Err(RequestError::TooLarge { host: place.host.clone(), limit });
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes)
    }

    /// Brings the file to `partial`, and goes on with what another run left there. Writes to the disk as it comes: to be
    /// called on a thread of its own.
    ///
    /// # Errors
    /// When it cannot be had; then what came stays in `partial`, for another run. When it is not as announced; then
    /// nothing stays.
    pub async fn file(
        &self,
        url: &str,
        expected: Expected,
        partial: &Path,
        told: impl Fn(DownloadProgress<'_>),
    ) -> Result<(), RegistryError> {
        let place = Place::parse(url)?;
        let mut kept = Kept::open(url, expected, partial)?;
        kept.has_room()?;
        let (mut attempt, mut worthy) = (0, kept.length);
        while kept.length < expected.size_bytes {
            let cause = match self.file_once(&place, &mut kept, &told).await {
                Ok(()) => break,
                // 416: the server has less than what is here, so that is of no use.
                Err(Stop::Request(RequestError::Status { status: 416, .. })) if kept.length > 0 => {
                    kept.restart()?;
                    continue;
                }
                Err(Stop::Request(cause)) => cause,
                Err(Stop::Other(error)) => return Err(error),
            };
            if kept.length >= worthy.saturating_add(WORTHY_BYTES) {
                (attempt, worthy) = (0, kept.length);
            }
            self.again(cause, url, &mut attempt, &told).await?;
        }
        kept.finish()
    }

    async fn file_once(
        &self,
        place: &Place,
        kept: &mut Kept<'_>,
        told: &impl Fn(DownloadProgress<'_>),
    ) -> Result<(), Stop> {
        let mut response = self.ask(place, kept.length).await?;
        // A server may ignore that we asked for a part.
        let first = first_byte(&response).map_err(|what| place.protocol(what))?;
        if first == 0 {
            kept.restart()?;
        } else if first != kept.length {
            return Err(place.protocol("it sends another part than the one asked for").into());
        }
        let total = kept.expected.size_bytes;
        while let Some(piece) = self.piece(place, &mut response).await? {
            kept.add(&piece)?;
            told(DownloadProgress::Bytes { done: kept.length, total });
        }
        if kept.length < total {
            let (host, got) = (place.host.clone(), kept.length);
            return Err(RequestError::Short { host, got, size: total }.into());
        }
        Ok(())
    }

    /// The status of the answer is 200 or 206.
    async fn ask(&self, place: &Place, from: u64) -> Result<Response, RequestError> {
        let mut request = self.http.get(place.url.clone());
        if from > 0 {
            request = request.header(RANGE, format!("bytes={from}-"));
        }
        let host = || place.host.clone();
        let after = self.settings.connect_timeout() + self.settings.stall_timeout();
        let response = match tokio::time::timeout(after, request.send()).await {
            Ok(sent) => sent.map_err(|cause| place.not_sent(cause))?,
            Err(_) => return Err(RequestError::Stalled { host: host(), after }),
        };
        let status = response.status();
        if matches!(status, StatusCode::OK | StatusCode::PARTIAL_CONTENT) {
            return Ok(response);
        }
        let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| {
            let seconds = value.to_str().ok()?.trim().parse().ok()?;
            Some(Duration::from_secs(seconds).min(LONGEST_PAUSE))
        });
        let message = String::new();
        Err(match status {
            StatusCode::NOT_FOUND | StatusCode::GONE => {
                RequestError::NotFound { host: host(), message }
            }
            _ => {
                let status = status.as_u16();
                RequestError::Status { host: host(), status, message, retry_after }
            }
        })
    }

    async fn piece(
        &self,
        place: &Place,
        response: &mut Response,
    ) -> Result<Option<bytes::Bytes>, RequestError> {
        let after = self.settings.stall_timeout();
        match tokio::time::timeout(after, response.chunk()).await {
            Ok(piece) => piece.map_err(|cause| place.not_sent(cause)),
            Err(_) => Err(RequestError::Stalled { host: place.host.clone(), after }),
        }
    }

    /// Waits before the next try, if there is to be one. There is no event to wait for: the other side is to recover
    /// meanwhile.
    async fn again(
        &self,
        cause: RequestError,
        url: &str,
        attempt: &mut u32,
        told: &impl Fn(DownloadProgress<'_>),
    ) -> Result<(), RegistryError> {
        if !cause.may_pass() || *attempt >= self.settings.retries {
            return Err(RegistryError::Request { what: url.to_owned(), cause });
        }
        let pause = match &cause {
            RequestError::Status { retry_after: Some(asked), .. } => *asked,
            _ => self.settings.pause(*attempt),
        };
        *attempt += 1;
        told(DownloadProgress::Note(&format!("{cause}; next try in {} s", pause.as_secs_f32())));
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

/// Brings a file of this host's to `partial`, as [`Downloader::file`] does one of a server's.
///
/// # Errors
/// When it cannot be read or written, or is not as announced; then nothing stays.
pub fn copy(from: &Path, expected: Expected, partial: &Path) -> Result<(), RegistryError> {
    let what = from.display().to_string();
    let cannot = |act| {
        let what = what.clone();
        move |cause| RegistryError::Store { what, cause: blobs::failed(act, from)(cause) }
    };
    let mut source = File::open(from).map_err(cannot("open"))?;
    let mut kept = Kept::open(&what, expected, partial)?;
    kept.restart()?;
    kept.has_room()?;
    let mut piece = vec![0; PIECE];
    loop {
        let count = source.read(&mut piece).map_err(cannot("read"))?;
        if count == 0 {
            return kept.finish();
        }
        kept.add(&piece[..count])?;
    }
}

/// Why a transfer ended.
enum Stop {
    Request(RequestError),
    Other(RegistryError),
}

impl From<RequestError> for Stop {
    fn from(cause: RequestError) -> Self {
        Self::Request(cause)
    }
}

impl From<RegistryError> for Stop {
    fn from(error: RegistryError) -> Self {
        Self::Other(error)
    }
}

/// A file on its way, and what is known of what is there of it.
struct Kept<'a> {
    what: &'a str,
    expected: Expected,
    path: &'a Path,
    file: File,
    hasher: Hasher,
    length: u64,
}

impl<'a> Kept<'a> {
    /// Reads what is there already; it may be too much, which is noticed when the file is done.
    fn open(what: &'a str, expected: Expected, path: &'a Path) -> Result<Self, RegistryError> {
        let opened = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
            .open(path);
        let file = opened.map_err(|cause| not_kept(what, blobs::failed("open", path)(cause)))?;
        let mut kept = Self { what, expected, path, file, hasher: Hasher::default(), length: 0 };
        let mut piece = vec![0; PIECE];
        loop {
            let count = kept.file.read(&mut piece).map_err(|cause| kept.failed("read", cause))?;
            if count == 0 {
                break;
            }
            kept.hasher.update(&piece[..count]);
            kept.length += count as u64;
            if kept.length > expected.size_bytes {
                kept.restart()?;
            }
        }
        Ok(kept)
    }

    fn failed(&self, act: &'static str, cause: io::Error) -> RegistryError {
        not_kept(self.what, blobs::failed(act, self.path)(cause))
    }

    /// Nothing is there.
    fn restart(&mut self) -> Result<(), RegistryError> {
        let emptied =
            self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0)).map(drop));
        emptied.map_err(|cause| self.failed("empty", cause))?;
        (self.hasher, self.length) = (Hasher::default(), 0);
        Ok(())
    }

    fn has_room(&self) -> Result<(), RegistryError> {
        let space = rustix::fs::fstatvfs(&self.file)
            .map_err(|errno| self.failed("look for space for", errno.into()))?;
        let free = space.f_bavail.saturating_mul(space.f_frsize);
        let needed = self.expected.size_bytes - self.length;
        if needed > free {
            let folder = self.path.parent().unwrap_or(self.path).to_owned();
            return Err(RegistryError::NoSpace { needed, free, folder });
        }
        Ok(())
    }

    /// Refuses, and removes what is there, as soon as it is too much.
    fn add(&mut self, piece: &[u8]) -> Result<(), RegistryError> {
        let length = self.length + piece.len() as u64;
        let expected = self.expected.size_bytes;
        if length > expected {
            let (what, found) = (self.what.to_owned(), length);
            return self.refuse(RegistryError::WrongSize { what, expected, found });
        }
        self.file.write_all(piece).map_err(|cause| self.failed("write", cause))?;
        self.hasher.update(piece);
        self.length = length;
        Ok(())
    }

    fn finish(self) -> Result<(), RegistryError> {
        let (what, expected, found) = (self.what.to_owned(), self.expected, self.length);
        if found != expected.size_bytes {
            let expected = expected.size_bytes;
            return self.refuse(RegistryError::WrongSize { what, expected, found });
        }
        let found = self.hasher.clone().finish();
        if found != expected.digest {
            let expected = expected.digest;
            return self.refuse(RegistryError::WrongDigest { what, expected, found });
        }
        self.file.sync_all().map_err(|cause| self.failed("sync", cause))
    }

    fn refuse(&self, refusal: RegistryError) -> Result<(), RegistryError> {
        std::fs::remove_file(self.path).map_err(|cause| self.failed("remove", cause))?;
        Err(refusal)
    }
}

fn not_kept(what: &str, cause: StoreError) -> RegistryError {
    RegistryError::Store { what: what.to_owned(), cause }
}

/// A URL, and its server's name for people.
struct Place {
    url: Url,
    host: String,
}

impl Place {
    fn parse(text: &str) -> Result<Self, RegistryError> {
        let refused = || {
            let cause = RequestError::Protocol {
                host: text.to_owned(),
                what: "it is no URL with http or https".into(),
            };
            RegistryError::Request { what: text.to_owned(), cause }
        };
        let url = Url::parse(text).map_err(|_| refused())?;
        if !["http", "https"].contains(&url.scheme()) {
            return Err(refused());
        }
        let name = url.host_str().ok_or_else(refused)?;
        let host = url.port().map_or_else(|| name.to_owned(), |port| format!("{name}:{port}"));
        Ok(Self { url, host })
    }

    fn protocol(&self, what: &str) -> RequestError {
        RequestError::Protocol { host: self.host.clone(), what: what.to_owned() }
    }

    fn not_sent(&self, cause: reqwest::Error) -> RequestError {
        // A URL, after a redirect, may hold a signature that is as good as a password.
        RequestError::Send { host: self.host.clone(), cause: cause.without_url() }
    }
}

/// The first byte of what follows.
fn first_byte(response: &Response) -> Result<u64, &'static str> {
    if response.status() != StatusCode::PARTIAL_CONTENT {
        return Ok(0);
    }
    let range = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
    let first = range.and_then(|range| range.strip_prefix("bytes ")?.split('-').next());
    first
        .and_then(|first| first.trim().parse().ok())
        .ok_or("it sends a part and does not say which")
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::net::{TcpListener, TcpStream};
    use std::path::PathBuf;
    use std::sync::Mutex;
    use std::thread::JoinHandle;

    use super::*;

    /// What the server does with one request: the Range header's text goes in, the whole answer comes out.
    type Answer = Box<dyn Fn(&str) -> Vec<u8> + Send>;

    /// A server on loopback that answers one request after the other, each on a connection of its own, then stops. The
    /// thread gives the ranges that were asked for.
    fn server(answers: Vec<Answer>) -> (String, JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/file", listener.local_addr().unwrap());
        let thread = std::thread::spawn(move || {
            answers
                .into_iter()
                .map(|answer| serve(&listener.accept().unwrap().0, &answer))
                .collect()
        });
        (url, thread)
    }

    fn serve(mut stream: &TcpStream, answer: &Answer) -> String {
        let mut range = String::new();
        for line in BufReader::new(stream).lines() {
            let line = line.unwrap().to_lowercase();
            if let Some(value) = line.strip_prefix("range: ") {
                range = value.to_owned();
            }
            if line.is_empty() {
                break;
            }
        }
        // The client may have heard enough.
        drop(stream.write_all(&answer(&range)));
        range
    }

    fn ok(content: &[u8], length: usize) -> Answer {
        let head =
            format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n");
        let answer = [head.as_bytes(), content].concat();
        Box::new(move |_| answer.clone())
    }

    fn status(line: &str) -> Answer {
        let answer = format!("HTTP/1.1 {line}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
        Box::new(move |_| answer.clone().into_bytes())
    }

    fn part(content: Vec<u8>) -> Answer {
        Box::new(move |range| {
            let from = range.strip_prefix("bytes=").unwrap().strip_suffix('-').unwrap();
            let from: usize = from.parse().unwrap();
            let (rest, all) = (&content[from..], content.len());
            let head = format!(
                "HTTP/1.1 206 Partial Content\r\nconnection: close\r\ncontent-length: {}\r\n\
                 content-range: bytes {from}-{}/{all}\r\n\r\n",
                rest.len(),
                all - 1
            );
            [head.as_bytes(), rest].concat()
        })
    }

    struct Run {
        result: Result<(), RegistryError>,
        partial: PathBuf,
        notes: Vec<String>,
        _folder: tempfile::TempDir,
    }

    fn content() -> Vec<u8> {
        (0..200_000_u32).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect()
    }

    fn expected() -> Expected {
        Expected { digest: Digest::of(&content()), size_bytes: content().len() as u64 }
    }

    /// Downloads in a new folder where `before` was left.
    fn download(url: &str, before: Option<&[u8]>) -> Run {
        let folder = tempfile::tempdir().unwrap();
        let partial = folder.path().join("partial");
        if let Some(before) = before {
            std::fs::write(&partial, before).unwrap();
        }
        let settings = Settings {
            retries: 2,
            retry_pause_ms: 1,
            stall_timeout_ms: 10_000,
            ..Settings::default()
        };
        let downloader = Downloader::new(settings, &Proxies::default()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let notes = Mutex::new(Vec::new());
        let result = runtime.block_on(downloader.file(url, expected(), &partial, |told| {
            if let DownloadProgress::Note(note) = told {
                notes.lock().unwrap().push(note.to_owned());
            }
        }));
        Run { result, partial, notes: notes.into_inner().unwrap(), _folder: folder }
    }

    #[test]
    fn a_file_comes_whole() {
        let (url, server) = server(vec![ok(&content(), content().len())]);
        let run = download(&url, None);
        run.result.unwrap();
        assert_eq!(std::fs::read(&run.partial).unwrap(), content());
        assert_eq!(server.join().unwrap(), [""]);
    }

    #[test]
    fn a_cut_transfer_goes_on_where_it_was() {
        let cut = ok(&content()[..70_000], content().len());
        let (url, server) = server(vec![cut, status("503 Busy"), part(content())]);
        let run = download(&url, None);
        run.result.unwrap();
        assert_eq!(std::fs::read(&run.partial).unwrap(), content());
        assert_eq!(server.join().unwrap(), ["", "bytes=70000-", "bytes=70000-"]);
        assert_eq!(run.notes.len(), 2, "{:?}", run.notes);
    }

    #[test]
    fn what_another_run_left_is_not_fetched_again() {
        let (url, server) = server(vec![part(content())]);
        let run = download(&url, Some(&content()[..150_000]));
        run.result.unwrap();
        assert_eq!(std::fs::read(&run.partial).unwrap(), content());
        assert_eq!(server.join().unwrap(), ["bytes=150000-"]);
        // All of it: nobody is asked.
        download("http://127.0.0.1:1/x", Some(&content())).result.unwrap();
    }

    #[test]
    fn a_server_without_ranges_and_a_leftover_that_is_too_long_begin_anew() {
        let (url, server_thread) = server(vec![ok(&content(), content().len())]);
        let run = download(&url, Some(&content()[..150_000]));
        run.result.unwrap();
        assert_eq!(std::fs::read(&run.partial).unwrap(), content());
        assert_eq!(server_thread.join().unwrap(), ["bytes=150000-"]);
        let whole = ok(&content(), content().len());
        let (url, server_thread) = server(vec![status("416 Range Not Satisfiable"), whole]);
        let run = download(&url, Some(&content()[..150_000]));
        run.result.unwrap();
        assert_eq!(server_thread.join().unwrap(), ["bytes=150000-", ""]);
        let (url, server_thread) = server(vec![ok(&content(), content().len())]);
        let run = download(&url, Some(&vec![0; 900_000]));
        run.result.unwrap();
        assert_eq!(std::fs::read(&run.partial).unwrap(), content());
        assert_eq!(server_thread.join().unwrap(), [""]);
    }

    #[test]
    fn what_is_not_as_announced_is_refused_and_removed() {
        let mut other = content();
        other[100] ^= 1;
        let mut longer = content();
        longer.push(0);
        let wrong = [(ok(&other, other.len()), "digest"), (ok(&longer, longer.len()), "announced")];
        for (answer, reason) in wrong {
            let (url, server) = server(vec![answer]);
            let run = download(&url, None);
            let error = run.result.unwrap_err().to_string();
            assert!(error.contains(reason) && error.contains(&url), "{error}");
            assert!(!run.partial.exists());
            server.join().unwrap();
        }
        // What was left is part of it and is not believed either.
        let (url, server) = server(vec![part(content())]);
        let run = download(&url, Some(&other[..1000]));
        assert!(matches!(run.result, Err(RegistryError::WrongDigest { .. })));
        assert!(!run.partial.exists());
        server.join().unwrap();
    }

    #[test]
    fn a_server_that_stays_broken_is_given_up_and_what_came_stays() {
        let cut = || ok(&content()[..1000], content().len());
        let (url, server) = server(vec![cut(), status("502 Bad"), status("502 Bad")]);
        let run = download(&url, None);
        let Err(RegistryError::Request { what, cause }) = run.result else { panic!() };
        assert_eq!(what, url);
        assert!(matches!(cause, RequestError::Status { status: 502, .. }));
        assert_eq!(std::fs::read(&run.partial).unwrap(), content()[..1000]);
        server.join().unwrap();
    }

    #[test]
    fn what_is_not_there_is_not_asked_for_twice() {
        let (url, server) = server(vec![status("404 Not Found")]);
        let run = download(&url, None);
        let Err(RegistryError::Request { cause, .. }) = run.result else { panic!() };
        assert!(matches!(cause, RequestError::NotFound { .. }));
        assert_eq!(server.join().unwrap().len(), 1);
    }

    #[test]
    fn a_part_that_was_not_asked_for_is_refused() {
        let odd = b"HTTP/1.1 206 Partial Content\r\nconnection: close\r\ncontent-length: 1\r\n\
                    content-range: bytes 5-5/9\r\n\r\nx";
        let (url, server) = server(vec![Box::new(|_| odd.to_vec())]);
        let run = download(&url, Some(&content()[..1000]));
        assert!(run.result.unwrap_err().to_string().contains("cannot get"));
        assert_eq!(std::fs::read(&run.partial).unwrap(), content()[..1000]);
        server.join().unwrap();
    }

    #[test]
    fn something_small_has_a_limit() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let downloader = Downloader::new(Settings::default(), &Proxies::default()).unwrap();
        for (limit, fits) in [(5, true), (4, false)] {
            let (url, server) = server(vec![ok(b"small", 5)]);
            let read = runtime.block_on(downloader.small(&url, limit, |_| {}));
            assert_eq!(read.ok(), fits.then(|| b"small".to_vec()));
            server.join().unwrap();
        }
        for url in ["x", "file:///etc/passwd", "ftp://a/b"] {
            assert!(runtime.block_on(downloader.small(url, 9, |_| {})).is_err(), "{url}");
        }
    }

    #[test]
    fn a_file_of_this_host_is_checked_as_one_of_a_server() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        std::fs::write(&from, content()).unwrap();
        std::fs::write(&to, b"left").unwrap();
        copy(&from, expected(), &to).unwrap();
        assert_eq!(std::fs::read(&to).unwrap(), content());
        std::fs::write(&from, &content()[1..]).unwrap();
        assert!(matches!(copy(&from, expected(), &to), Err(RegistryError::WrongSize { .. })));
        assert!(!to.exists());
        let missing = copy(&folder.path().join("absent"), expected(), &to);
        assert!(missing.is_err() && !to.exists());
    }
}
