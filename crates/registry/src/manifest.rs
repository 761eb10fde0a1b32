//! What a registry says an image is: manifests, indexes (lists of manifests by platform) and configs, in the forms of the
//! OCI image specification 1.1 and of Docker's schema 2. All of it is written by strangers: sizes and counts are checked
//! before anybody acts on them, what is unknown is refused by its name, fields that say nothing may be `null`.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};

use crate::digest::{Digest, DigestError};
use crate::settings::Limits;

pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub(crate) const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// Docker's first form, unsigned and signed.
const SCHEMA_1: [&str; 2] = [
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
];

const LAYERS: [&str; 6] = [
    OCI_LAYER,
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
];
/// Layers whose content must be had elsewhere, by licence.
const FOREIGN: [&str; 2] = ["nondistributable", "rootfs.foreign"];

/// More manifests than any index has; each costs memory.
const MOST_MANIFESTS: usize = 10_000;

#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("it is not JSON of the right form: {0}")]
    Json(String),
    #[error("it has {bytes} bytes, and {limit} are allowed (`largest_manifest_bytes`)")]
    TooLarge { bytes: u64, limit: u64 },
    #[error(
        "it is of Docker's schema 1, which registries have given up: the image must be pushed again by a newer program"
    )]
    Schema1,
    #[error("its schemaVersion is {0}, not 2")]
    SchemaVersion(i64),
    #[error("its media type is {0:?}, which is no image")]
    MediaType(String),
    #[error("it has both layers and manifests, so nobody can say what it is")]
    Ambiguous,
    #[error("it has neither layers nor manifests")]
    Empty,
    #[error("its config is of type {0:?}: this is not an image that can run")]
    NoImage(String),
    #[error("layer {index} is of type {media_type:?}, which is not supported")]
    LayerType { index: usize, media_type: String },
    #[error(
        "layer {index} is of type {media_type:?}: its content is not in the registry, by its licence"
    )]
    ForeignLayer { index: usize, media_type: String },
    #[error("layer {index} is encrypted ({media_type:?}), and keys are not supported")]
    EncryptedLayer { index: usize, media_type: String },
    #[error("{what} says it has {size} bytes; 0 to {limit} are allowed")]
    Size { what: String, size: i64, limit: u64 },
    #[error("it has {count} layers, and {limit} are allowed (`most_layers`)")]
    ManyLayers { count: usize, limit: usize },
    #[error("it lists {0} manifests, and {MOST_MANIFESTS} are allowed")]
    ManyManifests(usize),
    #[error("{what} cannot be found by its digest")]
    Digest {
        what: String,
        #[source]
        cause: DigestError,
    },
    #[error("its config lists {diff_ids} layers and its manifest {layers}")]
    LayerCount { diff_ids: usize, layers: usize },
    #[error("its root file system is of type {0:?}, not `layers`")]
    RootfsType(String),
    #[error("{0} holds a NUL byte")]
    Nul(&'static str),
    #[error("it has nothing for {wanted}; there is {}", if there.is_empty() { "nothing at all".to_owned() } else { there.join(", ") })]
    Platform { wanted: Platform, there: Vec<String> },
    #[error("it is for {is}, not for {wanted}")]
    OtherPlatform { is: String, wanted: Platform },
    #[error("{0} manifests in it say no platform, and nothing else tells them apart")]
    NoPlatform(usize),
    #[error("it is an index in an index in an index")]
    Nested,
}

/// `OS/ARCHITECTURE[/VARIANT]`, in Go's words: `linux/amd64`, `linux/arm64/v8`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    pub os: String,
    pub architecture: String,
    /// `None`: the one that runs on most processors.
    pub variant: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no platform: one is OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT, as in linux/amd64"
)]
pub struct PlatformError(String);

