//! VMs as the API shows them, and the requests about them.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::ids::LabelKey;
use crate::image::Config;
use crate::labels::Labels;
use crate::ports::{HostPort, PublishedPort};
use crate::until::Until;
use crate::workspace::Workspace;
use crate::{Egress, ImageName, KernelName, NetworkName, Problem, Size, VmId, VmName};

/// Where a VM is in its life. Every state can be left by delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Has its record and its disk; holds nothing of the host's that runs.
    Stopped,
    /// Its claims are being acquired, or its guest is booting.
    Starting,
    Running,
    /// As running, but that its processors stand still; resume lets them go on.
    Paused,
    Stopping,
    /// Being deleted; the name is free again when the record is gone.
    Deleting,
    /// Something that it held could not be released: `problem` says what. Start, stop and delete try again.
    Error,
}

impl State {
    /// Whether it holds all that a running VM holds, and its guest has booted.
    #[must_use]
    pub fn is_up(self) -> bool {
        matches!(self, State::Running | State::Paused)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            State::Stopped => "stopped",
            State::Starting => "starting",
            State::Running => "running",
            State::Paused => "paused",
            State::Stopping => "stopping",
            State::Deleting => "deleting",
            State::Error => "error",
        })
    }
}

/// A VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vm {
    pub id: VmId,
    pub name: VmName,
    pub state: State,
    pub image: ImageName,
    /// The program that boots the image; absent when the agent does an init's duty.
    #[serde(default)]
    pub init: Option<String>,
    /// What the image says about its programs.
    #[serde(default)]
    pub config: Config,
    /// The image's program runs from each start on, and the VM stops when it ends.
    #[serde(default)]
    pub entrypoint: bool,
    pub kernel: KernelName,
    pub cpus: u32,
    pub memory_bytes: Size,
    pub disk_bytes: Size,
    /// The network that it is in; absent when it has no network device.
    #[serde(default)]
    pub network: Option<NetworkName>,
    /// Its address in its network, for as long as there is the VM; absent when it has no network device.
    #[serde(default)]
    pub address: Option<Ipv4Addr>,
    /// Its IPv6 address there, while it runs on a host that has IPv6: its IPv4 address below the network's prefix.
    #[serde(default)]
    pub ipv6: Option<Ipv6Addr>,
    /// Its network leads beyond the host, everywhere: `egress` is all.
    #[serde(default)]
    pub nat: bool,
    /// Ports of the host's that lead to its own, while it runs.
    #[serde(default)]
    pub published: Vec<PublishedPort>,
    /// TCP ports of the host's loopback that it reaches at `host.banger.internal`.
    #[serde(default)]
    pub exposed: BTreeSet<u16>,
    /// What it may reach beyond the host.
    #[serde(default)]
    pub egress: Egress,
    /// What its user has written on it.
    #[serde(default)]
    pub labels: Labels,
    /// When it is deleted, with its disk.
    #[serde(default)]
    pub expires_at: Option<Timestamp>,
    /// How long it runs without a command in it and a connection by its ports, before it is stopped.
    #[serde(default)]
    pub auto_stop: Until,
    /// The git repository that was brought into it.
    #[serde(default)]
    pub workspace: Option<Workspace>,
    /// Deleted when the session that made it ends.
    pub ephemeral: bool,
    pub created_at: Timestamp,
    /// When the guest was last ready; of the present boot if it runs.
    pub started_at: Option<Timestamp>,
    /// The guest kernel's `/proc/sys/kernel/random/boot_id`, while it runs.
    pub boot_id: Option<String>,
    /// How it runs, while it runs: `qemu (tcg)`, `qemu (kvm)`.
    pub vmm: Option<String>,
    /// What went wrong last, if anything did.
    pub problem: Option<Problem>,
}

/// What boots a guest: its PID 1.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Init {
    /// The image's own if it has one, else the agent.
    #[default]
    Auto,
    /// The agent, whatever the image has.
    None,
    /// A program of the image; absolute.
    Path(String),
}

