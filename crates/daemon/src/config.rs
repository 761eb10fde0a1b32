//! The configuration file: every key optional, an unknown one refused by name.

use std::fs;
use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use banger_api::until::Until;
use banger_api::{Code, ImageName, Problem, Size, Zone};
use banger_host::Network;
use banger_image::Limits;
use banger_image::catalog::{Place, TrustedKey};
use banger_registry::settings::Settings;
use banger_storage::Driver;
use serde::Deserialize;

use crate::file_sync::{self, FileSync};

/// What the daemon goes by, from the file or from the host.
#[derive(Debug, Clone)]
pub struct Config {
    pub image: ImageName,
    pub cpus: u32,
    pub memory: Size,
    pub disk: Size,
    /// How many VMs boot at once; the others wait their turn.
    pub boots_at_once: usize,
    /// How long a new VM may run without activity before it is stopped.
    pub auto_stop: Until,
    pub deadlines: Deadlines,
    pub vmm: VmmChoice,
    /// Whether Firecracker runs in its jailer wherever root, or root's helper, can make a jail.
    pub jailer: bool,
    /// Firecracker's programs, where they are not looked for.
    pub firecracker_path: Option<PathBuf>,
    pub jailer_path: Option<PathBuf>,
    pub uids: UidRange,
    /// How new VMs get their disks; `None`: the first that works here.
    pub storage: Option<&'static dyn Driver>,
    /// How registries are reached, and what is too large.
    pub registry: Settings,
    pub image_limits: Limits,
    pub network: NetworkSettings,
    /// Where kernels are fetched by name; `None`: nowhere.
    pub catalog: Option<CatalogSettings>,
    /// What every guest gets of the owner's files at its start.
    pub file_sync: Vec<FileSync>,
    /// Where each default came from, for `doctor`.
    pub provenance: Vec<(&'static str, String)>,
}

/// A catalog of kernels, and whose signature makes it believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CatalogSettings {
    pub source: Place,
    pub key: TrustedKey,
}

/// What the network of VMs is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkSettings {
    /// `None`: the first of many that this host does not use.
    pub subnet: Option<Subnet>,
    /// In bytes.
    pub mtu: u16,
    /// What the names of VMs end with.
    pub zone: Zone,
}

impl Default for NetworkSettings {
    /// Ethernet's.
    fn default() -> Self {
        Self { subnet: None, mtu: 1500, zone: Zone::default() }
    }
}

/// A private IPv4 subnet (RFC 1918) for VMs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    /// Its lowest address.
    pub first: Ipv4Addr,
    /// The length of its prefix in bits, 16 to 29.
    pub prefix: u8,
}

impl Subnet {
    /// # Errors
    /// What it is not.
    pub fn parse(text: &str) -> Result<Self, String> {
        let parsed = text
            .split_once('/')
            .and_then(|(first, prefix)| Some((first.parse().ok()?, prefix.parse().ok()?)));
        let (first, prefix): (Ipv4Addr, u8) =
            parsed.ok_or_else(|| format!("{text:?} is no subnet such as 192.168.77.0/24"))?;
        if !(16..=29).contains(&prefix) {
            return Err(format!("{text}: the prefix is not from 16 to 29"));
        }
        let within = u32::MAX >> prefix;
        if first.to_bits() & within != 0 {
            let lowest = Ipv4Addr::from_bits(first.to_bits() & !within);
            return Err(format!("{text} is an address in {lowest}/{prefix}, and no subnet"));
        }
        if !first.is_private() || !Ipv4Addr::from_bits(first.to_bits() | within).is_private() {
            return Err(format!("{text} is not private (10/8, 172.16/12 or 192.168/16)"));
        }
        Ok(Self { first, prefix })
    }

    /// The host's address in it: the first that a host can have.
    #[must_use]
    pub fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.first.to_bits() + 1)
    }

    /// A network of it, whose guests do not reach each other.
    #[must_use]
    pub fn network(self, number: u8, mtu: u16) -> Network {
        Network {
            number,
            gateway: self.gateway(),
            prefix: self.prefix,
            mtu,
            peers: false,
            ipv6: None,
        }
    }

    #[must_use]
    pub fn is_of(self, network: &Network) -> bool {
        (self.gateway(), self.prefix) == (network.gateway, network.prefix)
    }
}

