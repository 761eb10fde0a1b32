//! What the kernel makes of what was written: it reads, writes, and grows it. Only root can mount, so who is not root sees
//! nothing here; growing needs a capability that root of a container may not have.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../src/hash.rs"]
mod hash;
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use banger_ext4::{Attributes, Kind, Options, Timestamp};
use rustix::fs::{getxattr, lgetxattr, llistxattr};
use support::{Choices, GIB, OPTIONS, Place, TIME, add_file, attributes, command, mounted, run};

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn xattr(path: &Path, name: &str) -> Vec<u8> {
    let mut value = [0; 8192];
    let count = lgetxattr(path, name, &mut value[..]).unwrap();
    value[..count].to_vec()
}

const NOBODY: [u8; 4] = [255; 4];

/// An access control list as Linux gives it.
fn list(entries: &[(u16, u16, [u8; 4])]) -> Vec<u8> {
    let mut value = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        value.extend(tag.to_le_bytes());
        value.extend(permissions.to_le_bytes());
        value.extend(id);
    }
    value
}

#[test]
fn the_kernel_sees_what_was_asked_for() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let mut image = place.image(OPTIONS);
    let root = image.root();
    image.set_attributes(root, Attributes { gid: 70_000, ..attributes(0o1775) }).unwrap();
    let large = Choices::new(1).bytes(3500);
    let acl = list(&[
        (1, 7, NOBODY),
        (2, 6, 1000_u32.to_le_bytes()),
        (4, 5, NOBODY),
        (8, 4, 100_000_u32.to_le_bytes()),
        (16, 7, NOBODY),
        (32, 0, NOBODY),
    ]);
    let xattrs: BTreeMap<Vec<u8>, Vec<u8>> = [
        (
            "security.capability",
            &[1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..],
        ),
        ("system.posix_acl_access", &acl),
        ("system.posix_acl_default", &acl),
        ("trusted.overlay.opaque", b"y"),
        ("user.empty", b""),
        ("user.large", &large),
        ("user.\u{fc}ber", b"1"),
    ]
    .into_iter()
    .map(|(name, value)| (name.into(), value.into()))
    .collect();
    let everything =
        Attributes { uid: 100_000, gid: 3, xattrs: xattrs.clone(), ..attributes(0o2770) };
    image.add(root, b"folder", Kind::Directory, everything).unwrap();
    let small = xattrs.iter().filter(|(name, _)| name.starts_with(b"trusted"));
    let small: BTreeMap<_, _> = small.map(|(name, value)| (name.clone(), value.clone())).collect();
    for (name, kind) in [
        ("fifo", Kind::Fifo),
        ("socket", Kind::Socket),
        ("char", Kind::CharDevice { major: 5, minor: 300 }),
        ("block", Kind::BlockDevice { major: 4095, minor: 0xf_ffff }),
        ("short", Kind::Symlink(b"a target".to_vec())),
        ("long", Kind::Symlink(vec![b'l'; 4095])),
    ] {
        let mtime = Timestamp { seconds: -86_400, nanoseconds: 7 };
        let attributes = Attributes { mtime, xattrs: small.clone(), ..attributes(0o640) };
        image.add(root, name.as_bytes(), kind, attributes).unwrap();
    }
    let file = add_file(&mut image, root, "\u{e9}\\ \"odd", b"content");
    let later = Timestamp { seconds: 5_000_000_000, nanoseconds: 999_999_999 };
    image.set_attributes(file, Attributes { mtime: later, ..attributes(0o6711) }).unwrap();
    image.link(root, b"\xff\xfe", file).unwrap();
    place.finish(image, 0);

    mounted(place.folder.path(), &place.path(), "ro", |at| {
        let stat = |name: &str| at.join(name).symlink_metadata().unwrap();
        let found = at.metadata().unwrap();
        assert_eq!((found.mode(), found.gid(), found.nlink()), (0o041_775, 70_000, 4));
        let folder = stat("folder");
        assert_eq!((folder.mode(), folder.uid(), folder.gid()), (0o042_770, 100_000, 3));
        assert_eq!((folder.mtime(), folder.mtime_nsec()), (TIME.seconds, 123_456_789));
        for (name, value) in &xattrs {
            let name = str::from_utf8(name).unwrap();
            assert_eq!(&xattr(&at.join("folder"), name), value, "{name}");
        }
        let mut names = [0; 1024];
        let count = llistxattr(at.join("folder"), &mut names[..]).unwrap();
        assert_eq!(names[..count].iter().filter(|&&byte| byte == 0).count(), xattrs.len());
        assert!(stat("fifo").file_type().is_fifo());
        assert!(stat("socket").file_type().is_socket());
        let device = |name| {
            let device = stat(name).rdev();
            (rustix::fs::major(device), rustix::fs::minor(device))
        };
        assert_eq!(device("char"), (5, 300));
        assert_eq!(device("block"), (4095, 0xf_ffff));
        assert_eq!(fs::read_link(at.join("short")).unwrap(), Path::new("a target"));
        assert_eq!(fs::read_link(at.join("long")).unwrap().as_os_str().len(), 4095);
        for name in ["fifo", "socket", "char", "block", "short", "long"] {
            let found = stat(name);
            assert_eq!((found.mtime(), found.mtime_nsec()), (-86_400, 7), "{name}");
            assert_eq!(found.permissions().mode() & 0o7777, 0o640);
            assert_eq!(xattr(&at.join(name), "trusted.overlay.opaque"), b"y", "{name}");
        }
        let odd = stat("\u{e9}\\ \"odd");
        assert_eq!((odd.mode(), odd.nlink(), odd.mtime()), (0o106_711, 2, 5_000_000_000));
        let other = at.join(std::ffi::OsStr::from_bytes(b"\xff\xfe"));
        assert_eq!(other.metadata().unwrap().ino(), odd.ino());
        assert_eq!(fs::read(other).unwrap(), b"content");
        let mut none = [0; 8];
        assert!(getxattr(at.join("fifo"), "user.large", &mut none[..]).is_err());
    });
}