/// POST /v1/vms: makes a VM and, if asked, starts it. What is missing of image and kernel is made first.
/// A reply is a stream of [`crate::operation::Event`]s that ends in `done` with the [`Vm`].
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CreateVm {
    /// A made-up name when absent.
    pub name: Option<VmName>,
    /// The default image when absent.
    pub image: Option<ImageName>,
    /// The image's kernel when absent.
    pub kernel: Option<KernelName>,
    pub cpus: Option<u32>,
    pub memory_bytes: Option<Size>,
    pub disk_bytes: Option<Size>,
    /// What boots the guest.
    pub init: Init,
    /// Run the image's program at each start, if the agent does an init's duty and the image names one.
    pub entrypoint: bool,
    /// The network that it is in, for as long as there is the VM; `default` when absent.
    pub network: Option<NetworkName>,
    /// The same as `egress` all.
    pub nat: bool,
    /// What it may reach beyond the host, under the host's address; nothing when absent.
    pub egress: Option<Egress>,
    /// Ports of the host's that lead to its own. One with port 0 gets a free one, which it keeps.
    pub published: Vec<PublishedPort>,
    /// TCP ports of the host's loopback that it reaches at `host.banger.internal`; at most [`crate::ports::MOST_EXPOSED`].
    pub exposed: BTreeSet<u16>,
    /// At most [`crate::labels::MOST_LABELS`].
    pub labels: Labels,
    /// How long it is to live from now on: then it is deleted, with its disk, running or not.
    pub ttl: Until,
    /// See [`Vm::auto_stop`]; the configured time when absent.
    pub auto_stop: Option<Until>,
    pub start: bool,
    /// The VM goes when the connection of this request ends: the daemon keeps the stream open after `done`
    /// and deletes the VM when the client closes it.
    pub ephemeral: bool,
}

/// PATCH /v1/vms/VM: changes what is given, at once if it runs.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SetVm {
    /// The same as `egress` all, or none.
    pub nat: Option<bool>,
    pub egress: Option<Egress>,
    /// Ports that are published from now on.
    pub publish: Vec<PublishedPort>,
    /// Ports of the host's that are no longer; taken back before others are published.
    pub unpublish: Vec<HostPort>,
    /// How many processors it has from its next start on.
    pub cpus: Option<u32>,
    /// Its memory from its next start on.
    pub memory_bytes: Option<Size>,
    /// The size of its disk from its next start on; not less than it has.
    pub disk_bytes: Option<Size>,
    /// How long it is to live from now on.
    pub ttl: Option<Until>,
    /// See [`Vm::auto_stop`]; counts from now on if it runs.
    pub auto_stop: Option<Until>,
    /// Labels that it has from now on, with these values.
    pub label: Labels,
    /// Labels that it has no longer; taken away before others are given. One that it has not is no error.
    pub unlabel: Vec<LabelKey>,
}

/// POST /v1/vms/VM/rename. It is found by its new name at once, by the host and by guests.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenameVm {
    pub name: VmName,
}

/// What a VM was refused beyond its host. GET /v1/vms/VM/refused has them, the earliest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// When it was tried last.
    pub at: Timestamp,
    pub what: RefusedWhat,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusedWhat {
    /// The address of a name.
    Name(String),
    Tcp {
        address: Ipv4Addr,
        port: u16,
    },
    Udp {
        address: Ipv4Addr,
        port: u16,
    },
}

/// POST /v1/vms/VM/stop
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StopVm {
    /// How long the guest has to shut itself down; then it is killed. The configured time when absent.
    pub deadline_ms: Option<u64>,
}

/// POST /v1/vms/VM/kill
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KillVm {
    /// `KILL` when absent; else `TERM`, `INT`, `HUP` or `QUIT`, sent to the VMM, whose end is then waited for.
    pub signal: Option<String>,
}

/// POST /v1/vms/prune: deletes every VM that does not run.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PruneVms {
    /// Those too in whose workspace there is, or may be, work that nobody has exported.
    pub force: bool,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Pruned {
    pub deleted: Vec<VmName>,
    pub freed_bytes: u64,
}
