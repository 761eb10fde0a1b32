//! Other people's rules, from what nft lists (libnftables-json(5)). What iptables has written is there as extensions whose
//! arguments JSON does not tell; the text of the same rule does, where nft was built with xtables, as distributions do.

use std::collections::HashMap;

use serde_json::Value;

use super::super::rules;

/// Without the tables of installations of ours.
#[derive(Debug, Default)]
pub(super) struct Ruleset {
    pub(super) chains: Vec<Chain>,
    /// Elements of named sets, by family, table and name.
    sets: HashMap<[String; 3], Value>,
}

#[derive(Debug)]
pub(super) struct Chain {
    pub(super) family: String,
    pub(super) table: String,
    pub(super) name: String,
    /// Absent where only other chains lead here.
    pub(super) base: Option<Base>,
    pub(super) rules: Vec<Rule>,
}

#[derive(Debug)]
pub(super) struct Base {
    pub(super) hook: String,
    pub(super) drops: bool,
}

#[derive(Debug)]
pub(super) struct Rule {
    /// Statements, each an object of one key.
    pub(super) statements: Vec<Value>,
    /// As nft shows it, without its counter and its handle.
    pub(super) text: String,
}

impl Ruleset {
    /// `listing` is of `nft -j list ruleset`, `text` of `nft -a list ruleset`.
    pub(super) fn parse(listing: &Value, text: &str) -> Self {
        let texts = texts(text);
        let mut all = Self::default();
        let mut asleep = Vec::new();
        for object in listing["nftables"].as_array().into_iter().flatten() {
            let Some((kind, body)) = object.as_object().and_then(|object| object.iter().next())
            else {
                continue;
            };
            let word = |key: &str| body[key].as_str().unwrap_or_default().to_owned();
            let family = word("family");
            let table = if kind == "table" { word("name") } else { word("table") };
            if rules::whose(&table).is_some() {
                continue;
            }
            let place = (family, table);
            match kind.as_str() {
                "table" if words(&body["flags"]).contains(&"dormant") => asleep.push(place),
                "chain" if !asleep.contains(&place) => all.chains.push(Chain {
                    family: place.0,
                    table: place.1,
                    name: word("name"),
                    base: body["hook"].as_str().map(|hook| Base {
                        hook: hook.to_owned(),
                        drops: body["policy"] == "drop",
                    }),
                    rules: Vec::new(),
                }),
                "set" => {
                    all.sets.insert([place.0, place.1, word("name")], body["elem"].clone());
                }
                "rule" => {
                    let (family, table) = place;
                    let key = (family, table, body["handle"].as_u64().unwrap_or_default());
                    let text = texts.get(&key).cloned().unwrap_or_default();
                    let statements = body["expr"].as_array().cloned().unwrap_or_default();
                    if let Some(chain) = all.find_mut(&key.0, &key.1, &word("chain")) {
                        chain.rules.push(Rule { statements, text });
                    }
                }
                _ => {}
            }
        }
        all
    }

    /// Another chain of the same table.
    pub(super) fn beside(&self, chain: &Chain, name: &str) -> Option<&Chain> {
        let same = |other: &&Chain| {
            other.family == chain.family && other.table == chain.table && other.name == name
        };
        self.chains.iter().find(same)
    }

    /// The elements of a named set of the chain's table.
    pub(super) fn set(&self, chain: &Chain, name: &str) -> Option<&Value> {
        self.sets.get(&[chain.family.clone(), chain.table.clone(), name.to_owned()])
    }

    fn find_mut(&mut self, family: &str, table: &str, name: &str) -> Option<&mut Chain> {
        let same = |chain: &&mut Chain| {
            chain.family == family && chain.table == table && chain.name == name
        };
        self.chains.iter_mut().find(same)
    }
}

/// One word, or a list of some.
pub(super) fn words(value: &Value) -> Vec<&str> {
    match value {
        Value::Array(all) => all.iter().filter_map(Value::as_str).collect(),
        one => one.as_str().into_iter().collect(),
    }
}

/// The text of every rule by its family, table and handle.
fn texts(text: &str) -> HashMap<(String, String, u64), String> {
    let mut found = HashMap::new();
    let mut place = (String::new(), String::new());
    for line in text.lines() {
        if let Some(head) = line.strip_prefix("table ") {
            let mut parts = head.split(' ').map(str::to_owned);
            place = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
            continue;
        }
        let Some((rule, handle)) = line.trim_start().rsplit_once(" # handle ") else { continue };
        if let Ok(handle) = handle.parse() {
            found.insert((place.0.clone(), place.1.clone(), handle), without_counter(rule));
        }
    }
    found
}

fn without_counter(rule: &str) -> String {
    let mut words = rule.split_whitespace();
    let mut left = Vec::new();
    while let Some(word) = words.next() {
        if word == "counter" && words.clone().next() == Some("packets") {
            // `packets N bytes N`
            words.nth(3);
        } else {
            left.push(word);
        }
    }
    left.join(" ").chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_rules_text_is_without_its_counter_and_found_by_its_handle() {
        let text = "table ip filter { # handle 1\n\tchain FORWARD { # handle 2\n\t\ttype filter hook forward priority \
                    filter; policy drop;\n\t\toifname \"a\" counter packets 7 bytes 9 drop comment \"a  b\" # handle 9\n";
        let found = texts(text);
        let key = ("ip".to_owned(), "filter".to_owned(), 9);
        assert_eq!(found[&key], "oifname \"a\" drop comment \"a b\"");
    }

    #[test]
    fn tables_of_ours_and_tables_that_sleep_are_none_of_others_chains() {
        let chain = |table: &str| {
            json!({ "chain": {
                "family": "inet", "table": table, "name": "forward", "type": "filter",
                "hook": "forward", "prio": 0, "policy": "drop",
            } })
        };
        let table = |name: &str, flags: Value| json!({ "table": { "family": "inet", "name": name, "flags": flags } });
        let listing = json!({ "nftables": [
            table("bg0000", Value::Null), chain("bg0000"),
            table("asleep", json!(["dormant"])), chain("asleep"),
            table("awake", Value::Null), chain("awake"),
        ] });
        let found = Ruleset::parse(&listing, "");
        let tables: Vec<&str> = found.chains.iter().map(|chain| chain.table.as_str()).collect();
        assert_eq!(tables, ["awake"]);
    }

    #[test]
    fn what_is_listed_strangely_is_nobodys_chain() {
        for listing in [
            json!(null),
            json!({ "nftables": 7 }),
            json!({ "nftables": [null, 7, {}, { "rule": null }, { "chain": [] }, { "set": 7 }] }),
        ] {
            let found = Ruleset::parse(&listing, "table\n # handle 1\n # handle x");
            assert!(found.chains.iter().all(|chain| chain.base.is_none()), "{listing}");
        }
    }
}
