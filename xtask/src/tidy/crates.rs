//! Rules about the crates: who may depend on whom, and what each manifest must say.

use serde_json::Value;

use super::{Finding, Tree};

/// Which crates of the workspace each crate may depend on. An arrow points to what is depended on:
///
/// ```text
///        ┌──────── daemon ────────┐
///        │    │     │      │      │
///        │   vmm ► storage │      │       cli   agent   bare   (e2e drives the programs)
///        │    │     │      │      │        │      │      │
///      image  │     │    store    │        │      │      │
///             └──► host ◄──┴──────┘        │      │      │
///           helper ─┘└──────► api ◄────────┴──────┴──────┘
/// ```
/// Planners (vmm, storage) know the host's claims, not its `Host`; image, dns and forward know nobody; cli and agent know the wire only
/// (and, as the daemon does, files and forward).
const EDGES: &[(&str, &[&str])] = &[
    ("banger-agent", &["banger-api", "banger-files", "banger-forward"]),
    ("banger-api", &[]),
    ("banger-bare", &["banger-api"]),
    ("banger-cli", &["banger-api", "banger-files", "banger-forward", "banger-workspace"]),
    (
        "banger-daemon",
        &[
            "banger-api",
            "banger-dns",
            "banger-files",
            "banger-forward",
            "banger-host",
            "banger-image",
            "banger-registry",
            "banger-storage",
            "banger-store",
            "banger-vmm",
            "banger-workspace",
        ],
    ),
    ("banger-dns", &[]),
    ("banger-e2e", &["banger-api"]),
    ("banger-ext4", &[]),
    ("banger-files", &["banger-api"]),
    ("banger-forward", &[]),
    ("banger-helper", &["banger-api", "banger-host"]),
    ("banger-host", &["banger-api"]),
    ("banger-image", &["banger-api", "banger-ext4"]),
    ("banger-registry", &[]),
    ("banger-storage", &["banger-host"]),
    ("banger-store", &["banger-api", "banger-host"]),
    ("banger-testing", &["banger-api", "banger-host"]),
    ("banger-vmm", &["banger-api", "banger-host", "banger-storage"]),
    ("banger-workspace", &["banger-api"]),
    ("xtask", &[]),
];

/// The crate with the fakes: every test may use it.
const FAKES: &str = "banger-testing";

/// Every crate is in the table and depends on no more of the others than it says there. Tests may use the fakes, and what
/// their crate depends on indirectly.
pub(super) fn edges(metadata: &Value) -> Vec<Finding> {
    let mut findings = Vec::new();
    for package in list(metadata, "packages") {
        let name = text(package, "name");
        let Some(allowed) = drawn(name) else {
            findings.push(of_crate(name, "is not in the table of crates of xtask's tidy"));
            continue;
        };
        for dependency in
            list(package, "dependencies").filter(|dependency| dependency["path"].is_string())
        {
            let other = text(dependency, "name");
            let for_tests = dependency["kind"] == "dev" && (other == FAKES || reaches(name, other));
            if !allowed.contains(&other) && !for_tests {
                findings.push(of_crate(
                    name,
                    &format!("must not depend on {other}: see the table in xtask's tidy"),
                ));
            }
        }
    }
    findings
}

/// Every manifest takes the workspace's lints, but for one that is a workspace of its own.
pub(super) fn lints(tree: &Tree) -> Vec<Finding> {
    let without = tree
        .ending("/Cargo.toml")
        .filter(|(_, text)| !text.contains("[lints]\nworkspace = true\n"))
        .filter(|(_, text)| !text.contains("\n[workspace]\n"));
    without
        .map(|(path, _)| Finding {
            path: path.into(),
            line: 1,
            what: "lacks `[lints]` with `workspace = true`".into(),
        })
        .collect()
}

fn drawn(name: &str) -> Option<&'static [&'static str]> {
    EDGES.iter().find(|(from, _)| *from == name).map(|(_, to)| *to)
}

fn reaches(from: &str, to: &str) -> bool {
    drawn(from).unwrap_or_default().iter().any(|next| *next == to || reaches(next, to))
}

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().into_iter().flatten()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn of_crate(name: &str, what: &str) -> Finding {
    let folder = name
        .strip_prefix("banger-")
        .map_or_else(|| name.to_owned(), |short| format!("crates/{short}"));
    Finding { path: format!("{folder}/Cargo.toml"), line: 1, what: what.into() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::tidy::{places, tree};

    fn depends(from: &str, to: &str, kind: Option<&str>) -> Value {
        json!({ "packages": [{ "name": from, "dependencies": [{ "name": to, "path": "/x", "kind": kind }] }] })
    }

    #[test]
    fn an_edge_that_is_not_drawn_is_found() {
        assert_eq!(
            places(&edges(&depends("banger-api", "banger-host", None))),
            ["crates/api/Cargo.toml:1"]
        );
        assert_eq!(
            places(&edges(&depends("banger-store", "banger-testing", None))),
            ["crates/store/Cargo.toml:1"]
        );
        assert_eq!(
            places(&edges(&depends("banger-cli", "banger-host", Some("dev")))),
            ["crates/cli/Cargo.toml:1"]
        );
        assert_eq!(edges(&depends("banger-vmm", "banger-host", None)), []);
    }

    #[test]
    fn tests_may_use_the_fakes_and_what_is_reached_anyway() {
        assert_eq!(edges(&depends("banger-store", "banger-testing", Some("dev"))), []);
        assert_eq!(edges(&depends("banger-storage", "banger-api", Some("dev"))), []);
    }

    #[test]
    fn a_crate_that_nobody_drew_is_found() {
        let metadata = json!({ "packages": [{ "name": "banger-new", "dependencies": [] }] });
        assert_eq!(places(&edges(&metadata)), ["crates/new/Cargo.toml:1"]);
    }

    #[test]
    fn a_crate_with_lints_of_its_own_is_found() {
        let tree = tree(&[
            ("Cargo.toml", "[workspace]\n"),
            ("crates/a/Cargo.toml", "[package]\n\n[lints]\nworkspace = true\n"),
            ("crates/b/Cargo.toml", "[package]\n\n[lints.rust]\nunsafe_code = \"allow\"\n"),
            ("fuzz/Cargo.toml", "[package]\n\n[workspace]\n"),
        ]);
        assert_eq!(places(&lints(&tree)), ["crates/b/Cargo.toml:1"]);
    }
}
