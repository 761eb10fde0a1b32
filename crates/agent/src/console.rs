//! Lines on the guest's console, each beginning `banger-agent: `: the daemon shows the last of them when a guest fails.

use std::error::Error;
use std::io::Write as _;

/// A line. That the console cannot take it is no reason to stop.
pub(crate) fn say(line: &str) {
    drop(writeln!(std::io::stderr(), "banger-agent: {line}"));
}

/// What failed and why, on one line.
pub(crate) fn say_error(error: &(dyn Error + 'static)) {
    say(&banger_api::problem::chain(Some(error)).join(": "));
}
