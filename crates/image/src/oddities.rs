//! Tars of root filesystems, among them real ones that GNU tar made from a real folder, imported and compared file by
//! file with what they were made of: as root and as an ordinary user. The image is read with debugfs, so that no test
//! needs to mount.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::programs::tests::command;
use crate::rootfs::{ImportedRootfs, RootfsError, import_rootfs};
use crate::samples::reasons;
use crate::{Progress, Trouble};

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = command(program).args(arguments).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

fn debugfs(image: &Path, request: &str) -> String {
    run("debugfs", &["-R", request, image.to_str().unwrap()])
}

/// An entry of a tar, as the tests write it themselves: needs no root to make devices and owners.
struct Entry {
    path: &'static str,
    kind: tar::EntryType,
    mode: u32,
    owner: (u64, u64),
    content: &'static [u8],
    link: &'static str,
    device: (u32, u32),
    pax: &'static [(&'static str, &'static [u8])],
}

const FILE: Entry = Entry {
    path: "",
    kind: tar::EntryType::Regular,
    mode: 0o644,
    owner: (0, 0),
    content: b"",
    link: "",
    device: (0, 0),
    pax: &[],
};
const FOLDER: Entry = Entry { kind: tar::EntryType::Directory, mode: 0o755, ..FILE };

const TIME: u64 = 1_234_567_890;

fn write_tar(path: &Path, entries: &[Entry]) {
    let mut builder = tar::Builder::new(fs::File::create(path).unwrap());
    for entry in entries {
        if !entry.pax.is_empty() {
            builder.append_pax_extensions(entry.pax.iter().copied()).unwrap();
        }
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(entry.kind);
        header.set_mode(entry.mode);
        header.set_uid(entry.owner.0);
        header.set_gid(entry.owner.1);
        header.set_mtime(TIME);
        header.set_size(entry.content.len() as u64);
        header.set_device_major(entry.device.0).unwrap();
        header.set_device_minor(entry.device.1).unwrap();
        let name = &mut header.as_old_mut().name;
        if entry.path.len() < 100 {
            // As it is: the crate itself refuses `..`.
            name[..entry.path.len()].copy_from_slice(entry.path.as_bytes());
            header.as_old_mut().linkname[..entry.link.len()].copy_from_slice(entry.link.as_bytes());
            header.set_cksum();
            builder.append(&header, entry.content).unwrap();
        } else {
            builder.append_data(&mut header, entry.path, entry.content).unwrap();
        }
    }
    builder.finish().unwrap();
}

const LONG: &str = "usr/share/a-folder-whose-name-is-long-so-that-the-header-of-a-tar-does-not-hold-it/and-a-file-in-it-as-well.txt";