impl Platform {
    /// This machine's.
    #[must_use]
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "x86" => "386",
            "aarch64" => "arm64",
            "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
            other => other,
        };
        Self { os: "linux".into(), architecture: architecture.into(), variant: None }
    }

    /// How well a manifest for that platform fits, less is better; `None` when it does not.
    fn fits(&self, offered: &OfferedPlatform) -> Option<usize> {
        if offered.os != self.os || offered.architecture != self.architecture {
            return None;
        }
        // What runs on any processor of the kind first.
        let order: &[&str] = match &*self.architecture {
            "amd64" => &["", "v1", "v2", "v3", "v4"],
            "arm64" => &["", "v8"],
            "arm" => &["v7", "v6", "", "v5"],
            _ => &[""],
        };
        let variant = &*offered.variant;
        match &self.variant {
            Some(wanted) if wanted == variant => Some(0),
            // The variant that needs not be said.
            Some(wanted) if variant.is_empty() && matches!(&**wanted, "v1" | "v8") => Some(1),
            Some(_) => None,
            None => Some(order.iter().position(|known| *known == variant).unwrap_or(order.len())),
        }
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let parts: Vec<&str> = text.split('/').collect();
        let is_good = |part: &&str| {
            !part.is_empty()
                && part.len() < 32
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric())
        };
        if !(2..=3).contains(&parts.len()) || !parts.iter().all(is_good) {
            return Err(PlatformError(text.chars().take(100).collect()));
        }
        Ok(Self {
            os: parts[0].into(),
            architecture: parts[1].into(),
            variant: parts.get(2).map(|part| (*part).into()),
        })
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.iter().try_for_each(|variant| write!(f, "/{variant}"))
    }
}

/// What a manifest or an index points at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
}

/// One image for one platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    pub config: Descriptor,
    /// The lowest first.
    pub layers: Vec<Descriptor>,
}

/// Images that are listed under one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    pub manifests: Vec<Listed>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub descriptor: Descriptor,
    /// As it says of itself; `None` when it does not.
    pub platform: Option<OfferedPlatform>,
    pub annotations: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OfferedPlatform {
    pub os: String,
    pub architecture: String,
    pub variant: String,
}

impl fmt::Display for OfferedPlatform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown =
            |text: &str| text.chars().take(32).collect::<String>().escape_debug().to_string();
        write!(f, "{}/{}", shown(&self.os), shown(&self.architecture))?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, "/{}", shown(&self.variant)) }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    Manifest(Manifest),
    Index(Index),
}

/// Reads a manifest or an index.
///
/// # Errors
/// What it is instead of an image that we can use, or which bound it breaks.
pub fn parse(bytes: &[u8], limits: &Limits) -> Result<Document, ManifestError> {
    check_size(bytes, limits)?;
    let raw: RawDocument = serde_json::from_slice(bytes).map_err(|error| not_json(&error))?;
    let media_type = raw.media_type.unwrap_or_default();
    if SCHEMA_1.contains(&&*media_type) || raw.schema_version == 1 {
        return Err(ManifestError::Schema1);
    }
    if raw.schema_version != 2 {
        return Err(ManifestError::SchemaVersion(raw.schema_version));
    }
    // A document that can be read as both has been used to show one program another image than the next one
    // (CVE-2021-41190).
    let is_index = match (raw.layers.is_some() || raw.config.is_some(), raw.manifests.is_some()) {
        (true, true) => return Err(ManifestError::Ambiguous),
        (false, false) => return Err(ManifestError::Empty),
        (_, is_index) => is_index,
    };
    let expected: &[&str] = if is_index {
        &["", OCI_INDEX, DOCKER_INDEX]
    } else {
        &["", OCI_MANIFEST, DOCKER_MANIFEST]
    };
    if !expected.contains(&&*media_type) {
        return Err(ManifestError::MediaType(shown(&media_type)));
    }
    if is_index {
        index(raw.manifests.unwrap_or_default(), limits).map(Document::Index)
    } else {
        let config = raw.config.ok_or(ManifestError::Empty)?;
        manifest(config, raw.layers.unwrap_or_default(), limits).map(Document::Manifest)
    }
}

