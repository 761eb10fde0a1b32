//! Rules about Rust sources. They look at lines, not at syntax: comments are cut off, strings are not.

use super::{Finding, Tree};
use crate::testhost::REASONS;

/// The files that may start programs.
const STARTERS: &[&str] = &[
    "crates/agent/src/spawn.rs",
    "crates/bare/src/main.rs",
    "crates/cli/src/programs.rs",
    "crates/host/src/command.rs",
    "crates/image/src/programs.rs",
    "crates/registry/src/programs.rs",
    "crates/workspace/src/git.rs",
    "xtask/src/programs.rs",
];

/// Where test code may start any, beside tests themselves.
const TESTERS: &[&str] = &["crates/e2e/"];

/// What may print.
const PRINTERS: &[&str] = &["crates/cli/", "crates/e2e/", "xtask/"];

/// Where unsafe code is expected.
const UNSAFE: &[&str] =
    &["crates/agent/", "crates/bare/", "crates/host/", "xtask/src/testhost/tsc.rs"];

/// Every source begins with what it is for.
pub(super) fn heads(tree: &Tree) -> Vec<Finding> {
    let headless = tree.ending(".rs").filter(|(_, text)| !text.starts_with("//! "));
    headless
        .map(|(path, _)| {
            finding(path, 1, "begins without a `//!` line that says what the file is for")
        })
        .collect()
}

pub(super) fn programs(tree: &Tree) -> Vec<Finding> {
    let allowed = |path: &str| {
        STARTERS.contains(&path)
            || begins_with_one_of(path, TESTERS)
            // A type of that name which is not the standard library's or tokio's.
            || !tree.text(path).is_some_and(has_command_of_processes)
    };
    search(
        tree,
        &[concat!("Command::", "new(")],
        allowed,
        "starts a program outside of the file for that",
    )
}

/// `use std::process::{Child, Command};`, `tokio::process::Command::new`, …
fn has_command_of_processes(text: &str) -> bool {
    let mut after_process =
        text.lines().filter_map(|line| line.split_once("process::").map(|(_, rest)| rest));
    after_process
        .any(|rest| rest.split(|c: char| !c.is_alphanumeric()).any(|word| word == "Command"))
}

pub(super) fn prints(tree: &Tree) -> Vec<Finding> {
    // `print!(` is in `eprint!(`, `println!(` in `eprintln!(`.
    let macros = ["print!(", "println!(", concat!("dbg", "!(")];
    search(
        tree,
        &macros,
        |path| begins_with_one_of(path, PRINTERS),
        "prints, which only the CLI and xtask do",
    )
}

pub(super) fn skips_and_sleeps(tree: &Tree) -> Vec<Finding> {
    let words = [
        (concat!("#[ig", "nore"), "skips a test: mend it, or take it away"),
        (concat!("thread::", "sleep"), "sleeps: wait for the event, with a deadline"),
    ];
    let mut findings = Vec::new();
    for (path, text) in tree.ending(".rs") {
        for (line, code) in code(text) {
            let broken =
                words.iter().filter(|(word, _)| code.contains(word) && !is_run_elsewhere(code));
            findings.extend(broken.map(|(_, what)| finding(path, line, what)));
        }
    }
    findings
}

/// A test that is not run here says that the test host runs it, and when.
fn is_run_elsewhere(code: &str) -> bool {
    let reason = code.trim().strip_prefix(concat!("#[ig", "nore = \""));
    let reason = reason.and_then(|reason| reason.strip_suffix("\"]"));
    reason.is_some_and(|reason| REASONS.contains(&reason))
}

pub(super) fn unsafe_code(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, text) in tree.ending(".rs").filter(|(path, _)| !begins_with_one_of(path, UNSAFE)) {
        let expected =
            code(text).filter(|(_, code)| code.contains(concat!("expect(unsafe", "_code")));
        findings.extend(
            expected.map(|(line, _)| finding(path, line, "unsafe code where none is expected")),
        );
    }
    findings
}

/// The lines that hold one of the words and are neither test code nor in a file that is allowed to have it.
fn search(tree: &Tree, words: &[&str], allowed: impl Fn(&str) -> bool, what: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, text) in
        tree.ending(".rs").filter(|(path, _)| !allowed(path) && !is_test_file(tree, path))
    {
        let tests_begin = first_line_of_tests(text);
        let broken = code(text).filter(|(line, code)| {
            *line < tests_begin && words.iter().any(|word| code.contains(word))
        });
        findings.extend(broken.map(|(line, _)| finding(path, line, what)));
    }
    findings
}

/// Its lines without comments, counted from 1.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    (1..).zip(text.lines()).map(|(line, text)| {
        // A comment begins the line or follows a blank; `https://` in a string does neither.
        let comment = if text.trim_start().starts_with("//") { Some(0) } else { text.find(" //") };
        (line, comment.map_or(text, |begin| &text[..begin]))
    })
}