/// security.capability of cap_net_raw+ep (linux/capability.h, revision 2).
const CAPABILITY: &[u8] = &[1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn odd_entries() -> Vec<Entry> {
    use tar::EntryType;
    vec![
        Entry { path: "./", mode: 0o710, owner: (5, 70_000), ..FOLDER },
        Entry { path: "./etc/", ..FOLDER },
        Entry { path: "./etc/group", content: b"root:x:0:\nadm:x:4:\n", ..FILE },
        Entry {
            path: "./etc/shadow",
            mode: 0o000,
            owner: (0, 42),
            content: b"root:*:1::::::\n",
            ..FILE
        },
        Entry { path: "./etc/closed", mode: 0o000, content: b"closed", ..FILE },
        Entry { path: "./usr/", ..FOLDER },
        Entry { path: "./usr/bin/", ..FOLDER },
        Entry { path: "./usr/bin/su", mode: 0o4755, content: b"suid", ..FILE },
        Entry {
            path: "./usr/bin/ping",
            mode: 0o755,
            content: b"ping",
            pax: &[
                ("SCHILY.xattr.security.capability", CAPABILITY),
                ("SCHILY.xattr.user.note", b"a \"b\""),
            ],
            ..FILE
        },
        Entry { path: "./usr/bin/ping4", kind: EntryType::Link, link: "./usr/bin/ping", ..FILE },
        Entry { path: "./sbin", kind: EntryType::Symlink, link: "usr/sbin", ..FILE },
        Entry { path: "./usr/sbin/", ..FOLDER },
        Entry {
            path: "./usr/sbin/init",
            kind: EntryType::Symlink,
            link: "/usr/lib/real-init",
            ..FILE
        },
        Entry { path: "./usr/lib/", ..FOLDER },
        Entry { path: "./usr/lib/real-init", mode: 0o755, content: b"#!", ..FILE },
        Entry { path: "./dev/", ..FOLDER },
        Entry {
            path: "./dev/tty77",
            kind: EntryType::Char,
            mode: 0o620,
            owner: (0, 5),
            device: (4, 77),
            ..FILE
        },
        Entry { path: "./dev/sda", kind: EntryType::Block, mode: 0o660, device: (8, 300), ..FILE },
        Entry { path: "./run/", ..FOLDER },
        Entry {
            path: "./run/pipe",
            kind: EntryType::Fifo,
            mode: 0o600,
            owner: (100_000, 100_001),
            ..FILE
        },
        Entry { path: "./tmp/", mode: 0o1777, ..FOLDER },
        Entry {
            path: "./log/",
            mode: 0o2755,
            pax: &[(
                "SCHILY.acl.default",
                b"user::rwx,group::r-x,group:adm:r-x,mask::r-x,other::r-x",
            )],
            ..FOLDER
        },
        Entry {
            path: "./a \"name\" with $odd 'things'\\",
            content: b"odd",
            pax: &[("SCHILY.xattr.user.x", b"y")],
            ..FILE
        },
        Entry { path: LONG, content: b"long", ..FILE },
        Entry { path: "./etc/late", pax: &[("mtime", b"4102444800.123456789")], ..FILE },
        Entry { path: "./etc/early", pax: &[("mtime", b"-1.5")], ..FILE },
        Entry { path: "/absolute", content: b"inside", ..FILE },
        Entry { path: "./locked/", mode: 0o000, ..FOLDER },
    ]
}

/// What `stat` of debugfs must say, by path: type, mode, owner, links, and more that it says of such an entry.
const EXPECTED: &[(&str, &[&str])] = &[
    ("/", &["directory", "Mode:  0710", "User:     5   Group: 70000"]),
    ("/etc/shadow", &["regular", "Mode:  0000", "Group:    42"]),
    ("/etc/closed", &["regular", "Mode:  0000", "User:     0   Group:     0"]),
    ("/usr/bin/su", &["regular", "Mode:  04755", "Size: 4", "mtime: 0x499602d2"]),
    (
        "/usr/bin/ping",
        &[
            "Mode:  0755",
            "Links: 2",
            "security.capability (20) = 01 00 00 02 00 20",
            "user.note (5) = \"a ",
        ],
    ),
    ("/usr/bin/ping4", &["Links: 2", "security.capability (20) = 01 00 00 02 00 20"]),
    ("/sbin", &["symlink", "Fast link dest: \"usr/sbin\""]),
    ("/usr/sbin/init", &["symlink", "Fast link dest: \"/usr/lib/real-init\""]),
    (
        "/dev/tty77",
        &["character special", "Mode:  0620", "Group:     5", "Device major/minor number: 04:77"],
    ),
    ("/dev/sda", &["block special", "Mode:  0660", "(hex 08:12c)"]),
    ("/run/pipe", &["FIFO", "Mode:  0600", "User: 100000   Group: 100001"]),
    ("/tmp", &["directory", "Mode:  01777", "mtime: 0x499602d2"]),
    ("/log", &["Mode:  02755", "system.posix_acl_default (28)"]),
    ("/a \"\"name\"\" with $odd 'things'\\", &["Size: 3", "user.x (1) = \"y\""]),
    (LONG, &["Size: 4"]),
    // The kernel's doc "ext4, inodes": the low two bits of the second word extend the seconds, the rest are nanoseconds.
    ("/etc/late", &["mtime: 0xf4865700:1d6f3455"]),
    ("/etc/early", &["mtime: 0xfffffffe:77359400"]),
    ("/absolute", &["Size: 6"]),
    ("/locked", &["directory", "Mode:  0000"]),
];

fn check_odd_image(image: &Path, imported: &ImportedRootfs) {
    run("e2fsck", &["-f", "-n", image.to_str().unwrap()]);
    for (path, facts) in EXPECTED {
        let said = debugfs(image, &format!("stat \"{path}\""));
        for fact in *facts {
            assert!(said.contains(fact), "{path}: no {fact:?} in\n{said}");
        }
    }
    assert_eq!(debugfs(image, "cat /usr/bin/ping4"), "ping");
    assert_eq!(imported.init.as_deref(), Some("/sbin/init"));
    assert_eq!(imported.entries, odd_entries().len() as u64);
    let header = run("dumpe2fs", &["-h", image.to_str().unwrap()]);
    for fact in ["banger-root", "has_journal", "metadata_csum", "Reserved block count:     0"] {
        assert!(header.contains(fact), "no {fact:?} in\n{header}");
    }
    // Made of the content's digest: RFC 9562, version 8.
    let uuid = header.lines().find_map(|line| line.strip_prefix("Filesystem UUID:")).unwrap();
    assert_eq!(uuid.trim().split('-').nth(2).map(|part| &part[..1]), Some("8"), "{uuid}");
}

fn only_file(folder: &Path, names: &[&str]) {
    let mut found: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    found.sort();
    assert_eq!(found, names);
}

#[test]
fn every_oddity_of_a_tar_is_in_the_image() {
    let folder = tempfile::tempdir().unwrap();
    let (tar, image) = (folder.path().join("a.tar"), folder.path().join("image"));
    write_tar(&tar, &odd_entries());
    let imported = import_rootfs(&tar, &image, &|_| {}).unwrap();
    check_odd_image(&image, &imported);
    only_file(folder.path(), &["a.tar", "image"]);
    // The next test reads it.
    println!("digest {}", imported.digest);
    let again = import_rootfs(&tar, &image, &|_| {}).unwrap();
    assert_eq!(again, imported, "the same archive gives the same image, byte for byte");
}

/// Runs the test above once more, as root and as nobody; when the tests themselves run as an ordinary user, that was it already.
#[test]
fn an_ordinary_user_gets_the_same_image() {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    // A copy, since the folder of the build may be closed to others.
    let program = folder.path().join("tests");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let digest_as = |uid: u32| {
        let output = command("setpriv")
            .args([format!("--reuid={uid}"), format!("--regid={uid}")])
            .args(["--clear-groups", "--inh-caps=-all"])
            .arg(&program)
            .args(["--exact", "oddities::every_oddity_of_a_tar_is_in_the_image", "--nocapture"])
            .env("TMPDIR", folder.path())
            .current_dir(folder.path())
            .output()
            .unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
        said.lines().find(|line| line.starts_with("digest ")).unwrap().to_owned()
    };
    assert_eq!(digest_as(0), digest_as(65534));
}

/// Mode, owner, size, links and content hash of every entry, by path.
type Listing = BTreeMap<PathBuf, String>;

fn list(root: &Path) -> Listing {
    let found =
        run("find", &[root.to_str().unwrap(), "-printf", "%P\t%y %#m %U:%G %s %n %l %T@\n"]);
    found
        .lines()
        .filter_map(|line| line.split_once('\t'))
        .filter(|(path, _)| !path.starts_with("lost+found"))
        .map(|(path, facts)| {
            let full = root.join(path);
            let is_folder = facts.starts_with('d');
            // Sizes and links of folders, and fractions of seconds, are the file system's own business.
            let mut words: Vec<String> =
                facts.split(' ').map(|word| word.split('.').next().unwrap().to_owned()).collect();
            if is_folder {
                words.truncate(3);
            }
            if facts.starts_with('l') {
                // rdump gives links the present time.
                words.pop();
                words.push(fs::read_link(&full).unwrap().display().to_string());
            }
            if facts.starts_with('f') {
                words.push(
                    run("sha256sum", &[full.to_str().unwrap()])
                        .split(' ')
                        .next()
                        .unwrap()
                        .to_owned(),
                );
            }
            (path.into(), words.join(" "))
        })
        .collect()
}

/// The oracle: GNU tar's archive of a folder, in every compression, comes back as that folder (seen by debugfs's rdump).
#[test]
fn what_gnu_tar_packed_comes_back_the_same_in_every_compression() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source");
    fs::create_dir_all(source.join("deep/er")).unwrap();
    fs::write(source.join("deep/er/file"), vec![7; 300_000]).unwrap();
    fs::hard_link(source.join("deep/er/file"), source.join("second-name")).unwrap();
    symlink("../nowhere/".repeat(20), source.join("deep/link")).unwrap();
    let sparse = fs::File::create(source.join("sparse")).unwrap();
    sparse.set_len(3 << 30).unwrap();
    (&sparse).write_all(b"begin").unwrap();
    for number in 0..300 {
        fs::write(source.join("deep").join(format!("{number:->100}")), number.to_string()).unwrap();
    }
    let expected = list(&source.join("deep"));
    for (option, name) in [
        ("--no-auto-compress", "a.tar"),
        ("--gzip", "a.tgz"),
        ("--xz", "a.txz"),
        ("--zstd", "a.tzst"),
    ] {
        let tar = folder.path().join(name);
        let (tar_text, source_text) = (tar.to_str().unwrap(), source.to_str().unwrap());
        run(
            "tar",
            &["--create", "--sparse", option, "--file", tar_text, "--directory", source_text, "."],
        );
        let image = folder.path().join("image");
        let imported = import_rootfs(&tar, &image, &|_| {}).unwrap();
        assert!(imported.size_bytes < 64 << 20, "holes stay holes: {}", imported.size_bytes);
        assert_eq!(imported.init, None);
        run("e2fsck", &["-f", "-n", image.to_str().unwrap()]);
        assert!(debugfs(&image, "stat /sparse").contains("Size: 3221225472"));
        assert!(debugfs(&image, "stat /second-name").contains("Links: 2"));
        let dump = folder.path().join("dump");
        fs::create_dir(&dump).unwrap();
        debugfs(&image, &format!("rdump /deep {}", dump.display()));
        let mut found = list(&dump.join("deep"));
        // rdump makes two files of a hard link's two names.
        let file = found.get_mut(Path::new("er/file")).unwrap();
        *file = file.replace(" 300000 1 ", " 300000 2 ");
        let differing: Vec<_> =
            expected.iter().filter(|(path, facts)| found.get(*path) != Some(facts)).collect();
        assert!(
            differing.is_empty(),
            "{name}: {differing:?}, found {:?}",
            found.get(differing[0].0)
        );
        assert_eq!(found.len(), expected.len());
        fs::remove_dir_all(&dump).unwrap();
    }
}