fn check_size(bytes: &[u8], limits: &Limits) -> Result<(), ManifestError> {
    let (bytes, limit) = (bytes.len() as u64, limits.largest_manifest_bytes);
    if bytes > limit { Err(ManifestError::TooLarge { bytes, limit }) } else { Ok(()) }
}

fn index(raw: Vec<RawDescriptor>, limits: &Limits) -> Result<Index, ManifestError> {
    if raw.len() > MOST_MANIFESTS {
        return Err(ManifestError::ManyManifests(raw.len()));
    }
    // Entries of a kind we do not know are not ours to judge: an index may list signatures, charts and more.
    let known = |raw: &RawDescriptor| {
        [OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST]
            .contains(&raw.media_type.as_deref().unwrap_or_default())
    };
    let mut manifests = Vec::new();
    for (number, mut raw) in raw.into_iter().enumerate().filter(|(_, raw)| known(raw)) {
        let platform = raw.platform.take().map(|platform| OfferedPlatform {
            os: platform.os.unwrap_or_default(),
            architecture: platform.architecture.unwrap_or_default(),
            variant: platform.variant.unwrap_or_default(),
        });
        let annotations = raw.annotations.take().unwrap_or_default();
        let annotations =
            annotations.into_iter().filter_map(|(key, value)| Some((key, value?))).collect();
        let descriptor = raw.check(&format!("manifest {number}"), limits.largest_manifest_bytes)?;
        manifests.push(Listed { descriptor, platform, annotations });
    }
    Ok(Index { manifests })
}

fn manifest(
    config: RawDescriptor,
    layers: Vec<RawDescriptor>,
    limits: &Limits,
) -> Result<Manifest, ManifestError> {
    let config = config.check("the config", limits.largest_manifest_bytes)?;
    if ![OCI_CONFIG, DOCKER_CONFIG].contains(&&*config.media_type) {
        return Err(ManifestError::NoImage(shown(&config.media_type)));
    }
    if layers.len() > limits.most_layers {
        return Err(ManifestError::ManyLayers { count: layers.len(), limit: limits.most_layers });
    }
    let mut checked = Vec::new();
    for (index, layer) in layers.into_iter().enumerate() {
        let kind = layer.media_type.as_deref().unwrap_or_default();
        let media_type = shown(kind);
        if FOREIGN.iter().any(|foreign| kind.contains(foreign)) {
            return Err(ManifestError::ForeignLayer { index, media_type });
        }
        if kind.ends_with("+encrypted") {
            return Err(ManifestError::EncryptedLayer { index, media_type });
        }
        if !LAYERS.contains(&kind) {
            return Err(ManifestError::LayerType { index, media_type });
        }
        checked.push(layer.check(&format!("layer {index}"), limits.largest_blob_bytes)?);
    }
    Ok(Manifest { config, layers: checked })
}

impl Index {
    /// The one manifest, or index, for that platform.
    ///
    /// # Errors
    /// When there is none, naming what there is, or when several say no platform.
    pub fn choose(&self, wanted: &Platform) -> Result<&Listed, ManifestError> {
        let fitting = self
            .manifests
            .iter()
            .filter_map(|listed| Some((wanted.fits(listed.platform.as_ref()?)?, listed)));
        // The first of the best, as every program takes it.
        if let Some((_, listed)) = fitting.min_by_key(|(rank, _)| *rank) {
            return Ok(listed);
        }
        let silent: Vec<&Listed> =
            self.manifests.iter().filter(|listed| listed.platform.is_none()).collect();
        match silent[..] {
            [listed] => Ok(listed),
            [] => Err(ManifestError::Platform { wanted: wanted.clone(), there: self.platforms() }),
            _ => Err(ManifestError::NoPlatform(silent.len())),
        }
    }

