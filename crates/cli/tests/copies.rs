//! Copies from a guest that is not what it should be. The guest's side is played here, frame by frame.

#![expect(clippy::unwrap_used, reason = "where a test unwraps, it claims")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use banger_api::files::{Done, Found, FoundKind, FromAgent, Looked, Start, ToAgent};
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use rustix::process::{Pid, Signal, kill_process};
use snapbox::str;
use support::World;
use tokio_tungstenite::tungstenite::Message;

/// A daemon that passes everything on to a guest in which each path is of this kind, and is sent as this stream; a guest
/// that `hangs` then says nothing more.
fn guest(kind: FoundKind, stream: Vec<u8>, hangs: bool) -> World {
    let world = World::without_daemon();
    fs::create_dir_all(world.socket().parent().unwrap()).unwrap();
    let listener = std::os::unix::net::UnixListener::bind(world.socket()).unwrap();
    listener.set_nonblocking(true).unwrap();
    let serve = async move {
        let listener = tokio::net::UnixListener::from_std(listener).unwrap();
        loop {
            let (connection, _) = listener.accept().await.unwrap();
            // Whoever only looks whether a daemon is here says nothing.
            let Ok(mut socket) = tokio_tungstenite::accept_async(connection).await else {
                continue;
            };
            let Some(Ok(Message::Binary(frame))) = socket.next().await else { continue };
            let ToAgent::Start(start) = ToAgent::decode(&frame).unwrap() else {
                panic!("no start")
            };
            let mut replies = Vec::new();
            let mut done = Done::default();
            match *start {
                Start::Look(_) => {
                    let found = Some(Found { kind, size: 1 << 20 });
                    done.looked = Some(Looked { found, ..Looked::default() });
                }
                _ => replies.extend(
                    stream.chunks(1000).map(|it| FromAgent::Data(Bytes::copy_from_slice(it))),
                ),
            }
            let is_stream = !replies.is_empty();
            if !(is_stream && hangs) {
                replies.push(FromAgent::Done(Box::new(done)));
            }
            for reply in replies {
                // A client that refuses what came has left.
                if socket.send(Message::Binary(reply.encode())).await.is_err() {
                    break;
                }
            }
            while hangs && socket.next().await.is_some_and(|frame| frame.is_ok()) {}
            drop(socket.close(None).await);
        }
    };
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(serve)
    });
    world
}

