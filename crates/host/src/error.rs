//! What a claim's making or undoing says when it fails: the act, its object, and the cause behind.

use std::io;
use std::path::Path;

/// An act on the host that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {act}")]
pub struct HostError {
    act: String,
    kind: io::ErrorKind,
    #[source]
    cause: io::Error,
}

impl HostError {
    pub fn new(act: impl Into<String>, cause: impl Into<io::Error>) -> Self {
        let cause = cause.into();
        Self { act: act.into(), kind: cause.kind(), cause }
    }

    /// With a cause that is a sentence of our own.
    pub fn because(act: impl Into<String>, cause: impl Into<String>) -> Self {
        Self::new(act, io::Error::other(cause.into()))
    }

    #[must_use]
    pub fn kind(&self) -> io::ErrorKind {
        self.kind
    }
}

/// `act path` as the description of an act.
pub(crate) fn on(act: &str, path: &Path) -> impl FnOnce(io::Error) -> HostError {
    let act = format!("{act} {}", path.display());
    move |cause| HostError::new(act, cause)
}

/// An error and its causes as one sentence.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