    /// For people: what there is, without the `unknown/unknown` of attestations.
    fn platforms(&self) -> Vec<String> {
        let platforms = self.manifests.iter().filter_map(|listed| listed.platform.as_ref());
        let mut platforms: Vec<String> = platforms
            .filter(|platform| platform.os != "unknown")
            .map(ToString::to_string)
            .take(50)
            .collect();
        platforms.sort();
        platforms.dedup();
        platforms
    }
}

/// What an image says about its files and about how to run them. Empty is the same as not said.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    pub os: String,
    pub architecture: String,
    pub variant: String,
    /// The program and its first arguments.
    pub entrypoint: Vec<String>,
    /// Arguments after the entrypoint, or the program when there is none.
    pub cmd: Vec<String>,
    /// `NAME=VALUE` each.
    pub env: Vec<String>,
    pub working_dir: String,
    /// `USER[:GROUP]`, names or numbers.
    pub user: String,
    /// A name or a number: `SIGTERM`, `15`.
    pub stop_signal: String,
    /// `PORT[/PROTOCOL]` each, sorted.
    pub exposed_ports: Vec<String>,
    /// Folders that are meant to be volumes, sorted.
    pub volumes: Vec<String>,
    pub labels: BTreeMap<String, String>,
    /// The digest of each layer, uncompressed, the lowest first.
    pub diff_ids: Vec<Digest>,
}

impl ImageConfig {
    /// Reads the config of an image.
    ///
    /// # Errors
    /// When it is not one, or breaks a bound.
    pub fn parse(bytes: &[u8], limits: &Limits) -> Result<Self, ManifestError> {
        check_size(bytes, limits)?;
        let raw: RawImage = serde_json::from_slice(bytes).map_err(|error| not_json(&error))?;
        let rootfs = raw.rootfs.unwrap_or_default();
        match rootfs.kind.as_deref() {
            None | Some("" | "layers") => {}
            Some(other) => return Err(ManifestError::RootfsType(shown(other))),
        }
        let diff_ids = rootfs.diff_ids.unwrap_or_default();
        if diff_ids.len() > limits.most_layers {
            let (count, limit) = (diff_ids.len(), limits.most_layers);
            return Err(ManifestError::ManyLayers { count, limit });
        }
        let diff_ids = diff_ids.iter().enumerate().map(|(index, digest)| {
            digest.parse().map_err(|cause| ManifestError::Digest {
                what: format!("the content of layer {index}"),
                cause,
            })
        });
        let run = raw.config.unwrap_or_default();
        let labels = run.labels.unwrap_or_default().into_iter();
        let config = Self {
            os: raw.os.unwrap_or_default(),
            architecture: raw.architecture.unwrap_or_default(),
            variant: raw.variant.unwrap_or_default(),
            entrypoint: run.entrypoint.unwrap_or_default().0,
            cmd: run.cmd.unwrap_or_default().0,
            env: run.env.unwrap_or_default(),
            working_dir: run.working_dir.unwrap_or_default(),
            user: run.user.unwrap_or_default(),
            stop_signal: run.stop_signal.unwrap_or_default(),
            exposed_ports: run.exposed_ports.unwrap_or_default().into_keys().collect(),
            volumes: run.volumes.unwrap_or_default().into_keys().collect(),
            labels: labels.map(|(key, value)| (key, value.unwrap_or_default())).collect(),
            diff_ids: diff_ids.collect::<Result<_, _>>()?,
        };
        config.check_strings()?;
        Ok(config)
    }

