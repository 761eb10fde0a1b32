//! Images out and in again. The oracles: umoci, which unpacks what we export; the kernel, which mounts what we read without
//! mounting, and whose overlayfs shows what a VM with changes sees; mke2fs, whose file systems are of other forms than ours.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::assemble::{LayerSource, assemble};
use crate::export::{Description, ExportError, Exported, export_image};
use crate::filesystem::FileSystem;
use crate::layers::Limits;
use crate::oracle::{self, Facts, For, listing, run};
use crate::promote::{PromoteError, Root, promote};
use crate::register::{RegisterError, register_rootfs};
use crate::samples::{Item, device, file, folder, hard_link, item, reasons, symlink as link, tar};
use crate::tar_writer;
use crate::union::Union;

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn described() -> Description {
    Description {
        name: "odd".to_owned(),
        created: "2026-01-02T03:04:05Z".to_owned(),
        config: json!({ "Entrypoint": ["/bin/sh"], "Env": ["A=b"] }),
    }
}

fn export(image: &Path, out: &Path, compress: bool) -> Result<Exported, ExportError> {
    export_image(image, out, &described(), compress, false, &|_| {})
}

/// An image of one layer.
fn image_of(items: &[Item], out: &Path) {
    let layer = out.with_extension("tar");
    fs::write(&layer, tar(items)).unwrap();
    let layer = LayerSource { path: layer, diff_id: None };
    assemble(&[layer], out, Limits::default(), &|_| {}).unwrap();
}

/// A mount that ends with its use.
fn mounted<T>(what: &Path, at: &Path, options: &str, look: impl FnOnce(&Path) -> T) -> T {
    fs::create_dir_all(at).unwrap();
    run("mount", &["-o".as_ref(), options.as_ref(), what.as_os_str(), at.as_os_str()]);
    let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| look(at)));
    run("umount", &[at.as_os_str()]);
    found.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn assert_same(expected: &BTreeMap<Vec<u8>, Facts>, found: &BTreeMap<Vec<u8>, Facts>) {
    let mut differing = Vec::new();
    let mut paths: Vec<_> = expected.keys().chain(found.keys()).collect();
    paths.sort();
    paths.dedup();
    for path in paths {
        let (wanted, got) = (expected.get(path), found.get(path));
        if wanted != got {
            differing.push(format!("{}:\n  {wanted:?}\n  {got:?}", path.escape_ascii()));
        }
    }
    assert!(differing.is_empty(), "{} differ:\n{}", differing.len(), differing.join("\n"));
}

/// The blob of the archive's only layer, in a file.
fn layer_of(archive: &Path, folder: &Path) -> PathBuf {
    let to = folder.join("layout");
    fs::create_dir(&to).unwrap();
    run("tar", &["-xf".as_ref(), archive.as_os_str(), "-C".as_ref(), to.as_os_str()]);
    let blobs = fs::read_dir(to.join("blobs/sha256")).unwrap();
    let layer =
        blobs.map(|blob| blob.unwrap().path()).max_by_key(|p| fs::metadata(p).unwrap().len());
    layer.unwrap()
}

fn import(archive: &Path, folder: &Path, out: &Path, diff_id: &str) -> crate::ImportedRootfs {
    let layer = LayerSource { path: layer_of(archive, folder), diff_id: Some(diff_id.to_owned()) };
    assemble(&[layer], out, Limits::default(), &|_| {}).unwrap()
}

#[test]
fn what_umoci_unpacks_of_an_export_is_what_the_kernel_mounts_of_the_image() {
    if !is_root() {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name);
    let sources = oracle::write_layout(&path("layout"), &oracle::layers(&For::Us));
    assemble(&sources, &path("image"), Limits::default(), &|_| {}).unwrap();
    let expected = mounted(&path("image"), &path("mounted"), "ro,loop,noload", listing);
    let exported = export(&path("image"), &path("archive"), true).unwrap();
    assert_eq!(exported.entries, expected.len() as u64);
    fs::create_dir(path("unpacked")).unwrap();
    let to = path("unpacked");
    run("tar", &["-xf".as_ref(), path("archive").as_os_str(), "-C".as_ref(), to.as_os_str()]);
    let mut name = to.into_os_string();
    name.push(":odd");
    run("umoci", &["unpack".as_ref(), "--image".as_ref(), &name, path("bundle").as_os_str()]);
    assert_same(&expected, &listing(&path("bundle/rootfs")));
    assert!(expected.len() > 1500);
}

