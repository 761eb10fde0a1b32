//! What layers mean, claim by claim, seen in the tree before it is written. The image itself is compared with another
//! program's unpacking in [`crate::oracle`].

use crate::posix_acl;
use crate::samples::{device, file, folder, hard_link, item, made, symlink, tree};

#[test]
fn a_whiteout_hides_only_what_lower_layers_have() {
    let lower = [folder("d"), file("d/a", "1"), file("d/b", "1"), file("d/c", "1")];
    for upper in [
        [file("d/.wh.a", ""), file("d/a", "2"), file("d/.wh.b", "")],
        [file("d/a", "2"), file("d/.wh.a", ""), file("d/.wh.b", "")],
    ] {
        assert_eq!(tree(&[&lower, &upper]), ["d/", "d/a = 2", "d/c = 1"]);
        // The layer above takes it for a lower one.
        let last = [file("d/.wh.a", "")];
        assert_eq!(tree(&[&lower, &upper, &last]), ["d/", "d/c = 1"]);
    }
    let of_nothing = [file(".wh.none", ""), file("none/.wh.none", ""), folder("d")];
    assert_eq!(tree(&[&[], &of_nothing]), ["d/"]);
}

#[test]
fn an_opaque_folder_hides_only_what_lower_layers_have_wherever_the_marker_stands() {
    let lower = [folder("d"), file("d/a", "1"), folder("d/sub"), file("d/sub/b", "1")];
    let marker = file("d/.wh..wh..opq", "");
    let expected = ["d/", "d/new = 2", "d/sub/", "d/sub/new = 2"];
    let (new, below) = (file("d/new", "2"), file("d/sub/new", "2"));
    for upper in [
        [folder("d"), marker.clone(), new.clone(), below.clone()],
        [folder("d"), new.clone(), marker.clone(), below.clone()],
        [folder("d"), new, below, marker],
    ] {
        // The folder `sub` is made anew where the marker came first; it is the same tree.
        assert_eq!(tree(&[&lower, &upper]), expected);
    }
    assert_eq!(tree(&[&lower, &[file(".wh..wh..opq", ""), file("x", "2")]]), ["x = 2"]);
}

#[test]
fn a_whiteout_of_a_folder_spares_what_its_own_layer_has_in_it() {
    let lower = [folder("d"), file("d/a", "1"), folder("d/e"), file("d/e/b", "1")];
    let upper = [file("d/e/new", "2"), file(".wh.d", "")];
    assert_eq!(tree(&[&lower, &upper]), ["d/", "d/e/", "d/e/new = 2"]);
    let upper = [file(".wh.d", ""), file("d/e/new", "2")];
    assert_eq!(tree(&[&lower, &upper]), ["d/", "d/e/", "d/e/new = 2"]);
    assert_eq!(tree(&[&lower, &[folder("d"), file(".wh.d", "")]]), ["d/"]);
    assert_eq!(tree(&[&lower, &[file(".wh.d", "")]]), [""; 0]);
}

#[test]
fn a_whiteout_spares_a_name_that_its_own_layer_gave_to_a_lower_file() {
    let lower = [file("a", "1"), file("b", "1")];
    let upper = [file(".wh.b", ""), hard_link("b", "a"), file(".wh.b", ""), file(".wh.a", "")];
    assert_eq!(tree(&[&lower, &upper]), ["b = 1"]);
}

#[test]
fn markers_are_never_in_the_tree_and_those_of_aufs_mean_nothing() {
    let lower =
        [file(".wh.a", ""), file(".wh..wh..opq", ""), folder(".wh..wh.plnk"), file("b", "1")];
    let upper = [
        file(".wh..wh.aufs", "x"),
        folder(".wh..wh.orph"),
        file(".wh..wh.plnk/12.34", "x"),
        file("d/.wh..wh.other", "x"),
    ];
    assert_eq!(tree(&[&lower, &upper]), ["b = 1"]);
}

#[test]
fn a_folder_over_a_folder_takes_the_new_attributes_and_keeps_what_is_in_it() {
    let lower = [folder("d").xattr("user.old", "1"), file("d/a", "1")];
    let upper = [folder("d/").mode(0o2700).owner(1, 2).mtime(7).xattr("user.new", "2")];
    let mut made = made(&[&lower, &upper]);
    assert_eq!(made.tree(), ["d/", "d/a = 1"]);
    assert_eq!(made.facts("d"), "2700 1:2 7.0");
    assert_eq!(made.xattrs("d"), [("user.new".to_owned(), b"2".to_vec())]);
}