    /// What becomes an argument, a variable or a path cannot hold a NUL byte.
    fn check_strings(&self) -> Result<(), ManifestError> {
        let one = std::slice::from_ref::<String>;
        let named: [(&'static str, &[String]); 7] = [
            ("its entrypoint", &self.entrypoint),
            ("its command", &self.cmd),
            ("its environment", &self.env),
            ("its working folder", one(&self.working_dir)),
            ("its user", one(&self.user)),
            ("its stop signal", one(&self.stop_signal)),
            ("a volume of it", &self.volumes),
        ];
        match named.iter().find(|(_, texts)| texts.iter().any(|text| text.contains('\0'))) {
            Some((name, _)) => Err(ManifestError::Nul(name)),
            None => Ok(()),
        }
    }

    /// Whether it belongs to a manifest with so many layers, and to the platform that was wanted.
    ///
    /// # Errors
    /// When it does not.
    pub fn check_against(&self, layers: usize, wanted: &Platform) -> Result<(), ManifestError> {
        if self.diff_ids.len() != layers {
            return Err(ManifestError::LayerCount { diff_ids: self.diff_ids.len(), layers });
        }
        let is = OfferedPlatform {
            os: self.os.clone(),
            architecture: self.architecture.clone(),
            variant: self.variant.clone(),
        };
        let other = (!is.os.is_empty() && is.os != wanted.os)
            || (!is.architecture.is_empty() && is.architecture != wanted.architecture);
        if other {
            return Err(ManifestError::OtherPlatform {
                is: is.to_string(),
                wanted: wanted.clone(),
            });
        }
        Ok(())
    }
}

/// serde's words quote what they do not like, however long it is.
fn not_json(error: &serde_json::Error) -> ManifestError {
    ManifestError::Json(shown(&error.to_string()).escape_debug().to_string())
}

/// Someone else's text in a message of ours is short.
fn shown(text: &str) -> String {
    text.chars().take(120).collect()
}

#[derive(Deserialize)]
struct RawDocument {
    #[serde(rename = "schemaVersion", default)]
    schema_version: i64,
    #[serde(rename = "mediaType")]
    media_type: Option<String>,
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
    manifests: Option<Vec<RawDescriptor>>,
}

#[derive(Deserialize)]
struct RawDescriptor {
    #[serde(rename = "mediaType")]
    media_type: Option<String>,
    #[serde(default)]
    digest: String,
    #[serde(default)]
    size: i64,
    platform: Option<RawPlatform>,
    annotations: Option<BTreeMap<String, Option<String>>>,
}

impl RawDescriptor {
    fn check(self, what: &str, limit: u64) -> Result<Descriptor, ManifestError> {
        let size = match u64::try_from(self.size) {
            Ok(size) if size <= limit => size,
            _ => return Err(ManifestError::Size { what: what.to_owned(), size: self.size, limit }),
        };
        let digest = self
            .digest
            .parse()
            .map_err(|cause| ManifestError::Digest { what: what.to_owned(), cause })?;
        Ok(Descriptor { media_type: self.media_type.unwrap_or_default(), digest, size })
    }
}

#[derive(Deserialize)]
struct RawPlatform {
    os: Option<String>,
    architecture: Option<String>,
    variant: Option<String>,
}

#[derive(Deserialize)]
struct RawImage {
    os: Option<String>,
    architecture: Option<String>,
    variant: Option<String>,
    config: Option<RawRun>,
    rootfs: Option<RawRootfs>,
}

#[derive(Deserialize, Default)]
struct RawRootfs {
    #[serde(rename = "type")]
    kind: Option<String>,
    diff_ids: Option<Vec<String>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase")]
struct RawRun {
    entrypoint: Option<Words>,
    cmd: Option<Words>,
    env: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
    stop_signal: Option<String>,
    exposed_ports: Option<BTreeMap<String, serde::de::IgnoredAny>>,
    volumes: Option<BTreeMap<String, serde::de::IgnoredAny>>,
    labels: Option<BTreeMap<String, Option<String>>>,
}

/// Words of a command; old images have one string for one word.
#[derive(Default)]
struct Words(Vec<String>);

impl<'de> Deserialize<'de> for Words {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Many(Vec<String>),
            One(String),
        }
        Ok(match Form::deserialize(deserializer)? {
            Form::Many(words) => Self(words),
            Form::One(word) => Self(vec![word]),
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::{Value, json};

    use super::*;

    pub(crate) fn sample_manifest() -> Value {
        json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": OCI_CONFIG, "digest": Digest::of(b"c").to_string(), "size": 2},
            "layers": [
                {"mediaType": LAYERS[1], "digest": Digest::of(b"1").to_string(), "size": 10, "annotations": null},
                {"mediaType": LAYERS[4], "digest": Digest::of(b"2").to_string(), "size": 0},
            ],
            "annotations": {"unknown": "kept out"},
        })
    }