fn refused(entries: &[Entry]) -> RootfsError {
    let folder = tempfile::tempdir().unwrap();
    let inner = folder.path().join("inner");
    fs::create_dir(&inner).unwrap();
    let tar = inner.join("a.tar");
    write_tar(&tar, entries);
    let error = import_rootfs(&tar, &inner.join("image"), &|_| {}).unwrap_err();
    only_file(&inner, &["a.tar"]);
    only_file(folder.path(), &["inner"]);
    error
}

#[test]
fn names_that_lead_out_of_the_tree_are_refused_and_write_nothing_there() {
    let error = refused(&[Entry { path: "./../../escaped", content: b"x", ..FILE }]);
    assert!(reasons(&error).ends_with("a part of its name is `..`"), "{error}");

    let outside = tempfile::tempdir().unwrap();
    let link = outside.path().to_str().unwrap().to_owned().leak();
    // What the link says is a name in the tree; it is made there, and only there.
    let folder = tempfile::tempdir().unwrap();
    let (tar, image) = (folder.path().join("a.tar"), folder.path().join("image"));
    let through = [
        Entry { path: "./door", kind: tar::EntryType::Symlink, link, ..FILE },
        Entry { path: "./door/inside", content: b"x", ..FILE },
    ];
    write_tar(&tar, &through);
    import_rootfs(&tar, &image, &|_| {}).unwrap();
    only_file(outside.path(), &[]);
    assert_eq!(debugfs(&image, &format!("cat {link}/inside")), "x");

    let error = refused(&[Entry {
        path: "./copy",
        kind: tar::EntryType::Link,
        link: "/etc/passwd",
        ..FILE
    }]);
    assert!(reasons(&error).contains("\"etc/passwd\", which is not there"), "{error}");
}