#[test]
fn an_export_that_is_imported_and_exported_again_has_the_same_layer() {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name);
    let sources = oracle::write_layout(&path("first"), &oracle::layers(&For::Us));
    assemble(&sources, &path("image"), Limits::default(), &|_| {}).unwrap();
    let first = export(&path("image"), &path("archive"), false).unwrap();
    let imported = import(&path("archive"), scratch.path(), &path("again"), &first.diff_id);
    assert_eq!(imported.entries, first.entries);
    let second = export(&path("again"), &path("second"), true).unwrap();
    assert_eq!(second.diff_id, first.diff_id);
    // Holes stay holes on the way, and packed is smaller.
    assert!(second.size_bytes < first.size_bytes);
    assert!(imported.size_bytes < 20 << 20, "{}", imported.size_bytes);
    fs::remove_dir_all(path("layout")).unwrap();
    let third = import(&path("second"), scratch.path(), &path("third"), &first.diff_id);
    assert_eq!(third.digest, imported.digest);
}

#[test]
fn an_archive_says_what_the_image_says_and_skopeo_takes_it() {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name);
    image_of(&[folder("etc"), file("etc/a", "a")], &path("image"));
    let exported = export(&path("image"), &path("archive"), true).unwrap();
    let mut name = std::ffi::OsString::from("oci-archive:");
    name.push(path("archive"));
    let config = run("skopeo", &["inspect".as_ref(), "--config".as_ref(), "--raw".as_ref(), &name]);
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    assert_eq!(config["config"]["Entrypoint"], json!(["/bin/sh"]));
    assert_eq!(config["rootfs"]["diff_ids"], json!([exported.diff_id]));
    let mut copy = std::ffi::OsString::from("docker-archive:");
    copy.push(path("copied"));
    copy.push(":a:1");
    // It verifies every digest on its way.
    run("skopeo", &["--insecure-policy".as_ref(), "copy".as_ref(), &name, &copy]);
}

#[test]
fn a_file_that_is_there_is_replaced_on_demand_only_and_a_failure_leaves_it() {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name);
    image_of(&[file("a", "a")], &path("image"));
    fs::write(path("out"), "precious").unwrap();
    let refused = export(&path("image"), &path("out"), true).unwrap_err();
    assert!(matches!(refused, ExportError::Exists(_)), "{refused}");
    fs::write(path("no image"), vec![0; 8192]).unwrap();
    let broken = export_image(&path("no image"), &path("out"), &described(), true, true, &|_| {});
    assert!(reasons(&broken.unwrap_err()).ends_with("it is not an ext4 file system"));
    assert_eq!(fs::read(path("out")).unwrap(), b"precious");
    export_image(&path("image"), &path("out"), &described(), true, true, &|_| {}).unwrap();
    assert!(fs::metadata(path("out")).unwrap().len() > 1024);
    let into = export_image(&path("image"), scratch.path(), &described(), true, true, &|_| {});
    assert!(matches!(into, Err(ExportError::NotAFile(_))));
}

#[test]
fn what_a_layer_cannot_have_is_refused_or_counted() {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name);
    // No layer makes such files, but a guest does.
    fs::create_dir(path("marks")).unwrap();
    fs::write(path("marks/.wh.x"), "").unwrap();
    make(&path("marks"), &path("marked.ext4"), &["-t", "ext4"]);
    let refused = export(&path("marked.ext4"), &path("out"), true).unwrap_err();
    assert!(reasons(&refused).contains(".wh.x would remove another file"), "{}", reasons(&refused));
    assert!(!path("out").exists());
    fs::create_dir(path("sockets")).unwrap();
    let socket = std::os::unix::net::UnixListener::bind(path("sockets/s")).unwrap();
    make(&path("sockets"), &path("sockets.ext4"), &["-t", "ext4"]);
    drop(socket);
    assert_eq!(export(&path("sockets.ext4"), &path("out"), true).unwrap().sockets, 1);
}

/// A file system of that form, with what is in `root`.
fn make(root: &Path, out: &Path, options: &[&str]) {
    let file = File::create(out).unwrap();
    file.set_len(96 << 20).unwrap();
    let options = options.iter().map(|option| option.as_ref());
    let rest = ["-q".as_ref(), "-F".as_ref(), "-d".as_ref(), root.as_os_str(), out.as_os_str()];
    run("mke2fs", &options.chain(rest).collect::<Vec<_>>());
}

