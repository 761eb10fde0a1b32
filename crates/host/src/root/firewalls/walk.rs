//! A packet's way through a chain: all the ends that it can have. Where a rule may or may not be meant, both ways are
//! gone. Pure.

use std::collections::HashMap;

use serde_json::Value;

use super::packet::{Answer, Packet};
use super::ruleset::{Chain, Rule, Ruleset};

/// Where a packet ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stop {
    pub(super) chain: String,
    /// Its text; `None` for the chain's policy.
    pub(super) rule: Option<String>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Passes,
    Stopped(Stop),
    /// Perhaps there.
    Unknown(Stop),
}

/// The ends that it can have in one chain.
#[derive(Debug, Clone, Default)]
struct Ends {
    accepted: bool,
    stopped: Option<Stop>,
    /// Back to who has called.
    through: bool,
}

impl Ends {
    fn add(&mut self, other: &Ends) {
        self.accepted |= other.accepted;
        if self.stopped.is_none() {
            self.stopped.clone_from(&other.stopped);
        }
    }
}

/// Where it ends in a chain that the kernel calls.
pub(super) fn walk(ruleset: &Ruleset, base: &Chain, packet: &Packet) -> Outcome {
    let mut ends = Walk { ruleset, packet, known: HashMap::new() }.chain(base);
    if ends.through {
        let drops = base.base.as_ref().is_some_and(|base| base.drops);
        let policy = Stop { chain: base.name.clone(), rule: None };
        ends.add(&Ends { accepted: !drops, stopped: drops.then_some(policy), through: false });
    }
    match ends.stopped {
        None => Outcome::Passes,
        Some(stop) if ends.accepted => Outcome::Unknown(stop),
        Some(stop) => Outcome::Stopped(stop),
    }
}

struct Walk<'a> {
    ruleset: &'a Ruleset,
    packet: &'a Packet,
    /// Chains that were gone through: where a packet ends there is the same whoever calls.
    known: HashMap<String, Ends>,
}

/// What a rule does with what it is meant for.
enum Verdict<'a> {
    Accept,
    Stop,
    Return,
    Jump(&'a str),
    Goto(&'a str),
    /// The next rule decides.
    Next,
    /// Nobody here knows.
    Anything,
}

/// iptables' targets that decide nothing (iptables-extensions(8)).
const UNDECIDED: [&str; 14] = [
    "AUDIT",
    "CHECKSUM",
    "CLASSIFY",
    "CONNMARK",
    "CONNSECMARK",
    "CT",
    "LOG",
    "MARK",
    "NFLOG",
    "SECMARK",
    "SET",
    "TCPMSS",
    "TRACE",
    "TTL",
];

impl Walk<'_> {
    fn chain(&mut self, chain: &Chain) -> Ends {
        if let Some(ends) = self.known.get(&chain.name) {
            return ends.clone();
        }
        // The kernel has no chain that leads back to itself.
        self.known.insert(chain.name.clone(), Ends { through: true, ..Ends::default() });
        let ends = self.rules(chain);
        self.known.insert(chain.name.clone(), ends.clone());
        ends
    }

    fn rules(&mut self, chain: &Chain) -> Ends {
        let mut all = Ends::default();
        for rule in &chain.rules {
            let (meant, verdict) = self.look(rule, chain);
            if meant == Some(false) {
                continue;
            }
            let stop = Stop { chain: chain.name.clone(), rule: Some(rule.text.clone()) };
            let ends = self.follow(chain, &verdict, stop);
            all.add(&ends);
            let goes_on = match verdict {
                Verdict::Return | Verdict::Goto(_) => {
                    all.through |= ends.through;
                    false
                }
                _ => ends.through,
            };
            if meant == Some(true) && !goes_on {
                return all;
            }
        }
        all.through = true;
        all
    }

    fn follow(&mut self, chain: &Chain, verdict: &Verdict<'_>, stop: Stop) -> Ends {
        let through = Ends { through: true, ..Ends::default() };
        match verdict {
            Verdict::Accept => Ends { accepted: true, ..Ends::default() },
            Verdict::Stop => Ends { stopped: Some(stop), ..Ends::default() },
            Verdict::Return | Verdict::Next => through,
            Verdict::Jump(name) | Verdict::Goto(name) => {
                let ruleset = self.ruleset;
                ruleset.beside(chain, name).map_or(through, |other| self.chain(other))
            }
            Verdict::Anything => Ends { accepted: true, stopped: Some(stop), through: true },
        }
    }

    /// Whether the rule is meant for the packet, and what it does then.
    fn look<'r>(&self, rule: &'r Rule, chain: &Chain) -> (Answer, Verdict<'r>) {
        let mut meant = Some(true);
        let mut verdict = Verdict::Next;
        for statement in &rule.statements {
            let Some((kind, body)) = statement.as_object().and_then(|all| all.iter().next()) else {
                // `notrack`, and what a later nft may say.
                continue;
            };
            let name = || body["name"].as_str().unwrap_or_default();
            let matched = match kind.as_str() {
                "match" => self.packet.matches(body, self.ruleset, chain),
                "xt" if body["type"] == "match" => {
                    self.packet.matches_extension(name(), &rule.text)
                }
                "counter" | "log" | "mangle" | "ct helper" | "flow" => Some(true),
                "vmap" => {
                    let (meant, said) = self.map(body);
                    verdict = said;
                    meant
                }
                _ => match said(kind, body, name()) {
                    Some(said) => {
                        verdict = said;
                        Some(true)
                    }
                    // A limit, a counted set, whatever is not known here.
                    None => None,
                },
            };
            meant = match (meant, matched) {
                (Some(false), _) | (_, Some(false)) => return (Some(false), Verdict::Next),
                (Some(true), Some(true)) => Some(true),
                _ => None,
            };
        }
        (meant, verdict)
    }

    /// A verdict by the value of something: that of the first element that is surely meant.
    fn map<'r>(&self, body: &'r Value) -> (Answer, Verdict<'r>) {
        let Some(pairs) = body["data"]["set"].as_array() else {
            return (None, Verdict::Anything);
        };
        let mut unknown = false;
        for pair in pairs {
            match self.packet.is(&body["key"], &pair[0]) {
                Some(true) => {
                    let entry = pair[1].as_object().and_then(|all| all.iter().next());
                    let verdict = entry.and_then(|(kind, body)| said(kind, body, ""));
                    return (Some(true), verdict.unwrap_or(Verdict::Anything));
                }
                Some(false) => {}
                None => unknown = true,
            }
        }
        if unknown { (None, Verdict::Anything) } else { (Some(false), Verdict::Next) }
    }
}

/// The verdict that a statement is; `None` for what is none. `extension` is the name of iptables' target.
fn said<'r>(kind: &str, body: &'r Value, extension: &str) -> Option<Verdict<'r>> {
    let target = body["target"].as_str().unwrap_or_default();
    Some(match kind {
        "accept" => Verdict::Accept,
        "drop" | "reject" => Verdict::Stop,
        "return" => Verdict::Return,
        "continue" => Verdict::Next,
        "jump" => Verdict::Jump(target),
        "goto" => Verdict::Goto(target),
        "xt" if extension == "REJECT" => Verdict::Stop,
        "xt" if UNDECIDED.contains(&extension) => Verdict::Next,
        "xt" | "queue" | "tproxy" | "synproxy" | "fwd" => Verdict::Anything,
        _ => return None,
    })
}
