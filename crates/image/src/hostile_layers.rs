//! Layers that somebody made to do harm, or that are broken: each is refused with its reason, and nothing of it is left.

use std::fs;

use sha2::{Digest, Sha256};

use crate::assemble::{LayerSource, assemble};
use crate::kernel::hex;
use crate::layers::Limits;
use crate::samples::{
    Item, device, file, folder, gzip, hard_link, item, reasons, records_bytes, sealed, symlink, tar,
};
use crate::{ImportedRootfs, RootfsError, Trouble};

const SMALL: Limits = Limits {
    layer_bytes: 4 << 20,
    total_bytes: 6 << 20,
    entries: 2000,
    name_bytes: 64 << 10,
    xattr_bytes: 64 << 10,
};

fn assembled(layers: &[Vec<u8>], diff_id: Option<&str>) -> Result<ImportedRootfs, RootfsError> {
    let folder = tempfile::tempdir().unwrap();
    let mut sources = Vec::new();
    for (number, bytes) in layers.iter().enumerate() {
        let path = folder.path().join(number.to_string());
        fs::write(&path, bytes).unwrap();
        sources.push(LayerSource { path, diff_id: diff_id.map(str::to_owned) });
    }
    let out = folder.path().join("image");
    let result = assemble(&sources, &out, SMALL, &|_| {});
    let count = fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(count, layers.len() + usize::from(result.is_ok()), "nothing is left behind");
    result
}

fn refused(what: &str, layers: &[Vec<u8>], reason: &str) {
    let Err(error) = assembled(layers, None) else { panic!("{what}: it was taken") };
    let said = reasons(&error);
    assert!(said.contains(reason), "{what}: no {reason:?} in {said:?}");
    assert_eq!(error.trouble(), Trouble::Input, "{what}: {said}");
}

fn refused_items(table: &[(&str, Vec<Item>, &str)]) {
    for (what, items, reason) in table {
        refused(what, &[tar(items)], reason);
    }
}

#[test]
fn the_limits_of_these_tests_take_an_ordinary_layer() {
    assert!(assembled(&[tar(&[folder("./"), file("a", "1")])], None).is_ok());
}

#[test]
fn names_that_are_none_or_lead_out_are_refused() {
    let up = "a part of its name is `..`";
    let part = "x".repeat(256);
    let long = "d/".repeat(2048) + "e";
    refused_items(&[
        ("upwards", vec![file("../a", "")], up),
        ("upwards within", vec![file("a/../b", "")], up),
        ("upwards at the end", vec![folder("a/..")], up),
        ("upwards, absolute", vec![file("/../a", "")], up),
        ("upwards by a record", vec![file("a", "").record("path", "b/../../c")], up),
        ("a link upwards", vec![hard_link("a", "../../etc/passwd")], up),
        ("a sparse name upwards", vec![file("a", "").record("GNU.sparse.name", "../b")], up),
        ("a part too long", vec![file(&part, "")], "longer than 255 bytes"),
        ("a name too long", vec![file(&long, "")], "its name is longer than 4095 bytes"),
        ("a NUL", vec![file("a", "").record("path", b"a\0b")], "holds a NUL"),
        (
            "a NUL in a target",
            vec![symlink("a", "b").record("linkpath", b"a\0b")],
            "the target of the link",
        ),
        ("an empty target", vec![symlink("a", "")], "the target of the link"),
        ("a target too long", vec![symlink("a", "t".repeat(4096))], "the target of the link"),
        ("a file as the root", vec![file("./", "x")], "folder, and has content"),
        ("a link as the root", vec![symlink("/", "x")], "in the place of the root folder"),
        ("no name", vec![file("", "x")], "in the place of the root folder"),
    ]);
}

