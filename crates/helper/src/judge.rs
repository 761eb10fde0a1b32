//! May it be done? Every request is judged here as if the daemon were its owner's enemy, before anything is touched, by
//! what was written at install and by nothing else. Pure.
//!
//! What only the filesystem can tell (whose a file is, whether it is one) is judged where it is opened, on the open file:
//! a name that was looked at may be another file a moment later.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use banger_api::Zone;
use banger_api::egress::{MOST_ITEMS, is_public};
use banger_api::ports::MOST_EXPOSED;
use banger_host::helper_wire::Act;
use banger_host::root::{DeviceSource, JailDevice, JailFile};
use banger_host::{
    Cgroup, Claim, DmSnapshot, Guard, Held, Installation, Jail, JailedVmm, Loop, LoopRole,
    MOST_NETWORKS, Mac, Mark, Nat, Network, StateFile, Tap,
};

use crate::policy::Policy;

/// Why something is not done: which part of the request, and by which rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub field: &'static str,
    pub reason: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.reason)
    }
}

/// Sockets in a jail that the daemon may speak to: Firecracker's API, and the way to the agent.
const SOCKETS: [&str; 2] = ["api.sock", "agent.sock"];

/// What Firecracker's jailer makes in a jail itself.
const JAILERS_NAMES: [&str; 4] = ["firecracker", "dev", "run", "sys"];

/// The most files, and the most devices, of one jail.
const MOST_IN_JAIL: usize = 16;

/// The most addresses that are opened to a VM at once.
const MOST_OPENED: u64 = 256;

const MIB: u64 = 1 << 20;
const TIB: u64 = 1 << 40;
/// What a VMM may need beside its guest's memory.
const MOST_OVERHEAD_BYTES: u64 = 1024 * MIB;
/// The most processors of a Firecracker guest (`MAX_SUPPORTED_VCPUS`), which may be more than the host has, and one for
/// its VMM.
const MOST_GUEST_CPUS: u32 = 32 + 1;

/// Refuses what this installation's daemon has no business with.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn judge(act: &Act, policy: &Policy) -> Result<(), Refusal> {
    match act {
        Act::Acquire { claim } => judge_claim(claim, policy),
        Act::Release { held } => judge_held(held, policy),
        Act::List {} => Ok(()),
        Act::Firewalls { network } => judge_network(network),
        // Any number is one of its own networks', or nobody's. But who answers for another zone than `vm`, such as `com`, would
        // be asked for names that other users of the host look up.
        Act::RouteNames { number: _, zone } => rule(*zone == Zone::default(), "zone", || {
            format!(
                "{zone} may be other people's: who is asked for it is root's to say, by resolvectl"
            )
        }),
        Act::Signal { mark, .. } => ours("mark", mark.installation(), policy),
        Act::Connect { mark, name } => {
            ours("mark", mark.installation(), policy)?;
            rule(SOCKETS.contains(&name.as_str()), "name", || {
                format!("{name:?} is none of {}", SOCKETS.join(", "))
            })
        }
        Act::Open { mark, addresses, seconds } => {
            ours("mark", mark.installation(), policy)?;
            judge_opening(addresses, *seconds)
        }
        Act::Denied { mark } => ours("mark", mark.installation(), policy),
    }
}

fn judge_claim(claim: &Claim, policy: &Policy) -> Result<(), Refusal> {
    judge_held(&claim.held(), policy)?;
    match claim {
        Claim::Cgroup(cgroup) => judge_cgroup(cgroup, policy),
        Claim::Loop(claim) => judge_loop(claim),
        Claim::DmSnapshot(dm) => judge_dm_snapshot(dm),
        Claim::Bridge { installation: _, network } => judge_network(network),
        Claim::Guard(Guard { mark, network, address, mac, exposed }) => {
            judge_network(network)?;
            vms_address(*address, network)?;
            rule(exposed.len() <= MOST_EXPOSED, "claim.exposed", || {
                format!("{} are more than {MOST_EXPOSED}", exposed.len())
            })?;
            rule(!exposed.contains(&0), "claim.exposed", || "0 is no port".to_owned())?;
            rule(*mac == Mac::of(mark), "claim.mac", || {
                format!("{mac} is not the hardware address of {mark}, {}", Mac::of(mark))
            })
        }
        Claim::Tap(Tap { mark: _, uid, network }) => {
            judge_network(network)?;
            vmms_user("claim.uid", *uid, policy)
        }
        Claim::Nat(Nat { mark: _, network, address, only }) => {
            judge_network(network)?;
            vms_address(*address, network)?;
            // What one of them can be was judged when it was read: nothing of the host's own, loopback, link-local, multicast.
            let count = only.as_ref().map_or(0, Vec::len);
            rule(count <= MOST_ITEMS, "claim.only", || {
                format!("{count} are more than {MOST_ITEMS}")
            })
        }
        Claim::Jail(jail) => judge_jail(jail, policy),
        // Its log is not the helper's.
        Claim::JailedVmm(JailedVmm { uid, .. }) => vmms_user("claim.uid", *uid, policy),
        Claim::VmFolder { .. }
        | Claim::Disk(_)
        | Claim::RunFolder { .. }
        | Claim::UserNetwork { .. }
        | Claim::Vmm(_) => no_root(&claim.held()),
    }
}

