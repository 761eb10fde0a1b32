//! Networks: where they are on this host, and what of them a VM gets.

use std::net::Ipv4Addr;
use std::sync::Arc;

use banger_api::{Code, Problem, network};
use banger_host::{Installation, Mac, Network, root};
use banger_store::{NetworkRecord, Place, VmRecord};
use banger_vmm::NetworkDevice;

use crate::config::{Config, Subnet};
use crate::daemon::Daemon;
use crate::operations::Operation;
use crate::problems;

/// The network that VMs are in.
const DEFAULT: (u8, &str) = (0, "default");

/// Subnets are chosen from here: a part of 10.0.0.0/8 that few networks use. Each has room for 1021 VMs.
const CHOICES: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 213, 0, 0), 22);
const NUMBER_OF_CHOICES: u32 = 64;

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

    /// The network of a new VM, chosen anew as long as no VM is in it. For whoever holds [`Daemon::artifacts`].
    pub(crate) fn network_for_new(&self, operation: &Operation) -> Result<Network, Problem> {
        let (number, name) = DEFAULT;
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
        let taken = root::taken_subnets(installation, number).map_err(|e| problems::host(&e))?;
        let fits = |network: &Network| {
            network.mtu == configured.mtu
                && configured.subnet.is_none_or(|subnet| subnet.is_of(network))
                && !taken.iter().any(|taken| network.overlaps(taken.address, taken.prefix))
        };
        if let Some(record) = recorded.filter(|record| fits(&record.network)) {
            return Ok(record.network);
        }
        let mut choices =
            choices(number, configured.subnet, configured.mtu, &installation.to_string());
        let Some(network) = choices.find(fits) else {
            let what: Vec<&str> = taken.iter().map(|taken| taken.what.as_str()).collect();
            return Err(Problem::new(Code::Conflict, "there is no free subnet for VMs")
                .because(format!("this host has {}", what.join(", ")))
                .remedy(
                    "name a free one in config.toml: `[network]`, `subnet = \"192.168.77.0/24\"`",
                ));
        };
        self.store.set_network(name, &network).map_err(problems::store)?;
        Ok(network)
    }

    /// The device that a VM starts with; `None`, and a note, where it has none.
    pub(crate) async fn network_device(
        self: &Arc<Self>,
        vm: &VmRecord,
        operation: &Operation,
    ) -> Result<Option<NetworkDevice>, Problem> {
        let Some(place) = vm.place else { return Ok(None) };
        match self.networks_work().await {
            Ok(()) => {
                let network = self.network_of(place)?;
                if let Err(why) = self.serve_network(&network) {
                    operation.note(format!("{} has no DNS server: {why}", vm.name));
                }
                Ok(Some(NetworkDevice {
                    network,
                    address: place.address,
                    mac: Mac::of(&self.mark(&vm.id)),
                    nat: vm.nat,
                }))
            }
            Err(why) if vm.nat => Err(no_network(&why)
                .remedy(format!("`banger vm set {} --nat off` lets it start without", vm.name))),
            Err(why) => {
                operation.note(format!("{} has no network: {why}", vm.name));
                Ok(None)
            }
        }
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
            mtu: network.mtu,
            vms,
        }
    }
}

/// The network that the first VM would be in, if nothing of the host's is in its way.
pub(crate) fn first_choice(config: &Config, installation: &Installation) -> Option<Network> {
    let configured = &config.network;
    choices(DEFAULT.0, configured.subnet, configured.mtu, &installation.to_string()).next()
}

/// Why a VM that is to reach beyond its host cannot.
pub(crate) fn no_network(why: &str) -> Problem {
    Problem::new(Code::Missing, "--nat: VMs have no network here").because(why)
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
    configured.into_iter().chain(chosen).map(move |subnet| Network {
        number,
        gateway: subnet.gateway(),
        prefix: subnet.prefix,
        mtu,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_configured_is_the_only_choice() {
        let subnet = Subnet::parse("192.168.7.0/24").unwrap();
        let found: Vec<Network> = choices(0, Some(subnet), 1400, "0a1b").collect();
        let gateway = Ipv4Addr::new(192, 168, 7, 1);
        assert_eq!(found, [Network { number: 0, gateway, prefix: 24, mtu: 1400 }]);
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
