//! Releases everything of an installation, for when it is taken away or nobody knows any more what it holds. Needs nothing
//! but root: no daemon, no database.

use std::error::Error;
use std::io::{self, Write};

use banger_host::{Held, HostError};

use crate::serve::Hands;

/// Undoes what is held, last made first, goes on when something fails, and says what it did. Gives what stays.
///
/// # Errors
/// When nobody can tell what is held, or nothing can be said.
pub fn release_all(hands: &impl Hands, out: &mut impl Write) -> Result<Vec<Held>, ReleaseError> {
    for held in hands.list()?.into_iter().rev() {
        match hands.release(&held) {
            Ok(()) => writeln!(out, "released {held}")?,
            Err(error) => writeln!(out, "NOT released {held}: {}", chain(&error))?,
        }
    }
    let stays = hands.list()?;
    for held in &stays {
        writeln!(out, "stays: {held}")?;
    }
    Ok(stays)
}

#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    #[error(transparent)]
    Host(#[from] HostError),
    #[error("cannot say what was done")]
    Say(#[from] io::Error),
}

/// An error and its causes on one line.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
