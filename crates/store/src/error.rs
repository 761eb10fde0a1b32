//! What the database says when it cannot.

use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot open the database {}", path.display())]
    Damaged {
        path: PathBuf,
        #[source]
        cause: rusqlite::Error,
    },
    #[error("the database {} is damaged: {verdict}", path.display())]
    NotWhole { path: PathBuf, verdict: String },
    #[error("the database {} is of a newer banger: its version is {found}, this program knows {known}", path.display())]
    Newer { path: PathBuf, found: u32, known: u32 },
    /// A name or id that is there already.
    #[error("cannot {act}: there is one already")]
    Taken { act: &'static str },
    #[error("every address of the network has its VM")]
    NoAddress,
    /// It was deleted, or another one has its number now.
    #[error("the network is not what it was")]
    NoNetwork,
    #[error("cannot {act} in the database")]
    Failed {
        act: &'static str,
        #[source]
        cause: rusqlite::Error,
    },
}

impl StoreError {
    pub(crate) fn from_sqlite(act: &'static str, cause: rusqlite::Error) -> Self {
        if cause.sqlite_error_code() == Some(rusqlite::ErrorCode::ConstraintViolation) {
            return StoreError::Taken { act };
        }
        StoreError::Failed { act, cause }
    }

    /// No room on the disk.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self, StoreError::Failed { cause, .. }
            if cause.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull))
    }
}