#[test]
fn file_systems_of_every_form_that_mke2fs_makes_are_read() {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name);
    let root = path("root");
    fs::create_dir_all(root.join("many")).unwrap();
    for number in 0..700 {
        fs::write(root.join(format!("many/{number:0>60}")), number.to_string()).unwrap();
    }
    // Over all steps of a block map with small blocks, and with holes.
    let large = File::create(root.join("large")).unwrap();
    for megabyte in [0, 1, 30, 66, 67, 69] {
        large.write_all_at(&[7; 3000], megabyte << 20).unwrap();
    }
    large.set_len(70 << 20).unwrap();
    symlink("t".repeat(200), root.join("long")).unwrap();
    symlink("short", root.join("link")).unwrap();
    let mut fragmented = File::create(root.join("plain")).unwrap();
    fragmented.write_all(&vec![1; 3 << 20]).unwrap();
    let forms: [&[&str]; 7] = [
        &["-t", "ext4"],
        &["-t", "ext4", "-b", "1024"],
        &["-t", "ext4", "-O", "^64bit,^metadata_csum", "-I", "128"],
        &["-t", "ext4", "-O", "meta_bg,^resize_inode"],
        &["-t", "ext3", "-b", "2048"],
        &["-t", "ext2", "-b", "1024"],
        &["-t", "ext2", "-b", "4096", "-g", "2048", "-O", "^sparse_super,^resize_inode"],
    ];
    for form in forms {
        let (image, archive) = (path("image"), path("archive"));
        make(&root, &image, form);
        let made = register_rootfs(&image, &path("registered"), &|_| {}).unwrap();
        assert!(made.file_system_bytes <= 96 << 20 && made.init.is_none());
        export(&path("registered"), &archive, false).unwrap();
        let layer = layer_of(&archive, scratch.path());
        fs::create_dir(path("out")).unwrap();
        run("tar", &["-xf".as_ref(), layer.as_os_str(), "-C".as_ref(), path("out").as_os_str()]);
        // The exact times of folders that mke2fs made, and of inodes without room for nanoseconds, are not the point.
        run(
            "diff",
            &[
                "-r".as_ref(),
                "--no-dereference".as_ref(),
                root.as_os_str(),
                path("out").as_os_str(),
            ],
        );
        let blocks =
            std::os::unix::fs::MetadataExt::blocks(&fs::metadata(path("out/large")).unwrap());
        assert!(blocks * 512 < 1 << 20, "{form:?}: holes stay holes: {blocks}");
        for gone in ["out", "layout"] {
            fs::remove_dir_all(path(gone)).unwrap();
        }
        fs::remove_file(&archive).unwrap();
    }
}

#[test]
fn an_own_file_system_is_registered_if_it_is_sound_and_its_init_is_found_over_links() {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name);
    let root = path("root");
    fs::create_dir_all(root.join("usr/lib/systemd")).unwrap();
    fs::create_dir_all(root.join("usr/sbin")).unwrap();
    fs::write(root.join("usr/lib/systemd/systemd"), "#!").unwrap();
    fs::set_permissions(root.join("usr/lib/systemd/systemd"), fs::Permissions::from_mode(0o755))
        .unwrap();
    symlink("../lib/systemd/systemd", root.join("usr/sbin/init")).unwrap();
    symlink("usr/sbin", root.join("sbin")).unwrap();
    symlink("loop", root.join("loop")).unwrap();
    make(&root, &path("image"), &["-t", "ext4"]);
    let made = register_rootfs(&path("image"), &path("out"), &|_| {}).unwrap();
    assert_eq!(made.init.as_deref(), Some("/sbin/init"));
    assert!(made.size_bytes < 16 << 20, "holes stay holes: {}", made.size_bytes);
    assert_eq!(fs::read(path("image")).unwrap(), fs::read(path("out")).unwrap());
    let opened = FileSystem::open(Box::new(File::open(path("out")).unwrap())).unwrap();
    assert!(opened.resolve(b"/loop").unwrap().is_none());
    assert!(opened.resolve(b"/usr/lib/systemd/systemd/x").unwrap().is_none());

    // Damaged where only a check sees it; not unmounted; cut off; something else.
    let image = fs::OpenOptions::new().read(true).write(true).open(path("image")).unwrap();
    let mut free = [0; 4];
    image.read_exact_at(&mut free, 1024 + 0x10).unwrap();
    image.write_all_at(&[9], 1024 + 0x10).unwrap();
    let refused = |what: &str| {
        let error = register_rootfs(&path("image"), &path("refused"), &|_| {}).unwrap_err();
        assert!(!path("refused").exists());
        assert!(reasons(&error).contains(what), "{}", reasons(&error));
        error
    };
    assert!(refused("damaged").remedy().unwrap().contains("e2fsck"));
    image.write_all_at(&free, 1024 + 0x10).unwrap();
    let mut features = [0; 4];
    image.read_exact_at(&mut features, 1024 + 0x60).unwrap();
    image.write_all_at(&[features[0] | 4], 1024 + 0x60).unwrap();
    refused("journal");
    image.write_all_at(&features, 1024 + 0x60).unwrap();
    image.set_len(50 << 20).unwrap();
    assert!(matches!(refused("shorter"), RegisterError::Short { .. }));
    fs::write(path("image"), "no").unwrap();
    assert!(refused("not an ext4").remedy().unwrap().contains("image import"));
    let folder = register_rootfs(scratch.path(), &path("refused"), &|_| {}).unwrap_err();
    assert!(matches!(folder, RegisterError::NotAFile(_)));
}

