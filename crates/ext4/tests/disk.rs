//! What e2fsck and debugfs say of what was written. Needs no privilege.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::FileExt;

use banger_ext4::{Attributes, Ext4Error, Image, InodeId, Kind, Options, Spare, Timestamp};
use support::{Choices, GIB, MIB, OPTIONS, Place, TIME, add_file, attributes, command, run};

#[test]
fn an_empty_file_system_is_clean() {
    let place = Place::new();
    let finished = place.finish(place.image(OPTIONS), 0);
    assert_eq!(finished.file_system_bytes, 128 * MIB);
    assert_eq!(finished.inodes, 11);
    assert!(place.allocated() < 100 << 10, "{}", place.allocated());
}

#[test]
fn without_a_journal_it_is_clean_as_well() {
    let place = Place::new();
    place.finish(place.image(Options { journal_bytes: 0, ..OPTIONS }), 0);
    assert!(!place.debugfs("features").contains("has_journal"));
}

#[test]
fn a_journal_with_more_extents_than_its_inode_holds_is_clean() {
    let place = Place::new();
    place.finish(place.image(Options { journal_bytes: GIB, ..OPTIONS }), 0);
    assert!(place.debugfs("stat <8>").contains("(ETB0)"));
}

#[test]
fn the_features_are_those_that_were_decided() {
    let place = Place::new();
    place.finish(place.image(OPTIONS), 0);
    let features = "Filesystem features: has_journal ext_attr dir_index filetype extent flex_bg \
        sparse_super large_file huge_file dir_nlink extra_isize metadata_csum";
    assert_eq!(place.debugfs("features").trim(), features);
}

#[test]
fn superblocks_have_what_was_asked_for_and_spare_space() {
    let place = Place::new();
    let options = Options { label: "sixteen-bytes-16".into(), ..OPTIONS };
    let finished = place.finish(place.image(options), 5 * GIB);
    let said = place.debugfs("show_super_stats -h");
    for line in [
        "volume name:   sixteen-bytes-16",
        "UUID:          0162616e-6765-722d-6578-74342d746573",
        "Hash Seed:      73656564-206f-6620-7468-652068617368",
        "mount options:    user_xattr acl",
        "Inodes per group:         8192",
        "Reserved block count:     0",
        "behavior:          Continue",
        "Journal inode:            8",
        "Journal backup:           inode blocks",
    ] {
        assert!(said.contains(line), "{line} is not in {said}");
    }
    assert_eq!(finished.file_system_bytes, 41 * 128 * MIB);
    // The copies differ from the first in the number of their group and the checksum.
    let file = fs::File::open(place.path()).unwrap();
    let read = |at: u64| {
        let mut bytes = [0; 1024];
        file.read_exact_at(&mut bytes, at).unwrap();
        bytes
    };
    let first = read(1024);
    for group in [1_u8, 3, 5, 7, 9, 25, 27] {
        let at = u64::from(group) * 128 * MIB;
        let mut copy = read(at);
        assert_eq!(copy[0x5a], group);
        copy[0x5a] = 0;
        assert_eq!(copy[..0x3fc], first[..0x3fc], "{group}");
        assert_eq!(read(at + 4096), read(4096), "{group}");
        let superblock = (u32::from(group) * 32768).to_string();
        // e2fsck says that it would write the first anew, and finds nothing else.
        let check = ["-fn", "-b", &superblock, "-B", "4096"];
        let output = command("e2fsck").args(check).arg(place.path()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains("11/335872 files"), "{said}");
        assert!(!said.contains("hecksum") && !said.contains("differences"), "{said}");
    }
}

#[test]
fn the_same_calls_make_the_same_bytes() {
    let make = || {
        let place = Place::new();
        let mut image = place.image(OPTIONS);
        scramble(&mut image, &mut Choices::new(7), 200);
        place.finish(image, 0);
        place
    };
    let (one, other) = (make(), make());
    run(command("cmp").arg(one.path()).arg(other.path()));
}

