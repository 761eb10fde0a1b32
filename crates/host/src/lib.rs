//! Claims: what banger holds on the host, how it is made and how it is undone.
//!
//! This crate is the only code that changes the machine. Each kind of claim has one file, where acquire and release
//! stand one after the other; release needs nothing but the claim's [`Held`], so it works after a crash, from a half-made
//! state, and for strays that nobody recorded. Nothing here reads a database, and nothing cleans up in `Drop`.

mod awaited;
pub mod command;
mod disk;
mod error;
pub mod fence;
mod folder;
mod helper_host;
pub mod helper_wire;
#[cfg(feature = "kvm-probe")]
pub mod kvm_probe;
pub mod listen_fd;
pub mod lock;
pub mod log_writer;
pub mod mark;
mod network;
mod process;
pub mod ready_fd;
pub mod root;
pub mod socket;
pub mod space;
pub mod state_file;
pub mod tsc;
pub mod usage;
pub mod user_network;
#[cfg(test)]
mod user_network_tests;
mod vmm_process;

use std::collections::BTreeSet;
use std::io::PipeWriter;
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use banger_api::Zone;
use root::{Firewalls, Routed};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

pub use disk::{Disk, DiskSource, reflink_works};
pub use error::HostError;
pub use helper_host::HelperHost;
pub use mark::{Installation, Mark};
pub use network::{IPV6_PREFIX, MOST_NETWORKS, Mac, Network, ipv6_below, unique_local_prefix};
pub use process::Watched;
pub use root::{
    Cgroup, Denied, DmSnapshot, Guard, Jail, JailedVmm, Loop, LoopRole, Nat, Root, Tap,
};
pub use state_file::StateFile;
pub use vmm_process::{VMM_FIRST_FD, Vmm};

/// One thing held on the host for one VM: recorded first, then made, and undone by its [`Held`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Claim {
    /// The VM's folder in the state: its disk and its logs.
    VmFolder { mark: Mark },
    /// The VM's writable disk.
    Disk(Disk),
    /// The VM's folder for sockets.
    RunFolder { mark: Mark },
    /// The VM's way out of the host where nobody may make devices: the processes that make sockets of what it sends.
    UserNetwork { mark: Mark },
    /// The control group of the VM's processes, with its limits.
    Cgroup(Cgroup),
    /// A block device over a file of the state.
    Loop(Loop),
    /// A writable device over an image that is only read.
    DmSnapshot(DmSnapshot),
    /// The VM's share in the bridge of a network, which the taps of its VMs are ports of.
    Bridge { installation: Installation, network: Network },
    /// The rules for what comes from the VM's network device: they are there before it is.
    Guard(Guard),
    /// The VM's network device.
    Tap(Tap),
    /// The VM's way out of the host, as the host itself. Made and undone while the VM runs, too.
    Nat(Nat),
    /// The folder that is the VMM's whole filesystem.
    Jail(Jail),
    /// The VMM's process, and the process that keeps its log bounded.
    Vmm(Vmm),
    /// As `Vmm`, with Firecracker's jailer around it: in the VM's cgroup and jail, under the VM's own uid.
    JailedVmm(JailedVmm),
}

/// How long a claim is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Life {
    /// From create to delete.
    Record,
    /// From start to stop.
    Run,
}

impl Claim {
    /// What is released when this claim is; all that release needs.
    #[must_use]
    pub fn held(&self) -> Held {
        match self {
            Claim::VmFolder { mark } => Held::VmFolder { mark: mark.clone() },
            Claim::Disk(disk) => Held::Disk { mark: disk.mark.clone() },
            Claim::RunFolder { mark } => Held::RunFolder { mark: mark.clone() },
            Claim::UserNetwork { mark } => Held::UserNetwork { mark: mark.clone() },
            Claim::Cgroup(cgroup) => Held::Cgroup { mark: cgroup.mark.clone() },
            Claim::Loop(found) => Held::Loop { mark: found.mark.clone(), role: found.role },
            Claim::DmSnapshot(dm) => Held::DmSnapshot { mark: dm.mark.clone() },
            Claim::Bridge { installation, network } => {
                Held::Bridge { installation: installation.clone(), number: network.number }
            }
            Claim::Guard(guard) => Held::Guard { mark: guard.mark.clone() },
            Claim::Tap(tap) => Held::Tap { mark: tap.mark.clone() },
            Claim::Nat(nat) => Held::Nat { mark: nat.mark.clone() },
            Claim::Jail(jail) => Held::Jail { mark: jail.mark.clone() },
            Claim::Vmm(vmm) => Held::Vmm { mark: vmm.mark.clone() },
            Claim::JailedVmm(vmm) => Held::JailedVmm { mark: vmm.mark.clone() },
        }
    }