fn judge_held(held: &Held, policy: &Policy) -> Result<(), Refusal> {
    if !held.needs_root() {
        return no_root(held);
    }
    ours(if held.mark().is_some() { "mark" } else { "installation" }, held.installation(), policy)
}

fn judge_cgroup(cgroup: &Cgroup, policy: &Policy) -> Result<(), Refusal> {
    let Cgroup { mark: _, memory_max_bytes, cpu_percent, pids_max } = cgroup;
    let most_memory = policy.machine.memory_bytes.saturating_add(MOST_OVERHEAD_BYTES);
    limit("claim.memory_max_bytes", *memory_max_bytes, 64 * MIB, most_memory)?;
    let most_cpu = policy.machine.cpus.max(MOST_GUEST_CPUS).saturating_mul(100);
    limit("claim.cpu_percent", cpu_percent.map(u64::from), 1, most_cpu.into())?;
    limit("claim.pids_max", pids_max.map(u64::from), 8, 4096)
}

fn judge_loop(Loop { mark, role, file }: &Loop) -> Result<(), Refusal> {
    match role {
        LoopRole::Image => in_folders("claim.file", file, &["images"]),
        LoopRole::Disk => own_disk("claim.file", file, mark),
    }
}

fn judge_dm_snapshot(DmSnapshot { mark: _, size_bytes }: &DmSnapshot) -> Result<(), Refusal> {
    between("claim.size_bytes", *size_bytes, MIB, 16 * TIB)?;
    rule(size_bytes.is_multiple_of(4096), "claim.size_bytes", || {
        format!("{size_bytes} is not a whole number of blocks of 4096 bytes")
    })
}

fn judge_jail(jail: &Jail, policy: &Policy) -> Result<(), Refusal> {
    let Jail { mark: _, uid, files, devices } = jail;
    vmms_user("claim.uid", *uid, policy)?;
    at_most("claim.files", files.len())?;
    at_most("claim.devices", devices.len())?;
    let mut seen = Vec::new();
    for JailFile { name, source } in files {
        jail_name("claim.files.name", name, &mut seen)?;
        in_folders("claim.files.source", source, &["kernels", "initramfs", "images"])?;
    }
    for JailDevice { name, source } in devices {
        jail_name("claim.devices.name", name, &mut seen)?;
        // All of them are of the jail's own mark: there is no way to name another's.
        let (DeviceSource::Loop(_) | DeviceSource::DmSnapshot) = source;
    }
    Ok(())
}

/// A subnet of nobody's in the world, of 6 to some 65,000 VMs.
fn judge_network(network: &Network) -> Result<(), Refusal> {
    /// What is private (RFC 1918). No subnet that the rules below allow is larger than one of these.
    const PRIVATE: [(Ipv4Addr, u8); 3] = [
        (Ipv4Addr::new(10, 0, 0, 0), 8),
        (Ipv4Addr::new(172, 16, 0, 0), 12),
        (Ipv4Addr::new(192, 168, 0, 0), 16),
    ];
    // What every host takes (RFC 791), and the most that a tap does (TUN's MAX_MTU without Ethernet's header).
    const MTU: (u64, u64) = (576, 65_521);
    // Whether its guests reach each other is the owner's to say. That all claims say the same of one network, and that no two
    // networks overlap, is judged by what is there ([`banger_host::root`]).
    let Network { number, gateway, prefix, mtu, peers: _, ipv6 } = network;
    between("claim.network.number", (*number).into(), 0, u64::from(MOST_NETWORKS) - 1)?;
    between("claim.network.prefix", (*prefix).into(), 16, 29)?;
    between("claim.network.mtu", (*mtu).into(), MTU.0, MTU.1)?;
    rule(
        PRIVATE.iter().any(|(base, bits)| network.is_within(*base, *bits)),
        "claim.network",
        || format!("{} is not private (RFC 1918)", network.subnet()),
    )?;
    if let Some(ipv6) = ipv6 {
        judge_ipv6(*ipv6, *number, *mtu)?;
    }
    rule(*gateway != network.first() && *gateway != network.last(), "claim.network.gateway", || {
        format!("{gateway} is the first or the last address of {}", network.subnet())
    })
}

