//! DNS in the daemon: which names there are, and where they are answered. The host asks at 127.0.0.1, guests at the
//! gateway of their network, where the rules lead their port 53 to ours.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use banger_api::Zone;
use banger_dns::{
    Addresses, Gate, Guests, Names, Sockets, Subnet, serve_authoritative, serve_guests,
};
use banger_host::Network;
use banger_host::root::{DNS_PORT, Routed};
use tokio_util::sync::CancellationToken;

use crate::daemon::Daemon;
use crate::problems;

/// The names of the VMs that run, and the servers that answer for them.
#[derive(Debug)]
pub struct Dns {
    names: Names,
    /// By address: what ends the server there. One that could not be had is here with the reason, and is tried again when it
    /// is next needed.
    servers: Mutex<HashMap<Ipv4Addr, Result<CancellationToken, String>>>,
}

impl Dns {
    #[must_use]
    pub fn new(zone: &Zone) -> Self {
        let names = Names::new(zone.as_str()).expect("a zone is a name");
        Self { names, servers: Mutex::default() }
    }

    /// Whether the server at this address answers; `None` when nobody has asked for one.
    #[must_use]
    pub fn server(&self, address: Ipv4Addr) -> Option<Result<(), String>> {
        self.servers().get(&address).map(|server| server.clone().map(drop))
    }

    /// Ends the server at this address, if there is one: its network is no more.
    pub(crate) fn end(&self, address: Ipv4Addr) {
        if let Some(Ok(stop)) = self.servers().remove(&address) {
            stop.cancel();
        }
    }

    /// Answers at this address from now on, if that is not so already. In a runtime.
    fn serve(&self, address: Ipv4Addr, guests: Option<Guests>) -> Result<(), String> {
        let mut servers = self.servers();
        if let Some(Ok(_)) = servers.get(&address) {
            return Ok(());
        }
        let begun = Sockets::bind(SocketAddrV4::new(address, DNS_PORT))
            .map(|sockets| {
                let (names, stop) = (self.names.clone(), CancellationToken::new());
                let ends = stop.clone();
                drop(tokio::spawn(async move {
                    let ended = match guests {
                        None => serve_authoritative(sockets, names, stop).await,
                        Some(guests) => serve_guests(sockets, names, guests, stop).await,
                    };
                    if let Err(error) = ended {
                        tracing::error!(%address, %error, "the DNS server has ended");
                    }
                }));
                ends
            })
            .map_err(|error| problems::dns(&error).to_string());
        servers.insert(address, begun.clone());
        begun.map(drop)
    }

    fn servers(&self) -> MutexGuard<'_, HashMap<Ipv4Addr, Result<CancellationToken, String>>> {
        self.servers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Daemon {
    /// Answers the host for the names of VMs. Without it VMs run as well; `doctor` says so.
    pub fn serve_names(self: &Arc<Self>) {
        if let Err(why) = self.dns.serve(Ipv4Addr::LOCALHOST, None) {
            tracing::warn!(%why, "the host will not be told the names of VMs");
        }
        // VMs that outlived the last daemon.
        for vm in self.store.vms().unwrap_or_default() {
            if let Some(place) = vm.place {
                self.gates.learn(place.address, &self.mark(&vm.id), &vm.egress);
                self.gates.set_ipv6(place.address, vm.ipv6.is_some());
                if !vm.exposed.is_empty()
                    && let Err(problem) =
                        self.network_of(place).and_then(|network| self.serve_exposed(&network))
                {
                    tracing::warn!(vm = %vm.name, %problem, "it reaches nothing that is exposed to it");
                }
            }
        }
        for record in self.store.networks().unwrap_or_default() {
            if record.vms > 0
                && let Err(why) = self.serve_network(&record.network)
            {
                tracing::warn!(%why, "guests will not be told names");
            }
        }
        self.publish_names();
    }

    /// Answers the guests of a network.
    ///
    /// # Errors
    /// In a sentence: why not.
    pub(crate) fn serve_network(&self, network: &Network) -> Result<(), String> {
        let subnet = Subnet::new(network.gateway, network.prefix).map_err(|e| e.to_string())?;
        let gate: Arc<dyn Gate> = self.gates.clone();
        let guests = Guests { gate: Some(gate), ..Guests::new(vec![subnet]) };
        self.dns.serve(network.gateway, Some(guests))
    }

    /// Lets the host's resolver ask us for names of VMs from now on, as long as the bridge is there. Nobody waits for it.
    pub(crate) fn route_names(self: &Arc<Self>, network: &Network) {
        let (daemon, number) = (Arc::clone(self), network.number);
        let zone = self.config.network.zone.clone();
        drop(tokio::task::spawn_blocking(move || match daemon.host.route_names(number, &zone) {
            Ok(Routed::Yes) => tracing::debug!(number, "the host's resolver knows who to ask"),
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(problem = %problems::host(&error), "the host's resolver is not told of VMs");
            }
        }));
    }

    /// Brings the names up to date with the VMs that run.
    pub(crate) fn publish_names(&self) {
        let published = self.store.running_addresses().map_err(|e| e.to_string()).and_then(|all| {
            let subnets = self.store.networks().map_err(|e| e.to_string())?;
            let subnets = subnets.iter().map(|record| &record.network);
            let prefixes = subnets.clone().map(|network| self.store.ipv6_prefix(network.number));
            self.dns.names.set_prefixes(prefixes.collect());
            self.dns.names.set_subnets(
                subnets
                    .filter_map(|network| Subnet::new(network.gateway, network.prefix).ok())
                    .collect(),
            );
            let all =
                all.iter().map(|&(ref name, ipv4, ipv6)| (name.as_str(), Addresses { ipv4, ipv6 }));
            self.dns.names.replace(all).map_err(|e| e.to_string())
        });
        if let Err(why) = published {
            tracing::error!(%why, "the names of VMs are not up to date");
        }
    }
}
