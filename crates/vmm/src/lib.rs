//! Virtual machine monitors. Each says what its process is started with (a claim, made by whoever holds a host) and how
//! its guest's agent is reached. Nothing here starts a process or writes a file.

pub mod channel;
pub mod qemu;

use std::path::PathBuf;

use banger_host::{Claim, Mark};
use banger_storage::Drive;

pub use channel::{Channel, ChannelError, Ready};
pub use qemu::Qemu;

/// What a VMM is to run, whichever it is.
#[derive(Debug, Clone)]
pub struct Machine {
    pub mark: Mark,
    pub cpus: u32,
    pub memory_mib: u64,
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
    /// Words for the agent on the kernel's command line: `banger.root=overlay`, …
    pub agent_words: Vec<String>,
    pub drives: Vec<Drive>,
    pub log_limit_bytes: u64,
}

/// A virtual machine monitor.
pub trait Vmm: Send + Sync + std::fmt::Debug {
    /// As shown to people and stored with a running VM: `qemu (tcg)`.
    fn name(&self) -> String;

    /// What running this machine holds on the host, in the order in which it is made.
    fn claims(&self, machine: &Machine) -> Vec<Claim>;

    /// The socket in the VM's run folder through which its agent is reached.
    fn agent_socket(&self) -> &'static str;
}