#[test]
fn every_kind_has_its_mode_owner_and_time() {
    let place = Place::new();
    let mut image = place.image(OPTIONS);
    let root = image.root();
    image.set_attributes(root, Attributes { uid: 5, gid: 70_000, ..attributes(0o1710) }).unwrap();
    let owned = Attributes { uid: 100_000, gid: 0xffff_fffe, ..attributes(0o6755) };
    let char_device = Kind::CharDevice { major: 1, minor: 3 };
    let block_device = Kind::BlockDevice { major: 259, minor: 65539 };
    for (name, kind) in [
        ("file", Kind::File),
        ("folder", Kind::Directory),
        ("fifo", Kind::Fifo),
        ("socket", Kind::Socket),
        ("null", char_device),
        ("disk", block_device),
        ("link", Kind::Symlink(b"to".to_vec())),
    ] {
        image.add(root, name.as_bytes(), kind, owned.clone()).unwrap();
    }
    place.finish(image, 0);
    let listed = place.debugfs("ls -l /");
    for (name, mode) in [
        ("file", "106755"),
        ("folder", "46755"),
        ("fifo", "16755"),
        ("socket", "146755"),
        ("null", "26755"),
        ("disk", "66755"),
        ("link", "126755"),
    ] {
        let line = listed.lines().find(|line| line.ends_with(&format!(" {name}"))).unwrap();
        assert!(line.contains(mode), "{line}");
        let stat = place.debugfs(&format!("stat {name}"));
        // debugfs shows it with a sign.
        assert!(stat.contains("User: 100000   Group:    -2 "), "{stat}");
        assert!(stat.contains("mtime: 0x499602d2:1d6f3454"), "{stat}");
        assert!(stat.contains("crtime: 0x499602d2:1d6f3454"), "{stat}");
    }
    assert!(place.debugfs("stat null").contains("Device major/minor number: 01:03"));
    assert!(place.debugfs("stat disk").contains("Device major/minor number: 259:65539"));
    assert!(place.debugfs("stat /").contains("Mode:  01710"));
}

#[test]
fn times_that_ext4_cannot_hold_become_the_nearest() {
    let place = Place::new();
    let mut image = place.image(OPTIONS);
    for (name, seconds) in
        [("1901", i64::MIN), ("1969", -1), ("2040", 0x8523_4567), ("2310", i64::MAX)]
    {
        let mtime = Timestamp { seconds, nanoseconds: 0 };
        let attributes = Attributes { mtime, ..attributes(0o644) };
        image.add(image.root(), name.as_bytes(), Kind::File, attributes).unwrap();
    }
    place.finish(image, 0);
    for year in ["1901", "1969", "2040", "2310"] {
        let stat = place.debugfs(&format!("stat {year}"));
        let line = stat.lines().find(|line| line.contains(" mtime: ")).unwrap();
        assert!(line.ends_with(&format!(" {year}")), "{line}");
    }
}

#[test]
fn links_of_any_length_are_kept() {
    let place = Place::new();
    let mut image = place.image(OPTIONS);
    let lengths = [1, 59, 60, 255, 4095];
    for length in lengths {
        let target = vec![b'a'; length];
        let name = format!("{length}");
        image.add(image.root(), name.as_bytes(), Kind::Symlink(target), attributes(0o777)).unwrap();
    }
    place.finish(image, 0);
    let out = place.folder.path().join("out");
    fs::create_dir(&out).unwrap();
    dump(&place, &out);
    for length in lengths {
        let target = fs::read_link(out.join(length.to_string())).unwrap();
        assert_eq!(target.as_os_str().len(), length);
    }
}

#[test]
fn hard_links_are_counted_and_the_last_name_frees() {
    let place = Place::new();
    let mut image = place.image(OPTIONS);
    let root = image.root();
    let file = add_file(&mut image, root, "one", b"content");
    image.link(root, b"two", file).unwrap();
    image.link(root, b"three", file).unwrap();
    image.unlink(root, b"one").unwrap();
    assert_eq!((image.links(file), image.inodes(), image.data_bytes()), (2, 1, 4096));
    assert_eq!(image.lookup(root, b"two"), Some(file));
    place.finish(image, 0);
    assert!(place.debugfs("stat two").contains("Links: 2 "));
}

/// An access control list as getxattr(2) gives it.
const LIST: &[u8] = &[
    2, 0, 0, 0, //
    1, 0, 7, 0, 0, 0, 0, 0, //
    2, 0, 6, 0, 232, 3, 0, 0, //
    4, 0, 5, 0, 0, 0, 0, 0, //
    16, 0, 7, 0, 0, 0, 0, 0, //
    32, 0, 0, 0, 0, 0, 0, 0,
];