/// What a guest's commands do, under the options that the agent mounts with.
const CHANGES: &str = r#"set -e
cd "$1"
echo new > new; mkdir -p fresh/deep; echo x > fresh/deep/x
rm gone; rm -r gone-folder
rm -r emptied; mkdir emptied; echo 2 > emptied/two
chmod 600 attributes-only; chown 7:8 owned-only; touch -d @5 owned-only
mv folder renamed; echo in > renamed/new; rm renamed/b
mv deep/inner moved-up; mv renamed deep/renamed-twice
mv metafile fresh/; chmod 640 fresh/metafile
chmod 604 second-name
echo changed >> linked-a
rm linked-d; mv linked-c renamed-link
ln plain plain-link; ln new new-link
setfattr -n user.note -v hello plain 2>/dev/null || true
rm -r kind; echo now-a-file > kind
ln -s nowhere link; mknod null c 1 3; mkfifo pipe
mv lower-link-name/a lower-link-name/z
"#;

#[test]
fn a_vms_changes_over_its_image_are_what_overlayfs_shows() {
    if !is_root() {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name);
    image_of(
        &[
            folder("./").mode(0o751),
            file("gone", "1"),
            folder("gone-folder"),
            file("gone-folder/a", "1"),
            folder("emptied"),
            file("emptied/one", "1"),
            file("attributes-only", vec![1; 100_000]),
            file("owned-only", "1").xattr("user.kept", "yes"),
            folder("folder").mode(0o700),
            file("folder/a", "1"),
            file("folder/b", "1"),
            folder("folder/sub"),
            file("folder/sub/c", "1"),
            folder("deep"),
            folder("deep/inner"),
            file("deep/inner/x", "1"),
            file("metafile", "data of the image"),
            file("first-name", "one file"),
            hard_link("second-name", "first-name"),
            file("linked-a", "a"),
            hard_link("linked-b", "linked-a"),
            file("linked-c", "c"),
            hard_link("linked-d", "linked-c"),
            file("plain", "plain").xattr(
                "security.capability",
                [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            ),
            folder("kind"),
            folder("lower-link-name"),
            file("lower-link-name/a", "1"),
            hard_link("lower-link-name/b", "lower-link-name/a"),
            link("untouched", "plain"),
            device("tty", b'3', 5, 0),
            item("fifo", b'6'),
        ],
        &path("image"),
    );
    let disk = File::create(path("disk")).unwrap();
    disk.set_len(64 << 20).unwrap();
    run(
        "mke2fs",
        &["-q".as_ref(), "-F".as_ref(), "-t".as_ref(), "ext4".as_ref(), path("disk").as_os_str()],
    );
    // Nothing is changed yet, and no folder is there.
    let root = Root::Overlay { image: path("image"), disk: path("disk") };
    promote(&root, &path("unchanged"), Limits::default(), &|_| {}).unwrap();
    let expected = mounted(&path("image"), &path("lower"), "ro,loop,noload", |lower| {
        let unchanged = mounted(&path("unchanged"), &path("same"), "ro,loop,noload", listing);
        assert_same(&listing(lower), &unchanged);
        mounted(&path("disk"), &path("writable"), "loop", |writable| {
            for name in ["upper", "work"] {
                fs::create_dir(writable.join(name)).unwrap();
            }
            fs::set_permissions(writable.join("upper"), fs::Permissions::from_mode(0o751)).unwrap();
            let options = format!(
                "lowerdir={},upperdir={w}/upper,workdir={w}/work,redirect_dir=on,index=on,xino=on,metacopy=on",
                lower.display(),
                w = writable.display()
            );
            fs::create_dir(path("merged")).unwrap();
            let merged = path("merged");
            run(
                "mount",
                &[
                    "-t".as_ref(),
                    "overlay".as_ref(),
                    "-o".as_ref(),
                    options.as_ref(),
                    "overlay".as_ref(),
                    merged.as_os_str(),
                ],
            );
            let found = std::panic::catch_unwind(|| {
                run("sh", &["-c".as_ref(), CHANGES.as_ref(), "sh".as_ref(), merged.as_os_str()]);
                listing(&merged)
            });
            run("umount", &[merged.as_os_str()]);
            // All that overlayfs may note is in it: else it shows nothing of how that is read.
            let notes = format!("{:?}", listing(&writable.join("upper")));
            for note in ["redirect", "metacopy", "opaque", "origin"] {
                assert!(notes.contains(&format!("trusted.overlay.{note}")), "no {note}");
            }
            assert!(fs::read_dir(writable.join("work/index")).unwrap().count() > 1);
            found.unwrap()
        })
    });
    let made = promote(&root, &path("promoted"), Limits::default(), &|_| {}).unwrap();
    run("e2fsck", &["-f".as_ref(), "-n".as_ref(), path("promoted").as_os_str()]);
    let found = mounted(&path("promoted"), &path("result"), "ro,loop,noload", listing);
    assert_same(&expected, &found);
    assert_eq!(made.entries, found.len() as u64);
}

#[test]
fn a_disk_that_a_guest_did_not_unmount_is_refused_with_the_remedy() {
    let scratch = tempfile::tempdir().unwrap();
    let disk = scratch.path().join("disk");
    image_of(&[file("a", "a")], &disk);
    let file = fs::OpenOptions::new().read(true).write(true).open(&disk).unwrap();
    let mut features = [0];
    file.read_exact_at(&mut features, 1024 + 0x60).unwrap();
    file.write_all_at(&[features[0] | 4], 1024 + 0x60).unwrap();
    let out = scratch.path().join("out");
    let refused = promote(&Root::Whole { disk }, &out, Limits::default(), &|_| {}).unwrap_err();
    assert!(matches!(refused, PromoteError::Disk { .. }));
    assert!(refused.remedy().unwrap().contains("start the VM"));
    assert!(!out.exists());
}

/// A store of device-mapper's snapshot target: every chunk of `changed` that differs from `base`.
fn store(base: &[u8], changed: &[u8], chunk: usize) -> Vec<u8> {
    let mut header = vec![0; chunk];
    for (at, word) in [0x7041_6e53, 1, 1, u32::try_from(chunk / 512).unwrap()].iter().enumerate() {
        header[at * 4..at * 4 + 4].copy_from_slice(&u32::to_le_bytes(*word));
    }
    let in_area = chunk / 16;
    let differing: Vec<_> = (0..changed.len() / chunk)
        .filter(|at| {
            base.get(at * chunk..(at + 1) * chunk) != Some(&changed[at * chunk..(at + 1) * chunk])
        })
        .collect();
    let mut bytes = header;
    for group in differing.chunks(in_area) {
        let mut area = vec![0; chunk];
        let first = bytes.len() / chunk + 1;
        for (index, old) in group.iter().enumerate() {
            let numbers = [*old as u64, (first + index) as u64];
            for (word, number) in numbers.iter().enumerate() {
                let at = index * 16 + word * 8;
                area[at..at + 8].copy_from_slice(&number.to_le_bytes());
            }
        }
        bytes.extend(area);
        group.iter().for_each(|old| bytes.extend(&changed[old * chunk..(old + 1) * chunk]));
    }
    // Made larger than it ever becomes, and what is free is zeros.
    bytes.resize(bytes.len() + 4 * chunk, 0);
    bytes
}

#[test]
fn a_snapshots_changes_are_read_over_its_image() {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name);
    image_of(&[folder("etc"), file("etc/a", "before")], &path("image"));
    let noise: Vec<u8> = (0..2_000_000_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24).to_le_bytes()[0])
        .collect();
    image_of(&[folder("etc"), file("etc/a", "after"), file("b", &noise)], &path("changed"));
    let (base, changed) = (fs::read(path("image")).unwrap(), fs::read(path("changed")).unwrap());
    for chunk in [4096, 512] {
        fs::write(path("disk"), store(&base, &changed, chunk)).unwrap();
        let root = Root::Snapshot { image: path("image"), disk: path("disk") };
        promote(&root, &path("promoted"), Limits::default(), &|_| {}).unwrap();
        let layer = |image: &str| {
            drop(fs::remove_file(path("archive")));
            export(&path(image), &path("archive"), false).unwrap().diff_id
        };
        assert_eq!(layer("promoted"), layer("changed"), "chunks of {chunk}");
    }
    // Never started; given up by the kernel.
    fs::write(path("disk"), vec![0; 8192]).unwrap();
    let root = Root::Snapshot { image: path("image"), disk: path("disk") };
    promote(&root, &path("promoted"), Limits::default(), &|_| {}).unwrap();
    let mut spoiled = store(&base, &changed, 4096);
    spoiled[4] = 0;
    fs::write(path("disk"), spoiled).unwrap();
    let refused = promote(&root, &path("promoted"), Limits::default(), &|_| {}).unwrap_err();
    assert!(reasons(&refused).contains("gave it up"), "{}", reasons(&refused));
}