#[test]
fn links_cannot_be_used_to_leave_the_tree_or_to_keep_us_busy() {
    let rounds: Vec<Item> =
        (0..50).map(|n| symlink(format!("l{n}"), format!("l{}", n + 1))).collect();
    refused_items(&[
        (
            "a circle",
            vec![symlink("a", "b"), symlink("b", "a"), file("a/c", "")],
            "go round in circles",
        ),
        ("a link to itself", vec![symlink("a", "a"), file("a/c", "")], "go round in circles"),
        ("a long chain", [rounds, vec![file("l0/x", "")]].concat(), "too many links on the way"),
        (
            "a file as a folder",
            vec![file("a", ""), file("a/b", "")],
            "\"a\" on the way to it is not a folder",
        ),
        (
            "a link to a file as a folder",
            vec![file("a", ""), symlink("l", "a"), file("l/b", "")],
            "\"a\" on the way",
        ),
        ("a device as a folder", vec![device("a", b'3', 1, 1), file("a/b", "")], "not a folder"),
        (
            "a hard link to nothing",
            vec![hard_link("a", "b")],
            "a link to \"b\", which is not there",
        ),
        (
            "a hard link to the host's file",
            vec![hard_link("a", "/etc/passwd")],
            "which is not there",
        ),
        (
            "a hard link through a file",
            vec![file("b", ""), hard_link("a", "b/c")],
            "which is not there",
        ),
        (
            "a hard link by a link out",
            vec![symlink("etc", "/../../etc"), hard_link("a", "etc/passwd")],
            "go round in circles",
        ),
        (
            "a hard link to a folder",
            vec![folder("d"), hard_link("a", "d")],
            "a link to the folder \"d\"",
        ),
        ("a hard link to the root", vec![hard_link("a", "/")], "a link to the folder"),
        ("a hard link to itself", vec![file("a", "x"), hard_link("a", "./a")], "a link to itself"),
        (
            "a hard link to what it replaces",
            vec![folder("d"), file("d/f", ""), hard_link("d", "d/f")],
            "which is not there",
        ),
    ]);
}

#[test]
fn whiteouts_of_nothing_are_refused() {
    let lower = tar(&[folder("d"), file("d/a", "")]);
    for (what, name, reason) in [
        ("of no name", ".wh.", "a whiteout of nothing"),
        ("of no name, below", "d/.wh.", "a whiteout of nothing"),
        ("of the folder itself", "d/.wh..", "a whiteout of nothing"),
        ("of the folder above", "d/.wh...", "a whiteout of nothing"),
        ("of the root", ".wh..", "a whiteout of nothing"),
        ("as a folder", ".wh.d/a", "whose name is a whiteout's"),
        ("as a folder of whiteouts", ".wh.d/.wh.a", "whose name is a whiteout's"),
        ("below a file", "d/a/.wh.b", "not a folder"),
    ] {
        refused(what, &[lower.clone(), tar(&[file(name, "")])], reason);
    }
}

#[test]
fn numbers_that_cannot_be_are_refused() {
    let mut no_number = file("a", "");
    no_number.mode = 0;
    let mut header = no_number.header();
    header[100..107].copy_from_slice(b"rw-r--r");
    let wrong_mode = [&sealed(header)[..], &[0; 1024]].concat();
    refused("a mode of letters", &[wrong_mode], "no number for its mode");
    header = no_number.header();
    header[124..136].copy_from_slice(&[0xff; 12]);
    refused(
        "a size below zero",
        &[[&sealed(header)[..], &[0; 1024]].concat()],
        "no number for its size",
    );
    header = no_number.header();
    header[108..116].copy_from_slice(&[0xff; 8]);
    refused(
        "an owner below zero",
        &[[&sealed(header)[..], &[0; 1024]].concat()],
        "its owner or group is none",
    );
    refused_items(&[
        ("a major too large", vec![device("a", b'3', 4096, 0)], "its device number is none"),
        ("a minor too large", vec![device("a", b'4', 0, 1 << 20)], "its device number is none"),
        (
            "an owner of all ones",
            vec![file("a", "").owner(u32::MAX, 0)],
            "its owner or group is none",
        ),
        (
            "a group too large",
            vec![file("a", "").record("gid", "4294967296")],
            "its owner or group is none",
        ),
        (
            "an owner of letters",
            vec![file("a", "").record("uid", "root")],
            "no number for its owner",
        ),
        ("a time of letters", vec![file("a", "").record("mtime", "now")], "no number for its time"),
        ("a type nobody knows", vec![item("a", b'!')], "a type that is not known: !"),
        ("a volume's label", vec![item("a", b'V')], "a type that is not known: V"),
        ("a piece of another volume", vec![item("a", b'M')], "a type that is not known: M"),
    ]);
}

