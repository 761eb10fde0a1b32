//! From an image's name to its verified blobs: the name's manifest, the one for this platform, its config, its layers.
//!
//! A request that may succeed a moment later is repeated, a transfer that broke goes on where it was, and what one mirror
//! does not have or spoils, the next may give. Dropping the future leaves partials that the next pull goes on with.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::sync::{mpsc, oneshot};

use crate::blobs::{AddError, Claimed, Lease, Partial, Store, StoreError};
use crate::client::{Body, Client, Endpoint, Wanted};
use crate::credentials::Home;
use crate::digest::Digest;
use crate::error::{RegistryError, RequestError};
use crate::fetched::{Compression, Fetched, Layer, LayerState, Progress, Watch};
use crate::manifest::{self, Descriptor, ImageConfig, Manifest, ManifestError, Platform};
use crate::reference::Reference;
use crate::settings::{Proxies, Settings};

/// An index in an index is the most that is followed.
const DEEPEST_INDEX: usize = 2;
/// Progress is told when so much has come since the last time.
const TOLD_BYTES: u64 = 256 << 10;
/// A transfer that brought so much has not failed in vain: its tries are counted anew.
const WORTHY_BYTES: u64 = 1 << 20;
/// Pieces that wait to be written.
const QUEUED_PIECES: usize = 32;

/// Pulls images.
#[derive(Debug, Clone)]
pub struct Puller {
    client: Client,
}

impl Puller {
    /// # Errors
    /// When a setting cannot be used.
    pub fn new(settings: Settings, home: Home, proxies: &Proxies) -> Result<Self, RegistryError> {
        Ok(Self { client: Client::new(Arc::new(settings), home, proxies)? })
    }

    /// Brings an image into the store.
    ///
    /// # Errors
    /// When it cannot be had whole and as it was announced. What came stays in the store's partials.
    pub async fn pull(
        &self,
        reference: &Reference,
        platform: &Platform,
        store: &Store,
        watch: Watch<'_>,
    ) -> Result<Fetched, RegistryError> {
        let endpoints = self.client.endpoints(reference)?;
        let lease = blocking({
            let store = store.clone();
            move || store.lease()
        })
        .await?
        .map_err(|cause| not_kept(&reference.short(), cause))?;
        let settings = self.client.settings();
        Pull { settings, reference, platform, store, lease, watch, endpoints }.run().await
    }
}

/// One pull that is going on.
struct Pull<'a> {
    settings: &'a Settings,
    reference: &'a Reference,
    platform: &'a Platform,
    store: &'a Store,
    lease: Lease,
    watch: Watch<'a>,
    /// Mirrors first, the registry itself last.
    endpoints: Vec<Endpoint>,
}

/// A document with its own bytes, and the place that had it.
struct Document {
    digest: Digest,
    bytes: Vec<u8>,
    from: usize,
}

