//! The one shape of an error that a person or a program gets from banger.

use std::error::Error;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::OperationId;

/// What kind of trouble it is. Stable: scripts branch on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// The request itself is wrong: a name, a size, a combination of flags.
    Invalid,
    /// No such VM, image, kernel or operation.
    NotFound,
    /// The name is taken, or the thing is in use.
    Conflict,
    /// Work in a VM's workspace would be lost that nobody has exported; force says that it may.
    Unexported,
    /// The thing is not in a state that allows this.
    WrongState,
    /// The host lacks something: a program, a device, a permission.
    Missing,
    /// Out of disk space, memory or another measure.
    NoSpace,
    /// Something did not happen before its deadline.
    Timeout,
    /// The guest failed: its kernel, its init, or the agent in it.
    Guest,
    /// Stopped by the user or by another operation.
    Cancelled,
    /// The daemon cannot be reached, or it is of another version.
    Daemon,
    /// The database or a file of ours is damaged.
    Damaged,
    /// What was made on the host could not be released.
    Leftover,
    /// A defect in banger or a failure of the host that has no better name.
    Internal,
}

/// An error for the person who reads it: what failed, why, and what to do next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    pub code: Code,
    /// What we were doing to what.
    pub message: String,
    /// The chain of causes, outermost first.
    #[serde(default)]
    pub causes: Vec<String>,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<OperationId>,
}

impl Problem {
    #[must_use]
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), causes: Vec::new(), remedy: None, operation: None }
    }

    /// The error's own text as message, its chain of sources as causes.
    #[must_use]
    pub fn from_error(code: Code, error: &(dyn Error + 'static)) -> Self {
        Self { causes: chain(error.source()), ..Self::new(code, error.to_string()) }
    }

    /// Adds `error` and its chain of sources to the causes.
    #[must_use]
    pub fn cause(mut self, error: &(dyn Error + 'static)) -> Self {
        self.causes.extend(chain(Some(error)));
        self
    }

    #[must_use]
    pub fn because(mut self, cause: impl Into<String>) -> Self {
        self.causes.push(cause.into());
        self
    }

    /// Becomes the first cause of a problem that says where it was.
    #[must_use]
    pub fn within(mut self, message: impl Into<String>) -> Self {
        self.causes.insert(0, std::mem::replace(&mut self.message, message.into()));
        self
    }

    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    #[must_use]
    pub fn operation(mut self, operation: OperationId) -> Self {
        self.operation = Some(operation);
        self
    }
}

/// The texts of an error and of its sources, outermost first.
#[must_use]
pub fn chain(error: Option<&(dyn Error + 'static)>) -> Vec<String> {
    std::iter::successors(error, |&error| error.source()).map(ToString::to_string).collect()
}

impl fmt::Display for Problem {
    /// The message and its causes on one line, as in a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        for cause in &self.causes {
            write!(f, ": {cause}")?;
        }
        Ok(())
    }
}

impl Error for Problem {}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot mount /dev/vda")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn the_whole_chain_of_causes_reaches_the_reader() {
        let error = Outer(std::io::Error::other("bad superblock"));
        let problem = Problem::from_error(Code::Guest, &error);
        assert_eq!(problem.message, "cannot mount /dev/vda");
        assert_eq!(problem.causes, ["bad superblock"]);
        assert_eq!(problem.to_string(), "cannot mount /dev/vda: bad superblock");
    }
}