/// A length of packets that a network can have, in bytes.
///
/// # Errors
/// What it is not.
pub(crate) fn mtu_of(mtu: u16) -> Result<u16, String> {
    // The least that every host must take in one piece (RFC 791), and the most that a device of virtio's carries.
    match mtu {
        576..=65521 => Ok(mtu),
        _ => Err(format!("{mtu} is not from 576 to 65521 bytes")),
    }
}

/// Which VMM new starts use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VmmChoice {
    /// Firecracker where KVM runs guests and Firecracker is installed, else QEMU.
    #[default]
    Auto,
    Firecracker,
    Qemu,
}

/// The users that jailed VMMs run as, each VM its own; no user of the host may be among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UidRange {
    pub first: u32,
    pub count: u32,
}

impl UidRange {
    /// The user of the VM in this slot; `None` when the range is too short.
    #[must_use]
    pub fn of(self, slot: u32) -> Option<u32> {
        (slot < self.count).then(|| self.first.checked_add(slot)).flatten()
    }
}

impl Default for UidRange {
    /// Of the ids that systemd leaves to nobody (its "Users, Groups, UIDs and GIDs on systemd Systems").
    fn default() -> Self {
        Self { first: 1_900_000_000, count: 10_000 }
    }
}

/// Deadlines that differ by how guests are executed: a translated guest is some ten times slower.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// From the VMM's start to the agent's READY; `None`: 30 s on KVM, 300 s translated.
    pub ready: Option<Duration>,
    /// A graceful stop; then the VMM is killed. `None`: 10 s on KVM, 60 s translated.
    pub stop: Option<Duration>,
}

impl Deadlines {
    #[must_use]
    pub fn ready(self, translated: bool) -> Duration {
        self.ready.unwrap_or(Duration::from_secs(if translated { 300 } else { 30 }))
    }

    #[must_use]
    pub fn stop(self, translated: bool) -> Duration {
        self.stop.unwrap_or(Duration::from_secs(if translated { 60 } else { 10 }))
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    image: Option<ImageName>,
    cpus: Option<u32>,
    memory: Option<String>,
    disk: Option<String>,
    boots_at_once: Option<usize>,
    auto_stop_after: Option<String>,
    ready_deadline_ms: Option<u64>,
    stop_deadline_ms: Option<u64>,
    vmm: VmmChoice,
    jailer: Option<bool>,
    firecracker_path: Option<PathBuf>,
    jailer_path: Option<PathBuf>,
    uid_first: Option<u32>,
    uid_count: Option<u32>,
    storage: Option<String>,
    image_largest: Option<String>,
    image_most_entries: Option<u64>,
    registry: Settings,
    network: NetworkFile,
    catalog: Option<CatalogFile>,
    file_sync: Vec<file_sync::Entry>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct NetworkFile {
    subnet: Option<String>,
    mtu: Option<u16>,
    zone: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CatalogFile {
    source: String,
    public_key: String,
}

/// What the defaults are derived from.
#[derive(Debug, Clone, Copy)]
pub struct HostSize {
    pub cpus: u32,
    pub memory_bytes: u64,
}

impl HostSize {
    /// This machine.
    #[must_use]
    pub fn here() -> Self {
        let cpus =
            std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(1));
        let info = rustix::system::sysinfo();
        let unit = u64::from(info.mem_unit);
        Self { cpus, memory_bytes: info.totalram.saturating_mul(unit) }
    }
}

/// Reads the file if there is one.
///
/// # Errors
/// When it cannot be read, is no TOML, has an unknown key or a value that does not fit.
pub fn read(path: &Path, host: HostSize) -> Result<Config, Problem> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        Err(error) => {
            return Err(Problem::new(Code::Invalid, format!("cannot read {}", path.display()))
                .cause(&error));
        }
    };
    parse(&text, host).map_err(|problem| Problem {
        message: format!("{} does not fit: {}", path.display(), problem.message),
        remedy: Some(format!("correct {}", path.display())),
        ..problem
    })
}