#[test]
fn bombs_are_refused_at_the_limit_and_before_they_are_unpacked() {
    let megabyte = vec![0_u8; 1 << 20];
    let five: Vec<Item> = (0..5).map(|n| file(format!("f{n}"), &megabyte)).collect();
    refused(
        "a layer too large",
        &[gzip(&tar(&five))],
        "\"f3\" of the archive is refused: the layer unpacks to more than the limit of 4194304 bytes",
    );
    let three = gzip(&tar(&five[..3]));
    refused(
        "layers too large together",
        &[three.clone(), three],
        "the image unpacks to more than the limit of 6291456 bytes",
    );
    // The size alone tells: its bytes are not there at all.
    refused(
        "a file too large",
        &[tar(&[file("a", "").size(1 << 40)])],
        "the layer unpacks to more than",
    );
    let many: Vec<Item> = (0..2001).map(|n| file(n.to_string(), "")).collect();
    refused(
        "too many entries",
        &[tar(&many)],
        "\"2000\" of the archive is refused: there are more entries than the limit of 2000",
    );
    let deep: Vec<Item> =
        (0..3).map(|n| file(format!("{n}/") + &"d/".repeat(900) + "f", "")).collect();
    refused(
        "too many folders that nobody named",
        &[tar(&deep)],
        "more entries than the limit of 2000",
    );
    let names: Vec<Item> = (0..300).map(|n| file(format!("{n:0>250}"), "")).collect();
    refused("too many names", &[tar(&names)], "more than the limit of 65536 bytes");
    let targets: Vec<Item> = (0..20).map(|n| symlink(n.to_string(), "t".repeat(4000))).collect();
    refused("too long targets", &[tar(&targets)], "more than the limit of 65536 bytes");
    let xattrs: Vec<Item> =
        (0..40).map(|n| file(n.to_string(), "").xattr("user.a", vec![1; 2000])).collect();
    refused(
        "too many attributes",
        &[tar(&xattrs)],
        "attributes take more than the limit of 65536 bytes",
    );
    refused(
        "zeros behind the end",
        &[gzip(&[tar(&[file("a", "")]), vec![0; 5 << 20]].concat())],
        "what is behind the archive's end",
    );
    let padding: Vec<u8> = (0..10_000).flat_map(|_| item("long", b'L').header()).collect();
    refused("headers before no entry", &[gzip(&padding)], "the layer unpacks to more than");
    // Every byte of it takes a block.
    let scattered: String = (0..2000).map(|n| format!("{},1,", n * 4096)).collect();
    let scattered = file("a", vec![1; 2000])
        .record("GNU.sparse.map", scattered.trim_end_matches(','))
        .record("GNU.sparse.size", "8192000");
    refused(
        "a file of holes",
        &[tar(&[scattered])],
        "\"a\" of the archive is refused: the image unpacks to more than",
    );
}

