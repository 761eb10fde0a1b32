//! The oracle: an image of several layers with every oddity, unpacked by umoci as root into a folder, and by us into an
//! ext4 image that the kernel mounts. Every entry is the same: type, mode, owner, size, time, device, target, names of one
//! file, extended attributes, content. Takes root, umoci and a loop device.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::assemble::{LayerSource, assemble};
use crate::kernel::hex;
use crate::layers::Limits;
use crate::posix_acl;
use crate::programs::tests::command;
use crate::samples::{Item, device, file, folder, gzip, hard_link, item, symlink, tar};

pub(crate) fn run(program: &str, arguments: &[&OsStr]) -> String {
    let output = command(program).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn digest(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// An OCI layout of one image, in `folder`; what each layer's blob is, and its diff_id.
pub(crate) fn write_layout(folder: &Path, layers: &[Vec<u8>]) -> Vec<LayerSource> {
    let blobs = folder.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8]| {
        let digest = digest(bytes);
        fs::write(blobs.join(&digest), bytes).unwrap();
        (format!("sha256:{digest}"), bytes.len())
    };
    let (mut sources, mut descriptors) = (Vec::new(), Vec::new());
    for layer in layers {
        let (blob, length) = put(&gzip(layer));
        descriptors.push(format!(
            r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"{blob}","size":{length}}}"#
        ));
        let path = blobs.join(blob.strip_prefix("sha256:").unwrap());
        sources.push(LayerSource { path, diff_id: Some(format!("sha256:{}", digest(layer))) });
    }
    let diff_ids: Vec<_> =
        sources.iter().map(|source| format!("{:?}", source.diff_id.as_ref().unwrap())).collect();
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{}},"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
        diff_ids.join(",")
    );
    let (config, length) = put(config.as_bytes());
    let manifest = format!(
        r#"{{"schemaVersion":2,"config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{config}","size":{length}}},"layers":[{}]}}"#,
        descriptors.join(",")
    );
    let (manifest, length) = put(manifest.as_bytes());
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{manifest}","size":{length},"annotations":{{"org.opencontainers.image.ref.name":"odd"}}}}]}}"#
    );
    fs::write(folder.join("index.json"), index).unwrap();
    fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    sources
}

/// Folders of which umoci keeps the time of its own work: one that an opaque marker emptied, and two that it made since no
/// entry of that layer did. We keep the time that an entry said, or give that of the entry that needed the folder.
const UNTOLD_TIMES: [&str; 3] = ["opaque", "opaque/sub", "whiteout/folder"];

/// What is known of an entry; a line for each fact, so that a difference is seen.
pub(crate) type Facts = BTreeMap<&'static str, String>;

fn xattrs(path: &Path) -> String {
    let mut list = vec![0_u8; 64 << 10];
    let length = rustix::fs::llistxattr(path, &mut list).unwrap();
    let mut names: Vec<_> =
        list[..length].split(|&byte| byte == 0).filter(|name| !name.is_empty()).collect();
    names.sort_unstable();
    let value = |name: &&[u8]| {
        let mut value = vec![0_u8; 64 << 10];
        let length = rustix::fs::lgetxattr(path, *name, &mut value).unwrap();
        format!("{}={}", name.escape_ascii(), value[..length].escape_ascii())
    };
    names.iter().map(value).collect::<Vec<_>>().join(" ")
}