impl Pull<'_> {
    async fn run(self) -> Result<Fetched, RegistryError> {
        let named = self.named().await?;
        let digest = named.digest;
        let (manifest, document) = self.manifest(named).await?;
        let from = document.from;
        let config = self.config(&manifest.config, from).await?;
        let config_digest = manifest.config.digest;
        let read = ImageConfig::parse(&config, &self.settings.limits()).and_then(|read| {
            read.check_against(manifest.layers.len(), self.platform).map(|()| read)
        });
        let config = read.map_err(|cause| self.unusable("the config", cause))?;
        let layers = self.layers(&manifest, &config, document.digest, from).await?;
        Ok(Fetched {
            reference: Some(self.reference.clone()),
            digest,
            manifest_digest: document.digest,
            manifest: document.bytes,
            config,
            config_digest,
            layers,
            lease: self.lease,
        })
    }

    /// For people: a part of the image.
    fn of(&self, part: &str) -> String {
        format!("{part} of {}", self.reference.short())
    }

    fn unusable(&self, part: &str, cause: ManifestError) -> RegistryError {
        RegistryError::Manifest { what: self.of(part), cause: Box::new(cause) }
    }

    /// What the name stands for: a manifest or an index.
    async fn named(&self) -> Result<Document, RegistryError> {
        if let Some(digest) = self.reference.digest() {
            return self.document("the manifest", digest, None, 0).await;
        }
        let limit = self.settings.largest_manifest_bytes;
        let version = self.reference.version();
        let (bytes, from) = self
            .anywhere(0, &self.of("the manifest"), async |endpoint| {
                let body = endpoint.get(Wanted::Manifest(&version)).await?;
                let announced = body.header("docker-content-digest").map(str::to_owned);
                let bytes = body.read(limit).await?;
                // A registry may name its content by another algorithm.
                match announced.and_then(|announced| announced.parse().ok()) {
                    Some(expected) => check_digest(&bytes, expected).map(|()| bytes),
                    None => Ok(bytes),
                }
            })
            .await?;
        let digest = self.keep("the manifest", &bytes).await?;
        Ok(Document { digest, bytes, from })
    }

    /// From an index, or an index in it, to the manifest for the platform.
    async fn manifest(&self, named: Document) -> Result<(Manifest, Document), RegistryError> {
        let mut document = named;
        for _ in 0..=DEEPEST_INDEX {
            let parsed = manifest::parse(&document.bytes, &self.settings.limits());
            let index = match parsed.map_err(|cause| self.unusable("the manifest", cause))? {
                manifest::Document::Manifest(manifest) => return Ok((manifest, document)),
                manifest::Document::Index(index) => index,
            };
            let chosen = index.choose(self.platform);
            let chosen = &chosen.map_err(|cause| self.unusable("the index", cause))?.descriptor;
            let (digest, size) = (chosen.digest, chosen.size);
            document = self.document("the manifest", digest, Some(size), document.from).await?;
        }
        Err(self.unusable("the index", ManifestError::Nested))
    }

    async fn config(&self, config: &Descriptor, from: usize) -> Result<Vec<u8>, RegistryError> {
        let what = self.of("the config");
        let bytes = match self.kept(&what, config.digest).await? {
            Some(bytes) => bytes,
            None => {
                let version = config.digest.to_string();
                self.verified(&what, Wanted::Blob(&version, 0), config.digest, from).await?.0
            }
        };
        check_size(&bytes, config.size).map_err(|failure| failure.of(&what))?;
        self.keep("the config", &bytes).await?;
        Ok(bytes)
    }

    /// A manifest or an index by its digest.
    async fn document(
        &self,
        part: &str,
        digest: Digest,
        size: Option<u64>,
        from: usize,
    ) -> Result<Document, RegistryError> {
        let what = self.of(part);
        let (bytes, from) = match self.kept(&what, digest).await? {
            Some(bytes) => (bytes, from),
            None => {
                let version = digest.to_string();
                self.verified(&what, Wanted::Manifest(&version), digest, from).await?
            }
        };
        if let Some(size) = size {
            check_size(&bytes, size).map_err(|failure| failure.of(&what))?;
        }
        self.keep(part, &bytes).await?;
        Ok(Document { digest, bytes, from })
    }

    /// Something small that has this digest, and the place that had it.
    async fn verified(
        &self,
        what: &str,
        wanted: Wanted<'_>,
        expected: Digest,
        from: usize,
    ) -> Result<(Vec<u8>, usize), RegistryError> {
        let limit = self.settings.largest_manifest_bytes;
        self.anywhere(from, what, async |endpoint| {
            let bytes = endpoint.get(wanted).await?.read(limit).await?;
            check_digest(&bytes, expected).map(|()| bytes)
        })
        .await
    }

    /// Asks one place after the other, beginning with number `from`, each with its repetitions.
    async fn anywhere<T>(
        &self,
        from: usize,
        what: &str,
        mut ask: impl AsyncFnMut(&Endpoint) -> Result<T, Failure>,
    ) -> Result<(T, usize), RegistryError> {
        let mut told = None;
        for number in self.places(from) {
            let endpoint = &self.endpoints[number];
            let mut attempt = 0;
            let failure = loop {
                match ask(endpoint).await {
                    Ok(found) => return Ok((found, number)),
                    Err(Failure::Request(error))
                        if error.may_pass() && attempt < self.settings.retries =>
                    {
                        self.pause(&error, attempt).await;
                        attempt += 1;
                    }
                    Err(failure) => break failure,
                }
            };
            told = self.choose(told, number, failure.of(what));
        }
        Err(none_had_it(told))
    }

    /// The numbers of all places, beginning with this one.
    fn places(&self, from: usize) -> impl Iterator<Item = usize> + use<> {
        let count = self.endpoints.len();
        (from..from + count).map(move |number| number % count)
    }

    /// Which failure to tell when no place has it: the registry's own rather than a mirror's.
    fn choose(
        &self,
        told: Option<RegistryError>,
        number: usize,
        failure: RegistryError,
    ) -> Option<RegistryError> {
        if number + 1 == self.endpoints.len() {
            return Some(failure);
        }
        let host = &self.endpoints[number].host;
        let reason = in_one_line(&failure);
        (self.watch)(Progress::Note(&format!("the mirror {host} does not help: {reason}")));
        told.or(Some(failure))
    }

    /// Waits before the next try. There is no event to wait for: the other side is to recover meanwhile.
    async fn pause(&self, error: &RequestError, attempt: u32) {
        let pause = match error {
            RequestError::Status { retry_after: Some(asked), .. } => *asked,
            _ => self.settings.pause(attempt),
        };
        let reason = in_one_line(error);
        let note = format!("{reason}; next try in {} s", pause.as_secs_f32());
        (self.watch)(Progress::Note(&note));
        tokio::time::sleep(pause).await;
    }

    /// What is in the store from another time.
    async fn kept(&self, what: &str, digest: Digest) -> Result<Option<Vec<u8>>, RegistryError> {
        let (store, lease) = (self.store.clone(), self.lease.clone());
        let limit = self.settings.largest_manifest_bytes;
        blocking(move || {
            lease.hold(&[digest])?;
            store.read_small(digest, limit)
        })
        .await?
        .map_err(|cause| not_kept(what, cause))
    }

    async fn keep(&self, part: &str, bytes: &[u8]) -> Result<Digest, RegistryError> {
        let (store, lease, bytes) = (self.store.clone(), self.lease.clone(), bytes.to_vec());
        let what = self.of(part);
        match blocking(move || store.put(&lease, &bytes)).await? {
            Ok(digest) => Ok(digest),
            Err(AddError::Store(cause)) => Err(not_kept(&what, cause)),
            Err(AddError::Read(cause)) => {
                Err(not_kept(&what, crate::blobs::failed("copy", self.store.folder())(cause)))
            }
            Err(AddError::Wrong { .. } | AddError::Size { .. } | AddError::TooLarge { .. }) => {
                unreachable!("its digest and size were taken from these bytes")
            }
        }
    }

    async fn layers(
        &self,
        manifest: &Manifest,
        config: &ImageConfig,
        manifest_digest: Digest,
        from: usize,
    ) -> Result<Vec<Layer>, RegistryError> {
        let unique = unique(&manifest.layers, &self.of("the manifest"))?;
        let (store, lease) = (self.store.clone(), self.lease.clone());
        let sizes: Vec<(Digest, u64)> =
            unique.iter().map(|(_, layer)| (layer.digest, layer.size)).collect();
        let total_bytes = sizes.iter().map(|(_, size)| size).sum();
        let what = self.of("the layers");
        let (needed, free) = blocking(move || {
            lease.hold(&sizes.iter().map(|(digest, _)| *digest).collect::<Vec<_>>())?;
            Ok((store.missing_bytes(&sizes)?, store.room_bytes()?))
        })
        .await?
        .map_err(|cause| not_kept(&what, cause))?;
        if needed > free {
            let folder = self.store.folder().to_owned();
            return Err(RegistryError::NoSpace { needed, free, folder });
        }
        let layers = manifest.layers.len();
        (self.watch)(Progress::Resolved { manifest: manifest_digest, layers, total_bytes });
        let downloads = unique.into_iter().map(|(index, layer)| {
            let what = self.of(&format!("layer {index}"));
            Download { pull: self, index, layer, what, partial: None }.run(from)
        });
        let parallel = self.settings.parallel_downloads.max(1);
        stream::iter(downloads).buffer_unordered(parallel).try_collect::<()>().await?;
        let mut found = Vec::new();
        for (layer, diff_id) in manifest.layers.iter().zip(&config.diff_ids) {
            let path = self.store.path(layer.digest);
            let compression = Compression::of_file(&path)
                .map_err(|cause| not_kept(&what, crate::blobs::failed("read", &path)(cause)))?;
            let (digest, size_bytes, diff_id) = (layer.digest, layer.size, *diff_id);
            found.push(Layer { path, digest, size_bytes, diff_id, compression });
        }
        Ok(found)
    }
}