/// The line of `#[cfg(test)]` before a module that is written out; modules of tests end their files.
fn first_line_of_tests(text: &str) -> usize {
    let lines: Vec<&str> = text.lines().collect();
    let begins = lines.windows(2).position(|two| {
        two[0].trim() == "#[cfg(test)]"
            && two[1].trim_start().starts_with("mod ")
            && two[1].ends_with('{')
    });
    begins.map_or(usize::MAX, |index| index + 1)
}

/// A file of `tests/`, or a module that its parent declares for tests only.
fn is_test_file(tree: &Tree, path: &str) -> bool {
    if path.contains("/tests/") {
        return true;
    }
    let Some((folder, file)) = path.rsplit_once('/') else { return false };
    let declaration = format!("#[cfg(test)]\nmod {};", file.trim_end_matches(".rs"));
    let parents = [format!("{folder}/lib.rs"), format!("{folder}/main.rs"), format!("{folder}.rs")];
    parents.iter().filter_map(|parent| tree.text(parent)).any(|text| text.contains(&declaration))
}

fn begins_with_one_of(path: &str, beginnings: &[&str]) -> bool {
    beginnings.iter().any(|beginning| path.starts_with(beginning))
}

fn finding(path: &str, line: usize, what: &str) -> Finding {
    Finding { path: path.to_owned(), line, what: what.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::{places, tree};

    #[test]
    fn a_source_without_a_head_is_found() {
        let tree = tree(&[("a.rs", "//! What for.\n"), ("b.rs", "use std::fs;\n"), ("c.rs", "")]);
        assert_eq!(places(&heads(&tree)), ["b.rs:1", "c.rs:1"]);
    }

    #[test]
    fn a_program_started_elsewhere_is_found_and_one_in_its_place_or_in_a_test_is_not() {
        let start = "//! x\nfn f() { std::process::Command::new(\"sh\"); }\n";
        let tree = tree(&[
            ("crates/host/src/command.rs", start),
            ("crates/daemon/src/git.rs", start),
            ("crates/daemon/tests/a.rs", start),
            (
                "crates/daemon/src/b.rs",
                "use std::process::Command;\n// Command::new(\n#[cfg(test)]\nmod tests {\n    Command::new(\"sh\");\n}\n",
            ),
            ("crates/daemon/src/ours.rs", "struct Command;\nfn f() { Command::new(); }\n"),
            (
                "crates/daemon/src/used.rs",
                "use tokio::process::{Child, Command};\nfn f() { Command::new(x); }\n",
            ),
            ("crates/daemon/src/lib.rs", "#[cfg(test)]\nmod hostile;\nmod git;\n"),
            ("crates/daemon/src/hostile.rs", start),
        ]);
        assert_eq!(
            places(&programs(&tree)),
            ["crates/daemon/src/git.rs:2", "crates/daemon/src/used.rs:2"]
        );
    }

    #[test]
    fn a_crate_that_prints_is_found() {
        let print = "//! x\n\nfn f() { eprintln!(\"x\"); }\n";
        let tree = tree(&[("crates/cli/src/out.rs", print), ("crates/store/src/lib.rs", print)]);
        assert_eq!(places(&prints(&tree)), ["crates/store/src/lib.rs:3"]);
    }

    #[test]
    fn a_skipped_test_and_a_sleep_are_found_even_in_tests() {
        let text =
            concat!("//! x\n#[ig", "nore = \"slow\"]\nfn a() { std::thread::", "sleep(x) }\n");
        let tree = tree(&[("crates/host/tests/a.rs", text)]);
        assert_eq!(
            places(&skips_and_sleeps(&tree)),
            ["crates/host/tests/a.rs:2", "crates/host/tests/a.rs:3"]
        );
    }

    #[test]
    fn a_test_that_the_test_host_runs_is_not_skipped() {
        for (reason, found) in [
            ("needs the test host", 0),
            ("needs the test host, before its reset", 0),
            ("needs the test host, some day", 1),
            ("slow", 1),
        ] {
            let ignored = concat!("#[ig", "nore");
            let text = format!("//! x\n#[test]\n{ignored} = \"{reason}\"]\n");
            let tree = tree(&[("crates/host/tests/a.rs", &*text)]);
            assert_eq!(skips_and_sleeps(&tree).len(), found, "{reason}");
        }
    }

    #[test]
    fn unsafe_code_in_another_crate_is_found() {
        let text = concat!("//! x\n#![expect(unsafe", "_code, reason = \"x\")]\n");
        let tree = tree(&[("crates/host/src/a.rs", text), ("crates/store/src/a.rs", text)]);
        assert_eq!(places(&unsafe_code(&tree)), ["crates/store/src/a.rs:2"]);
    }
}
