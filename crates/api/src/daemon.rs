//! What the daemon says of itself and of its host.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// GET /v1/daemon
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonInfo {
    pub version: String,
    pub api: u32,
    pub pid: u32,
    pub started_at: Timestamp,
    /// The random id with which this installation marks what it makes on the host.
    pub installation: String,
    pub state_folder: PathBuf,
    pub cache_folder: PathBuf,
    pub run_folder: PathBuf,
    pub vms: u32,
    pub running: u32,
}

/// GET /v1/doctor
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub findings: Vec<Finding>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What was looked at: `kvm`, `qemu`, `storage`, …
    pub check: String,
    pub verdict: Verdict,
    pub text: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Verdict {
    Pass,
    Warn,
    Fail,
}