#[test]
fn a_folder_gives_way_to_a_file_or_a_link_and_they_to_a_folder() {
    let with_folder =
        [folder("d"), folder("d/e"), file("d/e/a", "1"), folder("other"), file("other/b", "1")];
    let (as_file, as_link) = ([file("d", "2")], [symlink("d", "other")]);
    assert_eq!(tree(&[&with_folder, &as_file]), ["d = 2", "other/", "other/b = 1"]);
    assert_eq!(tree(&[&with_folder, &as_link]), ["d -> other", "other/", "other/b = 1"]);
    let back = [folder("d"), file("d/new", "3")];
    let expected = ["d/", "d/new = 3", "other/", "other/b = 1"];
    assert_eq!(tree(&[&with_folder, &as_file, &back]), expected);
    assert_eq!(tree(&[&with_folder, &as_link, &back]), expected);
    // Through the link, when the folder itself is not said to be one.
    assert_eq!(
        tree(&[&with_folder, &as_link, &[file("d/new", "3")]]),
        ["d -> other", "other/", "other/b = 1", "other/new = 3"]
    );
}

#[test]
fn a_hard_link_is_to_what_has_the_name_then() {
    let lower = [file("a", "1")];
    let across = [hard_link("b", "./a"), hard_link("dir/c", "/b")];
    let names = ["a = 1 (a)", "b = 1 (a)", "dir/", "dir/c = 1 (a)"];
    assert_eq!(tree(&[&lower, &across]), names);
    // A new file of the first name leaves the others what they are.
    assert_eq!(
        tree(&[&lower, &across, &[file("a", "2")]]),
        ["a = 2", "b = 1 (b)", "dir/", "dir/c = 1 (b)"]
    );
    let link = [symlink("l", "a"), hard_link("m", "l")];
    assert_eq!(tree(&[&lower, &link]), ["a = 1", "l -> a (l)", "m -> a (l)"]);
    // A link entry says nothing of its file's attributes.
    let made = made(&[&[file("a", "1").mode(0o600), hard_link("b", "a").mode(0o777).owner(9, 9)]]);
    assert_eq!(made.facts("a"), "600 0:0 1234567890.0");
}

#[test]
fn links_on_the_way_are_followed_within_the_tree_and_never_out_of_it() {
    let lower = [
        folder("run"),
        symlink("var/run", "/run"),
        symlink("up", "../../../run"),
        symlink("chain", "up"),
        symlink("var/lock", "run/lock"),
    ];
    let upper = [
        file("var/run/a", "1"),
        file("up/b", "1"),
        file("chain/c", "1"),
        // Where the link leads to nothing, what it leads to is made.
        file("var/lock/d", "1"),
        hard_link("e", "var/run/a"),
    ];
    assert_eq!(
        tree(&[&lower, &upper]),
        [
            "chain -> up",
            "e = 1 (e)",
            "run/",
            "run/a = 1 (e)",
            "run/b = 1",
            "run/c = 1",
            "run/lock/",
            "run/lock/d = 1",
            "up -> ../../../run",
            "var/",
            "var/lock -> run/lock",
            "var/run -> /run",
        ]
    );
    let whiteout = [file("var/run/.wh.a", "")];
    assert!(!tree(&[&lower, &upper, &whiteout]).contains(&"run/a = 1 (e)".to_owned()));
}

#[test]
fn a_link_in_the_same_layer_is_followed_as_well() {
    let layer = [symlink("bin", "usr/bin"), file("bin/sh", "1"), folder("usr").mode(0o700)];
    assert_eq!(tree(&[&layer]), ["bin -> usr/bin", "usr/", "usr/bin/", "usr/bin/sh = 1"]);
}

#[test]
fn folders_that_no_entry_made_are_roots_and_open() {
    let mut made = made(&[&[file("/a/b/c", "1").owner(5, 5).mtime(99).mode(0o600)]]);
    assert_eq!(made.tree(), ["a/", "a/b/", "a/b/c = 1"]);
    assert_eq!(
        (made.facts("a"), made.facts("a/b")),
        ("755 0:0 99.0".into(), "755 0:0 99.0".into())
    );
    assert_eq!(made.facts("a/b/c"), "600 5:5 99.0");
}

#[test]
fn of_two_entries_of_one_name_the_later_is_there() {
    let layer = [
        file("a", "1"),
        file("./a", "2"),
        folder("b"),
        file("b", "3"),
        file("c", "4"),
        symlink("//c", "a"),
    ];
    assert_eq!(tree(&[&layer]), ["a = 2", "b = 3", "c -> a"]);
    assert_eq!(tree(&[&[], &layer]), ["a = 2", "b = 3", "c -> a"]);
}

#[test]
fn the_root_folder_has_its_own_attributes() {
    let made = made(&[
        &[folder("./").mode(0o1700).owner(3, 70_000).xattr("user.a", "b")],
        &[file("a", "")],
    ]);
    assert_eq!(made.facts(""), "1700 3:70000 1234567890.0");
    assert_eq!(made.xattrs(""), [("user.a".to_owned(), b"b".to_vec())]);
}

