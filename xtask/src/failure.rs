//! The one shape of an error here: what we were doing to what, why it failed, what to do next.

use std::error::Error;
use std::fmt;

#[derive(Debug)]
pub(crate) struct Failure {
    what: String,
    causes: Vec<String>,
    remedies: Vec<String>,
}

impl Failure {
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), causes: Vec::new(), remedies: Vec::new() }
    }

    /// Adds an error and its chain of sources.
    pub(crate) fn cause(mut self, error: &(dyn Error + 'static)) -> Self {
        self.causes.extend(
            std::iter::successors(Some(error), |&error| error.source()).map(ToString::to_string),
        );
        self
    }

    pub(crate) fn because(mut self, cause: impl Into<String>) -> Self {
        self.causes.push(cause.into());
        self
    }

    pub(crate) fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedies.push(remedy.into());
        self
    }

    pub(crate) fn causes(&self) -> &[String] {
        &self.causes
    }

    pub(crate) fn remedies(&self) -> &[String] {
        &self.remedies
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl Error for Failure {}
