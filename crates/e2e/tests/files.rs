//! `vm cp`: what is copied into a guest and back is the same, also when it broke on the way. The guest has no tar.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use banger_e2e::{BUSYBOX, World, in_world, wait_until};
use rustix::fs::XattrFlags;
use rustix::process::Signal;

const PATIENCE: Duration = Duration::from_secs(120);

/// Large enough that a copy can be caught in its midst.
const BIG: usize = 200 << 20;

#[test]
fn files_go_into_a_guest_and_come_back() {
    in_world(|world| {
        world.start(BUSYBOX, "one");
        world.each(&[
            (
                "a_tree_with_all_oddities_comes_back_equal",
                a_tree_with_all_oddities_comes_back_equal,
            ),
            ("what_lands_where_is_as_with_cp", what_lands_where_is_as_with_cp),
            ("tar_streams_go_in_and_out", tar_streams_go_in_and_out),
            (
                "a_big_copy_that_broke_goes_on_where_it_broke",
                a_big_copy_that_broke_goes_on_where_it_broke,
            ),
            ("what_is_refused_says_why_and_what_to_do", what_is_refused_says_why_and_what_to_do),
        ]);
    });
}

fn folder(world: &World, name: &str) -> PathBuf {
    let folder = world.home().join("files").join(name);
    fs::create_dir_all(&folder).unwrap();
    folder
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

#[track_caller]
fn cp(world: &World, args: &[&str]) -> serde_json::Value {
    let all = [&["vm", "cp", "--format", "json"], args].concat();
    let copied = world.banger_with(&all, b"");
    copied.succeeds().json()
}

#[track_caller]
fn in_guest(world: &World, script: &str) -> String {
    let said = world.banger(["vm", "exec", "one", "--", "sh", "-c", script]);
    said.succeeds().text().trim_end().to_owned()
}

/// GNU tar's account of a tree: names, modes, owners, times to the nanosecond, links of both kinds, attributes, holes, contents.
fn account(world: &World, tree: &Path) -> Vec<u8> {
    let options = [
        "--sort=name",
        "--format=pax",
        "--sparse",
        "--sparse-version=0.0",
        "--xattrs",
        "--xattrs-include=*",
        "--numeric-owner",
    ];
    let records = "--pax-option=delete=atime,delete=ctime,exthdr.name=x,globexthdr.name=g";
    let tree = text(tree);
    let args = [&["-c"], &options[..], &[records, "-C", &tree, "."]].concat();
    world.program("tar", &args).succeeds().stdout.clone()
}

#[track_caller]
fn assert_same(world: &World, one: &Path, other: &Path) {
    let (ours, theirs) = (account(world, one), account(world, other));
    if ours != theirs {
        let at = ours.iter().zip(&theirs).position(|(one, other)| one != other).unwrap_or(0);
        let around = |bytes: &[u8]| {
            let end = bytes.len().min(at + 500);
            bytes[at.saturating_sub(1000).min(end)..end].escape_ascii().to_string()
        };
        panic!("{one:?} and {other:?} differ:\n{}\n{}", around(&ours), around(&theirs));
    }
}

fn a_tree_with_all_oddities_comes_back_equal(world: &World) {
    let (from, back) = (folder(world, "tree/from"), folder(world, "tree/back"));
    let path = |name: &str| from.join(name);
    fs::create_dir_all(path("sub/empty")).unwrap();
    fs::write(path("sub/file"), b"content").unwrap();
    fs::write(path("tool"), b"#!/bin/sh\n").unwrap();
    fs::hard_link(path("sub/file"), path("second name")).unwrap();
    symlink("/nowhere/../at all", path("dangling")).unwrap();
    symlink("x".repeat(300), path("long target")).unwrap();
    let long = path(&format!("{0}/{0}", "long ".repeat(45)));
    fs::create_dir_all(&long).unwrap();
    fs::write(long.join("new\nline \u{1f980}"), b"deep").unwrap();
    let sparse = File::create(path("sparse")).unwrap();
    for piece in 0..30 {
        sparse.write_all_at(&[7; 4096], piece << 21).unwrap();
    }
    sparse.set_len(1 << 33).unwrap();
    // Not every file system has room for it.
    rustix::fs::setxattr(path("tool"), "user.note", b"a\nb\0c", XattrFlags::empty()).ok();
    if rustix::process::geteuid().is_root() {
        chown(path("sub/file"), Some(4_000_000), Some(77)).unwrap();
    }
    fs::set_permissions(path("tool"), fs::Permissions::from_mode(0o6755)).unwrap();
    fs::set_permissions(path("sub/empty"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::set_permissions(path("sub"), fs::Permissions::from_mode(0o555)).unwrap();

    cp(world, &["-a", &text(&from), "one:/tree"]);
    let seen = in_guest(
        world,
        "cd /tree; stat -c '%a %u:%g' tool sub/file; stat -c %h sub/file; readlink dangling; du -k sparse | cut -f1; stat -c %s sparse",
    );
    let seen: Vec<&str> = seen.lines().collect();
    let root = fs::metadata(path("sub/file")).unwrap();
    assert_eq!(
        seen[0],
        format!("6755 {}:{}", world_uid(&path("tool")), fs::metadata(path("tool")).unwrap().gid())
    );
    assert_eq!(seen[1], format!("644 {}:{}", root.uid(), root.gid()));
    assert_eq!(&seen[2..4], ["2", "/nowhere/../at all"]);
    assert!(seen[4].parse::<u64>().unwrap() < 1024, "{seen:?}: the holes were filled");
    assert_eq!(seen[5], (1_u64 << 33).to_string());

    cp(world, &["-a", "one:/tree", &text(&back)]);
    assert_same(world, &from, &back.join("tree"));
    let held = fs::metadata(back.join("tree/sparse")).unwrap().blocks() * 512;
    assert!(held < 1 << 20, "{held} bytes are held by a file of holes");
}

fn world_uid(path: &Path) -> u32 {
    fs::metadata(path).unwrap().uid()
}

fn what_lands_where_is_as_with_cp(world: &World) {
    let from = folder(world, "where");
    fs::create_dir_all(from.join("d")).unwrap();
    fs::write(from.join("d/f"), b"one").unwrap();
    fs::set_permissions(from.join("d/f"), fs::Permissions::from_mode(0o4700)).unwrap();
    let (d, f) = (text(&from.join("d")), text(&from.join("d/f")));
    in_guest(world, "mkdir -p /w/there; chown 42:43 /w/there");
    cp(world, &[&d, "one:/w/there"]);
    cp(world, &[&d, "one:/w/new"]);
    cp(world, &[&format!("{d}/."), "one:/w/there"]);
    cp(world, &["-p", &f, "one:/w/made/on/the/way"]);
    cp(world, &["--owner", "7:8", &f, "one:/w/owned"]);
    cp(world, &[&f, "one:"]);
    let seen = in_guest(world, "cd /w; ls -d */* */*/*; stat -c '%n %a %u:%g' there/f owned; ls ~");
    for line in
        ["there/d/f", "new/f", "there/f", "made/on/the", "there/f 700 42:43", "owned 700 7:8", "f"]
    {
        assert!(seen.lines().any(|seen| seen == line), "{line} is not in {seen}");
    }
    // And the other way round.
    let to = folder(world, "where/to");
    cp(world, &["one:/w/there", &text(&to)]);
    cp(world, &["one:/w/there/.", &text(&to.join("new"))]);
    cp(world, &["one:/w/there/f", &text(&to.join("g"))]);
    for (name, content) in [("there/d/f", "one"), ("new/f", "one"), ("g", "one")] {
        assert_eq!(fs::read_to_string(to.join(name)).unwrap(), content);
    }
    // The kernel tells no size of these.
    cp(world, &["one:/proc/version", &text(&to)]);
    assert!(fs::read_to_string(to.join("version")).unwrap().contains("Linux"));
    // A link that is named is followed; one that is found is copied.
    in_guest(world, "ln -s there/f /w/link");
    cp(world, &["one:/w/link", &text(&to.join("followed"))]);
    assert_eq!(fs::read_to_string(to.join("followed")).unwrap(), "one");
}

fn tar_streams_go_in_and_out(world: &World) {
    let (from, back) = (folder(world, "stream/from"), folder(world, "stream/back"));
    fs::create_dir(from.join("d")).unwrap();
    fs::write(from.join("d/a"), b"a").unwrap();
    symlink("a", from.join("d/b")).unwrap();
    let pack = ["-c", "--format=pax", "-C", &text(&from), "."];
    let tar = world.program("tar", &pack).succeeds().stdout.clone();
    in_guest(world, "mkdir /stream");
    world
        .banger_with(&["vm", "cp", "-", "one:/stream"], &tar)
        .succeeds()
        .prints("copied 4 entries");
    let out = world.banger(["vm", "cp", "one:/stream", "-"]);
    let file = folder(world, "stream").join("out.tar");
    fs::write(&file, &out.succeeds().stdout).unwrap();
    world.program("tar", &["-x", "-f", &text(&file), "-C", &text(&back)]).succeeds();
    // The folder that it was unpacked into was there before.
    in_guest(world, "[ $(stat -c %a /stream) = 755 ]");
    assert_same(world, &from.join("d"), &back.join("stream/d"));
    // What is wrong in the midst of a stream is told, and which entry it was.
    let mut cut = tar.clone();
    cut.truncate(1100);
    world.banger_with(&["vm", "cp", "-", "one:/stream"], &cut).exits(1).complains("is cut off");
    world
        .banger_with(&["vm", "cp", "-", "one:/none"], &tar)
        .exits(1)
        .complains("/none of the guest");
}

fn a_big_copy_that_broke_goes_on_where_it_broke(world: &World) {
    let folder = folder(world, "big");
    let (source, back) = (folder.join("source"), folder.join("back"));
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(BIG);
    while bytes.len() < BIG {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    File::create(&source).unwrap().write_all(&bytes).unwrap();

    let upload = ["vm", "cp", &text(&source), "one:/big"];
    let copy = world.background(&upload);
    let part = "stat -c %s /.big.banger-part 2>/dev/null || echo 0";
    let begun = || in_guest(world, part).parse::<u64>().unwrap() > 20 << 20;
    wait_until("the guest has a part of it", PATIENCE, begun);
    copy.signal(Signal::KILL);
    assert_eq!(copy.end().status, None);
    assert_eq!(in_guest(world, "ls /big 2>/dev/null || echo none"), "none");
    let copied = cp(world, &[&text(&source), "one:/big"]);
    assert!(copied["resumed_at"].as_u64().unwrap() > 20 << 20, "{copied}");
    assert_eq!(in_guest(world, "ls -a / | grep part || echo none"), "none");

    let here = folder.join(".back.banger-part");
    let copy = world.background(&["vm", "cp", "one:/big", &text(&back)]);
    let begun = || fs::metadata(&here).is_ok_and(|part| part.len() > 20 << 20);
    wait_until("this host has a part of it", PATIENCE, begun);
    copy.signal(Signal::INT);
    copy.end().exits(130);
    assert!(!back.exists());
    let copied = cp(world, &["one:/big", &text(&back)]);
    assert!(copied["resumed_at"].as_u64().unwrap() > 20 << 20, "{copied}");
    assert!(!here.exists());
    assert!(fs::read(&back).unwrap() == bytes, "what came back is not what went");
    fs::remove_file(back).unwrap();

    // What is there of another file is not gone on with.
    in_guest(world, "dd if=/dev/zero of=/.big.banger-part bs=1M count=20 2>/dev/null");
    assert_eq!(cp(world, &[&text(&source), "one:/big"])["resumed_at"], 0);
}

fn what_is_refused_says_why_and_what_to_do(world: &World) {
    let folder = folder(world, "refused");
    let here = text(&folder);
    for (args, says) in [
        (["one:/none", &here], "there is no /none in VM one"),
        (["/none", "one:/x"], "there is no /none on this host"),
        ([&here, "one:/none/x"], "--parents"),
        ([&here, "one:/etc/passwd"], "which is no folder"),
        (["one:/dev/null", &here], "neither a file nor a folder"),
        (["one:/a", "one:/b"], "both sides"),
        (["/a", "/b"], "neither side"),
    ] {
        world.banger(["vm", "cp", args[0], args[1]]).exits(1).complains(says);
    }
}

#[test]
fn the_owners_files_are_in_a_guest_when_it_is_ready() {
    in_world(|world| {
        let home = folder(world, "home");
        fs::create_dir_all(home.join("dotfiles/sub")).unwrap();
        fs::write(home.join("dotfiles/gitconfig"), "[user]\n").unwrap();
        fs::write(home.join("dotfiles/sub/file"), "x").unwrap();
        symlink(home.join("dotfiles/gitconfig"), home.join(".gitconfig")).unwrap();
        symlink("/etc/hostname", home.join(".outside")).unwrap();
        let sync = r#"
            [[file_sync]]
            from = "~/.gitconfig"
            to = "/root/.gitconfig"
            mode = "0640"
            [[file_sync]]
            from = "~/dotfiles"
            to = "/home/dev/dotfiles"
            owner = "1234:99"
            [[file_sync]]
            from = "~/.outside"
            to = "/root/outside"
            [[file_sync]]
            from = "~/.none"
            to = "/root/none"
        "#;
        let config = world.home().join("config/config.toml");
        let before = fs::read_to_string(&config).unwrap();
        fs::write(&config, format!("{before}\n{sync}")).unwrap();
        let home = format!("HOME={}", text(&home));
        let script =
            "cat ~/.gitconfig; stat -c '%a %u:%g' ~/.gitconfig /home/dev/dotfiles/sub/file; ls ~";
        let run = [
            "vm", "run", "--name", "one", "--image", BUSYBOX, "--memory", "512M", "--", "sh", "-c",
            script,
        ];
        let ran = world.program("env", &[&[home.as_str(), "banger"], &run[..]].concat());
        ran.succeeds().prints_only("[user]\n640 0:0\n644 1234:99\n");
        // What is missing or lies outside is told, and the VM runs all the same.
        ran.complains(".outside is not in the home").complains(".none was not copied");
        world.banger(["doctor"]).prints("is not in the home");
        // And at the next start again.
        in_guest(world, "rm ~/.gitconfig");
        world.banger(["vm", "restart", "one"]).succeeds();
        assert_eq!(in_guest(world, "cat ~/.gitconfig"), "[user]");
    });
}