#[test]
fn extended_attributes_are_in_the_inode_or_in_a_block() {
    let place = Place::new();
    let mut image = place.image(OPTIONS);
    let root = image.root();
    let with = |all: &[(&str, &[u8])]| Attributes {
        xattrs: all
            .iter()
            .map(|(name, value)| (name.as_bytes().to_vec(), value.to_vec()))
            .collect(),
        ..attributes(0o755)
    };
    let large = vec![b'v'; 3000];
    let small = with(&[("security.capability", &[1; 20]), ("user.a", b"")]);
    let both = with(&[
        ("user.large", &large),
        ("user.b", b"xyz"),
        ("security.capability", &[1; 20]),
        ("trusted.overlay.opaque", b"y"),
        ("system.posix_acl_access", LIST),
        ("system.posix_acl_default", LIST),
        ("user.\u{fc}", b"name of bytes above 127"),
    ]);
    image.add(root, b"small", Kind::File, small).unwrap();
    image.add(root, b"both", Kind::Directory, both.clone()).unwrap();
    let link = image.add(root, b"link", Kind::Symlink(b"x".to_vec()), both).unwrap();
    assert_eq!(image.attributes(link).xattrs.len(), 7);
    let file = add_file(&mut image, root, "file", b"data");
    image.set_attributes(file, with(&[("security.selinux", &[b's'; 90])])).unwrap();
    place.finish(image, 0);
    let listed = place.debugfs("ea_list both");
    for line in [
        "user.large (3000)",
        "user.b (3) = \"xyz\"",
        "trusted.overlay.opaque (1) = \"y\"",
        "security.capability (20) = ",
        "system.posix_acl_access",
        "system.posix_acl_default",
    ] {
        assert!(listed.contains(line), "{line} is not in {listed}");
    }
    assert!(place.debugfs("stat small").contains("File ACL: 0"));
    assert!(place.debugfs("stat file").contains("Blockcount: 16"));
    assert!(place.debugfs("ea_list small").contains("user.a (0)"));
    // debugfs turns a list back into the form it came in.
    let value = place.folder.path().join("value");
    place.debugfs(&format!("ea_get -f {} both system.posix_acl_access", value.display()));
    assert_eq!(fs::read(value).unwrap(), LIST);
}

#[test]
fn extended_attributes_that_ext4_cannot_hold_are_refused_by_name() {
    let place = Place::new();
    let mut image = place.image(OPTIONS);
    let root = image.root();
    let mut refused = |name: &[u8], value: &[u8]| {
        let xattrs = BTreeMap::from([(name.to_vec(), value.to_vec())]);
        let attributes = Attributes { xattrs, ..attributes(0o644) };
        image.add(root, b"file", Kind::File, attributes).unwrap_err().to_string()
    };
    assert!(refused(b"user.large", &[1; 4096]).contains("at most 4 KiB"));
    assert!(
        refused(b"lustre.lov", b"").contains("\"lustre.lov\" cannot be kept: ext4 knows user.")
    );
    assert!(refused(b"system.data", b"").contains("ext4 knows"));
    assert!(refused(b"user.", b"").contains("1 to 255 bytes"));
    assert!(refused(&[b"user.".as_slice(), &[b'n'; 251]].concat(), b"").contains("1 to 255 bytes"));
    assert!(refused(b"system.posix_acl_access", b"\x02\0\0").contains("it is too short"));
    assert_eq!(image.lookup(root, b"file"), None);
    // As much as a block can hold: its header, an entry with its name, the end of entries.
    let fits = vec![1; 4096 - 32 - 4 - 20];
    let xattrs = BTreeMap::from([(b"user.full".to_vec(), fits)]);
    image.add(root, b"full", Kind::File, Attributes { xattrs, ..attributes(0o644) }).unwrap();
    place.finish(image, 0);
}

