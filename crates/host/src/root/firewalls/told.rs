//! What is told of an obstacle, and what to tell the firewall: commands for its own program, so that it remembers them.

use std::fmt;

use super::super::rules::DNS_PORT;
use super::{Neighbour, Obstacle, Traffic};

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let who = match self.traffic {
            Traffic::Out => "what guests with --nat send",
            Traffic::Back => "what answers guests with --nat",
            Traffic::Names => "what guests ask for names",
        };
        let verb = if self.certain { "is stopped" } else { "may be stopped" };
        let Self { family, table, chain, .. } = self;
        write!(f, "{who} {verb} by chain {chain} of table {family} {table}: ")?;
        match &self.rule {
            Some(rule) => write!(f, "{rule}"),
            None => write!(f, "policy drop"),
        }
    }
}

impl Obstacle {
    /// Shell commands, for root, after which the traffic of the bridge passes there. What else comes by it is still
    /// judged by rules of ours.
    #[must_use]
    pub fn remedies(&self, bridge: &str) -> Vec<String> {
        const ANSWERS: &str = "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT";
        let base = &self.base;
        match (self.neighbour, self.traffic) {
            (Neighbour::Docker, Traffic::Back) => {
                vec![format!("iptables -I DOCKER-USER -o {bridge} {ANSWERS}")]
            }
            (Neighbour::Docker, _) => {
                vec![format!("iptables -I DOCKER-USER -i {bridge} -j ACCEPT")]
            }
            (Neighbour::Ufw, Traffic::Out) => vec![format!("ufw route allow in on {bridge}")],
            (Neighbour::Ufw, Traffic::Back) => vec![format!("ufw route allow out on {bridge}")],
            (Neighbour::Ufw, Traffic::Names) => {
                vec![format!("ufw allow in on {bridge} to any port {DNS_PORT}")]
            }
            (Neighbour::Firewalld, _) => vec![
                format!("firewall-cmd --permanent --zone=trusted --add-interface={bridge}"),
                "firewall-cmd --reload".to_owned(),
            ],
            (Neighbour::Iptables, Traffic::Out) => {
                vec![format!("iptables -I {base} -i {bridge} -j ACCEPT")]
            }
            (Neighbour::Iptables, Traffic::Back) => {
                vec![format!("iptables -I {base} -o {bridge} {ANSWERS}")]
            }
            (Neighbour::Iptables, Traffic::Names) => ["udp", "tcp"]
                .map(|protocol| {
                    format!(
                        "iptables -I {base} -i {bridge} -p {protocol} --dport {DNS_PORT} -j ACCEPT"
                    )
                })
                .to_vec(),
            (Neighbour::Nftables, _) => vec![self.nft(bridge)],
        }
    }

    fn nft(&self, bridge: &str) -> String {
        let Self { family, table, base, traffic, .. } = self;
        // A bridge's chains see the frame at the VM's own port.
        let device = match bridge.rsplit_once("-net") {
            Some((ours, _)) if family == "bridge" => format!("\"{ours}-*\""),
            _ => format!("\"{bridge}\""),
        };
        let rule = match traffic {
            Traffic::Out => format!("iifname {device} accept"),
            Traffic::Back if family == "bridge" => format!("oifname {device} accept"),
            Traffic::Back => format!("oifname {device} ct state established,related accept"),
            Traffic::Names => {
                format!("iifname {device} meta l4proto {{ tcp, udp }} th dport {DNS_PORT} accept")
            }
        };
        format!("nft insert rule {family} {table} {base} '{rule}'")
    }
}