    fn entry(digest: &[u8], platform: Value) -> Value {
        json!({"mediaType": OCI_MANIFEST, "digest": Digest::of(digest).to_string(), "size": 5, "platform": platform})
    }

    fn platform(text: &str) -> Value {
        let parts: Vec<&str> = text.split('/').collect();
        match parts[..] {
            [os, architecture] => json!({"os": os, "architecture": architecture}),
            [os, architecture, variant] => {
                json!({"os": os, "architecture": architecture, "variant": variant})
            }
            _ => panic!("{text}"),
        }
    }

    pub(crate) fn sample_index(platforms: &[&str]) -> Value {
        let manifests: Vec<Value> =
            platforms.iter().map(|text| entry(text.as_bytes(), platform(text))).collect();
        json!({"schemaVersion": 2, "mediaType": DOCKER_INDEX, "manifests": manifests})
    }

    pub(crate) fn sample_config() -> Value {
        json!({
            "os": "linux", "architecture": "amd64", "history": [{"created_by": "x"}],
            "config": {
                "Entrypoint": ["/init", "-x"], "Cmd": null, "Env": ["A=1"], "WorkingDir": "/srv", "User": "1:2",
                "StopSignal": "SIGINT", "ExposedPorts": {"80/tcp": {}, "53/udp": {}}, "Volumes": {"/v": {}},
                "Labels": {"a": "b", "c": null}, "Healthcheck": {"Test": []},
            },
            "rootfs": {"type": "layers", "diff_ids": [Digest::of(b"1").to_string()]},
        })
    }

    fn read(value: &Value) -> Result<Document, ManifestError> {
        parse(&serde_json::to_vec(value).unwrap(), &Limits::default())
    }

    #[track_caller]
    fn refused(value: &Value) -> String {
        read(value).unwrap_err().to_string()
    }

    /// The sample, with what is at the pointer replaced.
    fn with(mut sample: Value, pointer: &str, value: Value) -> Value {
        *sample.pointer_mut(pointer).unwrap() = value;
        sample
    }

    #[test]
    fn a_manifest_is_read() {
        let Document::Manifest(manifest) = read(&sample_manifest()).unwrap() else { panic!() };
        assert_eq!(manifest.config.digest, Digest::of(b"c"));
        assert_eq!(manifest.layers.iter().map(|layer| layer.size).collect::<Vec<_>>(), [10, 0]);
        // The media type of the document itself may be left out.
        read(&with(sample_manifest(), "/mediaType", Value::Null)).unwrap();
    }

