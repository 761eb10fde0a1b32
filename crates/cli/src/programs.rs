//! The CLI's one place that starts programs: the daemon, and for `bench` what is measured.

use std::path::Path;
use std::process::Command;

#[expect(clippy::disallowed_methods, reason = "this file is where this crate starts programs")]
pub(crate) fn new(program: &Path) -> Command {
    Command::new(program)
}