#[test]
fn an_init_that_is_only_on_the_host_is_none() {
    let folder = tempfile::tempdir().unwrap();
    let (tar, image) = (folder.path().join("a.tar"), folder.path().join("image"));
    write_tar(
        &tar,
        &[
            Entry { path: "./sbin/", ..FOLDER },
            Entry {
                path: "./sbin/init",
                kind: tar::EntryType::Symlink,
                link: "/../../../../bin/sh",
                ..FILE
            },
            Entry { path: "./init", kind: tar::EntryType::Symlink, link: "init", ..FILE },
        ],
    );
    assert_eq!(import_rootfs(&tar, &image, &|_| {}).unwrap().init, None);
}

#[test]
fn what_is_no_archive_or_an_empty_or_a_cut_one_is_refused_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let tar = folder.path().join("a.tar");
    write_tar(&tar, &odd_entries());
    let whole = fs::read(&tar).unwrap();
    let xz = liblzma::encode_all(&whole[..], 1).unwrap();
    let check = |bytes: &[u8], expected: &str| {
        fs::write(&tar, bytes).unwrap();
        let error = import_rootfs(&tar, &folder.path().join("image"), &|_| {}).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert_eq!(error.trouble(), Trouble::Input);
        only_file(folder.path(), &["a.tar"]);
    };
    check(b"", "is not a tar archive");
    check(&[b'x'; 10_000], "is not a tar archive");
    check(&[0; 10_240], "has nothing in it");
    check(&whole[..5000], "cannot");
    check(&xz[..xz.len() / 2], "cannot be unpacked");
    check(b"BZh91AY&SY", "cannot be unpacked");
}

