//! ssh into guests: what the daemon gives an agent for it, and what it tells the CLI.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::Zone;

/// What the streams are upgraded to that carry ssh as it is: `GET /v1/vms/VM/ssh` (daemon) and `GET /v1/ssh` (agent).
pub const UPGRADE: &str = "banger-ssh";

/// The port of an ssh server.
pub const PORT: u16 = 22;

/// PUT /v1/ssh of the agent: who the guest is, and who may come. Repeated, it replaces what was said before.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestSsh {
    /// The guest's own private key, as OpenSSH writes it in a file.
    pub host_key: String,
    /// Public keys as lines of an `authorized_keys` file, without options.
    pub authorized_keys: Vec<String>,
    /// Where else than through the agent's channel the server is reached.
    pub listen: Option<SocketAddr>,
}

impl std::fmt::Debug for GuestSsh {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { host_key: _, authorized_keys, listen } = self;
        f.debug_struct("GuestSsh")
            .field("authorized_keys", authorized_keys)
            .field("listen", listen)
            .finish_non_exhaustive()
    }
}

/// GET /v1/ssh of the daemon: what an ssh client needs for its VMs. Makes what is missing of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshAccess {
    /// What the names of VMs end with.
    pub zone: Zone,
    /// The owner's private key; beside it, with `.pub`, the public one.
    pub identity: PathBuf,
    /// The host keys of all VMs, by name with the zone.
    pub known_hosts: PathBuf,
}