    #[must_use]
    pub fn life(&self) -> Life {
        match self {
            Claim::VmFolder { .. } | Claim::Disk(_) => Life::Record,
            _ => Life::Run,
        }
    }

    /// Whether only root can make it; see [`Held::needs_root`].
    #[must_use]
    pub fn needs_root(&self) -> bool {
        self.held().needs_root()
    }

    /// Whether all that a start makes before it has to be there: such a VMM is given its network device when it is started,
    /// and a jailed one later, by its API.
    #[must_use]
    pub fn needs_all_before(&self) -> bool {
        matches!(self, Claim::Vmm(_))
    }
}

/// What of a VM knows nothing of the rest of it: claims of one part are made and undone one after another, those of two parts
/// may be at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    Network,
    Machine,
}

/// A thing that is there, by the name that the host knows it by. Every name holds the [`Mark`].
///
/// The order is that in which a start makes them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Held {
    VmFolder {
        mark: Mark,
    },
    Disk {
        mark: Mark,
    },
    RunFolder {
        mark: Mark,
    },
    UserNetwork {
        mark: Mark,
    },
    Cgroup {
        mark: Mark,
    },
    Loop {
        mark: Mark,
        role: LoopRole,
    },
    DmSnapshot {
        mark: Mark,
    },
    Bridge {
        installation: Installation,
        /// The network's. There was only 0 when it was not recorded.
        #[serde(default)]
        number: u8,
    },
    Guard {
        mark: Mark,
    },
    Tap {
        mark: Mark,
    },
    Nat {
        mark: Mark,
    },
    Jail {
        mark: Mark,
    },
    Vmm {
        mark: Mark,
    },
    JailedVmm {
        mark: Mark,
    },
}

impl Held {
    /// Whose it is.
    #[must_use]
    pub fn installation(&self) -> &Installation {
        match self {
            Held::Bridge { installation, .. } => installation,
            Held::VmFolder { mark }
            | Held::Disk { mark }
            | Held::RunFolder { mark }
            | Held::UserNetwork { mark }
            | Held::Cgroup { mark }
            | Held::Loop { mark, .. }
            | Held::DmSnapshot { mark }
            | Held::Guard { mark }
            | Held::Tap { mark }
            | Held::Nat { mark }
            | Held::Jail { mark }
            | Held::Vmm { mark }
            | Held::JailedVmm { mark } => mark.installation(),
        }
    }

    /// The VM that holds it; `None` for what several share.
    #[must_use]
    pub fn mark(&self) -> Option<&Mark> {
        match self {
            Held::Bridge { .. } => None,
            Held::VmFolder { mark }
            | Held::Disk { mark }
            | Held::RunFolder { mark }
            | Held::UserNetwork { mark }
            | Held::Cgroup { mark }
            | Held::Loop { mark, .. }
            | Held::DmSnapshot { mark }
            | Held::Guard { mark }
            | Held::Tap { mark }
            | Held::Nat { mark }
            | Held::Jail { mark }
            | Held::Vmm { mark }
            | Held::JailedVmm { mark } => Some(mark),
        }
    }

    /// What it is part of.
    #[must_use]
    pub fn part(&self) -> Part {
        match self {
            Held::Bridge { .. } | Held::Guard { .. } | Held::Tap { .. } | Held::Nat { .. } => {
                Part::Network
            }
            Held::VmFolder { .. }
            | Held::Disk { .. }
            | Held::RunFolder { .. }
            | Held::Cgroup { .. }
            | Held::Loop { .. }
            | Held::DmSnapshot { .. }
            | Held::Jail { .. }
            | Held::UserNetwork { .. }
            | Held::Vmm { .. }
            | Held::JailedVmm { .. } => Part::Machine,
        }
    }

    /// Whether only root can make and undo it: [`Root`] does, in this process or in the helper.
    #[must_use]
    pub fn needs_root(&self) -> bool {
        match self {
            Held::VmFolder { .. }
            | Held::Disk { .. }
            | Held::RunFolder { .. }
            | Held::UserNetwork { .. }
            | Held::Vmm { .. } => false,
            Held::Cgroup { .. }
            | Held::Loop { .. }
            | Held::DmSnapshot { .. }
            | Held::Bridge { .. }
            | Held::Guard { .. }
            | Held::Tap { .. }
            | Held::Nat { .. }
            | Held::Jail { .. }
            | Held::JailedVmm { .. } => true,
        }
    }
}