/// A prefix of 64 bits that is nobody's in the world (RFC 4193), and the network's own by its number. Addresses are not said: they
/// follow from it.
fn judge_ipv6(prefix: Ipv6Addr, number: u8, mtu: u16) -> Result<(), Refusal> {
    const LEAST_MTU: u64 = 1280;
    let [kind, _, _, _, _, _, high, low, host @ ..] = prefix.octets();
    rule(kind == 0xfd, "claim.network.ipv6", || {
        format!("{prefix}/64 is not unique local (RFC 4193)")
    })?;
    rule(host == [0; 8] && [high, low] == [0, number], "claim.network.ipv6", || {
        format!("{prefix} is not the prefix of network {number}")
    })?;
    between("claim.network.mtu", mtu.into(), LEAST_MTU, u64::MAX)
}

fn vms_address(address: Ipv4Addr, network: &Network) -> Result<(), Refusal> {
    rule(network.is_for_a_vm(address), "claim.address", || {
        format!("{address} is none of those of VMs in {}", network.subnet())
    })
}

/// Where a name may lead a guest: to public addresses of one machine each, not to the host's neighbours, and not for long.
fn judge_opening(addresses: &BTreeSet<Ipv4Addr>, seconds: u32) -> Result<(), Refusal> {
    let count = u64::try_from(addresses.len()).unwrap_or(u64::MAX);
    between("addresses", count, 1, MOST_OPENED)?;
    between("seconds", seconds.into(), 1, 3600)?;
    match addresses.iter().find(|address| !is_public(**address)) {
        Some(private) => Err(Refusal {
            field: "addresses",
            reason: format!("{private} is not a public address of one machine"),
        }),
        None => Ok(()),
    }
}

/// What is made in a jail beside what the jailer makes there.
fn jail_name<'a>(
    field: &'static str,
    name: &'a str,
    seen: &mut Vec<&'a str>,
) -> Result<(), Refusal> {
    const LONGEST: usize = 31;
    let first = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let fits = name.len() <= LONGEST
        && name.bytes().next().is_some_and(first)
        && name.bytes().all(|b| first(b) || b == b'-');
    rule(fits, field, || {
        format!(
            "{name:?} is not of 1 to {LONGEST} lower-case letters, digits and `-`, beginning with no `-`"
        )
    })?;
    rule(!JAILERS_NAMES.contains(&name), field, || format!("{name:?} is made by the jailer"))?;
    rule(!seen.contains(&name), field, || format!("{name:?} comes twice"))?;
    seen.push(name);
    Ok(())
}

fn in_folders(field: &'static str, file: &StateFile, folders: &[&str]) -> Result<(), Refusal> {
    rule(folders.contains(&file.folder()) && file.as_str().contains('/'), field, || {
        format!("{:?} is not in {}", file.as_str(), folders.join(", "))
    })
}

fn own_disk(field: &'static str, file: &StateFile, mark: &Mark) -> Result<(), Refusal> {
    rule(*file == StateFile::disk(mark), field, || {
        format!("{:?} is not the disk of {mark}", file.as_str())
    })
}

fn ours(field: &'static str, installation: &Installation, policy: &Policy) -> Result<(), Refusal> {
    rule(*installation == policy.installation, field, || {
        format!("it is of installation {installation}, not of {}", policy.installation)
    })
}

fn vmms_user(field: &'static str, uid: u32, policy: &Policy) -> Result<(), Refusal> {
    rule(policy.uids.contains(uid), field, || {
        let last = policy.uids.first.saturating_add(policy.uids.count.saturating_sub(1));
        format!("{uid} is none of the users of VMs, {} to {last}", policy.uids.first)
    })
}

fn at_most(field: &'static str, count: usize) -> Result<(), Refusal> {
    rule(count <= MOST_IN_JAIL, field, || format!("{count} are more than {MOST_IN_JAIL}"))
}

fn between(field: &'static str, value: u64, least: u64, most: u64) -> Result<(), Refusal> {
    rule((least..=most).contains(&value), field, || {
        format!("{value} is not from {least} to {most}")
    })
}

/// A limit that must be there: where the helper is, the host can keep it.
fn limit(field: &'static str, value: Option<u64>, least: u64, most: u64) -> Result<(), Refusal> {
    let missing = || Refusal { field, reason: "there is no limit".to_owned() };
    between(field, value.ok_or_else(missing)?, least, most)
}

fn no_root(held: &Held) -> Result<(), Refusal> {
    Err(Refusal { field: "kind", reason: format!("{held} needs no root") })
}

fn rule(holds: bool, field: &'static str, reason: impl FnOnce() -> String) -> Result<(), Refusal> {
    if holds { Ok(()) } else { Err(Refusal { field, reason: reason() }) }
}
