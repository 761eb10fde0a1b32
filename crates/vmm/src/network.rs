//! A VM's network, whichever its VMM: what it holds on the host, and what its guest is told of it.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use banger_api::{Egress, GuestIpv6, GuestNet, Zone};
use banger_host::{Claim, Guard, IPV6_PREFIX, Mac, Mark, Nat, Network, Tap, user_network};

/// The one network device of a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkDevice {
    pub network: Network,
    /// The VM's own in the network.
    pub address: Ipv4Addr,
    pub mac: Mac,
    /// What the VM may reach beyond the host.
    pub egress: Egress,
    /// TCP ports of the host's loopback that the guest reaches at the gateway.
    pub exposed: BTreeSet<u16>,
    /// What the names of VMs end with.
    pub zone: Zone,
}

impl NetworkDevice {
    /// In the order in which they are made: the rules are there before the device is. `uid` is the VMM's user, who opens
    /// the tap.
    pub(crate) fn claims(&self, mark_of: &Mark, uid: u32) -> Vec<Claim> {
        let &Self { network, address, mac, ref egress, ref exposed, zone: _ } = self;
        let mark = || mark_of.clone();
        let exposed = exposed.clone();
        let mut claims = vec![
            Claim::Bridge { installation: mark().installation().clone(), network },
            Claim::Guard(Guard { mark: mark(), network, address, mac, exposed }),
            Claim::Tap(Tap { mark: mark(), uid, network }),
        ];
        claims.extend(Nat::of(mark_of, network, address, egress).map(Claim::Nat));
        claims
    }

    /// For the guest's agent, on the kernel's command line.
    pub(crate) fn word(&self) -> String {
        let Network { gateway, prefix, mtu, number: _, peers, ipv6: _ } = self.network;
        let zone = self.zone.clone();
        let both = self.network.ipv6_of(self.address).zip(self.network.ipv6_gateway());
        let ipv6 = both.map(|(address, gateway)| GuestIpv6 {
            address,
            // Nobody but peers is reached without the host: what is for others comes to its rules, which say no at once.
            prefix: if peers { IPV6_PREFIX } else { 128 },
            gateway,
        });
        GuestNet { address: self.address, prefix, gateway, mtu, zone, ipv6 }.to_string()
    }
}

/// A network without a device on the host: passt makes sockets of what the guest sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserNetwork {
    /// What the VM's own name ends with.
    pub zone: Zone,
}

impl UserNetwork {
    /// For the guest's agent, on the kernel's command line.
    pub(crate) fn word(&self) -> String {
        let zone = self.zone.clone();
        let (address, gateway) = (user_network::ADDRESS, user_network::GATEWAY);
        let (prefix, mtu) = (user_network::PREFIX, user_network::MTU);
        GuestNet { address, prefix, gateway, mtu, zone, ipv6: None }.to_string()
    }
}
