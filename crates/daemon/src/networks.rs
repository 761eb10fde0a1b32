//! Networks: where they are on this host, and what of them a VM gets.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use banger_api::network::CreateNetwork;
use banger_api::{Code, Egress, NetworkName, Problem, VmName, network};
use banger_host::root::TakenSubnet;
use banger_host::{IPV6_PREFIX, Installation, MOST_NETWORKS, Mac, Network, root};
use banger_store::{Deleted, NetworkRecord, Place, VmRecord};
use banger_vmm::NetworkDevice;

use crate::config::{Config, Subnet, mtu_of};
use crate::daemon::Daemon;
use crate::operations::Operation;
use crate::problems;

/// The network of VMs that name none: it comes with the first of them.
const DEFAULT: (u8, &str) = (0, "default");

/// Subnets are chosen from here: a part of 10.0.0.0/8 that few networks use. Each has room for 1021 VMs.
const CHOICES: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 213, 0, 0), 22);
const NUMBER_OF_CHOICES: u32 = 64;

/// What IPv6 needs of a link, in bytes (RFC 8200, section 5).
const LEAST_IPV6_MTU: u16 = 1280;

impl Daemon {
    /// Whether VMs have network devices here.
    ///
    /// # Errors
    /// In a sentence: why not.
    pub async fn networks_work(&self) -> Result<(), String> {
        if !self.privileged {
            return Err(
                "a network device needs root, or an installation (`banger system install`)".into(),
            );
        }
        let vmm = self.vmm().await.map_err(|problem| problem.to_string())?;
        if vmm.api().is_none() && self.installed.is_some() {
            return Err("QEMU runs as the daemon's user, who may not open taps".into());
        }
        if vmm.api().is_some() && !self.jails() {
            return Err("Firecracker runs without its jailer".into());
        }
        self.network_abilities
            .get_or_try_init(|| async {
                let abilities = root::abilities();
                abilities.taps.and(abilities.network_rules)
            })
            .await
            .copied()
    }

    /// The network of a new VM: the one of that name, or the default one. For whoever holds [`Daemon::artifacts`].
    pub(crate) fn network_for_new(
        &self,
        name: Option<&NetworkName>,
        operation: &Operation,
    ) -> Result<Network, Problem> {
        match name.filter(|name| name.as_str() != DEFAULT.1) {
            Some(name) => Ok(self.network_named(name)?.network),
            None => self.default_network(operation),
        }
    }

    /// Refuses the name of a network that a VM cannot be in.
    pub(crate) fn refuse_unknown_network(&self, name: &NetworkName) -> Result<(), Problem> {
        if name.as_str() == DEFAULT.1 { Ok(()) } else { self.network_named(name).map(drop) }
    }

    /// The network of that name.
    ///
    /// # Errors
    /// When there is none.
    pub fn network_named(&self, name: &NetworkName) -> Result<NetworkRecord, Problem> {
        let found = self.store.network_named(name).map_err(problems::store)?;
        found.ok_or_else(|| unknown(name))
    }