#[test]
fn files_come_back_with_their_bytes_and_holes() {
    let place = Place::new();
    let mut image = place.image(OPTIONS);
    let root = image.root();
    let mut choices = Choices::new(3);
    let content = choices.bytes(3 << 20);
    add_file(&mut image, root, "whole", &content);
    let small = add_file(&mut image, root, "small", b"a small file");
    let sparse = add_file(&mut image, root, "sparse", b"start");
    image.seek(sparse, 1 << 20).unwrap();
    image.append(sparse, &content[..5000]).unwrap();
    // Interleaved, and from inside a block into the next.
    image.append(small, &content[..10_000]).unwrap();
    image.seek(sparse, (2 << 20) + 100).unwrap();
    image.append(sparse, b"inside a block").unwrap();
    image.seek(sparse, (2 << 20) + 200).unwrap();
    image.append(sparse, b"and on").unwrap();
    image.set_size(sparse, 5 << 20).unwrap();
    let hole = image.add(root, b"hole", Kind::File, attributes(0o600)).unwrap();
    image.set_size(hole, 123_456).unwrap();

    let mut expected = vec![0; 5 << 20];
    expected[..5].copy_from_slice(b"start");
    expected[1 << 20..(1 << 20) + 5000].copy_from_slice(&content[..5000]);
    expected[(2 << 20) + 100..(2 << 20) + 114].copy_from_slice(b"inside a block");
    expected[(2 << 20) + 200..(2 << 20) + 206].copy_from_slice(b"and on");
    assert_eq!(image.size(sparse), 5 << 20);
    assert_eq!(image.read(sparse, u64::MAX).unwrap(), expected);
    assert_eq!(image.read(small, 5).unwrap(), b"a sma");
    assert_eq!(image.data_bytes(), 4096 * (768 + 3 + 1 + 2 + 1));
    let error = image.seek(sparse, 5).unwrap_err();
    assert!(matches!(error, Ext4Error::Backwards { from: 5_242_880, to: 5 }), "{error}");

    place.finish(image, 0);
    let out = place.folder.path().join("out");
    fs::create_dir(&out).unwrap();
    dump(&place, &out);
    assert_eq!(fs::read(out.join("whole")).unwrap(), content);
    assert_eq!(fs::read(out.join("sparse")).unwrap(), expected);
    assert_eq!(fs::read(out.join("hole")).unwrap(), vec![0; 123_456]);
    assert_eq!(fs::read(out.join("small")).unwrap()[12..], content[..10_000]);
}

#[test]
fn zeros_take_no_space_of_the_host() {
    let place = Place::new();
    let mut image = place.image(OPTIONS);
    let root = image.root();
    let file = add_file(&mut image, root, "zeros", &vec![0; 40 << 20]);
    image.append(file, b"end").unwrap();
    assert_eq!(image.data_bytes(), (40 << 20) + 4096);
    place.finish(image, 0);
    assert!(place.allocated() < 200 << 10, "{}", place.allocated());
}

#[test]
fn a_file_of_3_gib_with_holes_is_whole() {
    let place = Place::new();
    let mut image = place.image(OPTIONS);
    let file = image.add(image.root(), b"big", Kind::File, attributes(0o644)).unwrap();
    for gib in 0..3 {
        image.seek(file, gib * GIB).unwrap();
        image.append(file, format!("gib {gib}").as_bytes()).unwrap();
    }
    image.set_size(file, 3 * GIB).unwrap();
    place.finish(image, 0);
    assert!(place.debugfs("stat big").contains("Size: 3221225472"));
    assert!(place.debugfs("stat big").contains("(0):"));
    assert!(place.debugfs("stat big").contains("(524288):"));
}

#[test]
fn blocks_of_removed_files_are_used_again_and_hold_nothing_old() {
    let place = Place::new();
    let mut image = place.image(OPTIONS);
    let root = image.root();
    for number in 0..100 {
        add_file(&mut image, root, &number.to_string(), &[b'o'; 20_000]);
    }
    let used = image.data_bytes();
    for number in (0..100).step_by(2) {
        image.unlink(root, number.to_string().as_bytes()).unwrap();
    }
    assert_eq!(image.data_bytes(), used / 2);
    // Zeros and short ends where there were others' bytes, in many pieces.
    let zeros = add_file(&mut image, root, "zeros", &[0; 20_000]);
    let pieces = add_file(&mut image, root, "pieces", &[b'p'; 900_001]);
    assert!(image.data_bytes() <= used);
    assert_eq!(image.read(zeros, 20_000).unwrap(), [0; 20_000]);
    assert_eq!(image.read(pieces, u64::MAX).unwrap(), [b'p'; 900_001]);
    image.unlink(root, b"1").unwrap();
    image.unlink(root, b"3").unwrap();
    place.finish(image, 0);
    assert!(place.debugfs("stat pieces").contains("(ETB0)"), "{}", place.debugfs("stat pieces"));
    // The end of the last block reads as zeros, and what is free was given back.
    let mut stored = vec![0; 8 << 20];
    fs::File::open(place.path()).unwrap().read_exact(&mut stored).unwrap();
    let blocks = |wanted: u8| {
        let of = move |block: &&[u8]| block.iter().filter(|&&byte| byte == wanted).count() > 100;
        stored.chunks(4096).filter(of)
    };
    assert_eq!(blocks(b'o').count(), 48 * 5);
    assert_eq!(
        blocks(b'p').next_back().map(|block| block[900_001 % 4096..].iter().max()),
        Some(Some(&0))
    );
}