#[test]
fn a_folder_that_is_in_itself_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name);
    image_of(&[folder("a"), folder("a/b")], &path("image"));
    let link = ["-w".as_ref(), "-R".as_ref(), "ln a a/b/again".as_ref()];
    run("debugfs", &[&link[..], &[path("image").as_os_str()]].concat());
    let refused = export(&path("image"), &path("out"), true).unwrap_err();
    assert!(
        reasons(&refused).ends_with("the folder a/b/again has two names"),
        "{}",
        reasons(&refused)
    );
    assert!(!path("out").exists());
}

#[test]
fn damaged_file_systems_end_in_errors_and_in_bounded_work() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("image");
    image_of(
        &[
            folder("a"),
            file("a/b", vec![3; 9000]).xattr("user.x", vec![b'v'; 500]),
            hard_link("a/c", "a/b"),
            link("l", "t".repeat(100)),
            file("many", "").xattr("user.y", "z"),
        ],
        &path,
    );
    let whole = fs::read(&path).unwrap();
    // Blocks that are not zeros: all of its structure is in them.
    let blocks: Vec<_> = (0..whole.len() / 4096)
        .filter(|at| whole[at * 4096..][..4096].iter().any(|&b| b != 0))
        .collect();
    let file = fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let mut state = 1_u64;
    let mut random = |below: usize| {
        // Knuth's MMIX generator.
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % below
    };
    let (mut refused, mut read) = (0, 0);
    for _ in 0..1000 {
        let mut spoiled = Vec::new();
        for _ in 0..=random(3) {
            let used: Vec<_> = {
                let block = blocks[random(blocks.len())];
                let bytes = &whole[block * 4096..][..4096];
                (0..4096).filter(|&at| bytes[at] != 0).map(|at| block * 4096 + at).collect()
            };
            let at = used[random(used.len())];
            file.write_all_at(&[u8::try_from(random(256)).unwrap()], at as u64).unwrap();
            spoiled.push(at);
        }
        struct Bounded(u64);
        impl std::io::Write for Bounded {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.0 += bytes.len() as u64;
                assert!(self.0 < 2 << 30);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let opened = FileSystem::open(Box::new(file.try_clone().unwrap()));
        match opened.map(|fs| tar_writer::write(&Union::of_one(fs), &mut Bounded(0), &mut |_| {})) {
            Ok(Ok(_)) => read += 1,
            _ => refused += 1,
        }
        for at in spoiled {
            file.write_all_at(&whole[at..=at], at as u64).unwrap();
        }
    }
    assert!(refused > 100 && read > 100, "{refused} refused, {read} read");
}
