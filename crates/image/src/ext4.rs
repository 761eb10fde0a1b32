//! An ext4 file system in a file, filled from a folder: mke2fs, and debugfs for what mke2fs leaves out (the root folder's
//! own mode and owner, extended attributes). Needs no mount and no privilege.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::artifact::{ArtifactError, failed};
use crate::listing::{Root, Xattrs};
use crate::programs::{Call, DEBUGFS, FAKEROOT, MKE2FS, ProgramError};

/// Every image has it.
pub(crate) const LABEL: &str = "banger-root";

pub(crate) const BLOCK: u64 = 4096;

/// A block group of 4 KiB blocks: what the file system grows by.
const GROUP: u64 = 128 << 20;

/// mke2fs(8), `-i`: one inode for so many bytes, in each group that growing adds as well.
const BYTES_PER_INODE: u64 = 16384;

/// What mke2fs would take for an 8 GiB disk; it does not grow with the file system.
const JOURNAL: u64 = 64 << 20;

/// Free when it is new; a guest grows it before it writes much.
const SLACK: u64 = 64 << 20;

/// The group descriptors have room to grow to this while mounted; beyond it the kernel converts them (meta_bg).
const LARGEST_BLOCKS: u64 = (1 << 40) / BLOCK;

/// Named one by one, so that the host's mke2fs.conf does not decide what the guest's kernel must know. All of them are
/// in Linux 3.18; without orphan_file and metadata_csum_seed, which newer mke2fs turn on.
const FEATURES: &str = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum";

const MAKING: Duration = Duration::from_secs(3600);

#[derive(Debug, thiserror::Error)]
pub enum Ext4Error {
    #[error("cannot fill a file system")]
    Make(#[source] ProgramError),
    #[error("cannot set what mke2fs leaves out in a file system")]
    Amend(#[source] ProgramError),
    #[error("debugfs could not set everything: {0}")]
    NotAll(String),
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
}

/// How much is to go in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Content {
    /// Blocks of data, of files and of folders.
    pub blocks: u64,
    /// Files, folders and all else: each takes an inode.
    pub inodes: u64,
}

impl Content {
    /// How large the file system is to be: a whole number of block groups.
    pub(crate) fn file_system_bytes(self) -> u64 {
        let data = self.blocks * BLOCK;
        // Extent blocks and htree blocks; inode tables, bitmaps and descriptors take 1.7 %.
        let with_overhead = (data + data / 64 + JOURNAL + SLACK) / 97 * 100;
        let for_inodes = (self.inodes + self.inodes / 16 + 1024) * BYTES_PER_INODE;
        with_overhead.max(for_inodes).next_multiple_of(GROUP)
    }

    /// What it takes of the host's space, about.
    pub(crate) fn allocated_bytes(self) -> u64 {
        self.blocks * BLOCK + (self.file_system_bytes() / 50) + (4 << 20)
    }
}

/// Where an ordinary user's fakeroot keeps owners and devices; a real root needs none.
#[derive(Debug, Clone)]
pub(crate) enum Identity {
    Root,
    Fakeroot { state: PathBuf },
}

impl Identity {
    /// A call of `program` that may change owners. `Fakeroot`: what it changes is kept if `keep`, else what was kept is seen.
    pub(crate) fn call<'a>(
        &self,
        program: crate::programs::Program,
        deadline: Duration,
        keep: bool,
    ) -> Result<Call<'a>, ProgramError> {
        match self {
            Self::Root => Call::new(program, deadline),
            Self::Fakeroot { state } => {
                let mut arguments: Vec<OsString> =
                    vec![if keep { "-s" } else { "-i" }.into(), state.into()];
                arguments.extend(["--".into(), program.path()?.into()]);
                Ok(Call::new(FAKEROOT, deadline)?.args(arguments))
            }
        }
    }
}