fn parse(text: &str, host: HostSize) -> Result<Config, Problem> {
    let invalid = |text: String| Problem::new(Code::Invalid, text);
    let file: File = toml::from_str(text).map_err(|e| invalid(e.to_string().trim().to_owned()))?;
    let size = |name: &str, value: Option<String>| -> Result<Option<Size>, Problem> {
        value.map(|text| text.parse().map_err(|e| invalid(format!("{name}: {e}")))).transpose()
    };
    let mut provenance = Vec::new();
    let cpus = match file.cpus {
        Some(0) => return Err(invalid("cpus: it must be more than zero".into())),
        Some(cpus) => {
            provenance.push(("cpus", format!("{cpus} (config)")));
            cpus
        }
        None => {
            let cpus = (host.cpus / 4).clamp(1, 4);
            provenance
                .push(("cpus", format!("{cpus} (a quarter of the host's {}, 1 to 4)", host.cpus)));
            cpus
        }
    };
    let memory = match size("memory", file.memory)? {
        Some(memory) => {
            provenance.push(("memory", format!("{memory} (config)")));
            memory
        }
        None => {
            let eighth = Size::mib(host.memory_bytes / 8 / (1 << 20));
            let memory = eighth.clamp(Size::mib(512), Size::gib(8));
            provenance
                .push(("memory", format!("{memory} (an eighth of the host's, 512 MiB to 8 GiB)")));
            memory
        }
    };
    let disk = match size("disk", file.disk)? {
        Some(disk) => {
            provenance.push(("disk", format!("{disk} (config)")));
            disk
        }
        None => {
            let disk = Size::gib(8);
            provenance.push(("disk", format!("{disk} (built in; it is sparse)")));
            disk
        }
    };
    let image = match file.image {
        Some(image) => {
            provenance.push(("image", format!("{image} (config)")));
            image
        }
        None => {
            let image = ImageName::parse("debian:bookworm").expect("it is an image name");
            provenance.push(("image", format!("{image} (built in)")));
            image
        }
    };
    let boots_at_once = match file.boots_at_once {
        Some(0) => return Err(invalid("boots_at_once: it must be more than zero".into())),
        Some(number) => number,
        None => usize::try_from(host.cpus.max(2)).unwrap_or(2),
    };
    let auto_stop = file.auto_stop_after.map(|text| Until::parse(&text)).transpose();
    let auto_stop =
        auto_stop.map_err(|e| invalid(format!("auto_stop_after: {e}")))?.unwrap_or_default();
    let uids = UidRange {
        first: file.uid_first.unwrap_or(UidRange::default().first),
        count: file.uid_count.unwrap_or(UidRange::default().count),
    };
    if uids.first < 1000 || uids.count == 0 || uids.first.checked_add(uids.count).is_none() {
        return Err(invalid(
            "uid_first, uid_count: not a range of users from 1000 to 4294967294".into(),
        ));
    }
    for (name, path) in
        [("firecracker_path", &file.firecracker_path), ("jailer_path", &file.jailer_path)]
    {
        if path.as_ref().is_some_and(|path| !path.is_absolute()) {
            return Err(invalid(format!("{name}: it must be an absolute path")));
        }
    }
    let storage = match file.storage.as_deref() {
        None | Some("auto") => None,
        Some(name) => Some(banger_storage::named(name).ok_or_else(|| {
            invalid(format!("storage: {name:?} is none of auto, reflink, dm-snapshot, overlay"))
        })?),
    };
    let mut image_limits = Limits::default();
    if let Some(largest) = size("image_largest", file.image_largest)? {
        (image_limits.total_bytes, image_limits.layer_bytes) =
            (largest.as_bytes(), largest.as_bytes());
    }
    if let Some(entries) = file.image_most_entries {
        image_limits.entries = entries;
    }
    let mut network = NetworkSettings::default();
    if let Some(text) = file.network.subnet {
        network.subnet =
            Some(Subnet::parse(&text).map_err(|e| invalid(format!("network.subnet: {e}")))?);
    }
    if let Some(mtu) = file.network.mtu {
        network.mtu = mtu_of(mtu).map_err(|e| invalid(format!("network.mtu: {e}")))?;
    }
    if let Some(zone) = file.network.zone {
        network.zone = Zone::parse(&zone).map_err(|e| invalid(format!("network.zone: {e}")))?;
    }
    let catalog = file.catalog.map(|catalog| {
        Ok(CatalogSettings {
            source: Place::parse(&catalog.source)
                .map_err(|e| invalid(format!("catalog.source: {e}")))?,
            key: TrustedKey::parse(&catalog.public_key)
                .map_err(|e| invalid(format!("catalog.public_key: {e}")))?,
        })
    });
    let file_sync = file.file_sync.into_iter().map(FileSync::parse).collect::<Result<_, _>>();
    Ok(Config {
        catalog: catalog.transpose()?,
        file_sync: file_sync.map_err(|e| invalid(format!("file_sync.{e}")))?,
        registry: file.registry,
        image_limits,
        network,
        vmm: file.vmm,
        jailer: file.jailer.unwrap_or(true),
        firecracker_path: file.firecracker_path,
        jailer_path: file.jailer_path,
        uids,
        storage,
        image,
        cpus,
        memory,
        disk,
        boots_at_once,
        auto_stop,
        deadlines: Deadlines {
            ready: file.ready_deadline_ms.map(Duration::from_millis),
            stop: file.stop_deadline_ms.map(Duration::from_millis),
        },
        provenance,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAPTOP: HostSize = HostSize { cpus: 8, memory_bytes: 16 << 30 };

    #[test]
    fn without_a_file_the_defaults_come_from_the_host() {
        let config = parse("", LAPTOP).unwrap();
        assert_eq!((config.cpus, config.memory), (2, Size::gib(2)));
        let small = parse("", HostSize { cpus: 1, memory_bytes: 1 << 30 }).unwrap();
        assert_eq!((small.cpus, small.memory), (1, Size::mib(512)));
        let large = parse("", HostSize { cpus: 128, memory_bytes: 1 << 40 }).unwrap();
        assert_eq!((large.cpus, large.memory), (4, Size::gib(8)));
    }

    #[test]
    fn the_file_wins_over_the_host() {
        let config =
            parse("cpus = 3\nmemory = \"1G\"\nimage = \"mine\"\nstop_deadline_ms = 5\nauto_stop_after = \"30m\"", LAPTOP)
                .unwrap();
        assert_eq!((config.cpus, config.memory), (3, Size::gib(1)));
        assert_eq!(config.image.as_str(), "mine");
        assert_eq!(config.auto_stop, Until::parse("30m").unwrap());
        assert_eq!(config.deadlines.stop(true), Duration::from_millis(5));
    }

    #[test]
    fn what_an_image_may_be_and_how_registries_are_reached_is_settable() {
        let text = "image_largest = \"2G\"\nimage_most_entries = 7\n[registry]\nretries = 1";
        let config = parse(text, LAPTOP).unwrap();
        let limits = config.image_limits;
        assert_eq!((limits.total_bytes, limits.layer_bytes, limits.entries), (2 << 30, 2 << 30, 7));
        assert_eq!(config.registry.retries, 1);
    }

    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        for (text, name) in [
            ("cpu = 3", "cpu"),
            ("cpus = 0", "cpus"),
            ("memory = \"2 apples\"", "memory"),
            ("image = \"Not Good\"", "image"),
            ("boots_at_once = 0", "boots_at_once"),
            ("auto_stop_after = \"soon\"", "auto_stop_after"),
            ("vmm = \"xen\"", "xen"),
            ("storage = \"floppy\"", "storage"),
            ("uid_first = 0", "uid_first"),
            ("uid_first = 4294967295", "uid_first"),
            ("jailer_path = \"jailer\"", "jailer_path"),
            ("image_largest = \"much\"", "image_largest"),
            ("[registry]\nmirror = \"x\"", "mirror"),
            ("[network]\nsubnet = \"10.0.0.0\"", "network.subnet"),
            ("[network]\nsubnet = \"10.0.0.1/24\"", "10.0.0.0/24"),
            ("[network]\nsubnet = \"10.0.0.0/30\"", "16 to 29"),
            ("[network]\nsubnet = \"8.8.8.0/24\"", "private"),
            ("[network]\nmtu = 100", "network.mtu"),
            ("[network]\nzone = \"local\"", "network.zone"),
            ("[network]\nzone = \"VM\"", "network.zone: \"VM\" is not a zone"),
            ("[catalog]\nsource = \"/srv/catalog.toml\"", "public_key"),
            ("[catalog]\nsource = \"here\"\npublic_key = \"RW\"", "catalog.source"),
            ("[catalog]\nsource = \"/srv/c\"\npublic_key = \"RW\"", "catalog.public_key"),
        ] {
            let problem = parse(text, LAPTOP).unwrap_err();
            assert!(problem.message.contains(name), "{text}: {problem}");
        }
    }

    #[test]
    fn every_vm_has_a_user_of_its_own_as_long_as_the_range_lasts() {
        let uids = UidRange { first: 5000, count: 2 };
        assert_eq!([uids.of(0), uids.of(1), uids.of(2)], [Some(5000), Some(5001), None]);
    }
}
