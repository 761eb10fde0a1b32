//! Streams that want out of their folder. Each is unpacked beside a folder that it aims at, which must stay as it is.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use banger_files::{Ids, Unpack};
use tar::{Builder, EntryType, Header};

use crate::{text, unpacked};

struct World {
    _folder: tempfile::TempDir,
    /// Where streams are unpacked.
    target: PathBuf,
    /// What they aim at.
    victim: PathBuf,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (target, victim) = (folder.path().join("target"), folder.path().join("victim"));
        for folder in [&target, &victim] {
            fs::create_dir(folder).unwrap();
        }
        fs::write(victim.join("file"), b"precious").unwrap();
        Self { _folder: folder, target, victim }
    }

    /// Unpacks; what it says.
    fn unpack(&self, tar: Vec<u8>, how: &Unpack) -> Result<u64, String> {
        let unpacked = unpacked(&tar, &self.target, how);
        let names: Vec<_> =
            fs::read_dir(&self.victim).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["file"]);
        assert_eq!(fs::read(self.victim.join("file")).unwrap(), b"precious");
        let above = self.target.parent().unwrap();
        assert_eq!(fs::read_dir(above).unwrap().count(), 2, "something was made beside the target");
        unpacked.map(|copied| copied.left_out_count).map_err(|error| text(&error))
    }

    fn aim(&self) -> String {
        self.victim.display().to_string()
    }

    fn check(&self, entries: &[(&str, EntryType, &str)], says: &str) {
        let error = self.unpack(tar(entries), &Unpack::default()).unwrap_err();
        assert!(error.contains(says), "{error:?} does not say {says:?}");
    }
}

use EntryType::{Directory, Link, Regular, Symlink};

/// Entries by name, kind, and target or content; names as they are, however wrong.
fn tar(entries: &[(&str, EntryType, &str)]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (name, kind, text) in entries {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(0o777);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        let is_file = *kind == Regular;
        header.set_size(if is_file { text.len() as u64 } else { 0 });
        if !is_file {
            header.set_link_name_literal(text).unwrap();
        }
        header.set_cksum();
        builder.append(&header, if is_file { text.as_bytes() } else { b"" }).unwrap();
    }
    builder.into_inner().unwrap()
}

#[test]
fn a_link_out_is_made_and_nothing_is_written_through_it() {
    let world = World::new();
    for out in [&world.aim()[..], "../victim"] {
        world.check(&[("out", Symlink, out), ("out/file", Regular, "bad")], "leads out");
        world.check(
            &[("out", Symlink, out), ("out", Directory, ""), ("out/x", Regular, "bad")],
            "leads out",
        );
        // Through two links, of which each stays within as it is written.
        let nested = [
            ("a", Directory, ""),
            ("a/up", Symlink, ".."),
            ("a/up/out", Symlink, out),
            ("out/new", Regular, "bad"),
        ];
        world.check(&nested, "leads out");
    }
    // A file over a link replaces the link, not what it leads to.
    let over =
        [("out/link", Symlink, "x"), ("f", Symlink, "../victim/file"), ("f", Regular, "new")];
    fs::remove_file(world.target.join("out")).unwrap();
    assert_eq!(world.unpack(tar(&over), &Unpack::default()), Ok(0));
    assert_eq!(fs::read(world.target.join("f")).unwrap(), b"new");
}

#[test]
fn a_link_out_that_was_there_before_is_not_followed() {
    let world = World::new();
    symlink("../victim", world.target.join("before")).unwrap();
    symlink("../victim/new", world.target.join("dangling")).unwrap();
    world.check(&[("before/file", Regular, "bad")], "leads out");
    world.check(&[("before", Directory, "")], "leads out");
    world.check(&[("dangling/x", Regular, "bad")], "leads out");
    assert_eq!(world.unpack(tar(&[("dangling", Regular, "mine")]), &Unpack::default()), Ok(0));
}

#[test]
fn names_that_lead_upwards_are_refused_and_absolute_ones_are_below() {
    let world = World::new();
    for name in ["../victim/file", "a/../../victim/file", "..", "a/.."] {
        world.check(&[(name, Regular, "bad")], "`..`");
    }
    let absolute = world.victim.join("file").display().to_string();
    if absolute.len() < 100 {
        assert_eq!(world.unpack(tar(&[(&absolute, Regular, "x")]), &Unpack::default()), Ok(0));
        let below = world.target.join(absolute.trim_start_matches('/'));
        assert_eq!(fs::read(below).unwrap(), b"x");
    }
}

