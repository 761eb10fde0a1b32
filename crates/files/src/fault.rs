//! What went wrong, as people and programs are told.

use std::error::Error;
use std::io::{self, ErrorKind};

use banger_api::{Code, Problem};

/// The error with its causes; its code is that of the system's error in them, if there is one that says something.
#[must_use]
pub fn problem(error: &(dyn Error + 'static)) -> Problem {
    let kinds = std::iter::successors(Some(error), |&error| error.source())
        .filter_map(|error| error.downcast_ref::<io::Error>())
        .map(io::Error::kind);
    let code = kinds.map(code).next().unwrap_or(Code::Invalid);
    let problem = Problem::from_error(code, error);
    match code {
        Code::NoSpace => problem.remedy("make room where the files are to be, and repeat the copy"),
        _ => problem,
    }
}

fn code(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::NotFound | ErrorKind::NotADirectory => Code::NotFound,
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
            Code::NoSpace
        }
        ErrorKind::WouldBlock => Code::Conflict,
        ErrorKind::PermissionDenied
        | ErrorKind::ReadOnlyFilesystem
        | ErrorKind::IsADirectory
        | ErrorKind::InvalidFilename => Code::Invalid,
        _ => Code::Internal,
    }
}
