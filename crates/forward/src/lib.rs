//! Ports over byte streams: a TCP connection, or one client's UDP datagrams, carried over a stream that somebody else
//! opens. The daemon (published ports) and the CLI (`vm forward`) listen, the guest's agent connects; this is what is the
//! same on all sides. Knows no VM, no daemon and no HTTP; opens no stream by itself.
//!
//! ```text
//! client ── listen.rs ── tcp.rs / udp.rs ══ stream ══ tcp.rs / udp.rs ── the guest's service
//! ```
//!
//! Both kinds of stream carry pieces, each a length (u16, big-endian) and as many bytes. For UDP a piece is a datagram. For
//! TCP an empty piece is the end of its direction (FIN), and a stream that ends without one is a connection that broke: the
//! other side resets its own. So a guest that dies never looks like a service that has said all.

mod listen;
mod pieces;
mod tcp;
mod udp;

pub use listen::{Listener, Transport};
pub use tcp::{carry, join, reset};
pub use udp::carry_datagrams;

/// Connections to one VM's ports at once, UDP clients included: more wait for their turn. As many may come from it.
pub const MOST_CONNECTIONS: usize = 256;