#[test]
fn zeros_are_written_where_a_removed_file_was_right_behind_the_end() {
    let place = Place::new();
    let mut image = place.image(OPTIONS);
    let root = image.root();
    let file = add_file(&mut image, root, "file", &[b'f'; 100]);
    let old = add_file(&mut image, root, "old", &[b'o'; 8192]);
    // It is on the disk.
    image.read(old, 1).unwrap();
    image.unlink(root, b"old").unwrap();
    let mut more = vec![b'f'; 3996];
    more.resize(3996 + 8192, 0);
    image.append(file, &more).unwrap();
    assert!(image.read(file, u64::MAX).unwrap()[100..] == more);
    assert_eq!(image.data_bytes(), 3 * 4096);
    place.finish(image, 0);
}

#[test]
fn a_file_in_5000_pieces_has_a_tree_of_two_levels() {
    let place = Place::new();
    let mut image = place.image(OPTIONS);
    let root = image.root();
    let [one, other] = ["one", "other"]
        .map(|name| image.add(root, name.as_bytes(), Kind::File, attributes(0o644)).unwrap());
    for number in 0..5000_u32 {
        image.append(one, &number.to_le_bytes().repeat(1024)).unwrap();
        image.append(other, b"other block.....").unwrap();
        image.seek(other, u64::from(number + 1) * 8192).unwrap();
    }
    place.finish(image, 0);
    let stat = place.debugfs("stat one");
    assert!(stat.contains("Links: 1   Blockcount: 40128"), "{stat}");
    let out = place.folder.path().join("one");
    place.debugfs(&format!("dump one {}", out.display()));
    let content = fs::read(out).unwrap();
    assert_eq!(content.len(), 5000 * 4096);
    for (number, block) in content.chunks(4096).enumerate() {
        assert_eq!(block[4092..], u32::try_from(number).unwrap().to_le_bytes());
    }
}

#[test]
fn folders_of_any_number_of_names_are_found_by_their_hash() {
    let place = Place::new();
    let mut image = place.image(OPTIONS);
    let root = image.root();
    let target = image.add(root, b"target", Kind::File, attributes(0o644)).unwrap();
    for count in [1, 200, 300, 5000] {
        let folder = image
            .add(root, format!("f{count}").as_bytes(), Kind::Directory, attributes(0o755))
            .unwrap();
        for number in 0..count {
            let name = format!("{number}-{}", "\u{e9}".repeat(number % 100));
            image.link(folder, name.as_bytes(), target).unwrap();
        }
    }
    place.finish(image, 0);
    // Bit 12: EXT4_INDEX_FL.
    for (count, indexed) in [(1, false), (200, true), (5000, true)] {
        let stat = place.debugfs(&format!("stat f{count}"));
        let flags = if indexed { "Flags: 0x81000" } else { "Flags: 0x80000" };
        assert!(stat.contains(flags), "{stat}");
    }
    let tree = place.debugfs("htree_dump f5000");
    assert!(tree.contains("Hash Version: 1") && tree.contains("Indirect levels: 0"), "{tree}");
}

#[test]
fn a_folder_with_more_leaves_than_the_root_of_an_index_has_has_two_levels() {
    let place = Place::new();
    let mut image = place.image(OPTIONS);
    let folder = image.add(image.root(), b"f", Kind::Directory, attributes(0o755)).unwrap();
    let target = image.add(folder, b"target", Kind::File, attributes(0o644)).unwrap();
    for number in 0..8000 {
        let name = format!("{number:0>250}");
        image.link(folder, name.as_bytes(), target).unwrap();
    }
    place.finish(image, 0);
    let tree = place.debugfs("htree_dump f");
    assert!(tree.contains("Indirect levels: 1"), "{}", &tree[..tree.len().min(2000)]);
}