#[test]
fn what_changes_in_a_folder_leaves_its_time() {
    let lower = [folder("d").mtime(5), file("d/a", "1")];
    for upper in [[file("d/b", "2")], [file("d/.wh.a", "")], [file("d/.wh..wh..opq", "")]] {
        assert_eq!(made(&[&lower, &upper]).facts("d"), "755 0:0 5.0");
    }
}

#[test]
fn times_keep_their_fractions_and_go_beyond_2038() {
    let layer = [
        file("a", "").record("mtime", "4102444800.123456789"),
        file("b", "").record("mtime", "-1.5"),
        file("c", "").mtime(-3),
        file("d", "").mtime(8_589_934_592),
    ];
    let made = made(&[&layer]);
    assert_eq!(made.facts("a"), "644 0:0 4102444800.123456789");
    assert_eq!(made.facts("b"), "644 0:0 -2.500000000");
    assert_eq!(made.facts("c"), "644 0:0 -3.0");
    assert_eq!(made.facts("d"), "644 0:0 8589934592.0");
}

#[test]
fn lists_name_whom_the_whole_image_knows() {
    let text = "user::rwx,user:lisa:r--,group::r-x,group:staff:rw-,mask::rwx,other::---";
    let lower = [
        file("a", "").record("SCHILY.acl.access", text),
        folder("gone"),
        file("gone/b", "").record("SCHILY.acl.access", "user:nobody-knows:rwx"),
    ];
    let upper = [
        symlink("etc/passwd", "../usr/passwd"),
        file("usr/passwd", "lisa:x:502:1::/:\n"),
        file("etc/group", "staff:x:50:\n"),
        file(".wh.gone", ""),
    ];
    let made_image = made(&[&lower, &upper]);
    let names = posix_acl::Names {
        users: posix_acl::ids("lisa:x:502:1::/:\n"),
        groups: posix_acl::ids("staff:x:50:\n"),
    };
    let binary = posix_acl::encode(text, &names).unwrap();
    assert_eq!(made_image.xattrs("a"), [(posix_acl::ACCESS.to_owned(), binary.clone())]);
    // The binary form, as umoci and Docker have it, is the same.
    let other = made(&[&[file("a", "").xattr(posix_acl::ACCESS, &binary)]]);
    assert_eq!(made_image.xattrs("a"), other.xattrs("a"));
}

#[test]
fn a_list_that_is_the_mode_is_the_mode() {
    let made =
        made(&[&[file("a", "").mode(0o4644).record("SCHILY.acl.access", "u::rw-,g::r-x,o::---")]]);
    assert_eq!((made.facts("a"), made.xattrs("a")), ("4650 0:0 1234567890.0".into(), vec![]));
}

#[test]
fn attributes_keep_every_byte_and_those_of_other_systems_are_left_behind() {
    let capability = [1, 0, 0, 2, 0, 0x20, b'\n', b'=', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let made = made(&[&[file("a", "")
        .xattr("security.capability", capability)
        .xattr("user.with=equals", "")
        .xattr("trusted.t", b"\xff")
        .xattr("com.apple.quarantine", "0081")
        .record("LIBARCHIVE.xattr.user.b%2525", "AQI")
        .record("LIBARCHIVE.xattr.trusted.t", "AAAA")]]);
    let expected =
        [("security.capability", &capability[..]), ("trusted.t", b"\xff"), ("user.b%25", &[1, 2])];
    let mut found = made.xattrs("a");
    // pax cannot say a name with `=`: it ends there.
    assert_eq!(found.pop(), Some(("user.with".to_owned(), b"equals=".to_vec())));
    let expected: Vec<_> = expected.map(|(name, value)| (name.to_owned(), value.to_vec())).into();
    assert_eq!(found, expected);
}

#[test]
fn devices_fifos_and_names_of_any_byte_are_kept() {
    let long = "n".repeat(255);
    let deep = "d/".repeat(1000) + "end";
    let layer = [
        device("null", b'3', 1, 3),
        device("big", b'4', 4095, 1_048_575),
        item("pipe", b'6'),
        file(b"caf\xe9 \n\x7f", "1"),
        file(&long, "2"),
        file(&deep, "3"),
        item("contiguous", b'7'),
        item("old", 0),
        item("old-folder/", 0),
    ];
    let found = tree(&[&layer]);
    for line in [
        "null c 1:3",
        "big b 4095:1048575",
        "pipe p",
        "caf\u{fffd} \n\x7f = 1",
        &format!("{long} = 2"),
        &format!("{deep} = 3"),
        "contiguous = ",
        "old = ",
        "old-folder/",
    ] {
        assert!(found.iter().any(|found| found == line), "{line} in {found:?}");
    }
}
