//! What only root can make: cgroups, block devices, network devices, jails and what runs in them. One file per kind of
//! claim. The same code runs in a daemon that is root itself and in root's helper, which judges every claim first.

mod abilities;
mod beneath;
mod bridge;
mod bridge_ipv6;
mod cgroup;
mod device_mapper;
mod dm_snapshot;
mod firewalls;
mod forwarding_ipv6;
mod guard;
mod ioctl;
mod jail;
mod jailed_vmm;
mod lists;
#[cfg(test)]
mod lists_tests;
mod loop_device;
mod modules;
mod nat;
mod netlink;
#[cfg(test)]
mod network_tests;
mod nft;
mod own_addresses;
mod remove;
mod resolved;
mod rules;
mod rules_ipv6;
mod tables;
mod tables_ipv6;
mod tap;
mod trusted;
mod uevents;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use banger_api::Zone;
use rustix::event::{Timespec, poll};

pub use abilities::{Abilities, abilities};
pub use bridge::{TakenSubnet, taken_subnets};
pub use bridge_ipv6::{host_has_ipv6, ipv6_taken};
pub use cgroup::Cgroup;
pub use dm_snapshot::DmSnapshot;
pub use firewalls::{Firewalls, Neighbour, Obstacle, Traffic};
pub use guard::Guard;
pub use jail::{DeviceSource, Jail, JailDevice, JailFile};
pub use jailed_vmm::JailedVmm;
pub use loop_device::{Loop, LoopRole};
pub use nat::{Denied, Nat};
pub(crate) use own_addresses::OwnAddresses;
pub use resolved::{Routed, names_are_routed};
pub use rules::{DNS_PORT, EXPOSE_PORT, for_one as rules_for_one};
pub use tap::Tap;
pub use trusted::trusted_program;

use crate::error::HostError;
use crate::mark::{Installation, Mark};
use crate::network::Network;
use crate::process::{Children, Watched};
use crate::{Claim, Held};

/// The name of the API's socket in a jail.
pub const API_SOCKET: &str = "api.sock";

/// The name, in a jail, of the socket that leads to the guest's vsock.
pub const AGENT_SOCKET: &str = "agent.sock";

/// Bytes, as block devices count.
const SECTOR: u64 = 512;

/// Firecracker's programs: root's, and not to be written by anybody else ([`trusted_program`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Firecracker {
    pub firecracker: PathBuf,
    pub jailer: PathBuf,
}

/// What root needs to know to make claims.
#[derive(Debug, Clone)]
pub struct RootPlaces {
    pub installation: Installation,
    /// The folder below which every state file is; its owner may be anybody.
    pub state: PathBuf,
    /// Whose files of the state may be used, by uid: of nobody else's, not even root's own.
    pub owner: u32,
    /// Root's own folder for jails.
    pub jails: PathBuf,
    pub firecracker: Firecracker,
}

/// Root's hands.
#[derive(Debug)]
pub struct Root {
    places: RootPlaces,
    children: Children,
}

impl Root {
    #[must_use]
    pub fn new(places: RootPlaces) -> Self {
        Self { places, children: Children::default() }
    }

    #[must_use]
    pub fn places(&self) -> &RootPlaces {
        &self.places
    }

    /// As [`crate::Host::acquire`], for claims that need root. `console` becomes the stdout and stderr of a VMM.
    ///
    /// # Errors
    /// What could not be made, and why; or a claim that does not need root.
    pub fn acquire(&self, claim: &Claim, console: Option<OwnedFd>) -> Result<(), HostError> {
        match claim {
            Claim::Cgroup(claim) => cgroup::acquire(claim),
            Claim::Loop(claim) => loop_device::acquire(claim, &self.places),
            Claim::DmSnapshot(claim) => dm_snapshot::acquire(claim),
            Claim::Bridge { installation, network } => bridge::acquire(installation, network),
            Claim::Guard(claim) => guard::acquire(claim),
            Claim::Tap(claim) => tap::acquire(claim),
            Claim::Nat(claim) => nat::acquire(claim),
            Claim::Jail(claim) => jail::acquire(claim, &self.places),
            Claim::JailedVmm(claim) => {
                jailed_vmm::acquire(claim, &self.places, console, &self.children)
            }
            Claim::VmFolder { .. }
            | Claim::Disk(_)
            | Claim::RunFolder { .. }
            | Claim::UserNetwork { .. }
            | Claim::Vmm(_) => Err(not_roots(&claim.held())),
        }
    }

    /// As [`crate::Host::release`], for what needs root.
    ///
    /// # Errors
    /// What is still there, and why; or what does not need root.
    pub fn release(&self, held: &Held) -> Result<(), HostError> {
        match held {
            Held::Cgroup { mark } => cgroup::release(mark),
            Held::Loop { mark, role } => loop_device::release(mark, *role),
            Held::DmSnapshot { mark } => dm_snapshot::release(mark),
            Held::Bridge { installation, number } => bridge::release(installation, *number),
            Held::Guard { mark } => guard::release(mark),
            Held::Tap { mark } => tap::release(mark),
            Held::Nat { mark } => nat::release(mark),
            Held::Jail { mark } => jail::release(mark, &self.places),
            Held::JailedVmm { mark } => jailed_vmm::release(mark, &self.children),
            Held::VmFolder { .. }
            | Held::Disk { .. }
            | Held::RunFolder { .. }
            | Held::UserNetwork { .. }
            | Held::Vmm { .. } => Err(not_roots(held)),
        }
    }