#[test]
fn a_second_name_of_what_is_outside_is_refused() {
    let world = World::new();
    world.check(&[("x", Link, "../victim/file")], "`..`");
    world.check(&[("out", Symlink, "../victim"), ("x", Link, "out/file")], "leads out");
    let absolute = world.victim.join("file").display().to_string();
    world.check(&[("x", Link, &absolute)], "No such file");
    // A second name of a link is a link; writing to it replaces it.
    let link = [("f", Symlink, "../victim/file"), ("g", Link, "f"), ("g", Regular, "mine")];
    assert_eq!(world.unpack(tar(&link), &Unpack::default()), Ok(0));
    assert_eq!(fs::read(world.target.join("g")).unwrap(), b"mine");
}

#[test]
fn a_folder_that_is_exchanged_for_a_link_gives_its_mode_to_nobody() {
    let world = World::new();
    let mode = |path: &Path| std::os::unix::fs::MetadataExt::mode(&fs::metadata(path).unwrap());
    let before = mode(&world.victim);
    // The folder's mode is set at the end; by then its name is another thing's.
    let swap = [("d", Directory, ""), ("d", Symlink, "../victim")];
    world.check(&swap, "a folder is in its place");
    let how = Unpack { exact: true, ids: Ids::Stream, ..Unpack::default() };
    drop(world.unpack(tar(&[("d", Directory, ""), ("d", Link, "d")]), &how));
    assert_eq!(mode(&world.victim), before);
}

#[test]
fn only_what_was_asked_for_is_taken() {
    let world = World::new();
    let how = Unpack { only: Some(b"asked".to_vec()), ..Unpack::default() };
    for entries in [
        &[("asked", Directory, ""), (".bashrc", Regular, "bad")][..],
        &[("asked/x", Regular, ""), ("askedx", Regular, "bad")],
        &[("asked", Link, "other")],
    ] {
        fs::write(world.target.join("other"), b"mine").unwrap();
        let error = world.unpack(tar(entries), &how).unwrap_err();
        assert!(error.contains("asked for"), "{error}");
    }
    assert!(!world.target.join(".bashrc").exists());
    let fine = [("./", Directory, ""), ("./asked/x", Regular, "fine")];
    assert_eq!(world.unpack(tar(&fine), &how), Ok(0));
}

#[test]
fn devices_are_not_made_and_the_rest_is() {
    let world = World::new();
    let devices =
        [("null", EntryType::Char, ""), ("disk", EntryType::Block, ""), ("file", Regular, "there")];
    assert_eq!(world.unpack(tar(&devices), &Unpack::default()), Ok(2));
    let names: Vec<_> =
        fs::read_dir(&world.target).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["file"]);
}

#[test]
fn a_part_that_somebody_prepared_is_not_written_through() {
    let world = World::new();
    let part = world.target.join(".f.banger-part");
    let write = |how: &Unpack| world.unpack(tar(&[("f", Regular, "mine")]), how);
    symlink("../victim/file", &part).unwrap();
    assert_eq!(write(&Unpack::default()), Ok(0));
    fs::hard_link(world.victim.join("file"), &part).unwrap();
    assert_eq!(write(&Unpack::default()), Ok(0));
    fs::hard_link(world.victim.join("file"), &part).unwrap();
    let error = write(&Unpack { resume: 8, ..Unpack::default() }).unwrap_err();
    assert!(error.contains("no file of its own"), "{error}");
}

#[test]
fn what_comes_before_an_entry_is_bounded_and_a_cut_stream_makes_no_file() {
    let world = World::new();
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::XHeader);
    header.set_size(1 << 40);
    header.set_cksum();
    let error = world.unpack(header.as_bytes().to_vec(), &Unpack::default()).unwrap_err();
    assert!(error.contains("more than 1048576 bytes"), "{error}");
    let whole = tar(&[("f", Regular, &"x".repeat(5000))]);
    for length in [0, 100, 511, 512, 600, 5119, 5632, 6000] {
        let error = world.unpack(whole[..length].to_vec(), &Unpack::default()).unwrap_err();
        assert!(error.contains("cut off"), "{length}: {error}");
        assert_eq!(world.target.join("f").exists(), length >= 5632, "{length}");
        assert!(!world.target.join(".f.banger-part").exists());
    }
    let error = world.unpack(b"no tar at all".repeat(100), &Unpack::default()).unwrap_err();
    assert!(error.contains("not a tar"), "{error}");
}
