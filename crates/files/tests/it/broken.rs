//! Copies that break and go on.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use banger_api::exec::Word;
use banger_api::files::Look;
use banger_files::{Pack, Unpack};

use crate::{opened, packed, unpacked};

/// More than the least that is worth going on with.
const SIZE: usize = 20 << 20;

#[test]
fn a_big_file_whose_copy_broke_goes_on_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source");
    let bytes: Vec<u8> = (0..SIZE).map(|at| (at % 251) as u8).collect();
    fs::write(&source, &bytes).unwrap();
    let target = folder.path().join("target");
    fs::create_dir(&target).unwrap();
    let tar = packed(&source, Some("f"));
    let cut = unpacked(&tar[..17 << 20], &target, &Unpack::default());
    assert!(cut.is_err());
    assert!(!target.join("f").exists());

    let path = Word::new(target.join("f").into_os_string().into_encoded_bytes()).unwrap();
    let looked = banger_files::look(&Look { path, prefix: None, part: true }).unwrap();
    let part = looked.part.expect("it is left");
    assert_eq!(looked.found, None);
    let file = File::open(&source).unwrap();
    assert_eq!(part.sha256, banger_files::prefix_sha256(&file, part.length).unwrap());

    let how = Pack { top: Some(b"f".to_vec()), from: part.length };
    let mut rest = Vec::new();
    banger_files::pack(opened(&source), &how, &mut rest, &mut |_| ()).unwrap();
    assert!(rest.len() < SIZE / 2, "all of it was sent again");
    // The other side is believed nothing: what is there is looked at again.
    let wrong = Unpack { resume: part.length - 1, ..Unpack::default() };
    assert!(unpacked(&rest, &target, &wrong).is_err());
    let how = Unpack { resume: part.length, ..Unpack::default() };
    unpacked(&rest, &target, &how).unwrap();
    assert_eq!(fs::read(target.join("f")).unwrap(), bytes);
    assert_eq!(fs::read_dir(&target).unwrap().count(), 1);
}

#[test]
fn two_copies_to_one_place_are_not_mixed() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("source"), b"new").unwrap();
    let tar = packed(&folder.path().join("source"), Some("f"));
    let part = File::create(folder.path().join(".f.banger-part")).unwrap();
    part.write_all_at(b"half", 0).unwrap();
    rustix::fs::flock(&part, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let error = unpacked(&tar, folder.path(), &Unpack::default()).unwrap_err();
    assert!(crate::text(&error).contains("another copy"), "{error}");
    drop(part);
    unpacked(&tar, folder.path(), &Unpack::default()).unwrap();
}
