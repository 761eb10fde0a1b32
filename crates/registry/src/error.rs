//! What can go wrong between a name and its verified blobs.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::blobs::StoreError;
use crate::credentials::CredentialError;
use crate::digest::Digest;
use crate::manifest::ManifestError;

/// What kind of trouble an error is, for whoever maps it to a code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// What was given, or what came, is not what it should be.
    Input,
    NotFound,
    /// The registry wants other credentials.
    Denied,
    Network,
    Timeout,
    NoSpace,
    /// A failure of the host, or a defect.
    Host,
}

#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error("the setting `registry.{setting}` cannot be used: {why}")]
    Setting { setting: &'static str, why: String },
    #[error("cannot prepare connections to registries")]
    Client(#[source] reqwest::Error),
    #[error("cannot get {what}")]
    Request {
        what: String,
        #[source]
        cause: RequestError,
    },
    #[error("cannot use {what}")]
    Manifest {
        what: String,
        #[source]
        cause: Box<ManifestError>,
    },
    #[error(
        "{what} has the digest {found}, and {expected} was announced: it was changed on its way or in the registry"
    )]
    WrongDigest { what: String, expected: Digest, found: Digest },
    #[error("{what} has {found} bytes or more, and {expected} were announced")]
    WrongSize { what: String, expected: u64, found: u64 },
    #[error("{what} says two sizes for one digest: {one} and {other} bytes")]
    TwoSizes { what: String, one: u64, other: u64 },
    #[error("{needed} bytes are to be kept, and {folder} has room for {free}")]
    NoSpace { needed: u64, free: u64, folder: PathBuf },
    #[error("cannot keep {what}")]
    Store {
        what: String,
        #[source]
        cause: StoreError,
    },
    #[error("cannot use {path}")]
    Local {
        path: PathBuf,
        #[source]
        cause: Box<LocalError>,
    },
    #[error("the program is ending")]
    Ending,
}

/// Why a request to a registry did not bring what it should.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    #[error("{host} does not have it{}", and(message))]
    NotFound { host: String, message: String },
    #[error("{host} {}{}", if *with_credentials { "refuses the credentials that are there" } else { "wants credentials, or does not have it" }, and(message))]
    Denied {
        host: String,
        with_credentials: bool,
        message: String,
        /// Why there are no credentials, if that is known.
        #[source]
        cause: Option<Arc<CredentialError>>,
    },
    #[error("{host} answers with status {status}{}", and(message))]
    Status { host: String, status: u16, message: String, retry_after: Option<Duration> },
    #[error("cannot talk with {host}")]
    Send {
        host: String,
        #[source]
        cause: reqwest::Error,
    },
    #[error("{host} sent nothing for {} s", after.as_secs_f32())]
    Stalled { host: String, after: Duration },
    #[error("{host} ended the transfer after {got} of {size} bytes")]
    Short { host: String, got: u64, size: u64 },
    #[error("{host} sends more than {limit} bytes")]
    TooLarge { host: String, limit: u64 },
    #[error("{host} does not keep to the protocol: {what}")]
    Protocol { host: String, what: String },
}

/// Why a folder or an archive is not an image that we can use.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    #[error("cannot read {what}")]
    Read {
        what: String,
        #[source]
        cause: std::io::Error,
    },
    #[error("{0} is not in it")]
    Absent(String),
    #[error("it is neither an OCI layout, nor an archive of one, nor what `docker save` writes")]
    Unknown,
    #[error("it is compressed with {0}: unpack it first")]
    Compressed(&'static str),
    #[error("cannot use {what}")]
    Manifest {
        what: String,
        #[source]
        cause: Box<ManifestError>,
    },
    #[error("{what} is not JSON of the right form: {why}")]
    Json { what: String, why: String },
    #[error("it is an OCI layout of version {0:?}, not 1.0.0")]
    Version(String),
    #[error("{name:?} in it leads out of it, or is a link")]
    Escapes { name: String },
    #[error("it has more than {0} files")]
    ManyFiles(usize),
    #[error("{what} has more than {limit} bytes")]
    TooLarge { what: String, limit: u64 },
    #[error("it has no image{}", named(wanted))]
    NoImage { wanted: Option<String>, there: Vec<String> },
    #[error("it has several images")]
    ManyImages { there: Vec<String> },
    #[error("{what} has the digest {found}, and {expected} was announced")]
    WrongDigest { what: String, expected: Digest, found: Digest },
    #[error("{what} has {found} bytes, and {expected} were announced")]
    WrongSize { what: String, expected: u64, found: u64 },
}

fn other_platforms(cause: &ManifestError) -> Option<String> {
    match cause {
        ManifestError::Platform { there, .. } if !there.is_empty() => {
            Some(format!("take one of these with --platform: {}", there.join(", ")))
        }
        _ => None,
    }
}

fn and(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}

fn named(wanted: &Option<String>) -> String {
    wanted.as_ref().map(|name| format!(" of the name {name:?}")).unwrap_or_default()
}

