//! ssh into the guest, whatever its image holds: the protocol is `russh`'s, what it leads to is the guest's.
//!
//! ```text
//! TCP port 22 ──────────┐                 ┌─ session.rs   commands, shells, terminals
//! GET /v1/ssh ── door.rs ══ connection.rs ┼─ forwards.rs  -L, -R, -A, sockets
//!   (the agent's process)   (its own)     └─ sftp.rs      files (a process of the user's own)
//! ```
//!
//! Each connection is a process of its own, as sshd's are: what a stranger sends is read by none that the guest depends on,
//! and a big copy does not stand in the way of an exec. `flow.rs` keeps what comes in bounded.

pub(crate) mod connection;
mod door;
mod flow;
mod forwards;
mod modes;
mod names;
mod session;
pub(crate) mod sftp;

pub(crate) use door::Door;
pub(crate) use modes::set as set_modes;

/// What the agent gives a connection's process: the process reads it to its end, and writes one byte when its client has
/// shown who it is.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Errand {
    ssh: banger_api::ssh::GuestSsh,
    image: banger_api::image::Config,
}
