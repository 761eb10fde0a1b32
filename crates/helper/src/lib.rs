//! Root's part of banger: takes a claim from the daemon, judges it, and makes or undoes it with the host crate's hands.
//! Knows no VM, keeps no record, trusts nobody.
//!
//! ```text
//! bangerd ──one request──► serve ──► judge ──► host::root::Root
//!  (owner)                 who asks? may it     the same code that a daemon runs which is root itself
//! ```

pub mod alone;
pub mod confine;
pub mod judge;
pub mod policy;
pub mod release_all;
pub mod said;
pub mod serve;
mod turns;