#[test]
fn a_folder_with_70000_folders_does_not_count_them() {
    let place = Place::new();
    let mut image = place.image(OPTIONS);
    let root = image.root();
    let folder = image.add(root, b"folder", Kind::Directory, attributes(0o755)).unwrap();
    let mut add = |numbers: std::ops::Range<u32>| {
        for number in numbers {
            let name = format!("{number:x}");
            image.add(folder, name.as_bytes(), Kind::Directory, attributes(0o700)).unwrap();
        }
        image.links(folder)
    };
    assert_eq!((add(0..64_998), add(64_998..70_000)), (65_000, 70_002));
    place.finish(image, 0);
    assert!(place.debugfs("stat folder").contains("Links: 1 "));
}

#[test]
fn limits_are_errors_by_name() {
    let place = Place::new();
    let options = Options { most_inodes: 3, largest_bytes: 200 * MIB, ..OPTIONS };
    let mut image = place.image(options);
    let root = image.root();
    let file = add_file(&mut image, root, "file", b"");
    for name in ["b", "c"] {
        add_file(&mut image, root, name, b"");
    }
    let error = image.add(root, b"d", Kind::Fifo, attributes(0o644)).unwrap_err();
    assert_eq!(error.to_string(), "there would be more than 3 files, folders and links");
    assert!(matches!(image.link(root, b"d", file), Err(Ext4Error::TooManyInodes { .. })));
    image.unlink(root, b"c").unwrap();
    image.add(root, b"d", Kind::Fifo, attributes(0o644)).unwrap();
    // One group of 128 MiB.
    let error = loop {
        if let Err(error) = image.append(file, &[0; 1 << 20]) {
            break error;
        }
    };
    assert_eq!(error.to_string(), "the file system would be larger than 209715200 bytes");
    assert_eq!(image.data_bytes(), (32768 - 2) * 4096);
    let error = image.finish(Spare::default()).unwrap_err();
    assert!(matches!(error, Ext4Error::TooLarge { .. }), "{error}");

    let place = Place::new();
    let error = place.image(OPTIONS).finish(Spare { bytes: 64 * GIB }).unwrap_err();
    assert!(matches!(error, Ext4Error::TooLarge { .. }), "{error}");
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    let place = Place::new();
    let mut image = place.image(OPTIONS);
    let root = image.root();
    let file = add_file(&mut image, root, "file", b"");
    let mut add = |parent, name: &[u8], kind| {
        image.add(parent, name, kind, attributes(0o755)).unwrap_err().to_string()
    };
    for name in ["", ".", "..", "a/b", "a\0b", &"n".repeat(256)] {
        assert!(add(root, name.as_bytes(), Kind::File).starts_with("the name "));
    }
    assert_eq!(add(root, b"file", Kind::Directory), "\"file\" is there already");
    assert_eq!(add(file, b"x", Kind::File), "\"x\" would be in what is not a folder");
    assert!(add(root, b"l", Kind::Symlink(vec![])).contains("1 to 4095 bytes, not 0"));
    assert!(add(root, b"l", Kind::Symlink(vec![b'a'; 4096])).contains("not 4096"));
    let device = Kind::CharDevice { major: 4096, minor: 0 };
    assert_eq!(add(root, b"d", device), "Linux has no device 4096:0");
    let folder = image.add(root, b"folder", Kind::Directory, attributes(0o755)).unwrap();
    assert!(matches!(image.link(root, b"x", folder), Err(Ext4Error::LinkToDirectory { .. })));
    assert!(matches!(image.append(folder, b"x"), Err(Ext4Error::NotAFile)));
    assert!(matches!(image.unlink(root, b"x"), Err(Ext4Error::Missing { .. })));
    assert!(matches!(image.seek(file, u64::MAX), Err(Ext4Error::FileTooLarge { .. })));
    for number in 1..65000 {
        image.link(folder, number.to_string().as_bytes(), file).unwrap();
    }
    assert!(matches!(image.link(root, b"x", file), Err(Ext4Error::Links { .. })));
    assert_eq!((image.inodes(), image.links(folder), image.data_bytes()), (2, 2, 0));
    image.unlink(root, b"folder").unwrap();
    assert_eq!((image.inodes(), image.links(root), image.links(file)), (1, 2, 1));
    place.finish(image, 0);
}