    #[test]
    fn what_is_no_image_is_refused_by_its_name() {
        let sample = sample_manifest;
        for (document, reason) in [
            (json!([]), "not JSON of the right form"),
            (json!({"schemaVersion": 1, "fsLayers": []}), "schema 1"),
            (with(sample(), "/mediaType", json!(SCHEMA_1[1])), "schema 1"),
            (with(sample(), "/schemaVersion", json!(3)), "schemaVersion is 3"),
            (with(sample(), "/mediaType", json!(OCI_INDEX)), "which is no image"),
            (with(sample(), "/mediaType", json!("x/y")), "\"x/y\""),
            (json!({"schemaVersion": 2}), "neither layers nor manifests"),
            (json!({"schemaVersion": 2, "layers": []}), "neither layers nor manifests"),
            (with(sample(), "/annotations", json!({})), ""),
            (
                with(
                    sample(),
                    "/config/mediaType",
                    json!("application/vnd.cncf.helm.config.v1+json"),
                ),
                "not an image that can run",
            ),
            (
                with(sample(), "/layers/1/mediaType", json!("text/plain")),
                "layer 1 is of type \"text/plain\"",
            ),
            (
                with(
                    sample(),
                    "/layers/0/mediaType",
                    json!("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"),
                ),
                "by its licence",
            ),
            (
                with(sample(), "/layers/0/mediaType", json!(format!("{}+encrypted", LAYERS[1]))),
                "is encrypted",
            ),
            (with(sample(), "/layers/0/size", json!(-1)), "layer 0 says it has -1 bytes"),
            (with(sample(), "/layers/0/size", json!(1_i64 << 60)), "are allowed"),
            (with(sample(), "/layers/0/size", json!(1.5)), "not JSON of the right form"),
            (with(sample(), "/layers/0/digest", json!("md5:0")), "layer 0 cannot be found"),
            (with(sample(), "/config/size", json!(1 << 30)), "the config says"),
            (
                with(sample(), "/layers", Value::Array(vec![sample()["layers"][0].clone(); 128])),
                "has 128 layers, and 127",
            ),
        ] {
            if reason.is_empty() {
                read(&document).unwrap();
            } else {
                let error = refused(&document);
                assert!(error.contains(reason), "{reason}: {error}");
            }
        }
        let mut both = sample();
        both["manifests"] = json!([]);
        assert!(refused(&both).contains("both layers and manifests"));
        let small = Limits { largest_manifest_bytes: 10, ..Limits::default() };
        let error = parse(&serde_json::to_vec(&sample()).unwrap(), &small).unwrap_err();
        assert!(matches!(error, ManifestError::TooLarge { limit: 10, .. }));
    }

    #[track_caller]
    fn chosen(index: &Value, wanted: &str) -> Result<Digest, String> {
        let Document::Index(index) = read(index).unwrap() else { panic!() };
        let chosen = index.choose(&wanted.parse().unwrap());
        chosen.map(|listed| listed.descriptor.digest).map_err(|error| error.to_string())
    }

