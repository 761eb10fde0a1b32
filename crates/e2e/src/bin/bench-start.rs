//! What `banger bench start` says of an installation, in the test host, which has what it needs.
//!
//! ```text
//! bench-start ROUNDS BARE      as root; the environment as for the tests; BARE is banger-bare
//! ```
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a measurement may panic, and says what it found"
)]

use banger_e2e::{as_root, installed};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [rounds, bare] = &arguments[..] else { panic!("bench-start ROUNDS BARE") };
    installed(|_| {
        let measured = as_root(&["bench", "start", "-n", rounds, "--bare", bare]);
        print!("{}{}", measured.errors(), measured.succeeds().text());
    });
}
