//! Networks as the API shows them.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::NetworkName;

/// GET /v1/networks, GET /v1/networks/NAME
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    pub name: NetworkName,
    /// The bridge on the host, while a VM of it runs.
    pub bridge: String,
    /// As `10.213.0.0/22`.
    pub subnet: String,
    /// The host's address in it, where guests find their DNS server.
    pub gateway: Ipv4Addr,
    /// Its IPv6 prefix, as `fd12:3456:789a::/64`; absent where the host has no IPv6.
    #[serde(default)]
    pub ipv6: Option<String>,
    /// In bytes.
    pub mtu: u16,
    /// Its guests reach each other.
    #[serde(default)]
    pub peers: bool,
    /// How many VMs have an address in it.
    pub vms: u32,
}

/// POST /v1/networks: makes a network, which VMs can be created in from then on. The reply is the [`Network`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateNetwork {
    pub name: NetworkName,
    /// Private, with a prefix of 16 to 29 bits, as `192.168.77.0/24`; one that the host does not use when absent.
    #[serde(default)]
    pub subnet: Option<String>,
    /// In bytes, 576 to 65521; the configured one when absent.
    #[serde(default)]
    pub mtu: Option<u16>,
    /// Let its guests reach each other.
    #[serde(default)]
    pub peers: bool,
}
