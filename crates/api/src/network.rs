//! Networks as the API shows them.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

/// GET /v1/networks, GET /v1/networks/NAME
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    pub name: String,
    /// The bridge on the host, while a VM of it runs.
    pub bridge: String,
    /// As `10.213.0.0/22`.
    pub subnet: String,
    /// The host's address in it, where guests find their DNS server.
    pub gateway: Ipv4Addr,
    /// In bytes.
    pub mtu: u16,
    /// How many VMs have an address in it.
    pub vms: u32,
}