    #[test]
    fn the_manifest_for_the_platform_is_chosen() {
        let index = sample_index(&[
            "linux/amd64/v3",
            "windows/amd64",
            "linux/amd64",
            "linux/arm/v6",
            "linux/arm/v7",
            "linux/arm64/v8",
            "unknown/unknown",
        ]);
        for (wanted, expected) in [
            ("linux/amd64", "linux/amd64"),
            ("linux/amd64/v3", "linux/amd64/v3"),
            ("linux/amd64/v1", "linux/amd64"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/arm/v6", "linux/arm/v6"),
            ("linux/arm64", "linux/arm64/v8"),
            ("linux/arm64/v8", "linux/arm64/v8"),
        ] {
            assert_eq!(chosen(&index, wanted), Ok(Digest::of(expected.as_bytes())), "{wanted}");
        }
        assert_eq!(
            chosen(&index, "linux/riscv64").unwrap_err(),
            "it has nothing for linux/riscv64; there is linux/amd64, linux/amd64/v3, linux/arm/v6, linux/arm/v7, linux/arm64/v8, windows/amd64"
        );
        assert!(
            chosen(&index, "linux/amd64/v2").unwrap_err().contains("nothing for linux/amd64/v2")
        );
    }

    #[test]
    fn one_manifest_without_a_platform_is_taken_and_two_are_not() {
        let silent = |digest| entry(digest, Value::Null);
        let index = json!({"schemaVersion": 2, "manifests": [silent(b"a")]});
        assert_eq!(chosen(&index, "linux/amd64"), Ok(Digest::of(b"a")));
        let index = json!({"schemaVersion": 2, "manifests": [silent(b"a"), silent(b"b")]});
        assert!(chosen(&index, "linux/amd64").unwrap_err().starts_with("2 manifests in it"));
    }

    #[test]
    fn what_an_index_lists_beside_images_is_passed_over() {
        let mut index = sample_index(&["linux/amd64"]);
        let chart = json!({"mediaType": "application/x", "digest": "sha512:0", "size": -1});
        index["manifests"].as_array_mut().unwrap().insert(0, chart);
        assert_eq!(chosen(&index, "linux/amd64"), Ok(Digest::of(b"linux/amd64")));
    }

    #[test]
    fn a_platform_is_refused_with_its_form() {
        for text in ["", "linux", "linux/", "/amd64", "linux/amd64/", "a/b/c/d", "linux/am d"] {
            assert!(text.parse::<Platform>().is_err(), "{text}");
        }
        assert_eq!("linux/arm64/v8".parse::<Platform>().unwrap().to_string(), "linux/arm64/v8");
    }

    fn config(value: &Value) -> Result<ImageConfig, ManifestError> {
        ImageConfig::parse(&serde_json::to_vec(value).unwrap(), &Limits::default())
    }

    #[test]
    fn a_config_is_read() {
        let config = config(&sample_config()).unwrap();
        assert_eq!(config.entrypoint, ["/init", "-x"]);
        assert_eq!(config.cmd, [""; 0]);
        assert_eq!(config.env, ["A=1"]);
        assert_eq!(
            (&*config.working_dir, &*config.user, &*config.stop_signal),
            ("/srv", "1:2", "SIGINT")
        );
        assert_eq!(config.exposed_ports, ["53/udp", "80/tcp"]);
        assert_eq!(config.volumes, ["/v"]);
        assert_eq!(config.labels["a"], "b");
        assert_eq!(config.diff_ids, [Digest::of(b"1")]);
        let again: ImageConfig =
            serde_json::from_str(&serde_json::to_string(&config).unwrap()).unwrap();
        assert_eq!(again, config);
    }

    #[test]
    fn a_config_may_say_nothing() {
        assert_eq!(config(&json!({})).unwrap(), ImageConfig::default());
        let nulls = json!({
            "os": null, "architecture": null, "rootfs": {"type": "layers", "diff_ids": null},
            "config": {
                "Entrypoint": null, "Cmd": null, "Env": null, "WorkingDir": null, "User": null, "StopSignal": null,
                "ExposedPorts": null, "Volumes": null, "Labels": null,
            },
        });
        assert_eq!(config(&nulls).unwrap(), ImageConfig::default());
        assert_eq!(
            config(&json!({"config": null, "rootfs": null})).unwrap(),
            ImageConfig::default()
        );
        assert_eq!(config(&json!({"config": {"Cmd": "sh"}})).unwrap().cmd, ["sh"]);
    }

    #[test]
    fn a_config_of_another_image_is_refused() {
        let read = config(&sample_config()).unwrap();
        let amd64: Platform = "linux/amd64".parse().unwrap();
        read.check_against(1, &amd64).unwrap();
        let error = read.check_against(2, &amd64).unwrap_err();
        assert_eq!(error.to_string(), "its config lists 1 layers and its manifest 2");
        let error = read.check_against(1, &"linux/arm64".parse().unwrap()).unwrap_err();
        assert_eq!(error.to_string(), "it is for linux/amd64, not for linux/arm64");
        let error = config(&with(sample_config(), "/config/Env", json!(["A=\0"]))).unwrap_err();
        assert_eq!(error.to_string(), "its environment holds a NUL byte");
        let error = config(&with(sample_config(), "/rootfs/type", json!("x"))).unwrap_err();
        assert!(error.to_string().contains("not `layers`"));
    }
}
