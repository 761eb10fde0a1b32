//! What `banger bench` asks the daemon for.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{ImageName, KernelName};

/// GET /v1/bench/boot: how a VM of the default sizes would be run by its VMM alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootPlan {
    pub program: String,
    /// Its arguments; the words `path=AGENT` and `file.filename=DISK` in them stand for the agent's socket and the disk.
    pub args: Vec<String>,
    /// What the disk is a sparse copy of, and how long it is.
    pub disk: PathBuf,
    pub disk_bytes: u64,
    pub vmm: String,
    pub image: ImageName,
    pub kernel: KernelName,
    pub disk_driver: String,
    /// A folder on the filesystem that the VMs' disks are on.
    pub filesystem: PathBuf,
}

/// GET /v1/bench/start: how a VM of the default sizes is started in a jail, for a program that does it without banger.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StartPlan {
    /// What everything is named by; of no installation.
    pub mark: String,
    pub vmm: String,
    pub bridge: String,
    /// The bridge's hardware address, and the address that the host has on it.
    pub bridge_mac: [u8; 6],
    pub gateway: Ipv4Addr,
    /// In bits.
    pub prefix: u8,
    /// What nft is told before there is a device: a VM's own rules, and the tables for them (libnftables-json(5)).
    pub rules: serde_json::Value,
    /// What undoes them, in nft's own language.
    pub no_rules: String,
    pub uid: u32,
    pub memory_max_bytes: u64,
    pub cpu_percent: u32,
    pub pids_max: u32,
    /// The folder that `image` and `files` are below.
    pub state: PathBuf,
    pub image: PathBuf,
    pub disk_bytes: u64,
    /// Size of the file of what is written.
    pub cow_bytes: u64,
    /// What the jail holds, by its name there.
    pub files: Vec<(String, PathBuf)>,
    pub jails: PathBuf,
    pub firecracker: PathBuf,
    pub jailer: PathBuf,
    /// What Firecracker is told, the start included: PUT each.
    pub requests: Vec<ApiRequest>,
}

/// A request of Firecracker's API.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ApiRequest {
    pub path: String,
    pub body: serde_json::Value,
}
