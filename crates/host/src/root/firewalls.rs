//! Whether other people's firewalls on this host let guests through: which of their chains stops what, and by which rule.
//! Looks only. What is theirs is theirs to change ([`super::rules`] is ours alone), so what is found here is told to the
//! person, who tells the firewall.
//!
//! ```text
//! nft list ruleset ─► ruleset: their chains ─► walk: a packet of ours through each ─► what stops it, surely or perhaps
//! ```

mod packet;
mod ruleset;
mod told;
mod walk;

use std::fs;
use std::io;

use serde::{Deserialize, Serialize};

use self::packet::{Name, Packet};
use self::ruleset::{Chain, Ruleset};
use self::walk::{Outcome, Stop};
use super::{netlink, nft};
use crate::error::HostError;
use crate::mark::Installation;
use crate::network::Network;

/// What others' firewalls do with what guests of one network send and get.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Firewalls {
    pub obstacles: Vec<Obstacle>,
    /// Whether the kernel has iptables' own tables with a filter, which nft does not list.
    pub legacy: bool,
}

/// A chain that stops something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Obstacle {
    pub traffic: Traffic,
    /// Whether everything of that kind is stopped. Otherwise it depends on what cannot be known before there is a packet.
    pub certain: bool,
    pub neighbour: Neighbour,
    pub family: String,
    pub table: String,
    /// The chain that the kernel calls: the one that is to let the traffic through.
    pub base: String,
    /// The chain in which it ends; often the same.
    pub chain: String,
    /// As nft lists it; `None` where no rule decides and the chain's policy is to drop.
    pub rule: Option<String>,
}

/// Who it is that is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Traffic {
    /// What a guest with a way out sends through the host.
    Out,
    /// What answers it.
    Back,
    /// A guest's questions for names, to the host.
    Names,
}

/// Whose chain it is, which is who to tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Neighbour {
    Docker,
    Ufw,
    Firewalld,
    /// Rules of iptables of nobody known.
    Iptables,
    /// Rules of nft of nobody known.
    Nftables,
}

/// The longest text of a rule that is handed out, in characters, and how many obstacles are at most.
const LONGEST_RULE: usize = 300;
const MOST_OBSTACLES: usize = 64;

/// The tables that iptables-legacy has made in this network, one a line; root's to read. The file is there while the
/// module is (`ip_tables_names` of the kernel's net/netfilter/x_tables.c).
const LEGACY_TABLES: &str = "/proc/net/ip_tables_names";

pub(super) fn look(installation: &Installation, network: &Network) -> Result<Firewalls, HostError> {
    let look = || {
        let uplinks = uplinks()?;
        let (listing, text) = nft::everything()?;
        let ruleset = Ruleset::parse(&listing, &text);
        let legacy = fs::read_to_string(LEGACY_TABLES).unwrap_or_default();
        Ok(Firewalls {
            obstacles: obstacles(&ruleset, installation, network, &uplinks),
            legacy: legacy.lines().any(|table| table == "filter"),
        })
    };
    look().map_err(|e: io::Error| HostError::new("look at the host's firewalls", e))
}

/// The devices by which packets to the world leave.
fn uplinks() -> io::Result<Vec<String>> {
    /// A VPN that takes everything has two routes of one bit, so as to leave the default route alone.
    const MOST_PREFIX: u8 = 1;
    let links = netlink::links()?;
    let default = |route: &netlink::Route| route.prefix <= MOST_PREFIX && route.leads_somewhere;
    let devices: Vec<u32> =
        netlink::routes()?.iter().filter(|route| default(route)).filter_map(|r| r.device).collect();
    let found = links.into_iter().filter(|link| devices.contains(&link.index));
    Ok(found.map(|link| link.name).collect())
}

/// Which chains see which traffic: family and hook (nft(8), "Address families").
const SEEN: [(Traffic, &[(&str, &str)]); 3] = [
    (
        Traffic::Out,
        &[("bridge", "prerouting"), ("bridge", "input"), ("inet", "forward"), ("ip", "forward")],
    ),
    (
        Traffic::Back,
        &[("inet", "forward"), ("ip", "forward"), ("bridge", "output"), ("bridge", "postrouting")],
    ),
    (
        Traffic::Names,
        &[("bridge", "prerouting"), ("bridge", "input"), ("inet", "input"), ("ip", "input")],
    ),
];

fn obstacles(
    ruleset: &Ruleset,
    installation: &Installation,
    network: &Network,
    uplinks: &[String],
) -> Vec<Obstacle> {
    let mut all = Vec::new();
    for (traffic, hooks) in SEEN {
        for chain in ruleset.chains.iter().filter(|chain| sees(chain, hooks)) {
            let packet = packet(traffic, chain, installation, network, uplinks);
            let (certain, stop) = match walk::walk(ruleset, chain, &packet) {
                Outcome::Passes => continue,
                Outcome::Stopped(stop) => (true, stop),
                Outcome::Unknown(stop) => (false, stop),
            };
            let Stop { chain: at, rule } = stop;
            all.push(Obstacle {
                traffic,
                certain,
                neighbour: neighbour(ruleset, chain, &at),
                family: chain.family.clone(),
                table: chain.table.clone(),
                base: chain.name.clone(),
                chain: at,
                rule: rule.map(|text| text.chars().take(LONGEST_RULE).collect()),
            });
        }
    }
    all.truncate(MOST_OBSTACLES);
    all
}

fn sees(chain: &Chain, hooks: &[(&str, &str)]) -> bool {
    let Some(base) = &chain.base else { return false };
    hooks.contains(&(chain.family.as_str(), base.hook.as_str()))
}

fn packet(
    traffic: Traffic,
    chain: &Chain,
    installation: &Installation,
    network: &Network,
    uplinks: &[String],
) -> Packet {
    // A bridge's chains see the frame at the VM's own port.
    let inside = if chain.family == "bridge" {
        Name::Begins(format!("bg{installation}-"))
    } else {
        Name::Exactly(network.bridge(installation))
    };
    let outside = Name::OneOf(uplinks.to_vec());
    let subnet = (network.first(), network.prefix);
    match traffic {
        Traffic::Out => Packet::out(inside, outside, subnet),
        Traffic::Back => Packet::back(outside, inside, subnet),
        Traffic::Names => Packet::name_asked(inside, subnet, network.gateway),
    }
}

/// Docker and ufw share one table, each with chains of its own, and both are asked before its policy is.
fn neighbour(ruleset: &Ruleset, base: &Chain, stopped_in: &str) -> Neighbour {
    let of_table = |name: &dyn Fn(&str) -> bool| {
        let same = |chain: &&Chain| chain.family == base.family && chain.table == base.table;
        ruleset.chains.iter().filter(same).any(|chain| name(&chain.name))
    };
    let forwards = base.base.as_ref().is_some_and(|base| base.hook == "forward");
    let has_docker = || forwards && of_table(&|name| name == "DOCKER-USER");
    if base.table == "firewalld" {
        Neighbour::Firewalld
    } else if stopped_in.starts_with("DOCKER") && has_docker() {
        Neighbour::Docker
    } else if of_table(&|name| name.starts_with("ufw-")) {
        Neighbour::Ufw
    } else if has_docker() {
        Neighbour::Docker
    } else if base.family == "ip" && ["FORWARD", "INPUT"].contains(&base.name.as_str()) {
        Neighbour::Iptables
    } else {
        Neighbour::Nftables
    }
}