#[test]
fn broken_archives_are_refused() {
    let whole = tar(&[file("a", vec![7; 2000]), file("b", "")]);
    for length in [1, 511, 600, 2000, 2511] {
        let reason = if length < 512 { "is not a tar archive" } else { "in the midst of an entry" };
        refused("cut", &[whole[..length].to_vec()], reason);
    }
    // As `umoci insert` leaves them: without the last padding. Only the digest tells that it is all there.
    for length in [2512, 2559, 2560] {
        let short = whole[..length].to_vec();
        let digest = format!("sha256:{}", hex(&Sha256::digest(&short)));
        assert_eq!(assembled(std::slice::from_ref(&short), Some(&digest)).unwrap().entries, 1);
        refused("cut behind an entry", &[short], "without its end mark");
    }
    let packed = gzip(&whole);
    refused("a cut stream", &[packed[..packed.len() - 4].to_vec()], "cannot be read");
    let mut damaged = whole.clone();
    damaged[2560 + 5] ^= 1;
    refused(
        "a header that was changed",
        &[damaged],
        "the header at byte 2560 of the archive is damaged",
    );
    let mut lone = whole[..2560].to_vec();
    lone.extend([0; 512]);
    lone.extend(&whole[2560..]);
    refused("zeros in the midst", &[lone], "a block of zeros at byte 2560");
    let only_long_name = [&item("x", b'L').size(0).header()[..], &[0; 1024]].concat();
    refused("a long name of nothing", &[only_long_name], "has nothing in it");
    refused("no archive", &[vec![b'x'; 2000]], "is not a tar archive");
    refused("nothing", &[vec![]], "is not a tar archive");
    refused("zeros", &[vec![0; 2000]], "has nothing in it");
    let Err(none) = assembled(&[], None) else { panic!("an image of no layers") };
    assert_eq!(none.to_string(), "an image has one layer at least");
}

#[test]
fn headers_that_lie_are_refused() {
    let pax = |bytes: &[u8]| Item { content: bytes.to_vec(), ..item("h", b'x') };
    let global = |key: &str| Item {
        content: records_bytes(&[(key.as_bytes().to_vec(), b"1".to_vec())]),
        ..item("h", b'g')
    };
    refused_items(&[
        (
            "a record longer than it is",
            vec![pax(b"99 path=a\n"), file("a", "")],
            "its extended header is damaged",
        ),
        (
            "a record of length 0",
            vec![pax(b"0 path=a\n"), file("a", "")],
            "its extended header is damaged",
        ),
        ("no record", vec![pax(b"path"), file("a", "")], "its extended header is damaged"),
        (
            "a huge header",
            vec![pax(&vec![b'1'; (1 << 20) + 1]), file("a", "")],
            "its extended header is larger than 1048576 bytes",
        ),
        (
            "a header that says it is huge",
            vec![item("h", b'x').size(1 << 33)],
            "its extended header is larger",
        ),
        ("a huge long name", vec![item("h", b'L').size(1 << 33)], "its extended header is larger"),
        ("a name for all", vec![global("path"), file("a", "")], "can be said of one entry only"),
        ("a size for all", vec![global("size"), file("a", "")], "can be said of one entry only"),
        (
            "an attribute too large",
            vec![file("a", "").xattr("user.a", vec![0; 65537])],
            "an extended attribute is larger than 65536 bytes",
        ),
        (
            "an attribute larger than ext4's",
            vec![file("a", "").xattr("user.a", vec![0; 5000])],
            "ext4 keeps at most 4 KiB",
        ),
        (
            "an attribute without a name",
            vec![file("a", "").record("SCHILY.xattr.", "1")],
            "the name of an extended attribute",
        ),
        (
            "an attribute with a long name",
            vec![file("a", "").xattr(&("user.".to_owned() + &"a".repeat(251)), "1")],
            "the name of an extended attribute",
        ),
        (
            "a list for a stranger",
            vec![file("a", "").record("SCHILY.acl.access", "u::r,g::r,o::r,u:me:r,m::r")],
            "names somebody that the image does not know",
        ),
        (
            "a list that is none",
            vec![file("a", "").record("SCHILY.acl.access", "rwx")],
            "its access control list is damaged",
        ),
        (
            "a binary list that is none",
            vec![file("a", "").xattr("system.posix_acl_access", "x")],
            "access control list",
        ),
        ("a folder with content", vec![file("a/", "x")], "it is a folder, and has content"),
    ]);
}

