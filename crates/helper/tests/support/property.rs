//! What holds of every request, whatever it is: it is understood or not, judged or not, and what passes is harmless by
//! rules that are written down here once more, without the judge's code. The fuzzer and the mutation test share it.

use banger_helper::judge::judge;
use banger_helper::policy::{Machine, Policy, Uids};
use banger_host::Installation;
use banger_host::helper_wire::{parse_request, request};
use serde_json::Value;

const FIRST_UID: u64 = 1_900_000_000;
const UIDS: u64 = 10_000;

/// Panics when it does not hold. Gives whether the request was understood, and whether it was allowed.
#[must_use]
pub(crate) fn holds(bytes: &[u8]) -> (bool, bool) {
    let Ok(act) = parse_request(bytes) else { return (false, false) };
    let again = parse_request(&request(&act)).expect("what was understood can be said again");
    assert_eq!(again, act);
    let policy = Policy {
        owner_uid: 1000,
        installation: Installation::parse("0000").expect("4 of the alphabet"),
        uids: Uids { first: 1_900_000_000, count: 10_000 },
        machine: Machine { memory_bytes: 8 << 30, cpus: 4 },
    };
    if judge(&act, &policy).is_err() {
        return (true, false);
    }
    let value = serde_json::to_value(&act).expect("an act is plain data");
    harmless("", &value, mark_in(&value));
    (true, true)
}

fn mark_in(act: &Value) -> &str {
    let places = ["/claim/mark", "/held/mark", "/mark"];
    places.iter().find_map(|place| act.pointer(place)?.as_str()).unwrap_or_default()
}

fn harmless(key: &str, value: &Value, mark: &str) {
    match value {
        Value::Object(fields) => fields.iter().for_each(|(key, value)| harmless(key, value, mark)),
        Value::Array(items) => {
            assert!(items.len() <= if key == "exposed" { 64 } else { 16 }, "{key}");
            items.iter().for_each(|item| harmless(key, item, mark));
        }
        Value::String(text) => harmless_text(key, text, mark),
        Value::Number(number) => {
            let number = number.as_u64().expect("no claim has another number");
            let fits = match key {
                "uid" => (FIRST_UID..FIRST_UID + UIDS).contains(&number),
                "memory_max_bytes" => (1 << 26..=10 << 30).contains(&number),
                "cpu_percent" => (1..=3300).contains(&number),
                "pids_max" => (8..=4096).contains(&number),
                "size_bytes" => (1 << 20..=16 << 40).contains(&number) && number % 4096 == 0,
                "log_limit_bytes" => true,
                "number" => number < 256,
                "prefix" => (16..=29).contains(&number),
                "mtu" => (576..=65_521).contains(&number),
                "exposed" => (1..65_536).contains(&number),
                _ => false,
            };
            assert!(fits, "{key} {number}");
        }
        Value::Null | Value::Bool(_) => panic!("{key} is {value}"),
    }
}

fn harmless_text(key: &str, text: &str, mark: &str) {
    let plain = |extra: &[u8]| {
        !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || extra.contains(&b))
    };
    let fits = match key {
        "mark" => text.len() == 15 && text.starts_with("bg0000-") && plain(b"-"),
        "installation" => text == "0000",
        "file" | "source" if text.contains('/') => {
            let shared = ["images/", "kernels/", "initramfs/"].iter().any(|s| text.starts_with(s));
            plain(b"/._-")
                && text.split('/').all(|part| !part.is_empty() && !part.starts_with('.'))
                && (shared || text == format!("vms/{mark}/disk.ext4"))
        }
        "source" | "loop" => ["dm_snapshot", "image", "disk"].contains(&text),
        "name" => {
            ["api.sock", "agent.sock"].contains(&text)
                || (plain(b"-") && !["firecracker", "dev", "run"].contains(&text))
        }
        "zone" => text == "vm",
        "role" => ["image", "disk"].contains(&text),
        "signal" => ["HUP", "INT", "QUIT", "KILL", "TERM"].contains(&text),
        "do" => {
            let looks = ["list", "firewalls", "route_names"];
            looks.contains(&text) || ["acquire", "release", "signal", "connect"].contains(&text)
        }
        "gateway" | "address" => {
            let bytes: Vec<u8> = text.split('.').filter_map(|part| part.parse().ok()).collect();
            bytes.len() == 4
                && matches!(bytes[..2], [10, _] | [172, 16..=31] | [192, 168])
                && !text.contains(|c: char| !c.is_ascii_digit() && c != '.')
        }
        // The 8 characters of the mark's VM are 40 bits, those of the installation are all 0.
        "mac" => {
            let digit = |c| "0123456789abcdefghjkmnpqrstvwxyz".find(c).expect("a mark's") as u64;
            let vm = mark[7..].chars().fold(0, |number, c| number * 32 + digit(c));
            text.replace(':', "") == format!("02{vm:010x}")
        }
        "kind" => {
            let known = ["cgroup", "loop", "dm_snapshot", "bridge", "guard", "tap", "nat", "jail"];
            known.contains(&text) || text == "jailed_vmm"
        }
        _ => false,
    };
    assert!(fits, "{key}: {text:?}");
}
