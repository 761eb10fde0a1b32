//! Virtual machine monitors. Each says what its process is started with (a claim, made by whoever holds a host) and how
//! its guest's agent is reached. Nothing here starts a process or writes a file.

pub mod channel;
mod error;
pub mod firecracker;
#[cfg(test)]
mod machines;
mod network;
pub mod pause;
pub mod qemu;

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use banger_host::root::API_SOCKET;
use banger_host::{Claim, Mark, StateFile, VmSocket};
use banger_storage::Drive;
use futures_util::future::BoxFuture;

pub use channel::{Channel, ChannelError, Ready};
pub use error::VmmError;
pub use firecracker::Firecracker;
pub use network::{NetworkDevice, UserNetwork};
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
    /// Its network device. A bare Firecracker makes none of it, and QEMU can have one where the daemon is root.
    pub network: Option<NetworkDevice>,
    /// Its network where it has no such device: QEMU's alone.
    pub user_network: Option<UserNetwork>,
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

/// Where the agent of a VM that runs under the VMM of this name ([`Vmm::name`]) is reached: of another version's, perhaps,
/// than would be taken today.
#[must_use]
pub fn agent_of(name: &str) -> AgentAddress {
    let (socket, carrier) = if !is_firecracker(name) {
        (VmSocket::RunFolder(qemu::AGENT_SOCKET.to_owned()), Carrier::Serial)
    } else if is_bare(name) {
        (VmSocket::RunFolder(firecracker::AGENT_SOCKET.to_owned()), Carrier::Vsock)
    } else {
        (VmSocket::Jail(firecracker::AGENT_SOCKET.to_owned()), Carrier::Vsock)
    };
    AgentAddress { socket, carrier }
}

/// As [`Vmm::api`], of a VMM that runs.
#[must_use]
pub fn api_of(name: &str) -> Option<VmSocket> {
    let socket = API_SOCKET.to_owned();
    is_firecracker(name)
        .then(|| if is_bare(name) { VmSocket::RunFolder(socket) } else { VmSocket::Jail(socket) })
}

fn is_firecracker(name: &str) -> bool {
    name.starts_with("firecracker ")
}

fn is_bare(name: &str) -> bool {
    name.ends_with(firecracker::BARE)
}

/// The device of a VM's snapshot, for a VMM that sees the host's devices.
pub(crate) fn snapshot_device(mark: &Mark) -> PathBuf {
    Path::new("/dev/mapper").join(mark.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firecracker::Version;
    use crate::qemu::Accelerator;

    fn all() -> [Box<dyn Vmm>; 4] {
        let version = Version::parse("1.12.1").unwrap();
        let bare = Firecracker::bare(version, "/opt/firecracker".into(), "/run/banger".into());
        [
            Box::new(Qemu { accelerator: Accelerator::Kvm }),
            Box::new(Qemu { accelerator: Accelerator::Tcg { tsc_khz: 1 } }),
            Box::new(Firecracker::jailed(version)),
            Box::new(bare.unwrap()),
        ]
    }

    #[test]
    fn a_stored_name_says_where_a_running_vm_is_reached() {
        let jail = |name: &str| VmSocket::Jail(name.to_owned());
        let run = |name: &str| VmSocket::RunFolder(name.to_owned());
        let found = all().map(|vmm| {
            let agent = agent_of(&vmm.name());
            (vmm.name(), agent.socket, agent.carrier, api_of(&vmm.name()))
        });
        assert_eq!(
            found,
            [
                ("qemu (kvm)".into(), run("agent.sock"), Carrier::Serial, None),
                ("qemu (tcg)".into(), run("agent.sock"), Carrier::Serial, None),
                (
                    "firecracker 1.12.1".into(),
                    jail("agent.sock"),
                    Carrier::Vsock,
                    Some(jail("api.sock"))
                ),
                (
                    "firecracker 1.12.1 (no jailer)".into(),
                    run("agent.sock"),
                    Carrier::Vsock,
                    Some(run("api.sock"))
                ),
            ]
        );
    }

    #[test]
    fn a_vmm_is_reached_where_its_name_says() {
        for vmm in all() {
            assert_eq!(vmm.agent(), agent_of(&vmm.name()));
            assert_eq!(vmm.api(), api_of(&vmm.name()));
        }
    }
}
