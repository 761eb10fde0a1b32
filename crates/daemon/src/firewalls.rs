//! Others' firewalls on this host: what a person is told of those that stop guests, when a VM is let out and by `doctor`.

use std::sync::Arc;

use banger_api::Problem;
use banger_api::daemon::Finding;
use banger_host::Network;
use banger_host::root::{Firewalls, Obstacle};
use banger_store::VmRecord;

use crate::daemon::Daemon;
use crate::doctor::{pass, warn};
use crate::networks;
use crate::operations::Operation;
use crate::problems;

/// What is stopped, and what to do.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    stopped: String,
    remedy: String,
}

impl Daemon {
    /// Says so if a VM that may leave the host cannot. It is no error: whoever owns the firewall may let it out later.
    pub(crate) async fn note_firewalls(
        self: &Arc<Self>,
        vm: &VmRecord,
        network: Network,
        operation: &Operation,
    ) {
        let looked = self.blocking(move |daemon| daemon.host.firewalls(&network)).await;
        let found = match looked {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => {
                tracing::warn!(problem = %problems::host(&error), "the host's firewalls are not known");
                return;
            }
            Err(problem) => {
                tracing::warn!(%problem, "the host's firewalls are not known");
                return;
            }
        };
        let bridge = network.bridge(self.store.installation());
        if let Some(Told { stopped, remedy }) = told(&found, &bridge) {
            operation
                .note(format!("{}: a firewall of this host is in the way: {stopped}", vm.name));
            operation.note(format!("try: {remedy}"));
        }
    }

    /// Whether others' firewalls let guests through.
    pub(crate) fn firewalls(&self) -> Finding {
        let found = self.look_at_firewalls();
        match found {
            Ok(all) => finding(&all),
            Err(problem) => {
                warn("firewall", problem.to_string(), "see `banger doctor` after the cause is gone")
            }
        }
    }

    /// Of each network, by the name of its bridge; of the one that would be made where there is none yet.
    fn look_at_firewalls(&self) -> Result<Vec<(String, Firewalls)>, Problem> {
        let recorded = self.store.networks().map_err(problems::store)?;
        let mut networks: Vec<Network> =
            recorded.into_iter().map(|record| record.network).collect();
        if networks.is_empty() {
            networks.extend(networks::first_choice(&self.config, self.store.installation()));
        }
        let look = |network: Network| {
            let found = self.host.firewalls(&network).map_err(|e| problems::host(&e))?;
            Ok((network.bridge(self.store.installation()), found))
        };
        networks.into_iter().map(look).collect()
    }
}

fn finding(all: &[(String, Firewalls)]) -> Finding {
    let told: Vec<Told> = all.iter().filter_map(|(bridge, found)| told(found, bridge)).collect();
    if !told.is_empty() {
        let said = |part: fn(&Told) -> &str| told.iter().map(part).collect::<Vec<_>>().join("; ");
        return warn("firewall", said(|told| &told.stopped), &said(|told| &told.remedy));
    }
    let doubts: Vec<String> =
        all.iter().flat_map(|(_, found)| &found.obstacles).map(ToString::to_string).collect();
    if all.iter().any(|(_, found)| found.legacy) {
        let remedy = "`sudo iptables-legacy -S` shows them: what they do not accept of the bridge is dropped";
        let text = "iptables-legacy has rules here, which nft does not list: whether they stop guests is not known";
        return warn("firewall", text.to_owned(), remedy);
    }
    if doubts.is_empty() {
        return pass("firewall", "no firewall of this host stops guests");
    }
    pass("firewall", format!("depends on the packet: {}", doubts.join("; ")))
}

/// What is stopped for sure.
fn told(found: &Firewalls, bridge: &str) -> Option<Told> {
    let sure: Vec<&Obstacle> = found.obstacles.iter().filter(|it| it.certain).collect();
    if sure.is_empty() {
        return None;
    }
    let mut commands: Vec<String> = Vec::new();
    for command in sure.iter().flat_map(|obstacle| obstacle.remedies(bridge)) {
        let command = format!("`sudo {command}`");
        if !commands.contains(&command) {
            commands.push(command);
        }
    }
    let stopped: Vec<String> = sure.iter().map(ToString::to_string).collect();
    Some(Told { stopped: stopped.join("; "), remedy: commands.join(", ") })
}

#[cfg(test)]
mod tests {
    use banger_api::daemon::Verdict;
    use banger_host::root::{Neighbour, Traffic};

    use super::*;

    fn obstacle(traffic: Traffic, certain: bool) -> Obstacle {
        Obstacle {
            traffic,
            certain,
            neighbour: Neighbour::Ufw,
            family: "ip".to_owned(),
            table: "filter".to_owned(),
            base: "FORWARD".to_owned(),
            chain: "FORWARD".to_owned(),
            rule: None,
        }
    }

    fn found(obstacles: Vec<Obstacle>, legacy: bool) -> Finding {
        finding(&[("bg0000-net0".to_owned(), Firewalls { obstacles, legacy })])
    }

    #[test]
    fn what_is_stopped_for_sure_is_warned_of_with_each_command_once() {
        let sure = obstacle(Traffic::Out, true);
        let finding = found(vec![sure.clone(), obstacle(Traffic::Names, false), sure], true);
        assert_eq!(finding.verdict, Verdict::Warn);
        let stopped = "what guests with --nat send is stopped by chain FORWARD of table ip filter: policy drop";
        assert_eq!(finding.text, format!("{stopped}; {stopped}"));
        let remedy = "`sudo ufw route allow in on bg0000-net0`";
        assert_eq!(finding.remedy.as_deref(), Some(remedy));
    }

    #[test]
    fn what_may_be_stopped_is_said_and_is_no_warning_and_what_nobody_sees_is_one() {
        let doubt = found(vec![obstacle(Traffic::Out, false)], false);
        assert_eq!(doubt.verdict, Verdict::Pass);
        assert!(doubt.text.contains("may be stopped by chain FORWARD"), "{}", doubt.text);
        assert_eq!(found(Vec::new(), false).text, "no firewall of this host stops guests");
        let unseen = found(Vec::new(), true);
        assert_eq!(unseen.verdict, Verdict::Warn);
        assert!(unseen.text.contains("iptables-legacy"), "{}", unseen.text);
    }
}
