//! What the tests share: an image in a folder of its own, programs as oracles, and a seeded source of choices.
#![allow(dead_code, reason = "not every test uses all of it")]

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use banger_ext4::{Attributes, Finished, Image, InodeId, Kind, Options, Spare, Timestamp};

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const GIB: u64 = 1 << 30;

pub(crate) const OPTIONS: Options = Options {
    uuid: *b"\x01banger-ext4-tes",
    hash_seed: *b"seed of the hash",
    label: String::new(),
    bytes_per_inode: 16384,
    journal_bytes: 16 * MIB,
    largest_bytes: 64 * GIB,
    most_inodes: 1_000_000,
};

pub(crate) const TIME: Timestamp = Timestamp { seconds: 1_234_567_890, nanoseconds: 123_456_789 };

pub(crate) fn attributes(mode: u16) -> Attributes {
    Attributes { mode, uid: 0, gid: 0, mtime: TIME, xattrs: BTreeMap::new() }
}

/// A place for one image.
pub(crate) struct Place {
    pub(crate) folder: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    pub(crate) fn image(&self, options: Options) -> Image {
        let file =
            File::options().read(true).write(true).create_new(true).open(self.path()).unwrap();
        Image::create(file, options).unwrap()
    }

    /// Finishes `image` and lets e2fsck find nothing.
    pub(crate) fn finish(&self, image: Image, spare: u64) -> Finished {
        let (_, finished) = image.finish(Spare { bytes: spare }).unwrap();
        self.check();
        assert!(finished.free_bytes >= spare, "{finished:?}");
        assert_eq!(self.path().metadata().unwrap().len(), finished.file_system_bytes);
        finished
    }

    pub(crate) fn check(&self) {
        let output = command("e2fsck").args(["-fn"]).arg(self.path()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        // What it would do better, it says without a word in its status.
        assert!(!said.contains("extent tree") && !said.contains("optimi"), "{said}");
    }

    pub(crate) fn debugfs(&self, request: &str) -> String {
        let output = run(command("debugfs").args(["-R", request]).arg(self.path()));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// What the host has allocated for it.
    pub(crate) fn allocated(&self) -> u64 {
        self.path().metadata().unwrap().blocks() * 512
    }
}

#[expect(clippy::disallowed_methods, reason = "the tests ask programs what was written")]
pub(crate) fn command(name: &str) -> Command {
    let mut command = Command::new(name);
    command.env("LC_ALL", "C.UTF-8").env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command
}

pub(crate) fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {stderr}");
    output
}

/// Mounts `image` below `folder`, uses it, and unmounts it also if that panics.
pub(crate) fn mounted<T>(
    folder: &Path,
    image: &Path,
    options: &str,
    work: impl FnOnce(&Path) -> T,
) -> T {
    let place = folder.join("mounted");
    std::fs::create_dir_all(&place).unwrap();
    let with = format!("loop,{options}");
    run(command("mount").args(["-t", "ext4", "-o", &with]).arg(image).arg(&place));
    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(&place)));
    run(command("umount").arg(&place));
    match done {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// xorshift64*: the same choices from the same seed.
pub(crate) struct Choices(u64);

impl Choices {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next()).unwrap() % end
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(count + 8);
        while bytes.len() < count {
            bytes.extend(self.next().to_le_bytes());
        }
        bytes.truncate(count);
        bytes
    }
}

/// A file with content.
pub(crate) fn add_file(image: &mut Image, parent: InodeId, name: &str, content: &[u8]) -> InodeId {
    let file = image.add(parent, name.as_bytes(), Kind::File, attributes(0o644)).unwrap();
    image.append(file, content).unwrap();
    file
}