impl std::fmt::Display for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Held::VmFolder { mark } => write!(f, "the folder of VM {mark}"),
            Held::Disk { mark } => write!(f, "the disk of VM {mark}"),
            Held::RunFolder { mark } => write!(f, "the sockets of VM {mark}"),
            Held::UserNetwork { mark } => write!(f, "the user-mode network of VM {mark}"),
            Held::Cgroup { mark } => write!(f, "the cgroup of VM {mark}"),
            Held::Loop { mark, role } => write!(f, "the loop device of the {role} of VM {mark}"),
            Held::DmSnapshot { mark } => write!(f, "the snapshot device of VM {mark}"),
            Held::Bridge { installation, number } => {
                write!(f, "the bridge of network {number} of installation {installation}")
            }
            Held::Guard { mark } => write!(f, "the network rules of VM {mark}"),
            Held::Tap { mark } => write!(f, "the tap of VM {mark}"),
            Held::Nat { mark } => write!(f, "the way out of VM {mark}"),
            Held::Jail { mark } => write!(f, "the jail of VM {mark}"),
            Held::Vmm { mark } => write!(f, "the VMM process of VM {mark}"),
            Held::JailedVmm { mark } => write!(f, "the jailed VMM process of VM {mark}"),
        }
    }
}

/// A unix socket of a VM's, which its VMM listens on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "in", content = "name", rename_all = "snake_case", deny_unknown_fields)]
pub enum VmSocket {
    /// In the VM's run folder.
    RunFolder(String),
    /// In the VM's jail.
    Jail(String),
}

/// Who makes and undoes claims: [`LocalHost`] on the real machine, [`HelperHost`] through root's helper, a fake one in
/// tests.
pub trait Host: Send + Sync {
    /// Makes it so: there and right is fine, there and wrong is an error.
    ///
    /// # Errors
    /// What could not be made, and why. It may be half made: release it.
    fn acquire(&self, claim: &Claim) -> Result<(), HostError>;

    /// Undoes it, within a deadline, from any half-made state; absent is success.
    ///
    /// # Errors
    /// What is still there, and why.
    fn release(&self, held: &Held) -> Result<(), HostError>;

    /// Everything on this machine that carries this installation's mark, recorded or not.
    ///
    /// # Errors
    /// When the machine cannot be looked at.
    fn list(&self) -> Result<Vec<Held>, HostError>;

    /// What others' firewalls on this machine do with what guests of this network send and get. Nothing is known of it
    /// where nobody here is root: then there are no networks either.
    ///
    /// # Errors
    /// When the rules cannot be read.
    fn firewalls(&self, _network: &Network) -> Result<Firewalls, HostError> {
        Ok(Firewalls::default())
    }

    /// Tells the host's resolver who knows the names of VMs, as long as the bridge of the network of that number is there.
    ///
    /// # Errors
    /// When the resolver is there and cannot be told.
    fn route_names(&self, _number: u8, _zone: &Zone) -> Result<Routed, HostError> {
        Ok(Routed::NoBridge)
    }

    /// The VMM of this mark, jailed or not, if it lives, to wait for its end.
    ///
    /// # Errors
    /// When the processes cannot be looked at.
    fn watch(&self, mark: &Mark) -> Result<Option<Watched>, HostError>;

    /// Signals the VMM of this mark; one that has ended is no error.
    ///
    /// # Errors
    /// When it may not be signalled.
    fn signal(&self, mark: &Mark, signal: Signal) -> Result<(), HostError>;

    /// Connects to a socket on which the VMM of this mark listens. Does not wait for it to be there.
    ///
    /// # Errors
    /// When nobody listens there.
    fn connect(&self, mark: &Mark, socket: &VmSocket) -> Result<UnixStream, HostError>;

    /// Lets the VM of this mark, whose way out leads where a list says ([`Nat::only`]), reach these addresses as well, for so
    /// many seconds at least from now. It ends by itself, and with the way out.
    ///
    /// # Errors
    /// When it has no such way out, or would have too many of them.
    fn open(
        &self,
        mark: &Mark,
        addresses: &BTreeSet<Ipv4Addr>,
        seconds: u32,
    ) -> Result<(), HostError>;

    /// What was refused to the VM of this mark beyond the host within the last hour, the latest first.
    ///
    /// # Errors
    /// When the rules cannot be looked at.
    fn denied(&self, mark: &Mark) -> Result<Vec<Denied>, HostError>;
}