    /// As [`crate::Host::list`], of what needs root.
    ///
    /// # Errors
    /// When the machine cannot be looked at.
    pub fn list(&self) -> Result<Vec<Held>, HostError> {
        let installation = &self.places.installation;
        let mut held = Vec::new();
        held.extend(cgroup::list(installation)?);
        held.extend(loop_device::list(installation)?);
        held.extend(dm_snapshot::list(installation)?);
        held.extend(bridge::list(installation)?);
        // One look for both: each takes a program for each table.
        let rules = nft::read(installation)
            .map_err(|e| HostError::new(format!("look for network rules of {installation}"), e))?
            .rules;
        held.extend(guard::list(&rules));
        held.extend(tap::list(installation)?);
        held.extend(nat::list(&rules));
        held.extend(jail::list(installation, &self.places)?);
        held.extend(jailed_vmm::list(installation)?);
        self.children.reap();
        held.sort();
        held.dedup();
        Ok(held)
    }

    /// As [`crate::Host::open`].
    ///
    /// # Errors
    /// As [`crate::Host::open`].
    pub fn open(
        &self,
        mark: &Mark,
        addresses: &BTreeSet<Ipv4Addr>,
        seconds: u32,
    ) -> Result<(), HostError> {
        nat::open(mark, addresses, seconds)
    }

    /// As [`crate::Host::denied`].
    ///
    /// # Errors
    /// As [`crate::Host::denied`].
    pub fn denied(&self, mark: &Mark) -> Result<Vec<Denied>, HostError> {
        nat::denied(mark)
    }

    /// As [`crate::Host::firewalls`].
    ///
    /// # Errors
    /// When the rules cannot be read.
    pub fn firewalls(&self, network: &Network) -> Result<Firewalls, HostError> {
        firewalls::look(&self.places.installation, network)
    }

    /// As [`crate::Host::route_names`].
    ///
    /// # Errors
    /// When the resolver is there and cannot be told.
    pub fn route_names(&self, number: u8, zone: &Zone) -> Result<Routed, HostError> {
        resolved::route_names(&self.places.installation, number, zone)
    }

    /// As [`crate::Host::signal`], for a jailed VMM.
    ///
    /// # Errors
    /// When it cannot be signalled.
    pub fn signal(&self, mark: &Mark, signal: rustix::process::Signal) -> Result<(), HostError> {
        jailed_vmm::signal(mark, signal)
    }

    /// Connects to a socket in the jail of this mark.
    ///
    /// # Errors
    /// When nobody listens there.
    pub fn connect(&self, mark: &Mark, name: &str) -> Result<UnixStream, HostError> {
        jail::connect(mark, name, &self.places)
    }
}

/// The jailed VMM of this mark if it lives. Needs no privilege: cgroups can be read by everybody.
///
/// # Errors
/// When the processes cannot be looked at.
pub fn watch_jailed(mark: &Mark) -> Result<Option<Watched>, HostError> {
    jailed_vmm::watch(mark)
}

/// Between two tries of what the kernel tells no event of: 10 ms.
fn pause() {
    let timeout = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
    // A signal only makes it shorter.
    let _timed_out = poll(&mut [], Some(&timeout));
}

fn not_roots(held: &Held) -> HostError {
    HostError::because(format!("make or undo {held} as root"), "it needs no root")
}

#[cfg(test)]
pub(crate) fn test_mark() -> Mark {
    let vm = banger_api::VmId::random().expect("the kernel has randomness");
    Mark::new(Installation::random().expect("the kernel has randomness"), vm)
}

/// Places of this user's below a folder, in which the state is made.
#[cfg(test)]
fn test_places(root: &std::path::Path) -> RootPlaces {
    let state = root.join("state");
    std::fs::create_dir_all(&state).expect("a test's folder can be written to");
    RootPlaces {
        installation: Installation::random().expect("the kernel has randomness"),
        state,
        owner: rustix::process::geteuid().as_raw(),
        jails: root.join("jails"),
        firecracker: Firecracker { firecracker: PathBuf::new(), jailer: PathBuf::new() },
    }
}

/// Runs a test in a thread that has network devices and mounts of its own, which go with it.
#[cfg(test)]
pub(crate) fn in_own_network(test: impl FnOnce() + Send) {
    use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
    use rustix::thread::{UnshareFlags, unshare_unsafe};

    let run = || {
        #[expect(unsafe_code, reason = "unshare(2) can take files away from a thread")]
        // SAFETY: open files stay shared (CLONE_FILES is not given).
        unsafe { unshare_unsafe(UnshareFlags::NEWNET | UnshareFlags::NEWNS) }.unwrap();
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
        // What it shows of the network is that of whoever mounts it.
        mount("sysfs", "/sys", "sysfs", MountFlags::empty(), None).unwrap();
        test();
    };
    let ended = std::thread::scope(|scope| scope.spawn(run).join());
    if let Err(panic) = ended {
        std::panic::resume_unwind(panic);
    }
}