/// Each layer once, with its first place in the image.
fn unique<'a>(
    layers: &'a [Descriptor],
    what: &str,
) -> Result<Vec<(usize, &'a Descriptor)>, RegistryError> {
    let mut sizes = BTreeMap::new();
    let mut unique = Vec::new();
    for (index, layer) in layers.iter().enumerate() {
        match sizes.insert(layer.digest, layer.size) {
            None => unique.push((index, layer)),
            Some(one) if one == layer.size => {}
            Some(one) => {
                let (what, other) = (what.to_owned(), layer.size);
                return Err(RegistryError::TwoSizes { what, one, other });
            }
        }
    }
    Ok(unique)
}

/// One layer on its way into the store.
struct Download<'a> {
    pull: &'a Pull<'a>,
    index: usize,
    layer: &'a Descriptor,
    what: String,
    /// Ours to write, from the claim on; away only while somebody writes it.
    partial: Option<Partial>,
}

impl Download<'_> {
    async fn run(mut self, from: usize) -> Result<(), RegistryError> {
        if let Claimed::Partial(partial) = self.claim().await? {
            self.partial = Some(partial);
        } else {
            self.tell(self.layer.size, LayerState::Cached);
            return Ok(());
        }
        let mut told = None;
        for number in self.pull.places(from) {
            match self.bring(&self.pull.endpoints[number]).await? {
                Ok(()) => {
                    self.tell(self.layer.size, LayerState::Done);
                    return Ok(());
                }
                Err(failure) => told = self.pull.choose(told, number, failure.of(&self.what)),
            }
        }
        if self.length() == 0 {
            self.with(|partial| partial.discard()).await?;
        }
        Err(none_had_it(told))
    }

    fn tell(&self, done_bytes: u64, state: LayerState) {
        let (digest, total_bytes) = (self.layer.digest, self.layer.size);
        let index = self.index;
        (self.pull.watch)(Progress::Layer { index, digest, done_bytes, total_bytes, state });
    }

    /// The right to write the blob. A thread of its own waits for it: one of the runtime's would keep the program from
    /// ending.
    async fn claim(&self) -> Result<Claimed, RegistryError> {
        let store = self.pull.store.clone();
        let (digest, size) = (self.layer.digest, self.layer.size);
        let (waits, mut waiting) = mpsc::channel(1);
        let (sender, mut claimed) = oneshot::channel();
        std::thread::Builder::new()
            .name("claim".into())
            .spawn(move || {
                let claimed = store.claim(digest, size, || waits.try_send(()).unwrap_or_default());
                // Nobody listens any more when the pull was given up; what was claimed is free again then.
                sender.send(claimed).unwrap_or_default();
            })
            .map_err(|cause| {
                let path = self.pull.store.folder();
                not_kept(&self.what, crate::blobs::failed("start a thread for", path)(cause))
            })?;
        let claimed = tokio::select! {
            biased;
            Some(()) = waiting.recv() => {
                self.tell(0, LayerState::Waiting);
                claimed.await
            }
            claimed = &mut claimed => claimed,
        };
        claimed.map_err(|_| RegistryError::Ending)?.map_err(|cause| not_kept(&self.what, cause))
    }

    /// Does this to the file, where it may block.
    async fn with<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Partial) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, RegistryError> {
        let mut partial = self.partial.take().expect("it is here between two steps");
        let (partial, worked) = blocking(move || {
            let worked = work(&mut partial);
            (partial, worked)
        })
        .await?;
        self.partial = Some(partial);
        worked.map_err(|cause| not_kept(&self.what, cause))
    }

    fn length(&self) -> u64 {
        self.partial.as_ref().map_or(0, Partial::length)
    }

    /// The whole blob from this place, verified; or why not.
    async fn bring(&mut self, endpoint: &Endpoint) -> Result<Result<(), Failure>, RegistryError> {
        let expected = self.layer.digest;
        loop {
            match self.transfer(endpoint).await? {
                Ok(()) => {}
                Err(failure @ Failure::Size { .. }) => {
                    self.with(Partial::restart).await?;
                    return Ok(Err(failure));
                }
                Err(failure) => return Ok(Err(failure)),
            }
            let inherited = self.partial.as_ref().is_some_and(Partial::is_inherited);
            let Err(wrong) = self.with(move |partial| partial.finish(expected)).await? else {
                return Ok(Ok(()));
            };
            // What an earlier try left may be what is wrong, and what is wrong is of no use to the next place.
            self.with(Partial::restart).await?;
            if !inherited {
                return Ok(Err(Failure::Digest { expected, found: wrong.found }));
            }
        }
    }

    /// The bytes that are missing, with repetitions.
    async fn transfer(
        &mut self,
        endpoint: &Endpoint,
    ) -> Result<Result<(), Failure>, RegistryError> {
        let (mut attempt, mut worthy) = (0, self.length() + WORTHY_BYTES);
        loop {
            let error = match self.once(endpoint).await? {
                Ok(()) => return Ok(Ok(())),
                Err(Failure::Request(error)) => error,
                Err(failure) => return Ok(Err(failure)),
            };
            if self.length() >= worthy {
                (attempt, worthy) = (0, self.length() + WORTHY_BYTES);
            }
            if !error.may_pass() || attempt >= self.pull.settings.retries {
                return Ok(Err(Failure::Request(error)));
            }
            self.pull.pause(&error, attempt).await;
            attempt += 1;
        }
    }

    /// One request for the bytes that are missing.
    async fn once(&mut self, endpoint: &Endpoint) -> Result<Result<(), Failure>, RegistryError> {
        let (version, size) = (self.layer.digest.to_string(), self.layer.size);
        if self.length() == size {
            return Ok(Ok(()));
        }
        let mut asked = endpoint.get(Wanted::Blob(&version, self.length())).await;
        // A server that knows no such part (RFC 9110, 15.5.17).
        if matches!(asked, Err(RequestError::Status { status: 416, .. })) && self.length() > 0 {
            self.with(Partial::restart).await?;
            asked = endpoint.get(Wanted::Blob(&version, 0)).await;
        }
        let first = asked.and_then(|body| Ok((body.first_byte()?, body)));
        let (first, mut body) = match first {
            Ok(first) => first,
            Err(error) => return Ok(Err(error.into())),
        };
        if first != self.length() {
            if first != 0 {
                let host = endpoint.host.clone();
                let what = "it sends another part than it was asked for".to_owned();
                return Ok(Err(Failure::Request(RequestError::Protocol { host, what })));
            }
            self.with(Partial::restart).await?;
        }
        let length = self.length();
        let partial = self.partial.take().expect("it is here between two steps");
        let (sender, receiver) = mpsc::channel(QUEUED_PIECES);
        let writer = tokio::task::spawn_blocking(move || write(partial, receiver));
        let received = self.receive(&endpoint.host, &mut body, sender, length).await;
        let (partial, written) = joined(writer.await)?;
        self.partial = Some(partial);
        written.map_err(|cause| not_kept(&self.what, cause))?;
        Ok(received)
    }

    /// Hands the pieces to the writer, and stops at the first byte that is too much.
    async fn receive(
        &self,
        host: &str,
        body: &mut Body,
        sender: mpsc::Sender<Bytes>,
        mut length: u64,
    ) -> Result<(), Failure> {
        let size = self.layer.size;
        self.tell(length, LayerState::Downloading);
        let mut told = length;
        while let Some(piece) = body.piece().await? {
            length += piece.len() as u64;
            if length > size {
                return Err(Failure::Size { expected: size, found: length });
            }
            // A writer that has ended says itself why.
            if sender.send(piece).await.is_err() {
                return Ok(());
            }
            if length - told >= TOLD_BYTES {
                told = length;
                self.tell(length, LayerState::Downloading);
            }
        }
        if length < size {
            return Err(RequestError::Short { host: host.to_owned(), got: length, size }.into());
        }
        Ok(())
    }
}