/// Where this installation keeps what its VMs hold.
#[derive(Debug, Clone)]
pub struct Places {
    pub installation: Installation,
    /// The folder below which every [`StateFile`] is.
    pub state: PathBuf,
    /// One folder per VM; on the filesystem of the images, so that disks can share blocks with them. In `state`.
    pub vms: PathBuf,
    /// One folder per running VM, for sockets.
    pub runs: PathBuf,
    /// Formatted empty disks, one per size, copied for each new VM.
    pub templates: PathBuf,
    /// One folder per jailed VMM, on the filesystem of `state`. Root's, and in no folder of anybody else's.
    pub jails: PathBuf,
}

impl Places {
    /// Those of an installation whose folders these are.
    #[must_use]
    pub fn new(installation: Installation, state: &Path, cache: &Path, run: &Path) -> Self {
        Self {
            installation,
            state: state.to_owned(),
            vms: state.join("vms"),
            runs: run.join("vms"),
            templates: cache.join("templates"),
            jails: state.join("jails"),
        }
    }

    #[must_use]
    pub fn vm_folder(&self, mark: &Mark) -> PathBuf {
        self.vms.join(mark.to_string())
    }

    #[must_use]
    pub fn run_folder(&self, mark: &Mark) -> PathBuf {
        self.runs.join(mark.to_string())
    }

    #[must_use]
    pub fn disk(&self, mark: &Mark) -> PathBuf {
        self.vm_folder(mark).join(DISK)
    }

    /// What the VMM and the guest's console said; the older half is beside it with `.1` appended.
    #[must_use]
    pub fn log(&self, mark: &Mark) -> PathBuf {
        self.vm_folder(mark).join("console.log")
    }
}

/// The name of a VM's disk in its folder.
const DISK: &str = "disk.ext4";

/// Ends what carries this in its environment: programs that worked for a daemon which was killed.
///
/// # Errors
/// When one of them cannot be ended.
pub fn end_orphans(variable: &str, value: &str) -> Result<(), HostError> {
    process::end_by_environment(variable, value, std::time::Duration::from_secs(10))
        .map_err(|e| HostError::new("end the programs of the last daemon", e))
}

/// This machine, changed by this process.
#[derive(Debug)]
pub struct LocalHost {
    places: Places,
    /// The program that runs [`log_writer::run`], and its arguments before the log's own; with [`fence::ARGUMENT`] it is a fence.
    log_writer: (PathBuf, Vec<String>),
    children: process::Children,
    /// For what needs root; `None` when this process is not root.
    root: Option<Root>,
}

impl LocalHost {
    /// `log_writer` is a program that calls [`log_writer::run`] with the two arguments that follow those given, and, with
    /// [`fence::ARGUMENT`] alone, [`fence::answer`].
    #[must_use]
    pub fn new(places: Places, log_writer: (PathBuf, Vec<String>), root: Option<Root>) -> Self {
        Self { places, log_writer, children: process::Children::default(), root }
    }

    #[must_use]
    pub fn places(&self) -> &Places {
        &self.places
    }

    /// Starts the process that keeps the log of a VM's VMM; it ends when all ends of its pipe are closed.
    fn start_log(&self, name: (&str, &Mark), limit_bytes: u64) -> Result<PipeWriter, HostError> {
        vmm_process::start_log(name, limit_bytes, &self.places, &self.log_writer, &self.children)
    }

    /// As [`Self::start_log`], for a VMM that somebody else jails.
    pub(crate) fn start_jail_log(&self, vmm: &JailedVmm) -> Result<PipeWriter, HostError> {
        self.start_log((vmm_process::JAIL_LOG, &vmm.mark), vmm.log_limit_bytes)
    }

    /// Ends the log that [`Self::start_jail_log`] has started, when its VMM has ended.
    pub(crate) fn release_jail_log(&self, mark: &Mark) -> Result<(), HostError> {
        vmm_process::release_log(vmm_process::JAIL_LOG, mark, &self.children)
    }

    fn root(&self, held: &Held) -> Result<&Root, HostError> {
        self.root.as_ref().ok_or_else(|| {
            HostError::because(format!("make or undo {held}"), "this needs root or root's helper")
        })
    }
}