/// Makes `image`, an empty file, a file system with what is in `tree`.
pub(crate) fn make(
    tree: &Path,
    image: &Path,
    content: Content,
    uuid: &str,
    identity: &Identity,
) -> Result<(), Ext4Error> {
    let blocks = content.file_system_bytes() / BLOCK;
    let mut call = identity.call(MKE2FS, MAKING, false).map_err(Ext4Error::Make)?;
    call =
        call.args(["-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-L", LABEL, "-O", FEATURES]);
    call = call.args([
        "-I",
        "256",
        "-i",
        &BYTES_PER_INODE.to_string(),
        "-J",
        &format!("size={}", JOURNAL >> 20),
    ]);
    call = call.args(["-U", uuid, "-E"]);
    // The new file is all holes: nothing needs to be zeroed, neither here nor by the guest's kernel.
    call = call.args([format!(
        "resize={LARGEST_BLOCKS},hash_seed={uuid},lazy_itable_init=1,lazy_journal_init=1"
    )]);
    call.args([
        "-d".into(),
        tree.as_os_str().to_owned(),
        image.as_os_str().to_owned(),
        blocks.to_string().into(),
    ])
    .output()
    .map_err(Ext4Error::Make)?;
    Ok(())
}

/// Sets the root folder's own mode and owner, and extended attributes, in `image`. `scratch` is for the values.
pub(crate) fn amend(
    image: &Path,
    root: Option<Root>,
    xattrs: &[(Vec<u8>, Xattrs)],
    scratch: &Path,
) -> Result<(), Ext4Error> {
    let mut commands = Vec::new();
    if let Some(root) = root {
        let mode = 0o040_000 | root.mode;
        for (field, value) in [
            ("mode", format!("0{mode:o}")),
            ("uid", root.uid.to_string()),
            ("gid", root.gid.to_string()),
            ("mtime", format!("@{}", root.mtime)),
        ] {
            commands.extend(format!("set_inode_field <2> {field} {value}\n").bytes());
        }
    }
    let mut values = 0;
    for (path, attributes) in xattrs {
        for (name, value) in attributes {
            // debugfs reads the value from a file; we are in its folder, so that its name needs no quotes.
            let file = format!("value-{values}");
            values += 1;
            let place = scratch.join(&file);
            fs::write(&place, value).map_err(failed("write", &place))?;
            commands.extend(format!("ea_set -f {file} ").bytes());
            commands.extend(quoted(path));
            commands.extend(format!(" {name}\n").bytes());
        }
    }
    if commands.is_empty() {
        return Ok(());
    }
    let script = scratch.join("commands");
    fs::write(&script, commands).map_err(failed("write", &script))?;
    let image = fs::canonicalize(image).map_err(failed("find", image))?;
    let stderr = Call::new(DEBUGFS, MAKING)
        .map_err(Ext4Error::Amend)?
        .in_folder(scratch)
        .args(["-w".into(), "-f".into(), "commands".into(), image.into_os_string()])
        .fed_by(&mut |stdin| drop(stdin))
        .map_err(Ext4Error::Amend)?;
    // It goes on after a command that failed and ends well; what it complains of is all there is to see.
    let complaints: Vec<&str> =
        stderr.lines().filter(|line| !line.starts_with("debugfs ")).collect();
    if complaints.is_empty() { Ok(()) } else { Err(Ext4Error::NotAll(complaints.join("; "))) }
}

/// A word of debugfs's command language: in quotes, a quote doubled.
fn quoted(path: &[u8]) -> Vec<u8> {
    let mut word = vec![b'"', b'/'];
    for &byte in path {
        word.push(byte);
        if byte == b'"' {
            word.push(byte);
        }
    }
    word.push(b'"');
    word
}

impl Ext4Error {
    pub(crate) fn is_no_space(&self) -> bool {
        match self {
            Self::Make(cause) | Self::Amend(cause) => cause.is_no_space(),
            Self::NotAll(text) => text.contains("No space left"),
            Self::Artifact(cause) => cause.is_no_space(),
        }
    }
}

/// Data of a file in bytes, without its holes. `None` for a file whose holes cannot be asked for.
pub(crate) fn data_bytes(file: &fs::File, length: u64) -> io::Result<u64> {
    use rustix::fs::{SeekFrom, seek};
    let (mut at, mut data) = (0, 0);
    while at < length {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            // Only a hole follows.
            Err(rustix::io::Errno::NXIO) => break,
            Err(errno) => return Err(errno.into()),
        };
        let end = seek(file, SeekFrom::Hole(start))?;
        data += (end - start).next_multiple_of(BLOCK);
        at = end;
    }
    Ok(data)
}
