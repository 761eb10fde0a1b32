//! The words of the interface: what an inode is and has, and how a file system is to be made.

use std::collections::BTreeMap;

/// An inode of one image under construction. The id of an inode that is gone is never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InodeId(pub(crate) u32);

/// Time since 1970. What ext4 cannot hold becomes the nearest that it can: from 1901 to 2310.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    pub seconds: i64,
    /// Below 1,000,000,000; more is cut to that.
    pub nanoseconds: u32,
}

/// What every inode has, whatever its kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Permission bits with setuid, setgid and sticky: 0o7777.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    /// All times of the inode are this one.
    pub mtime: Timestamp,
    /// From the full name (`security.capability`) to the value as getxattr(2) gives it, also for access control lists.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    Directory,
    File,
    /// What it points to, 1 to 4095 bytes.
    Symlink(Vec<u8>),
    CharDevice {
        major: u32,
        minor: u32,
    },
    BlockDevice {
        major: u32,
        minor: u32,
    },
    Fifo,
    Socket,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    pub uuid: [u8; 16],
    /// What names are hashed with in the index of a large folder.
    pub hash_seed: [u8; 16],
    /// At most 16 bytes.
    pub label: String,
    /// One inode for so many bytes of the file system, also of what it grows by: 4096 or more.
    pub bytes_per_inode: u32,
    /// 0: no journal. Else 4 MiB or more.
    pub journal_bytes: u64,
    /// The file system is never made larger. It is a whole number of block groups of 128 MiB.
    pub largest_bytes: u64,
    /// Files, folders and all else, the root not counted. Further names of a file count as well.
    pub most_inodes: u32,
}

/// What a finished file system has free, at least.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spare {
    pub bytes: u64,
}