impl Host for LocalHost {
    fn acquire(&self, claim: &Claim) -> Result<(), HostError> {
        match claim {
            Claim::VmFolder { mark } => folder::acquire(&self.places.vm_folder(mark)),
            Claim::Disk(disk) => disk::acquire(disk, &self.places),
            Claim::RunFolder { mark } => folder::acquire(&self.places.run_folder(mark)),
            Claim::UserNetwork { mark } => {
                user_network::acquire(mark, &self.places, &self.log_writer.0, &self.children)
            }
            Claim::Vmm(vmm) => {
                if vmm_process::watch(&vmm.mark)?.is_some() {
                    return Ok(());
                }
                let console = self.start_log((vmm_process::LOG, &vmm.mark), vmm.log_limit_bytes)?;
                vmm_process::acquire(vmm, &self.places, console, &self.children)
            }
            Claim::JailedVmm(vmm) => {
                let root = self.root(&claim.held())?;
                // One that lives has its log, and may not serve yet.
                let console = match root::watch_jailed(&vmm.mark)? {
                    Some(_) => None,
                    None => Some(self.start_jail_log(vmm)?.into()),
                };
                root.acquire(claim, console)
            }
            _ => self.root(&claim.held())?.acquire(claim, None),
        }
    }

    fn release(&self, held: &Held) -> Result<(), HostError> {
        match held {
            Held::VmFolder { mark } => folder::release(&self.places.vm_folder(mark)),
            Held::Disk { mark } => disk::release(&self.places.disk(mark)),
            Held::RunFolder { mark } => folder::release(&self.places.run_folder(mark)),
            Held::UserNetwork { mark } => user_network::release(mark, &self.children),
            Held::Vmm { mark } => vmm_process::release(mark, &self.children),
            Held::JailedVmm { mark } => {
                let vmm = self.root(held)?.release(held);
                vmm.and(self.release_jail_log(mark))
            }
            _ => self.root(held)?.release(held),
        }
    }

    fn list(&self) -> Result<Vec<Held>, HostError> {
        let ours = |mark: &Mark| mark.installation() == &self.places.installation;
        let mut held = Vec::new();
        for mark in folder::marked(&self.places.vms)?.into_iter().filter(ours) {
            if disk::is_there(&self.places.disk(&mark)) {
                held.push(Held::Disk { mark: mark.clone() });
            }
            held.push(Held::VmFolder { mark });
        }
        held.extend(
            folder::marked(&self.places.runs)?
                .into_iter()
                .filter(ours)
                .map(|mark| Held::RunFolder { mark }),
        );
        held.extend(
            user_network::marked()?.into_iter().filter(ours).map(|mark| Held::UserNetwork { mark }),
        );
        held.extend(vmm_process::marked()?.into_iter().filter(ours).map(|mark| Held::Vmm { mark }));
        let jailed = vmm_process::named(vmm_process::JAIL_LOG)?;
        held.extend(jailed.into_iter().filter(ours).map(|mark| Held::JailedVmm { mark }));
        if let Some(root) = &self.root {
            held.extend(root.list()?);
        }
        self.children.reap();
        held.sort();
        held.dedup();
        Ok(held)
    }

    fn firewalls(&self, network: &Network) -> Result<Firewalls, HostError> {
        self.root.as_ref().map_or_else(|| Ok(Firewalls::default()), |root| root.firewalls(network))
    }

    fn route_names(&self, number: u8, zone: &Zone) -> Result<Routed, HostError> {
        self.root.as_ref().map_or(Ok(Routed::NoBridge), |root| root.route_names(number, zone))
    }

    fn watch(&self, mark: &Mark) -> Result<Option<Watched>, HostError> {
        match vmm_process::watch(mark)? {
            Some(watched) => Ok(Some(watched)),
            None => root::watch_jailed(mark),
        }
    }

    fn signal(&self, mark: &Mark, signal: Signal) -> Result<(), HostError> {
        match (vmm_process::watch(mark)?, &self.root) {
            (Some(watched), _) => watched
                .signal(signal)
                .map_err(|e| HostError::new(format!("signal the VMM of {mark}"), e)),
            (None, Some(root)) => root.signal(mark, signal),
            (None, None) => Ok(()),
        }
    }

    fn connect(&self, mark: &Mark, socket: &VmSocket) -> Result<UnixStream, HostError> {
        match socket {
            VmSocket::RunFolder(name) => socket::connect(&self.places.run_folder(mark), name),
            VmSocket::Jail(name) => {
                self.root(&Held::Jail { mark: mark.clone() })?.connect(mark, name)
            }
        }
    }

    fn open(
        &self,
        mark: &Mark,
        addresses: &BTreeSet<Ipv4Addr>,
        seconds: u32,
    ) -> Result<(), HostError> {
        self.root(&Held::Nat { mark: mark.clone() })?.open(mark, addresses, seconds)
    }

    fn denied(&self, mark: &Mark) -> Result<Vec<Denied>, HostError> {
        self.root(&Held::Guard { mark: mark.clone() })?.denied(mark)
    }
}

/// The path as text for a message.
fn show(path: &Path) -> String {
    path.display().to_string()
}