impl RegistryError {
    #[must_use]
    pub fn trouble(&self) -> Trouble {
        match self {
            Self::Setting { .. }
            | Self::Manifest { .. }
            | Self::WrongDigest { .. }
            | Self::WrongSize { .. }
            | Self::TwoSizes { .. } => Trouble::Input,
            Self::Request { cause, .. } => cause.trouble(),
            Self::NoSpace { .. } => Trouble::NoSpace,
            Self::Store { cause, .. } if cause.is_no_space() => Trouble::NoSpace,
            Self::Store { cause, .. } if cause.is_timeout() => Trouble::Timeout,
            Self::Local { cause, .. } => cause.trouble(),
            Self::Client(_) | Self::Store { .. } | Self::Ending => Trouble::Host,
        }
    }

    /// What the user can do, where there is something.
    #[must_use]
    pub fn remedy(&self) -> Option<String> {
        match self {
            Self::Request { cause, .. } => cause.remedy(),
            Self::Manifest { cause, .. } => other_platforms(cause),
            Self::WrongDigest { .. } | Self::WrongSize { .. } => Some(
                "try again; if it stays so, tell whoever runs the registry or the mirror".into(),
            ),
            Self::NoSpace { .. } => {
                Some("free space, or take away images that are not needed".into())
            }
            Self::Store { cause, .. } if cause.is_no_space() => {
                Some("free space, or take away images that are not needed".into())
            }
            Self::Local { cause, .. } => cause.remedy(),
            _ => None,
        }
    }
}

impl RequestError {
    #[must_use]
    pub fn trouble(&self) -> Trouble {
        match self {
            Self::NotFound { .. } => Trouble::NotFound,
            Self::Denied { .. } => Trouble::Denied,
            Self::Stalled { .. } => Trouble::Timeout,
            Self::Send { cause, .. } if cause.is_timeout() => Trouble::Timeout,
            Self::TooLarge { .. } | Self::Protocol { .. } => Trouble::Input,
            Self::Status { .. } | Self::Send { .. } | Self::Short { .. } => Trouble::Network,
        }
    }

    fn remedy(&self) -> Option<String> {
        match self {
            Self::NotFound { .. } => Some("check the name and the tag".into()),
            Self::Denied { host, .. } => Some(format!(
                "check the name; if it is right, `docker login {host}` or `podman login {host}` as the user of the daemon"
            )),
            Self::Status { status: 429, .. } => {
                Some("wait; registries let those who are logged in download more".into())
            }
            Self::Send { cause, .. } if is_bad_certificate(cause) => Some(
                "when its certificate is signed by an authority of your own, name that in `registry.ca_files`".into(),
            ),
            Self::Send { host, cause } if is_no_tls(cause) => {
                Some(format!("when it speaks plain HTTP, say so: `registry.insecure = [\"{host}\"]`"))
            }
            Self::Send { .. } | Self::Stalled { .. } => {
                Some("check the network, and the proxy's variables of the daemon (HTTPS_PROXY)".into())
            }
            _ => None,
        }
    }

    /// Whether the same request may succeed a moment later.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            Self::Status { status, .. } => matches!(status, 408 | 429 | 500 | 502 | 503 | 504),
            Self::Stalled { .. } | Self::Short { .. } => true,
            Self::Send { cause, .. } if cause.is_connect() => cause.is_timeout() || is_cut(cause),
            Self::Send { cause, .. } => !cause.is_redirect() && !cause.is_builder(),
            Self::NotFound { .. }
            | Self::Denied { .. }
            | Self::TooLarge { .. }
            | Self::Protocol { .. } => false,
        }
    }
}

impl LocalError {
    fn trouble(&self) -> Trouble {
        match self {
            Self::Read { cause, .. } if cause.kind() != std::io::ErrorKind::NotFound => {
                Trouble::Host
            }
            Self::Read { .. } | Self::Absent(_) | Self::NoImage { .. } => Trouble::NotFound,
            _ => Trouble::Input,
        }
    }

    fn remedy(&self) -> Option<String> {
        match self {
            Self::NoImage { there, .. } | Self::ManyImages { there } if !there.is_empty() => {
                Some(format!("name one of these: {}", there.join(", ")))
            }
            Self::Manifest { cause, .. } => other_platforms(cause),
            Self::Compressed("gzip") => Some("`gunzip` does that".into()),
            _ => None,
        }
    }
}

/// The causes of an error. An `io::Error` hides what it wraps from `source()`, so that is shown too.
fn causes<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| {
        let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        wrapped.map(|inner| inner as &(dyn std::error::Error + 'static)).or_else(|| error.source())
    })
    .take(20)
}

fn tls_error(error: &reqwest::Error) -> Option<&rustls::Error> {
    causes(error).find_map(|cause| cause.downcast_ref())
}

pub(crate) fn is_bad_certificate(error: &reqwest::Error) -> bool {
    matches!(tls_error(error), Some(rustls::Error::InvalidCertificate(_)))
}

/// The other side does not speak TLS.
pub(crate) fn is_no_tls(error: &reqwest::Error) -> bool {
    matches!(tls_error(error), Some(rustls::Error::InvalidMessage(_)))
}

/// The connection was there, and ended.
pub(crate) fn is_cut(error: &reqwest::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    causes(error).filter_map(|cause| cause.downcast_ref::<std::io::Error>()).any(|cause| {
        matches!(cause.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
    })
}
