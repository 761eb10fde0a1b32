//! bangerd: keeps VMs, images and kernels, and serves the API on a unix socket. Never root's work beyond its own user's:
//! whatever changes the host goes through a `Host`.
//!
//! ```text
//! serve/ ─► operations ─► vms/ {create, start, stop, delete} ─► vms/plan ─► ledger ─► Host
//!                    └──► artifacts/ {images, kernels, initramfs}            └─► Store
//! ```

pub mod agent;
pub mod artifacts;
pub mod bench;
pub mod config;
pub mod daemon;
pub mod dns;
pub mod doctor;
pub mod doctor_system;
pub mod egress;
pub mod exposed;
mod file_sync;
mod firewalls;
pub mod host_facts;
pub mod ledger;
pub mod logs;
pub mod making;
pub mod names;
pub mod networks;
pub mod operations;
mod problems;
pub mod readiness;
pub mod reconcile;
pub mod serve;
pub mod ssh;
pub mod startup;
mod user_network;
pub mod vmms;
pub mod vms;
mod wall_clock;