#[test]
fn maps_of_sparse_files_that_cannot_be_are_refused() {
    let sparse = |map: &str, size: &str| {
        file("a", "1234567890").record("GNU.sparse.map", map).record("GNU.sparse.size", size)
    };
    let one = |map: &str| {
        let mut content = map.as_bytes().to_vec();
        content.resize(content.len().next_multiple_of(512).max(512), 0);
        content.extend(b"1234567890");
        file("a", content)
            .record("GNU.sparse.major", "1")
            .record("GNU.sparse.minor", "0")
            .record("GNU.sparse.realsize", "4096")
    };
    let damaged = "its map of a sparse file is damaged";
    refused_items(&[
        ("pieces that overlap", vec![sparse("0,6,5,4", "100")], damaged),
        ("pieces that go back", vec![sparse("50,5,0,5", "100")], damaged),
        ("more than there is", vec![sparse("0,11", "100")], damaged),
        ("less than there is", vec![sparse("0,9", "100")], damaged),
        ("beyond the end", vec![sparse("95,10", "100")], damaged),
        ("beyond every end", vec![sparse("18446744073709551615,10", "100")], damaged),
        ("half a piece", vec![sparse("0,5,7", "100")], damaged),
        ("letters", vec![sparse("a,b", "100")], damaged),
        ("no size", vec![file("a", "1").record("GNU.sparse.map", "0,1")], damaged),
        (
            "larger than files are",
            vec![sparse("0,10", "17592186044416")],
            "larger than a file of ext4 can be",
        ),
        (
            "a length without an offset",
            vec![file("a", "1").record("GNU.sparse.numbytes", "1")],
            damaged,
        ),
        (
            "a form of the future",
            vec![sparse("0,10", "100").record("GNU.sparse.major", "2")],
            damaged,
        ),
        ("a map of letters", vec![one("x\n")], damaged),
        ("a map without an end", vec![one("1\n0")], damaged),
        ("a map longer than the file", vec![one("400\n0\n1\n")], damaged),
        ("an absurd number of pieces", vec![one("99999999999\n")], "more than 1048576 pieces"),
        ("pieces of one map that overlap", vec![one("2\n0\n5\n4\n5\n")], damaged),
        (
            "a map and no room for it",
            vec![
                file("a", "1")
                    .record("GNU.sparse.major", "1")
                    .record("GNU.sparse.minor", "0")
                    .record("GNU.sparse.realsize", "1"),
            ],
            damaged,
        ),
    ]);
    let mut header = item("a", b'S').size(10).header();
    header[257..265].copy_from_slice(b"ustar  \0");
    header[386..398].copy_from_slice(b"00000000005\0");
    header[398..410].copy_from_slice(b"00000000012\0");
    header[483..495].copy_from_slice(b"00000000014\0");
    let archive = [&sealed(header)[..], &[7; 512], &[0; 1024]].concat();
    refused("GNU's own map beyond the end", &[archive], damaged);
    header[482] = 1;
    let cut = sealed(header).to_vec();
    refused("GNU's own map that goes on in nothing", &[cut], "in the midst of an entry");
}

fn digest_of(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    crate::kernel::hex(&sha2::Sha256::digest(bytes))
}

#[test]
fn a_layer_that_is_another_is_refused() {
    let layer = tar(&[file("a", "1")]);
    let digest = digest_of(&layer);
    let right = format!("sha256:{digest}");
    assert!(assembled(&[gzip(&layer)], Some(&right)).is_ok());
    // What some writers leave out is not missed where a digest tells that nothing is.
    let unmarked = &layer[..layer.len() - 1024];
    let its_own = format!("sha256:{}", digest_of(unmarked));
    assert!(assembled(&[unmarked.to_vec()], Some(&its_own)).is_ok());
    let wrong = format!("sha256:{}", "0".repeat(64));
    let error = assembled(std::slice::from_ref(&layer), Some(&wrong)).unwrap_err();
    let said = error.to_string();
    assert!(said.contains(&format!("it is sha256:{digest}, and should be sha256:000")), "{said}");
    assert_eq!(error.trouble(), Trouble::Input);
    for form in
        ["", "sha512:00", "sha256:12", &"0".repeat(64), &format!("sha256:{}", "g".repeat(64))]
    {
        let error = assembled(std::slice::from_ref(&layer), Some(form)).unwrap_err();
        assert!(matches!(error, RootfsError::DiffIdForm { .. }), "{error}");
    }
}