#[test]
fn the_kernel_finds_each_of_60000_names_by_its_hash() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let mut image = place.image(Options { bytes_per_inode: 4096, ..OPTIONS });
    let folder = image.add(image.root(), b"folder", Kind::Directory, attributes(0o755)).unwrap();
    let target = image.add(folder, b"target", Kind::File, attributes(0o644)).unwrap();
    // Bytes above 127 as well: whether they have a sign matters to the hash.
    let name = |number: u32| format!("{number}-\u{e9}{}", "x".repeat(number as usize % 60));
    for number in 0..60_000 {
        image.link(folder, name(number).as_bytes(), target).unwrap();
    }
    place.finish(image, 0);
    mounted(place.folder.path(), &place.path(), "rw", |at| {
        let folder = at.join("folder");
        for number in 0..60_000 {
            assert!(folder.join(name(number)).symlink_metadata().is_ok(), "{number}");
        }
        assert!(!folder.join("60000").exists());
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 60_001);
        // New names split leaves, old ones leave them.
        for number in 0..20_000 {
            fs::write(folder.join(format!("new {number}")), b"new").unwrap();
            fs::remove_file(folder.join(name(number * 3))).unwrap();
        }
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 60_001);
    });
    place.check();
}

#[test]
fn names_with_one_hash_are_found_in_the_leaf_where_it_begins_and_in_the_next() {
    if !is_root() {
        return;
    }
    let seed = hash::seed(&OPTIONS.hash_seed);
    let mut names: Vec<(u32, String)> = (0..400_000)
        .map(|number| format!("{number:0>240}"))
        .map(|name| (hash::half_md4(name.as_bytes(), seed).0, name))
        .collect();
    names.sort_unstable();
    let pair = names.windows(2).skip(5000).position(|pair| pair[0].0 == pair[1].0).unwrap() + 5000;
    // A leaf has 14 of these: names before the pair, so that they are the last of a leaf and the first of the next.
    let chosen = &names[pair - (14 * 200 + 13)..pair + 500];
    let place = Place::new();
    let mut image = place.image(OPTIONS);
    let folder = image.add(image.root(), b"folder", Kind::Directory, attributes(0o755)).unwrap();
    let target = image.add(image.root(), b"target", Kind::File, attributes(0o644)).unwrap();
    for (_, name) in chosen {
        image.link(folder, name.as_bytes(), target).unwrap();
    }
    place.finish(image, 0);
    // The lowest bit: the hash goes on.
    let marked = format!("Hash 0x{:08x}", names[pair].0 | 1);
    assert!(place.debugfs("htree_dump folder").contains(&marked));
    mounted(place.folder.path(), &place.path(), "ro", |at| {
        for (_, name) in chosen {
            assert!(at.join("folder").join(name).symlink_metadata().is_ok(), "{name}");
        }
        assert_eq!(fs::read_dir(at.join("folder")).unwrap().count(), chosen.len());
    });
}

