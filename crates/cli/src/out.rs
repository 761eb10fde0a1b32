//! Writing to our own stdout and stderr: whole texts, so that lines of several writers never mix.

use std::io::{ErrorKind, Write};

use banger_api::{Code, Problem};

use crate::failure::Failure;

/// Writes a result.
///
/// # Errors
/// When stdout takes no more, quietly if its reader has gone.
pub(crate) fn stdout(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(Failure::StdoutClosed),
        Err(error) => {
            Err(Problem::new(Code::Internal, "cannot write to stdout").cause(&error).into())
        }
    }
}

/// Writes what is not a result. A stderr that takes nothing leaves nowhere to complain, so that is no failure.
pub(crate) fn stderr(text: &str) {
    drop(std::io::stderr().lock().write_all(text.as_bytes()));
}
