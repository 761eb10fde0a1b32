//! Why a command ends without its result, and which exit status that is.

use std::process::ExitCode;

use banger_api::Problem;

use crate::context::Context;
use crate::problem;

/// What a process that SIGPIPE (13) ends reports to its shell.
pub(crate) const STDOUT_CLOSED: u8 = 128 + 13;

#[derive(Debug)]
pub(crate) enum Failure {
    /// To be shown to whoever reads stderr.
    Problem(Problem),
    /// Shown already, target by target.
    Shown,
    /// Nobody reads our stdout any more, as in `banger vm list | head -1`: no reason to complain.
    StdoutClosed,
    /// A signal told us to go.
    Signal(u8),
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Failure::Problem(problem)
    }
}

impl Failure {
    /// Says what is to be said. `failed` is the verb's exit status for a problem.
    pub(crate) fn show(self, context: &Context, failed: u8) -> ExitCode {
        ExitCode::from(match self {
            Failure::Problem(found) => {
                problem::show(context, None, &found);
                failed
            }
            Failure::Shown => failed,
            Failure::StdoutClosed => STDOUT_CLOSED,
            Failure::Signal(number) => 128 + number,
        })
    }
}