/// All that is below `root`, by path; with the root itself.
pub(crate) fn listing(root: &Path) -> BTreeMap<Vec<u8>, Facts> {
    let mut found = BTreeMap::new();
    let mut first_names = BTreeMap::new();
    let mut paths = vec![PathBuf::new()];
    let mut walked = Vec::new();
    while let Some(path) = paths.pop() {
        let full = root.join(&path);
        if fs::symlink_metadata(&full).unwrap().is_dir() {
            for entry in fs::read_dir(&full).unwrap() {
                paths.push(path.join(entry.unwrap().file_name()));
            }
        }
        walked.push(path);
    }
    walked.sort();
    for path in walked {
        // A name of the file system's own.
        if path == Path::new("lost+found") {
            continue;
        }
        let full = root.join(&path);
        let metadata = fs::symlink_metadata(&full).unwrap();
        let kind = metadata.file_type();
        let mut facts = Facts::new();
        facts.insert("mode", format!("{:o}", metadata.mode()));
        facts.insert("owner", format!("{}:{}", metadata.uid(), metadata.gid()));
        if !UNTOLD_TIMES.iter().any(|untold| path == Path::new(untold)) {
            facts.insert("time", format!("{}.{:09}", metadata.mtime(), metadata.mtime_nsec()));
        }
        facts.insert("xattrs", xattrs(&full));
        if kind.is_char_device() || kind.is_block_device() {
            facts.insert("device", format!("{:#x}", metadata.rdev()));
        }
        if kind.is_symlink() {
            let target = fs::read_link(&full).unwrap().into_os_string().into_vec();
            facts.insert("target", target.escape_ascii().to_string());
        }
        if kind.is_file() {
            facts.insert("size", metadata.len().to_string());
            facts.insert("content", digest(&fs::read(&full).unwrap()));
        }
        if !kind.is_dir() {
            facts.insert("links", metadata.nlink().to_string());
            let first = first_names.entry(metadata.ino()).or_insert_with(|| path.clone());
            facts.insert("same file as", first.display().to_string());
        }
        found.insert(path.into_os_string().into_vec(), facts);
    }
    found
}

fn long(letter: &str) -> String {
    letter.repeat(200) + "/" + &letter.repeat(255)
}

/// For whom the layers are made.
#[derive(PartialEq)]
pub(crate) enum For {
    Us,
    /// umoci 0.4.7 knows no entries of type `S`: it gets that file with its holes filled.
    Umoci,
}