#[test]
fn progress_tells_the_stages_and_the_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let tar = folder.path().join("a.tar");
    write_tar(&tar, &odd_entries());
    let length = fs::metadata(&tar).unwrap().len();
    let told = std::sync::Mutex::new(Vec::new());
    import_rootfs(&tar, &folder.path().join("image"), &|progress| match progress {
        Progress::Stage { name, .. } => told.lock().unwrap().push(name.to_owned()),
        Progress::Bytes { done, total } if done == total => {
            told.lock().unwrap().push(format!("{done}"))
        }
        _ => {}
    })
    .unwrap();
    let mut told = told.into_inner().unwrap();
    told.dedup();
    assert_eq!(
        told,
        ["unpack".to_owned(), length.to_string(), "write".to_owned(), "digest".to_owned()]
    );
}

/// A file system that is full: a tmpfs of our own, which takes root.
#[test]
fn without_space_nothing_is_begun_and_nothing_is_left() {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let small = folder.path().join("small");
    fs::create_dir(&small).unwrap();
    run("mount", &["-t", "tmpfs", "-o", "size=64m", "small", small.to_str().unwrap()]);
    let tar = folder.path().join("a.tar");
    write_tar(&tar, &odd_entries());
    let imported = import_rootfs(&tar, &small.join("image"), &|_| {});
    let left = fs::read_dir(&small).unwrap().count();
    run("umount", &[small.to_str().unwrap()]);
    let error = imported.unwrap_err();
    assert!(matches!(error, RootfsError::NoSpace { .. }), "{error}");
    assert_eq!((error.trouble(), left), (Trouble::NoSpace, 0));
}