    /// Makes the record of a network. Its bridge is there while a VM of it runs.
    ///
    /// # Errors
    /// What does not fit, by the request's own words; then nothing is made.
    pub fn create_network(&self, request: &CreateNetwork) -> Result<NetworkRecord, Problem> {
        let CreateNetwork { name, subnet, mtu, peers } = request;
        let invalid = |text: String| Problem::new(Code::Invalid, text);
        let parsed = subnet.as_deref().map(Subnet::parse).transpose();
        let subnet = parsed.map_err(|why| invalid(format!("subnet: {why}")))?;
        let mtu = mtu_of(mtu.unwrap_or(self.config.network.mtu))
            .map_err(|why| invalid(format!("mtu: {why}")))?;
        if name.as_str() == DEFAULT.1 {
            return Err(Problem::new(
                Code::Conflict,
                format!("the network {name} is banger's own"),
            )
            .because("the first VM that names no network brings it")
            .remedy("use another name; `[network]` in config.toml is what it is made by"));
        }
        let _artifacts = self.artifacts();
        let all = self.store.networks().map_err(problems::store)?;
        if all.iter().any(|record| record.name == *name) {
            return Err(Problem::new(Code::Conflict, format!("there is already a network {name}"))
                .remedy(format!("use another name, or `banger network delete {name}`")));
        }
        let is_free = |number: &u8| !all.iter().any(|record| record.network.number == *number);
        let number = (DEFAULT.0 + 1..MOST_NETWORKS).find(is_free).ok_or_else(|| {
            let message = format!("there are as many networks as there can be, {MOST_NETWORKS}");
            Problem::new(Code::Conflict, message).remedy("`banger network delete` one")
        })?;
        let taken = self.taken_subnets(number)?;
        let installation = self.store.installation().to_string();
        let network = choices(number, subnet, mtu, &installation)
            .find(|network| is_clear(network, &taken))
            .map(|network| Network { peers: *peers, ..network })
            .ok_or_else(|| no_subnet(subnet, &taken))?;
        self.store.insert_network(name, &network).map_err(problems::store)?;
        self.publish_names();
        Ok(NetworkRecord { name: name.clone(), network, vms: 0 })
    }

    /// The record of a network goes, and whoever answered its guests.
    ///
    /// # Errors
    /// When VMs are in it, by their names, or there is none of that name.
    pub fn delete_network(&self, name: &NetworkName) -> Result<(), Problem> {
        if name.as_str() == DEFAULT.1 {
            return Err(Problem::new(Code::Conflict, format!("the network {name} stays"))
                .because("it is where VMs are that name no network; nothing of it is on the host while none runs"));
        }
        let _artifacts = self.artifacts();
        match self.store.delete_network(name).map_err(problems::store)? {
            Deleted::Yes(network) => {
                self.dns.end(network.gateway);
                self.exposures.end(network.gateway);
                self.publish_names();
                Ok(())
            }
            Deleted::Unknown => Err(unknown(name)),
            Deleted::InUse(vms) => {
                let list =
                    |between| vms.iter().map(VmName::as_str).collect::<Vec<_>>().join(between);
                let message = format!("VMs are in the network {name}: {}", list(", "));
                let remedy =
                    format!("`banger vm delete {}`, if they are no longer needed", list(" "));
                Err(Problem::new(Code::Conflict, message).remedy(remedy))
            }
        }
    }

    /// What the network of this number must keep clear of: what this host has, and what other networks will have while they
    /// are used.
    fn taken_subnets(&self, number: u8) -> Result<Vec<TakenSubnet>, Problem> {
        let mut taken = root::taken_subnets(self.store.installation(), number)
            .map_err(|e| problems::host(&e))?;
        let recorded = self.store.networks().map_err(problems::store)?;
        let others = recorded.iter().filter(|record| record.network.number != number);
        taken.extend(others.map(|NetworkRecord { name, network, .. }| TakenSubnet {
            address: network.first(),
            prefix: network.prefix,
            what: format!("the network {name}, {}", network.subnet()),
        }));
        // Where the default one is to be made.
        let configured = self.config.network.subnet.filter(|_| number != DEFAULT.0);
        taken.extend(configured.map(|Subnet { first, prefix }| TakenSubnet {
            address: first,
            prefix,
            what: format!("the subnet of config.toml, {first}/{prefix}"),
        }));
        Ok(taken)
    }