/// A file in the four sparse forms, with the same content each.
fn sparse_files(whom: &For) -> Vec<u8> {
    let content = [b"begin".repeat(200), b"end".repeat(100)].concat();
    let (first, second) = (1000, 300);
    let (offset, size) = (1_000_000, 2_000_000);
    let map = format!("0,{first},{offset},{second}");
    let mut one = format!("2\n0\n{first}\n{offset}\n{second}\n").into_bytes();
    one.resize(512, 0);
    one.extend(&content);
    let old = if *whom == For::Umoci {
        let mut filled = content[..1000].to_vec();
        filled.resize(1_000_000, 0);
        filled.extend(&content[1000..]);
        filled.resize(2_000_000, 0);
        file("sparse/old", filled).mode(0o640).bytes()
    } else {
        let mut header = item("sparse/old", b'S').mode(0o640).size(content.len() as u64).header();
        header[257..265].copy_from_slice(b"ustar  \0");
        for (at, number) in [(386, 0), (398, first), (410, offset), (422, second), (483, size)] {
            header[at..at + 11].copy_from_slice(format!("{number:011o}").as_bytes());
        }
        let mut bytes = crate::samples::sealed(header).to_vec();
        bytes.extend(&content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    };
    let zero = file("sparse/GNUSparseFile.1/0.0", &content)
        .record("GNU.sparse.size", size.to_string())
        .record("GNU.sparse.numblocks", "2")
        .record("GNU.sparse.offset", "0")
        .record("GNU.sparse.numbytes", first.to_string())
        .record("GNU.sparse.offset", offset.to_string())
        .record("GNU.sparse.numbytes", second.to_string());
    let zero_one = file("sparse/GNUSparseFile.2/x", &content)
        .record("GNU.sparse.name", "sparse/0.1")
        .record("GNU.sparse.size", size.to_string())
        .record("GNU.sparse.numblocks", "2")
        .record("GNU.sparse.map", map);
    let one = file("sparse/GNUSparseFile.3/x", one)
        .record("GNU.sparse.major", "1")
        .record("GNU.sparse.minor", "0")
        .record("GNU.sparse.name", "sparse/1.0")
        .record("GNU.sparse.realsize", size.to_string());
    let folders = [folder("sparse"), folder("sparse/GNUSparseFile.1")];
    let items = folders.iter().chain([&zero, &zero_one, &one]).flat_map(Item::bytes);
    items.chain(old).collect()
}

pub(crate) fn layers(whom: &For) -> Vec<Vec<u8>> {
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let names = posix_acl::Names::default();
    let list = posix_acl::encode("u::rwx,u:1000:r-x,g::r-x,g:50:rw-,m::rwx,o::---", &names);
    let default = posix_acl::encode("u::rwx,u:7:rwx,g::r-x,m::rwx,o::---", &names);
    let mut deep = Vec::new();
    for depth in 1..=60 {
        deep.push(folder("deep/".repeat(depth)).mode(0o700 + u32::try_from(depth % 8).unwrap()));
    }
    let mut many = vec![folder("few"), file("few/gone", "1"), folder("many")];
    many.extend((0..1500).map(|n| file(format!("many/{n:0>40}"), n.to_string()).mtime(n)));
    let lower = [
        vec![
            folder("./").mode(0o710).owner(5, 70_000).mtime(99),
            folder("usr").mode(0o755),
            folder("usr/bin").mtime(1_000_000_000),
            file("usr/bin/su", "setuid").mode(0o4755),
            file("usr/bin/wall", "setgid").mode(0o2755).owner(0, 5),
            file("usr/bin/ping", vec![0x90; 70_000])
                .mode(0o755)
                .xattr("security.capability", capability),
            hard_link("usr/bin/ping4", "usr/bin/ping"),
            file("usr/bin/closed", "nobody reads it").mode(0),
            symlink("bin", "usr/bin").mode(0o640).owner(3, 4),
            folder("tmp").mode(0o1777),
            folder("shared")
                .mode(0o2770)
                .owner(1000, 50)
                .xattr("system.posix_acl_default", default.unwrap()),
            file("shared/listed", "x").mode(0o770).xattr("system.posix_acl_access", list.unwrap()),
            file("attributes", "x")
                .xattr("user.text", "a=b")
                .xattr("user.binary", [0, 1, b'\n', 0xff])
                .xattr("trusted.t", "t")
                .xattr("user.large", vec![b'v'; 1500]),
            folder("dev"),
            device("dev/null", b'3', 1, 3).mode(0o666),
            device("dev/big", b'4', 4095, 1_048_575).mode(0o660).owner(0, 6),
            device("dev/tty", b'3', 4, 300).mode(0o620).owner(0, 5),
            item("dev/pipe", b'6').mode(0o600).owner(100_000, 4_294_967_294),
            file("empty", "").mtime(0),
            file("early", "").mtime(-1_000_000_000),
            file("late", "").mtime(4_102_444_800),
            // umoci counts in nanoseconds, which end in 2262.
            file("latest", "").mtime(9_000_000_000),
            file("exact", "").record("mtime", "1700000000.123456789"),
            file(b"caf\xe9 \x01\n", "not UTF-8"),
            file("spaces and \"quotes\" \\", "x"),
            folder("long"),
            folder(format!("long/{}", "n".repeat(200))),
            file(format!("long/{}", long("n")), "long"),
            symlink("long/link", "t/".repeat(1000)),
            symlink("long/59", "t".repeat(59)),
            symlink("long/60", "t".repeat(60)),
            symlink("long/4095", "t".repeat(4095)),
            folder("replaced"),
            file("replaced/a", "1"),
            folder("opaque").mode(0o750).mtime(77),
            file("opaque/old", "1"),
            folder("opaque/sub"),
            file("opaque/sub/old", "1"),
            folder("whiteout"),
            file("whiteout/gone", "1"),
            file("whiteout/kept", "1"),
            folder("whiteout/folder"),
            file("whiteout/folder/gone", "1"),
            file("to-link", "1"),
            symlink("to-folder", "nowhere"),
            file("to-fifo", "1"),
            folder("run"),
            folder("var"),
            symlink("var/run", "../../run"),
            file("first", "one file"),
            hard_link("second", "first"),
            hard_link("third", "second"),
            file("chain", "1").mode(0o600).owner(1, 1).xattr("user.old", "1"),
            file(
                "large",
                (0..3_000_000_u32).flat_map(|n| [(n / 1000 % 251) as u8]).collect::<Vec<_>>(),
            ),
        ],
        deep,
        many,
    ]
    .concat();
    let mut lower: Vec<u8> = lower.iter().flat_map(Item::bytes).collect();
    lower.extend(sparse_files(whom));
    lower.extend([0; 1024]);

    let middle = [
        // Markers before and behind what their own layer has.
        file("opaque/new", "2"),
        file("opaque/.wh..wh..opq", ""),
        file("opaque/sub/new", "2"),
        file("whiteout/.wh.gone", ""),
        file("whiteout/gone", "2"),
        file("whiteout/folder/new", "2"),
        file("whiteout/.wh.folder", ""),
        file("whiteout/.wh.none", ""),
        // One kind in another's place.
        symlink("replaced", "usr"),
        folder("to-folder").mode(0o701),
        file("to-folder/a", "2"),
        symlink("to-link", "first"),
        item("to-fifo", b'6').mode(0o644),
        // Links across layers, and ways that lead over links.
        hard_link("fourth", "first"),
        file("bin/through-link", "2"),
        file("var/run/inside", "2"),
        hard_link("var/run/linked", "var/run/inside"),
        hard_link("link-to-link", "to-link"),
        // A folder that is only told its new attributes.
        folder("usr/bin").mode(0o711).owner(2, 3).mtime(5).xattr("user.folder", "new"),
        folder("shared").mode(0o700),
        file("chain", "2").mode(0o640).xattr("user.new", "2"),
    ];
    let upper = [
        file(".wh.first", ""),
        file("second", "another file"),
        file("deep/".repeat(30) + ".wh.deep", ""),
        file("many/.wh.0000000000000000000000000000000000000007", ""),
        file(".wh.few", ""),
        folder("few"),
        file("few/one", "3"),
        folder("replaced"),
        file("replaced/b", "3"),
        hard_link("chain-link", "chain"),
        file("chain", "3"),
    ];
    vec![lower, tar(&middle), tar(&upper)]
}

#[test]
fn what_umoci_unpacks_as_root_is_what_is_in_the_image() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name);
    let sources = write_layout(&path("layout"), &layers(&For::Us));
    write_layout(&path("umoci"), &layers(&For::Umoci));
    let mut image = path("umoci").into_os_string();
    image.push(":odd");
    run("umoci", &["unpack".as_ref(), "--image".as_ref(), &image, path("bundle").as_os_str()]);
    let expected = listing(&path("bundle/rootfs"));

    let imported = assemble(&sources, &path("image"), Limits::default(), &|_| {}).unwrap();
    run("e2fsck", &["-f".as_ref(), "-n".as_ref(), path("image").as_os_str()]);
    assert!(imported.size_bytes < 20 << 20, "holes stay holes: {}", imported.size_bytes);
    fs::create_dir(path("mounted")).unwrap();
    let options = ["-o".as_ref(), "ro,loop,noload".as_ref()];
    run(
        "mount",
        &[&options[..], &[path("image").as_os_str(), path("mounted").as_os_str()]].concat(),
    );
    let found = std::panic::catch_unwind(|| listing(&path("mounted")));
    run("umount", &[path("mounted").as_os_str()]);
    let found = found.unwrap();

    let mut differing = Vec::new();
    for path in expected.keys().chain(found.keys()) {
        let (umoci, ours) = (expected.get(path), found.get(path));
        if umoci != ours {
            differing
                .push(format!("{}:\n  umoci {umoci:?}\n  ours  {ours:?}", path.escape_ascii()));
        }
    }
    differing.dedup();
    assert!(differing.is_empty(), "{} differ:\n{}", differing.len(), differing.join("\n"));
    assert!(expected.len() > 1500, "{} entries", expected.len());
}