#[test]
fn a_tree_deeper_than_a_stack_is_made_and_removed() {
    let place = Place::new();
    let mut image = place.image(OPTIONS);
    let mut folder = image.root();
    for _ in 0..200_000 {
        folder = image.add(folder, b"d", Kind::Directory, attributes(0o755)).unwrap();
    }
    image.unlink(image.root(), b"d").unwrap();
    assert_eq!(image.inodes(), 0);
    place.finish(image, 0);
}

#[test]
fn an_image_has_its_own_lost_and_found_if_it_brings_one() {
    let place = Place::new();
    let mut image = place.image(OPTIONS);
    image.add(image.root(), b"lost+found", Kind::File, attributes(0o600)).unwrap();
    place.finish(image, 0);
    assert!(place.debugfs("stat lost+found").contains("Inode: 11   Type: regular"));
}

#[test]
fn data_is_in_many_groups_and_leaves_the_copies_of_the_superblock_alone() {
    let place = Place::new();
    let mut image = place.image(OPTIONS);
    let file = image.add(image.root(), b"zeros", Kind::File, attributes(0o644)).unwrap();
    let zeros = vec![0; 8 << 20];
    for _ in 0..200 {
        image.append(file, &zeros).unwrap();
    }
    let finished = place.finish(image, 0);
    assert_eq!(finished.file_system_bytes, 13 * 128 * MIB);
}

#[test]
fn a_full_file_is_an_error_that_says_so() {
    let full = fs::File::options().read(true).write(true).open("/dev/full").unwrap();
    let mut image = Image::create(full, OPTIONS).unwrap();
    let file = image.add(image.root(), b"file", Kind::File, attributes(0o644)).unwrap();
    let error = image.append(file, &[1; 2 << 20]).unwrap_err();
    assert!(error.is_no_space(), "{error:?}");
    assert_eq!(error.to_string(), "cannot write data of the file system image");
}

#[test]
fn resize2fs_makes_it_larger() {
    let place = Place::new();
    let mut image = place.image(OPTIONS);
    scramble(&mut image, &mut Choices::new(5), 300);
    place.finish(image, 0);
    // 16 GiB is what one block of descriptors can describe.
    let file = fs::File::options().write(true).open(place.path()).unwrap();
    file.set_len(40 * GIB).unwrap();
    run(command("resize2fs").arg("-f").arg(place.path()));
    place.check();
    assert!(place.debugfs("show_super_stats -h").contains("Block count:              10485760"));
}

#[test]
fn a_file_that_is_not_empty_is_refused() {
    let place = Place::new();
    fs::write(place.path(), b"x").unwrap();
    let file = fs::File::options().read(true).write(true).open(place.path()).unwrap();
    let error = Image::create(file, OPTIONS).unwrap_err();
    assert!(matches!(error, Ext4Error::NotEmpty { bytes: 1 }), "{error}");
}

#[test]
fn options_that_cannot_be_are_refused() {
    let refused = |options| {
        let file = tempfile::tempfile().unwrap();
        Image::create(file, options).unwrap_err().to_string()
    };
    assert!(refused(Options { label: "x".repeat(17), ..OPTIONS }).contains("16 bytes"));
    assert!(refused(Options { bytes_per_inode: 1, ..OPTIONS }).contains("4096"));
    assert!(refused(Options { largest_bytes: MIB, ..OPTIONS }).contains("128 MiB"));
    assert!(refused(Options { journal_bytes: MIB, ..OPTIONS }).contains("4 MiB"));
}

#[test]
fn any_order_of_calls_makes_what_they_say() {
    for seed in 0..30 {
        let place = Place::new();
        // Without and with room for many, so that groups with and without inodes are seen.
        let bytes_per_inode = [4096, 16384, 1 << 20][usize::try_from(seed % 3).unwrap()];
        let mut image = place.image(Options { bytes_per_inode, ..OPTIONS });
        let model = scramble(&mut image, &mut Choices::new(seed), 400);
        place.finish(image, (seed % 4) * 100 * MIB);
        let out = place.folder.path().join("out");
        fs::create_dir(&out).unwrap();
        dump(&place, &out);
        fs::remove_dir(out.join("lost+found")).unwrap();
        let mut found = BTreeMap::new();
        read_tree(&out, "", &mut found);
        assert!(found == model, "seed {seed}");
    }
}