/// Writes what comes, until nothing more does.
fn write(
    mut partial: Partial,
    mut pieces: mpsc::Receiver<Bytes>,
) -> (Partial, Result<(), StoreError>) {
    while let Some(piece) = pieces.blocking_recv() {
        if let Err(error) = partial.write(&piece) {
            return (partial, Err(error));
        }
    }
    (partial, Ok(()))
}

/// Why one place did not give what was wanted.
enum Failure {
    Request(RequestError),
    Digest { expected: Digest, found: Digest },
    Size { expected: u64, found: u64 },
}

impl From<RequestError> for Failure {
    fn from(error: RequestError) -> Self {
        Self::Request(error)
    }
}

impl Failure {
    fn of(self, what: &str) -> RegistryError {
        let what = what.to_owned();
        match self {
            Self::Request(cause) => RegistryError::Request { what, cause },
            Self::Digest { expected, found } => {
                RegistryError::WrongDigest { what, expected, found }
            }
            Self::Size { expected, found } => RegistryError::WrongSize { what, expected, found },
        }
    }
}

fn none_had_it(told: Option<RegistryError>) -> RegistryError {
    told.expect("the registry itself is among the places, so it was asked")
}

fn check_digest(bytes: &[u8], expected: Digest) -> Result<(), Failure> {
    let found = Digest::of(bytes);
    if found == expected { Ok(()) } else { Err(Failure::Digest { expected, found }) }
}

fn check_size(bytes: &[u8], expected: u64) -> Result<(), Failure> {
    let found = bytes.len() as u64;
    if found == expected { Ok(()) } else { Err(Failure::Size { expected, found }) }
}

fn not_kept(what: &str, cause: StoreError) -> RegistryError {
    RegistryError::Store { what: what.to_owned(), cause }
}

/// An error with its causes.
fn in_one_line(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

/// Does this where it may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, RegistryError> {
    joined(tokio::task::spawn_blocking(work).await)
}

fn joined<T>(ended: Result<T, tokio::task::JoinError>) -> Result<T, RegistryError> {
    ended.map_err(|error| match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(_) => RegistryError::Ending,
    })
}