    /// The network of VMs that name none, chosen anew as long as no VM is in it.
    fn default_network(&self, operation: &Operation) -> Result<Network, Problem> {
        let (number, name) = DEFAULT;
        let name = NetworkName::parse(name).expect("it is a network's name");
        let recorded = self.store.network(number).map_err(problems::store)?;
        let configured = &self.config.network;
        if let Some(record) = recorded.as_ref().filter(|record| record.vms > 0) {
            let stays = configured.subnet.is_some_and(|subnet| !subnet.is_of(&record.network));
            if stays {
                operation.note(format!(
                    "the network stays {} as long as there are VMs in it",
                    record.network.subnet()
                ));
            }
            return Ok(record.network);
        }
        let installation = self.store.installation();
        let taken = self.taken_subnets(number)?;
        let fits = |network: &Network| {
            network.mtu == configured.mtu
                && configured.subnet.is_none_or(|subnet| subnet.is_of(network))
                && is_clear(network, &taken)
        };
        if let Some(record) = recorded.filter(|record| fits(&record.network)) {
            return Ok(record.network);
        }
        let mut choices =
            choices(number, configured.subnet, configured.mtu, &installation.to_string());
        let Some(network) = choices.find(fits) else {
            return Err(no_subnet(configured.subnet, &taken).remedy(
                "name a free one in config.toml: `[network]`, `subnet = \"192.168.77.0/24\"`",
            ));
        };
        self.store.set_network(&name, &network).map_err(problems::store)?;
        Ok(network)
    }

    /// The device that a VM starts with; `None` where it has none, and a note where that is all of its network.
    pub(crate) async fn network_device(
        self: &Arc<Self>,
        vm: &VmRecord,
        operation: &Operation,
    ) -> Result<Option<NetworkDevice>, Problem> {
        let Some(place) = vm.place else { return Ok(None) };
        match self.networks_work().await {
            Ok(()) => {
                let mut network = self.network_of(place)?;
                network.ipv6 = self.ipv6_of_network(&network, operation)?;
                if let Err(why) = self.serve_network(&network) {
                    operation.note(format!("{} has no DNS server: {why}", vm.name));
                }
                if !vm.exposed.is_empty()
                    && let Err(problem) = self.serve_exposed(&network)
                {
                    operation.note(format!(
                        "{} reaches nothing that is exposed to it: {problem}",
                        vm.name
                    ));
                }
                Ok(Some(NetworkDevice {
                    network,
                    address: place.address,
                    mac: Mac::of(&self.mark(&vm.id)),
                    egress: vm.egress.clone(),
                    exposed: vm.exposed.clone(),
                    zone: self.config.network.zone.clone(),
                }))
            }
            // It may be let out without a device.
            Err(_) if vm.egress != Egress::None => Ok(None),
            Err(why) => {
                operation.note(format!("{} has no network: {why}", vm.name));
                Ok(None)
            }
        }
    }

    /// The IPv6 prefix that a VM's network has as of now: none where the host has no IPv6, or has got the prefix otherwise.
    fn ipv6_of_network(
        &self,
        network: &Network,
        operation: &Operation,
    ) -> Result<Option<Ipv6Addr>, Problem> {
        let Some(prefix) = self.possible_ipv6(network) else { return Ok(None) };
        let taken = root::ipv6_taken(self.store.installation(), network.number, prefix)
            .map_err(|e| problems::host(&e))?;
        if let Some(what) = &taken {
            operation.note(format!("no IPv6: {prefix}/{IPV6_PREFIX} overlaps {what} of this host"));
        }
        Ok(Some(prefix).filter(|_| taken.is_none()))
    }

    /// The IPv6 prefix of a network, on a host that has IPv6.
    fn possible_ipv6(&self, network: &Network) -> Option<Ipv6Addr> {
        let possible = network.mtu >= LEAST_IPV6_MTU && root::host_has_ipv6();
        possible.then(|| self.store.ipv6_prefix(network.number))
    }

    pub(crate) fn network_of(&self, place: Place) -> Result<Network, Problem> {
        let record = self.store.network(place.network).map_err(problems::store)?;
        let lost = || {
            let message = format!("network {} is not in the database", place.network);
            Problem::new(Code::Damaged, message)
        };
        record.map(|record| record.network).ok_or_else(lost)
    }

    /// A network as the API shows it.
    #[must_use]
    pub fn shown_network(&self, record: NetworkRecord) -> network::Network {
        let NetworkRecord { name, network, vms } = record;
        network::Network {
            name,
            bridge: network.bridge(self.store.installation()),
            subnet: network.subnet(),
            gateway: network.gateway,
            ipv6: self.possible_ipv6(&network).map(|prefix| format!("{prefix}/{IPV6_PREFIX}")),
            mtu: network.mtu,
            peers: network.peers,
            vms,
        }
    }
}

