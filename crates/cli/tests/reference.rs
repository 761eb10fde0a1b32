//! docs/commands.md is what `--help` says of every verb, as the program says it.

#![expect(clippy::unwrap_used, reason = "where a test unwraps, it claims")]

mod support;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use support::World;

const HEAD: &str = "# Commands

What `banger VERB --help` says, verb by verb. Written by a test (`SNAPSHOTS=overwrite cargo test -p banger-cli --test reference`);
man(1) has the same after `banger man --to ~/.local/share/man/man1`.
";

#[test]
fn the_reference_is_what_every_verb_says_and_each_has_examples() {
    let world = World::without_daemon();
    let mut written = HEAD.to_owned();
    write_verb(&world, &[], &mut written);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/commands.md");
    if std::env::var_os("SNAPSHOTS").is_some_and(|word| word == "overwrite") {
        fs::write(&path, &written).unwrap();
    }
    let there = fs::read_to_string(&path).unwrap_or_default();
    assert!(there == written, "docs/commands.md is old: SNAPSHOTS=overwrite writes it anew");
}

/// This one and those below it.
fn write_verb(world: &World, words: &[&str], written: &mut String) {
    let output = world.banger(&[words, &["--help"]].concat()).output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    let name = [&["banger"], words].concat().join(" ");
    let verbs = verbs_below(&help);
    assert!(help.contains("Examples:") || !verbs.is_empty(), "{name} has no examples");
    let level = "#".repeat(words.len().min(2) + 1);
    let lines = help.lines().map(|line| format!("{line}\n").replace(" \n", "\n"));
    if !words.is_empty() {
        write!(written, "\n{level} {name}\n").unwrap();
    }
    write!(written, "\n```text\n{}```\n", lines.collect::<String>()).unwrap();
    for verb in verbs {
        write_verb(world, &[words, &[&*verb]].concat(), written);
    }
}

/// The first words of the lines below `Commands:`.
fn verbs_below(help: &str) -> Vec<String> {
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let lines = lines.take_while(|line| !line.is_empty());
    // A description that goes on in the next line is further to the right.
    let verbs = lines.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let first = verbs.filter_map(|line| line.split_whitespace().next());
    first.filter(|verb| *verb != "help").map(str::to_owned).collect()
}

#[test]
fn manual_pages_are_written_one_for_every_verb() {
    let world = World::without_daemon();
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("man1");
    world
        .banger(&["man", "--to", to.to_str().unwrap()])
        .assert()
        .code(0)
        .stdout_eq("")
        .stderr_eq("");
    for (page, said) in [
        ("banger.1", "microVMs"),
        ("banger-vm.1", "delete"),
        ("banger-vm-run.1", "Examples"),
        ("banger-system-install.1", "owner"),
    ] {
        let text = fs::read_to_string(to.join(page)).unwrap();
        assert!(text.starts_with(".ie") && text.contains(".TH banger"), "{page}: {text}");
        assert!(text.contains(said), "{page} says nothing of {said}");
    }
    assert!(!to.join("banger-help.1").exists());
    let printed = world.banger(&["man"]).output().unwrap();
    assert_eq!(printed.stdout, fs::read(to.join("banger.1")).unwrap());
}

#[test]
fn a_folder_for_manual_pages_that_cannot_be_is_said_with_the_cause() {
    let world = World::without_daemon();
    world.banger(&["man", "--to", "/dev/null/man1"]).assert().code(1).stdout_eq("").stderr_eq(
        snapbox::str![[r#"
error: cannot write manual pages into /dev/null/man1
  [..]Not a directory[..]

"#]],
    );
}