/// An entry of a tar: name, type, target, content.
fn entry(name: &str, kind: u8, target: &str, content: &str) -> Vec<u8> {
    let mut block = [0; 512];
    let mut put =
        |at: usize, text: &str| block[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0004777\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{:011o}\0", content.len()));
    put(136, "00000000000\0");
    put(148, "        ");
    put(156, std::str::from_utf8(&[kind]).unwrap());
    put(157, target);
    put(257, "ustar  \0");
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut bytes = block.to_vec();
    bytes.extend(content.bytes());
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

struct Here {
    folder: tempfile::TempDir,
}

impl Here {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("target")).unwrap();
        fs::write(folder.path().join("victim"), "precious").unwrap();
        Self { folder }
    }

    fn target(&self) -> PathBuf {
        self.folder.path().join("target")
    }

    fn text(&self) -> String {
        self.target().display().to_string()
    }

    #[track_caller]
    fn nothing_else_was_touched(&self) {
        assert_eq!(fs::read_to_string(self.folder.path().join("victim")).unwrap(), "precious");
        assert_eq!(fs::read_dir(self.folder.path()).unwrap().count(), 2);
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn a_copy_has_one_side_in_a_vm_and_help_says_what_lands_where() {
    let world = World::without_daemon();
    let check = |words: &[&str], says: &str| {
        let output = world.banger(&[&["vm", "cp"], words].concat()).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains(says), "{says:?} is not in {stderr}");
    };
    check(&["a", "b"], "neither side is in a VM");
    check(&["-", "-"], "neither side is in a VM");
    check(&["web:a", "db:b"], "both sides are in a VM");
    check(&["--owner", "dev", "web:a", "b"], "--owner names a user of the VM");
    check(&["Web:a", "b"], "no VM's name");
    world.banger(&["vm", "cp", "--help"]).assert().code(0).stdout_eq(str![[r#"
Copy files and folders to and from a running VM

Usage: banger vm cp [OPTIONS] <SRC> <DST>

Arguments:
  <SRC>  What is copied: PATH, NAME:PATH, or - for a tar stream on stdin
  <DST>  Where it is copied to: NAME:PATH, PATH, or - for a tar stream on stdout

Options:
  -a, --archive          Keep owners (by number), all bits of the modes, capabilities and access
                         control lists
      --format <FORMAT>  How results and errors are written; json: one document a line [possible
                         values: human, json]
      --owner <USER>     Give it to this user of the VM: NAME, UID, NAME:GROUP or UID:GID
  -q, --quiet            No progress and no hints; lists show names only
  -p, --parents          Make the folder that DST is in, and those above it
  -h, --help             Print help

One side is NAME:PATH, where a relative PATH is below /root; the other a path of this host, or - for
a tar stream. A host path with a : in it is written ./a:b.

SRC       DST is a folder   DST is not there          DST is a file
file      DST/file          DST (DST/ is refused)     replaced
folder    DST/folder        DST, as a copy of it      refused
folder/.  its content in it DST, as a copy of it      refused

Permissions, times, symbolic links, hard links and holes are kept; files get the owner of the folder
they are copied into, on this host yours, and no set-user-id bits. With --archive owners and all
bits are kept. Folders that are there keep their own. Links within a tree are copied as links, and
none is followed out of DST. Devices and sockets are left out, and named.

A file appears under its name when it is whole. A copy of a file of 16 MiB or more that broke goes
on where it broke when it is repeated, if what is there is still the same.

Examples:
  banger vm cp app.conf web:/etc/app/           into a folder
  banger vm cp -a ./site web:/srv/site          a tree, as it is
  banger vm cp web:/var/log/syslog .            from the VM
  banger vm cp --owner dev src web:/home/dev    for a user of the VM
  tar -c src | banger vm cp - web:/srv          a tar stream, owners as it says
  banger vm cp web:/etc - | tar -t              and the other way round

"#]]);
}

#[test]
fn a_hostile_guest_writes_only_what_was_asked_for_and_only_where() {
    for (entries, says) in [
        (vec![entry(".bashrc", b'0', "", "bad")], "only tree was asked for"),
        (vec![entry("../victim", b'0', "", "bad")], "`..`"),
        (vec![entry("tree/../../victim", b'0', "", "bad")], "`..`"),
        (vec![entry("/victim", b'0', "", "bad")], "only tree was asked for"),
        (
            vec![entry("tree", b'2', "..", ""), entry("tree/victim", b'0', "", "bad")],
            "leads out of the folder",
        ),
        (
            vec![entry("tree/up", b'2', "../..", ""), entry("tree/up/victim", b'0', "", "bad")],
            "leads out of the folder",
        ),
        (
            vec![entry("tree/up", b'2', "../..", ""), entry("tree/x", b'1', "tree/up/victim", "")],
            "leads out of the folder",
        ),
        (vec![entry("tree/x", b'1', "other", "")], "not asked for"),
    ] {
        let here = Here::new();
        let world = guest(FoundKind::Folder, [entries.concat(), vec![0; 1024]].concat(), false);
        let output = world.banger(&["vm", "cp", "web:/tree", &here.text()]).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains(says), "{says:?} is not in {stderr}");
        here.nothing_else_was_touched();
        assert!(!here.target().join(".bashrc").exists());
    }
}

#[test]
fn devices_are_left_out_and_told_and_set_user_ids_are_not_kept() {
    use std::os::unix::fs::PermissionsExt;
    let here = Here::new();
    let stream =
        [entry("tree/null", b'3', "", ""), entry("tree/tool", b'0', "", "x"), vec![0; 1024]];
    let world = guest(FoundKind::Folder, stream.concat(), false);
    world
        .banger(&["vm", "cp", "web:/tree", &here.text()])
        .assert()
        .success()
        .stderr_eq("left out: tree/null: a device, which is not made\n");
    assert_eq!(names(&here.target().join("tree")), ["tool"]);
    let mode = fs::metadata(here.target().join("tree/tool")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7000, 0);
}

#[test]
fn a_copy_that_is_cut_or_interrupted_leaves_no_file() {
    let stream = entry("f", b'0', "", &"x".repeat(1 << 20));
    let here = Here::new();
    // A guest that says that it is done, and was not.
    let world = guest(FoundKind::File, stream[..700_000].to_vec(), false);
    let output = world.banger(&["vm", "cp", "web:/f", &here.text()]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("cut off"));
    assert_eq!(names(&here.target()), [""; 0]);

    let world = guest(FoundKind::File, stream[..700_000].to_vec(), true);
    let mut child = world.spawn(
        &["vm", "cp", "web:/f", &here.text()],
        Stdio::null(),
        Stdio::null(),
        Stdio::null(),
    );
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while names(&here.target()).is_empty() {
        assert!(std::time::Instant::now() < deadline, "the copy does not begin");
        std::thread::yield_now();
    }
    assert_eq!(names(&here.target()), [".f.banger-part"]);
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(names(&here.target()), [""; 0]);
}