/// The network that the first VM would be in, if nothing of the host's is in its way.
pub(crate) fn first_choice(config: &Config, installation: &Installation) -> Option<Network> {
    let configured = &config.network;
    choices(DEFAULT.0, configured.subnet, configured.mtu, &installation.to_string()).next()
}

/// The flag that gives a VM this way out.
pub(crate) fn flag_of(egress: &Egress) -> &'static str {
    if *egress == Egress::All { "--nat" } else { "--egress" }
}

/// Why what needs a network cannot be.
pub(crate) fn no_network(what: &str, why: &str) -> Problem {
    Problem::new(Code::Missing, format!("{what}: VMs have no network here")).because(why)
}

fn unknown(name: &NetworkName) -> Problem {
    let remedy = match name.as_str() == DEFAULT.1 {
        true => "the first VM that names no network brings it".to_owned(),
        false => format!(
            "`banger network create {name}` makes it; `banger network list` shows which there are"
        ),
    };
    Problem::new(Code::NotFound, format!("there is no network {name}")).remedy(remedy)
}

fn is_clear(network: &Network, taken: &[TakenSubnet]) -> bool {
    !taken.iter().any(|taken| network.overlaps(taken.address, taken.prefix))
}

/// Of all that is taken, what the wanted subnet would meet.
fn no_subnet(wanted: Option<Subnet>, taken: &[TakenSubnet]) -> Problem {
    let meets = |taken: &&TakenSubnet| {
        let Some(subnet) = wanted else { return true };
        subnet.network(0, 0).overlaps(taken.address, taken.prefix)
    };
    let what: Vec<&str> = taken.iter().filter(meets).map(|taken| taken.what.as_str()).collect();
    let message = match wanted {
        Some(Subnet { first, prefix }) => format!("the subnet {first}/{prefix} is not free"),
        None => "there is no free subnet for VMs".to_owned(),
    };
    Problem::new(Code::Conflict, message)
        .because(format!("there is {}", what.join(", ")))
        .remedy("name a free one: `--subnet 192.168.77.0/24`")
}

/// The networks that could be, the best first: the configured one alone, or one of many, which begin at another place for
/// each installation, so that several on a host seldom meet.
fn choices(
    number: u8,
    configured: Option<Subnet>,
    mtu: u16,
    installation: &str,
) -> impl Iterator<Item = Network> + use<> {
    let (base, prefix) = CHOICES;
    let size = 1_u32 << (32 - prefix);
    let begin = installation
        .bytes()
        .fold(0_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
    let chosen = (0..NUMBER_OF_CHOICES)
        .map(move |step| begin.wrapping_add(step) % NUMBER_OF_CHOICES)
        .map(move |index| Subnet {
            first: Ipv4Addr::from_bits(base.to_bits() + index * size),
            prefix,
        })
        .filter(move |_| configured.is_none());
    configured.into_iter().chain(chosen).map(move |subnet| subnet.network(number, mtu))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_configured_is_the_only_choice() {
        let subnet = Subnet::parse("192.168.7.0/24").unwrap();
        let found: Vec<Network> = choices(0, Some(subnet), 1400, "0a1b").collect();
        let gateway = Ipv4Addr::new(192, 168, 7, 1);
        assert_eq!(
            found,
            [Network { number: 0, gateway, prefix: 24, mtu: 1400, peers: false, ipv6: None }]
        );
    }

    #[test]
    fn the_choices_are_64_subnets_that_do_not_overlap_and_begin_elsewhere_for_each_installation() {
        let one: Vec<Network> = choices(0, None, 1500, "0a1b").collect();
        let other: Vec<Network> = choices(0, None, 1500, "0a1c").collect();
        assert_eq!(one.len(), 64);
        for (at, network) in one.iter().enumerate() {
            let later = &one[at + 1..];
            assert!(!later.iter().any(|other| other.overlaps(network.first(), network.prefix)));
        }
        assert_ne!(one[0], other[0]);
    }
}