/// What a path has, as a dump shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Node {
    Folder,
    File(Vec<u8>),
    Link(Vec<u8>),
}

/// Changes a file system at random. Gives what must be there then, by path.
fn scramble(image: &mut Image, choices: &mut Choices, steps: usize) -> BTreeMap<String, Node> {
    let mut files: BTreeMap<InodeId, Vec<u8>> = BTreeMap::new();
    let mut folders = vec![(image.root(), String::new())];
    let mut paths: BTreeMap<String, InodeId> = BTreeMap::new();
    for step in 0..steps {
        let (folder, above) = folders[choices.below(folders.len())].clone();
        let name = format!("{step}-{}", "n".repeat(choices.below(200)));
        let path = format!("{above}/{name}");
        let file = files.keys().nth(choices.below(files.len().max(1))).copied();
        match (choices.below(12), file) {
            (0 | 1, _) => {
                let id =
                    image.add(folder, name.as_bytes(), Kind::Directory, attributes(0o755)).unwrap();
                folders.push((id, path.clone()));
                paths.insert(path, id);
            }
            (2, _) => {
                let target = vec![b't'; 1 + choices.below(300)];
                let kind = Kind::Symlink(target);
                let id = image.add(folder, name.as_bytes(), kind, attributes(0o777)).unwrap();
                paths.insert(path, id);
            }
            (3..=5, _) | (_, None) => {
                let attributes = Attributes { mtime: TIME, ..attributes(0o644) };
                let id = image.add(folder, name.as_bytes(), Kind::File, attributes).unwrap();
                let length = choices.below(30_000);
                let content = choices.bytes(length);
                image.append(id, &content).unwrap();
                files.insert(id, content);
                paths.insert(path, id);
            }
            (6, Some(file)) => {
                image.link(folder, name.as_bytes(), file).unwrap();
                paths.insert(path, file);
            }
            (7 | 8, Some(file)) => {
                let content = files.get_mut(&file).unwrap();
                let length = choices.below(100_000);
                let more = choices.bytes(length);
                image.append(file, &more).unwrap();
                content.extend(more);
            }
            (9, Some(file)) => {
                let content = files.get_mut(&file).unwrap();
                let size = content.len() + choices.below(20_000);
                image.seek(file, size as u64).unwrap();
                content.resize(size, 0);
            }
            (_, Some(_)) => {
                let Some(path) = paths.keys().nth(choices.below(paths.len())).cloned() else {
                    continue;
                };
                let (above, name) = path.rsplit_once('/').unwrap();
                let parent = folders.iter().find(|(_, path)| path == above).unwrap().0;
                image.unlink(parent, name.as_bytes()).unwrap();
                let below = format!("{path}/");
                paths.retain(|each, _| *each != path && !each.starts_with(&below));
                folders.retain(|(_, each)| *each != path && !each.starts_with(&below));
                files.retain(|id, _| paths.values().any(|named| named == id));
            }
        }
    }
    let mut model = BTreeMap::new();
    for (path, id) in paths {
        let node = match image.kind(id) {
            Kind::Directory => Node::Folder,
            Kind::Symlink(target) => Node::Link(target.clone()),
            _ => Node::File(files[&id].clone()),
        };
        model.insert(path, node);
    }
    model
}

/// Copies all of the file system to `out`.
fn dump(place: &Place, out: &std::path::Path) {
    place.debugfs(&format!("rdump / {}", out.display()));
}

fn read_tree(folder: &std::path::Path, above: &str, found: &mut BTreeMap<String, Node>) {
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let path = format!("{above}/{}", entry.file_name().to_str().unwrap());
        let kind = entry.file_type().unwrap();
        let node = if kind.is_dir() {
            read_tree(&entry.path(), &path, found);
            Node::Folder
        } else if kind.is_symlink() {
            Node::Link(fs::read_link(entry.path()).unwrap().into_os_string().into_encoded_bytes())
        } else {
            Node::File(fs::read(entry.path()).unwrap())
        };
        found.insert(path, node);
    }
}
