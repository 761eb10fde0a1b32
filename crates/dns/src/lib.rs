//! The DNS server: the names of VMs for the host and for guests, and for guests all other names as the host resolves them
//! now. A library on tokio, which the daemon runs.
//!
//! ```text
//!  host ── 127.0.0.1 ──► serve_authoritative ──┐
//!                                              ├─► respond: pure, from a packet to a reply ── Names
//!  guest ── gateway ───► serve_guests ─────────┘        │ not ours
//!                                                       ▼
//!                                                   forward ── upstreams: resolv.conf as it is now
//! ```
//!
//! There is no cache: the host's resolver has one, and an answer that is kept here would be one more that can be stale.
//! The wire format is the library's; here are the rules of who is answered what.

mod forward;
mod gate;
mod limits;
mod names;
#[doc(hidden)]
pub mod property;
mod respond;
mod server;
mod sockets;
mod subnet;
mod upstreams;

pub use gate::{Gate, Judgement, LONGEST_S};
pub use names::{Addresses, NameError, Names};
pub use server::{Guests, serve_authoritative, serve_guests};
pub use sockets::{BindError, Sockets};
pub use subnet::{Subnet, SubnetError};
