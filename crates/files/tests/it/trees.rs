//! What honest trees are made of comes back as it went.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use banger_files::{Ids, Unpack};
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};

use crate::{packed, unpacked};

const EXACT: Unpack = Unpack { only: None, ids: Ids::Stream, exact: true, umask: 0, resume: 0 };

/// All that a tree can have.
fn oddities(root: &Path) {
    let is_root = rustix::process::geteuid().is_root();
    let path = |name: &str| root.join(name);
    fs::create_dir_all(path("plain/empty")).unwrap();
    fs::write(path("plain/file"), b"content").unwrap();
    fs::write(path("plain/nothing"), b"").unwrap();
    fs::write(path("tool"), b"#!/bin/sh\n").unwrap();
    fs::set_permissions(path("tool"), fs::Permissions::from_mode(0o6755)).unwrap();
    fs::create_dir(path("sticky")).unwrap();
    fs::set_permissions(path("sticky"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::write(path("secret"), b"x").unwrap();
    fs::set_permissions(path("secret"), fs::Permissions::from_mode(0o400)).unwrap();
    fs::create_dir(path("closed")).unwrap();
    fs::write(path("closed/within"), b"x").unwrap();
    symlink("plain/file", path("link")).unwrap();
    symlink("/nowhere/../at all", path("dangling")).unwrap();
    symlink("x".repeat(3000), path("long-target")).unwrap();
    symlink("//odd//./target/", path("word for word")).unwrap();
    fs::hard_link(path("plain/file"), path("second name")).unwrap();
    fs::hard_link(path("link"), path("second link")).unwrap();
    let long = format!("{0}/{0}/{0}", "long ".repeat(50));
    fs::create_dir_all(path(&long)).unwrap();
    fs::write(path(&long).join("f".repeat(255)), b"deep").unwrap();
    fs::write(path("new\nline \u{1f980} 'quoted'"), b"x").unwrap();
    let not_utf8 = std::ffi::OsString::from_vec(b"latin1-\xe9".to_vec());
    fs::write(root.join(not_utf8), b"x").unwrap();
    rustix::fs::mknodat(CWD, path("fifo"), FileType::Fifo, Mode::from_raw_mode(0o640), 0).unwrap();

    let sparse = File::create(path("sparse")).unwrap();
    for piece in 0..40 {
        sparse.write_all_at(b"data", piece * (1 << 20) + 7).unwrap();
    }
    sparse.set_len(3 << 30).unwrap();
    File::create(path("all hole")).unwrap().set_len(1 << 30).unwrap();

    rustix::fs::setxattr(path("tool"), "user.note", b"a\nb\0c", XattrFlags::empty()).ok();
    if is_root {
        std::os::unix::fs::chown(path("plain/file"), Some(4_000_000), Some(77)).unwrap();
        std::os::unix::fs::lchown(path("dangling"), Some(12), Some(13)).unwrap();
        // chown(2) takes these away.
        fs::set_permissions(path("tool"), fs::Permissions::from_mode(0o6755)).unwrap();
        let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        rustix::fs::setxattr(
            path("secret"),
            "security.capability",
            &capability,
            XattrFlags::empty(),
        )
        .ok();
    }
    for (name, seconds, nanoseconds) in
        [("tool", 1_000_000_000, 123_456_789), ("dangling", 7, 5), ("secret", -86_400, 1)]
    {
        let modified = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
        let times = Timestamps { last_access: modified, last_modification: modified };
        rustix::fs::utimensat(CWD, path(name), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
    fs::set_permissions(path("closed"), fs::Permissions::from_mode(0o555)).unwrap();
}

/// What is to be the same: names, kinds, modes, owners, times, targets, contents, links between names, holes, attributes.
fn description(root: &Path) -> BTreeMap<Vec<u8>, String> {
    let mut found = BTreeMap::new();
    let mut inodes: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    let mut left = vec![PathBuf::new()];
    while let Some(name) = left.pop() {
        let path = root.join(&name);
        for entry in fs::read_dir(&path).unwrap() {
            let entry = entry.unwrap();
            let name = name.join(entry.file_name());
            let bytes = name.as_os_str().as_bytes().to_vec();
            let meta = entry.metadata().unwrap();
            let path = root.join(&name);
            let mut text = format!(
                "{:o} {}:{} {}.{:09} ",
                meta.mode(),
                meta.uid(),
                meta.gid(),
                meta.mtime(),
                meta.mtime_nsec()
            );
            if meta.is_dir() {
                left.push(name);
            } else {
                let first = inodes.entry(meta.ino()).or_insert_with(|| bytes.clone());
                if *first != bytes {
                    text += &format!("also {} ", first.escape_ascii());
                }
            }
            if meta.is_symlink() {
                text += &format!("-> {:?}", fs::read_link(&path).unwrap());
            } else if meta.is_file() {
                text += &format!("{} bytes", meta.len());
                if meta.len() < 1 << 24 {
                    text += &format!(" {:?}", String::from_utf8_lossy(&fs::read(&path).unwrap()));
                } else {
                    assert!(meta.blocks() * 512 < 1 << 20, "{path:?} has no holes");
                    let mut at = [0; 12];
                    for piece in 0..41 {
                        File::open(&path).unwrap().read_at(&mut at, piece << 20).unwrap();
                        text += &format!(" {}", at.escape_ascii());
                    }
                }
                for name in ["user.note", "security.capability"] {
                    let mut value = [0; 64];
                    if let Ok(length) = rustix::fs::getxattr(&path, name, &mut value[..]) {
                        text += &format!(" {name}={}", value[..length].escape_ascii());
                    }
                }
            }
            found.insert(bytes, text);
        }
    }
    found
}

#[test]
fn a_tree_with_all_oddities_comes_back_equal() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    oddities(from.path());
    let tar = packed(from.path(), None);
    let copied = unpacked(&tar, to.path(), &EXACT).unwrap();
    assert_eq!(copied.left_out, Vec::<String>::new());
    assert_eq!(description(to.path()), description(from.path()));
    assert!(tar.len() < 2 << 20, "holes were sent: {} bytes", tar.len());
}

#[test]
fn what_we_send_is_what_tar_understands_and_the_other_way_round() {
    let (from, by_tar, by_us) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    oddities(from.path());
    let tar = |arguments: &[&str], folder: &Path| {
        #[expect(clippy::disallowed_methods, reason = "the real tar is what is compared with")]
        let output = std::process::Command::new("tar")
            .args(arguments)
            .arg("-C")
            .arg(folder)
            .args(if arguments[0] == "-c" { &["."][..] } else { &[] })
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let file = by_tar.path().with_extension("tar");
    fs::write(&file, packed(from.path(), None)).unwrap();
    let name = file.to_str().unwrap();
    tar(&["-x", "-p", "--xattrs", "--xattrs-include=*", "-f", name], by_tar.path());
    let expected = description(from.path());
    assert_eq!(description(by_tar.path()), expected);
    for (format, more) in
        [("--format=pax", &["--xattrs", "--xattrs-include=*"][..]), ("--format=gnu", &[])]
    {
        let into = by_us.path().join(format);
        fs::create_dir(&into).unwrap();
        tar(&[&["-c", "-S", format, "-f", name], more].concat(), from.path());
        unpacked(&fs::read(&file).unwrap(), &into, &EXACT).unwrap();
        let found = description(&into);
        if more.is_empty() {
            // It has whole seconds and no attributes: names, kinds, links and contents.
            let rest = |text: &String| {
                let words = text.split(" user.note").next().unwrap();
                let words = words.split(" security.cap").next().unwrap();
                words.split(' ').filter(|word| !word.contains('.')).collect::<String>()
            };
            let of = |all: &BTreeMap<Vec<u8>, String>| -> Vec<_> {
                all.iter().map(|(name, text)| (name.clone(), rest(text))).collect()
            };
            assert_eq!(of(&found), of(&expected));
        } else {
            assert_eq!(found, expected);
        }
    }
    fs::remove_file(file).unwrap();
}

#[test]
fn a_copy_that_is_not_exact_leaves_owners_set_ids_and_what_the_umask_takes() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    oddities(from.path());
    let how = Unpack { umask: 0o027, ..Unpack::default() };
    unpacked(&packed(from.path(), Some("top")), to.path(), &how).unwrap();
    let meta = |name: &str| fs::symlink_metadata(to.path().join("top").join(name)).unwrap();
    assert_eq!(meta("tool").mode() & 0o7777, 0o750);
    assert_eq!(meta("secret").mode() & 0o7777, 0o400);
    assert_eq!(meta("sticky").mode() & 0o7777, 0o750);
    assert_eq!(meta("plain/file").uid(), rustix::process::geteuid().as_raw());
    assert_eq!(meta("tool").mtime(), 1_000_000_000);
}

#[test]
fn a_folder_that_was_there_keeps_its_mode_and_a_file_is_replaced_whole() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::create_dir(from.path().join("etc")).unwrap();
    fs::write(from.path().join("etc/conf"), b"new").unwrap();
    fs::create_dir(to.path().join("etc")).unwrap();
    fs::set_permissions(to.path().join("etc"), fs::Permissions::from_mode(0o750)).unwrap();
    fs::write(to.path().join("etc/conf"), b"older and longer").unwrap();
    let other_name = to.path().join("other name of the old");
    fs::hard_link(to.path().join("etc/conf"), &other_name).unwrap();
    unpacked(&packed(from.path(), None), to.path(), &EXACT).unwrap();
    assert_eq!(fs::metadata(to.path().join("etc")).unwrap().mode() & 0o777, 0o750);
    assert_eq!(fs::read(to.path().join("etc/conf")).unwrap(), b"new");
    assert_eq!(fs::read(other_name).unwrap(), b"older and longer");
}

#[test]
fn links_of_the_target_that_stay_in_it_are_followed() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::create_dir(from.path().join("lib")).unwrap();
    fs::write(from.path().join("lib/a"), b"a").unwrap();
    fs::create_dir_all(to.path().join("usr/lib")).unwrap();
    symlink("usr/lib", to.path().join("lib")).unwrap();
    unpacked(&packed(from.path(), None), to.path(), &EXACT).unwrap();
    assert!(to.path().join("lib").is_symlink());
    assert_eq!(fs::read(to.path().join("usr/lib/a")).unwrap(), b"a");
}
