//! Virtual machine monitors. Each says what its process is started with (a claim, made by whoever holds a host) and how
//! its guest's agent is reached. Nothing here starts a process or writes a file.

pub mod channel;
pub mod firecracker;
pub mod qemu;

use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use banger_host::{Claim, Mark, StateFile, VmSocket};
use banger_storage::Drive;
use futures_util::future::BoxFuture;

pub use channel::{Channel, ChannelError, Ready};
pub use firecracker::Firecracker;
pub use qemu::Qemu;

/// What a VMM is to run, whichever it is.
#[derive(Debug, Clone)]
pub struct Machine {
    pub mark: Mark,
    pub cpus: u32,
    pub memory_mib: u64,
    /// The folder that the files are below.
    pub state: PathBuf,
    pub kernel: StateFile,
    pub initramfs: StateFile,
    /// Words for the agent on the kernel's command line: `banger.root=overlay`, …
    pub agent_words: Vec<String>,
    pub drives: Vec<Drive>,
    /// What stands between the drives and the VMM, in the order in which it is made.
    pub storage: Vec<Claim>,
    /// The user that a jailed VMM runs as: this VM's own. `None` where VMMs are not jailed.
    pub uid: Option<u32>,
    pub log_limit_bytes: u64,
}

/// How a guest's agent is reached: a socket of its VMM's, and what is said there first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentAddress {
    pub socket: VmSocket,
    pub carrier: Carrier,
}

/// What carries the bytes between that socket and the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carrier {
    /// A virtio-serial port: the socket is the port.
    Serial,
    /// Firecracker's vsock: `CONNECT port` comes first (docs/vsock.md of Firecracker).
    Vsock,
}

/// A virtual machine monitor.
pub trait Vmm: Send + Sync + std::fmt::Debug {
    /// As shown to people and stored with a running VM: `qemu (tcg)`. See [`agent_of`].
    fn name(&self) -> String;

    /// What running this machine holds on the host, in the order in which it is made.
    fn claims(&self, machine: &Machine) -> Vec<Claim>;

    /// Where its agent is reached.
    fn agent(&self) -> AgentAddress {
        agent_of(&self.name())
    }

    /// Where a VMM whose process is there wants to be told what to run; `None` for one that knows and runs already.
    fn api(&self) -> Option<VmSocket>;

    /// Tells it over a connection to [`Self::api`], and returns when the guest runs.
    fn boot<'a>(
        &'a self,
        machine: &'a Machine,
        api: UnixStream,
    ) -> BoxFuture<'a, Result<(), VmmError>>;
}