#[test]
fn the_kernel_writes_where_there_is_room_and_leaves_it_clean() {
    if !is_root() {
        return;
    }
    for options in [OPTIONS, Options { journal_bytes: 0, ..OPTIONS }] {
        let place = Place::new();
        let mut image = place.image(options);
        let root = image.root();
        let content = Choices::new(9).bytes(200_000);
        for number in 0..300 {
            add_file(&mut image, root, &number.to_string(), &content[..number * 600]);
        }
        for number in (0..300).step_by(3) {
            image.unlink(root, number.to_string().as_bytes()).unwrap();
        }
        let sparse = add_file(&mut image, root, "sparse", b"start");
        image.seek(sparse, GIB).unwrap();
        image.append(sparse, b"end").unwrap();
        let free = place.finish(image, 200 << 20).free_bytes;
        mounted(place.folder.path(), &place.path(), "rw", |at| {
            let room = rustix::fs::statvfs(at).unwrap();
            assert_eq!(room.f_bfree * 4096, free);
            for number in (1..300).filter(|number| number % 3 > 0) {
                let file = at.join(number.to_string());
                assert!(fs::read(&file).unwrap() == content[..number * 600], "{number}");
                fs::write(&file, &content[..number * 300]).unwrap();
            }
            let metadata = at.join("sparse").metadata().unwrap();
            assert_eq!((metadata.len(), metadata.blocks()), (GIB + 3, 16));
            // All that is free.
            let mut filled = fs::File::create(at.join("filled")).unwrap();
            let error = std::io::copy(&mut std::io::repeat(7), &mut filled).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
            drop(filled);
            fs::remove_file(at.join("filled")).unwrap();
            fs::create_dir_all(at.join("a/b/c")).unwrap();
            fs::write(at.join("a/b/c/d"), &content).unwrap();
            fs::remove_file(at.join("1")).unwrap();
        });
        place.check();
        mounted(place.folder.path(), &place.path(), "ro", |at| {
            assert!(fs::read(at.join("a/b/c/d")).unwrap() == content);
            assert!(fs::read(at.join("2")).unwrap() == content[..600]);
        });
    }
}

#[test]
#[ignore = "needs the test host"]
fn a_mounted_file_system_grows_past_what_its_descriptors_have_room_for() {
    let place = Place::new();
    let mut image = place.image(Options { journal_bytes: 64 << 20, ..OPTIONS });
    let root = image.root();
    let content = Choices::new(4).bytes(3_000_000);
    add_file(&mut image, root, "file", &content);
    place.finish(image, 0);
    let file = fs::File::options().write(true).open(place.path()).unwrap();
    // 16 GiB is what one block of descriptors can describe.
    file.set_len(100 * GIB).unwrap();
    mounted(place.folder.path(), &place.path(), "rw", |at| {
        let device = run(command("findmnt").args(["-no", "SOURCE"]).arg(at));
        run(command("resize2fs").arg(String::from_utf8(device.stdout).unwrap().trim()));
        let room = rustix::fs::statvfs(at).unwrap();
        assert!(room.f_bfree * 4096 > 97 * GIB, "{}", room.f_bfree);
        assert!(fs::read(at.join("file")).unwrap() == content);
        for number in 0..2000 {
            fs::write(at.join(number.to_string()), b"new").unwrap();
        }
    });
    place.check();
    assert!(place.debugfs("features").contains("meta_bg"));
}
