//! What crosses banger's sockets, and nothing else: the words that the CLI, the daemon and the guest's agent share.
//!
//! Types here are wire types. They are parsed at the edge (names, ids, sizes refuse what they are not), they carry no
//! behaviour, and no stored type is one of them. The only I/O is `client.rs`, which speaks HTTP to the daemon's socket, and
//! `install.rs`, which reads what root has said at an installation.

pub mod bench;
#[cfg(feature = "client")]
pub mod captured;
pub mod channel;
#[cfg(feature = "client")]
pub mod client;
pub mod daemon;
pub mod duration;
pub mod egress;
pub mod exec;
pub mod files;
pub mod folders;
pub mod guest;
pub mod guest_net;
pub mod ids;
pub mod image;
pub mod install;
pub mod jobs;
pub mod kernel;
pub mod labels;
pub mod network;
pub mod operation;
pub mod ports;
pub mod problem;
pub mod size;
pub mod ssh;
pub mod stats;
pub mod until;
pub mod vm;
pub mod workspace;

pub use egress::{Cidr, Egress};
pub use folders::Folders;
pub use guest_net::{GuestIpv6, GuestNet};
pub use ids::{ImageName, KernelName, NetworkName, OperationId, VmId, VmName, Zone};
pub use problem::{Code, Problem};
pub use size::Size;

/// The version of the daemon's API. A client and a daemon with different numbers refuse each other by name.
pub const API_VERSION: u32 = 1;

/// The version that every reply of the daemon carries in the header [`VERSION_HEADER`].
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Header with which daemon and client tell each other what they are: `<API_VERSION> <VERSION>`.
pub const VERSION_HEADER: &str = "banger-version";

/// What [`VERSION_HEADER`] holds in this build.
#[must_use]
pub fn version_line() -> String {
    format!("{API_VERSION} {VERSION}")
}
