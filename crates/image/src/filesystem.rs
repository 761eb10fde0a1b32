//! Reads ext4 file systems without mounting them, and so without root: the tree, attributes and data of images and of disks
//! that guests wrote. What is on a disk is hostile: numbers are checked before they are used, and every loop is bounded.
//!
//! Reads what mke2fs(8) and Linux make unless asked for more: extents or block maps, blocks of 1 to 4 KiB, checksums (which
//! are not verified). Refuses by name what it does not know. The format: Documentation/filesystems/ext4.

mod blocks;
mod snapshot;
mod xattrs;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};

use banger_ext4::{Attributes, Kind, Timestamp};

pub(crate) use blocks::Run;
pub(crate) use snapshot::Snapshot;

#[derive(Debug, thiserror::Error)]
pub enum FileSystemError {
    #[error("it cannot be read")]
    Io(#[from] io::Error),
    #[error("it is not an ext4 file system")]
    NotExt4,
    #[error("it was not unmounted: what its journal holds is not in its place yet")]
    NotUnmounted,
    #[error("its file system has errors: e2fsck(8) can repair them")]
    Errors,
    #[error("its file system uses {0}, which cannot be read here")]
    Feature(String),
    #[error("its superblock is damaged: {0}")]
    Superblock(&'static str),
    #[error("its inode {inode} is damaged: {what}")]
    Inode { inode: u32, what: &'static str },
    #[error("its file system is damaged: folders and maps of files share blocks")]
    Circular,
    #[error("it is not a store of changes of device-mapper's snapshot target: {0}")]
    Snapshot(&'static str),
}

/// Where a file system lies.
pub(crate) trait Device: std::fmt::Debug + Send + Sync {
    /// Fills `buffer`.
    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
}

impl Device for File {
    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(buffer, offset)
    }
}

/// The inode of `/`.
pub(crate) const ROOT: u32 = 2;

/// Where the superblock stands, and how long it is.
const SUPERBLOCK: u64 = 1024;
const SUPERBLOCK_BYTES: usize = 1024;

/// With 256 MiB in each at most, and 256 blocks at least.
const MOST_GROUPS: u64 = 1 << 20;
const SMALLEST_GROUP: u64 = 256;

/// Some blocks are read more than once: this often, all together, and so many in any case.
const READINGS: u64 = 16;
const LEAST_READINGS: u64 = 1 << 22;

/// super.rst, `s_feature_incompat`.
const RECOVER: u32 = 0x4;
const META_BG: u32 = 0x10;
const BIT64: u32 = 0x80;
/// filetype, extents, 64bit, flex_bg, ea_inode, csum_seed, largedir; and the two above.
const KNOWN: u32 = 0x2 | RECOVER | META_BG | 0x40 | BIT64 | 0x200 | 0x400 | 0x2000 | 0x4000;
const NAMES: [(u32, &str); 8] = [
    (0x1, "compression"),
    (0x8, "a journal of its own (journal_dev)"),
    (0x100, "protection against double mounts (mmp)"),
    (0x1000, "data in directory entries (dirdata)"),
    (0x8000, "data in inodes (inline_data)"),
    (0x1_0000, "encryption (encrypt)"),
    (0x2_0000, "names without case (casefold)"),
    (0x10, "meta_bg"),
];

const EXTENTS: u32 = 0x8_0000;
const INLINE_DATA: u32 = 0x1000_0000;
const ENCRYPTED: u32 = 0x800;

/// A file system that can be read.
#[derive(Debug)]
pub(crate) struct FileSystem {
    device: Box<dyn Device>,
    pub(crate) block_bytes: u32,
    pub(crate) blocks: u64,
    pub(crate) inodes: u32,
    inode_bytes: usize,
    inodes_in_group: u32,
    /// Where the inode table of each group begins, in blocks.
    tables: Vec<u64>,
    /// How many more blocks of folders and of maps are read, so that no damage makes work without end.
    left: AtomicU64,
}

/// An inode, with all but its data.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub number: u32,
    pub kind: Kind,
    pub attributes: Attributes,
    pub links: u32,
    /// Bytes of its data.
    pub size: u64,
    /// `i_flags`, and `i_block`.
    flags: u32,
    map: [u8; 60],
}

impl FileSystem {
    /// # Errors
    /// When it is none, cannot be read, or is not clean.
    pub(crate) fn open(device: Box<dyn Device>) -> Result<Self, FileSystemError> {
        let mut block = [0; SUPERBLOCK_BYTES];
        match device.read(&mut block, SUPERBLOCK) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(FileSystemError::NotExt4);
            }
            read => read?,
        }
        if u16_at(&block, 0x38) != 0xef53 {
            return Err(FileSystemError::NotExt4);
        }
        let damaged = |what| Err(FileSystemError::Superblock(what));
        let incompatible = u32_at(&block, 0x60);
        if incompatible & RECOVER != 0 {
            return Err(FileSystemError::NotUnmounted);
        }
        // s_state: 2 means that errors were found.
        if u16_at(&block, 0x3a) & 2 != 0 {
            return Err(FileSystemError::Errors);
        }
        let unknown = incompatible & !KNOWN;
        if unknown != 0 {
            let name = NAMES.iter().find(|(bit, _)| unknown & bit != 0);
            let name = name.map_or_else(|| format!("{unknown:#x}"), |(_, name)| (*name).to_owned());
            return Err(FileSystemError::Feature(name));
        }
        let shift = u32_at(&block, 0x18);
        if shift > 2 {
            return Err(FileSystemError::Feature("blocks of more than 4 KiB".to_owned()));
        }
        let block_bytes = 1024 << shift;
        let is_wide = incompatible & BIT64 != 0;
        let high = if is_wide { u64::from(u32_at(&block, 0x150)) } else { 0 };
        let blocks = high << 32 | u64::from(u32_at(&block, 0x04));
        let first = u64::from(u32_at(&block, 0x14));
        let blocks_in_group = u64::from(u32_at(&block, 0x20));
        let inodes_in_group = u32_at(&block, 0x28);
        let inodes = u32_at(&block, 0x00);
        let inode_bytes = if u32_at(&block, 0x4c) == 0 { 128 } else { u16_at(&block, 0x58) };
        if blocks <= first || first > 1 || blocks > 1 << 48 {
            return damaged("its blocks cannot be counted");
        }
        if blocks_in_group < SMALLEST_GROUP || blocks_in_group > u64::from(block_bytes) * 8 {
            return damaged("its groups have an impossible size");
        }
        if !inode_bytes.is_power_of_two() || !(128..=4096).contains(&inode_bytes) {
            return damaged("its inodes have an impossible size");
        }
        let groups = (blocks - first).div_ceil(blocks_in_group);
        if groups > MOST_GROUPS {
            return Err(FileSystemError::Feature("more than a million block groups".to_owned()));
        }
        if inodes_in_group == 0
            || u64::from(inodes_in_group) > u64::from(block_bytes) * 8
            || u64::from(inodes) != groups * u64::from(inodes_in_group)
        {
            return damaged("its inodes cannot be counted");
        }
        let descriptor = if is_wide { u16_at(&block, 0xfe) } else { 32 };
        if !descriptor.is_power_of_two() || !(32..=1024).contains(&descriptor) {
            return damaged("its group descriptors have an impossible size");
        }
        let descriptors = Descriptors {
            first,
            blocks_in_group,
            bytes: descriptor.into(),
            first_meta: (incompatible & META_BG != 0).then(|| u32_at(&block, 0x104).into()),
            // sparse_super; without it every group has a copy.
            is_sparse: u32_at(&block, 0x64) & 1 != 0,
        };
        if descriptors.first_meta.is_some() && u32_at(&block, 0x5c) & 0x200 != 0 {
            return Err(FileSystemError::Feature("sparse_super2 with meta_bg".to_owned()));
        }
        let mut file_system = Self {
            device,
            block_bytes,
            blocks,
            inodes,
            inode_bytes: inode_bytes.into(),
            inodes_in_group,
            tables: Vec::new(),
            left: AtomicU64::new(blocks * READINGS + LEAST_READINGS),
        };
        file_system.tables = file_system.inode_tables(&descriptors, groups)?;
        Ok(file_system)
    }

    fn inode_tables(
        &self,
        descriptors: &Descriptors,
        groups: u64,
    ) -> Result<Vec<u64>, FileSystemError> {
        let in_block = u64::from(self.block_bytes) / descriptors.bytes;
        let size = usize::try_from(descriptors.bytes).expect("at most 1024");
        let mut tables = Vec::new();
        let mut block = Vec::new();
        for group in 0..groups {
            let index = usize::try_from(group % in_block).expect("a block is small");
            if index == 0 {
                block = self.block(descriptors.block_of(group, in_block))?;
            }
            let descriptor = &block[index * size..][..size];
            let high = if size >= 64 { u64::from(u32_at(descriptor, 0x28)) } else { 0 };
            tables.push(high << 32 | u64::from(u32_at(descriptor, 0x08)));
        }
        Ok(tables)
    }

    /// # Errors
    /// When it is free, damaged, or of a kind that cannot be read.
    pub(crate) fn node(&self, number: u32) -> Result<Node, FileSystemError> {
        let damaged = |what| FileSystemError::Inode { inode: number, what };
        if number == 0 || number > self.inodes {
            return Err(damaged("there is none of that number"));
        }
        let index = number - 1;
        let table = self.tables[(index / self.inodes_in_group) as usize];
        let at = u64::from(index % self.inodes_in_group) * self.inode_bytes as u64;
        let mut bytes = vec![0; self.inode_bytes];
        self.device.read(&mut bytes, self.offset(table)? + at)?;
        let (mode, flags) = (u16_at(&bytes, 0), u32_at(&bytes, 0x20));
        let links = u32::from(u16_at(&bytes, 0x1a));
        if links == 0 {
            return Err(damaged("it is free, and has a name"));
        }
        if flags & INLINE_DATA != 0 {
            return Err(FileSystemError::Feature("data in inodes (inline_data)".to_owned()));
        }
        if flags & ENCRYPTED != 0 {
            return Err(FileSystemError::Feature("encryption (encrypt)".to_owned()));
        }
        let map: [u8; 60] = bytes[0x28..0x64].try_into().expect("60 bytes");
        let mut size = u64::from(u32_at(&bytes, 0x04));
        let is_directory = mode & 0xf000 == 0x4000;
        if mode & 0xf000 == 0x8000 || is_directory {
            size |= u64::from(u32_at(&bytes, 0x6c)) << 32;
        }
        let pair =
            |low, high| u32::from(u16_at(&bytes, high)) << 16 | u32::from(u16_at(&bytes, low));
        let attributes = Attributes {
            mode: mode & 0o7777,
            uid: pair(0x02, 0x78),
            gid: pair(0x18, 0x7a),
            mtime: self.mtime(&bytes),
            xattrs: self.xattrs(number, &bytes)?,
        };
        let mut node = Node { number, kind: Kind::File, attributes, links, size, flags, map };
        node.kind = match mode & 0xf000 {
            0x1000 => Kind::Fifo,
            0x2000 => {
                let (major, minor) = device_number(&map);
                Kind::CharDevice { major, minor }
            }
            0x4000 => Kind::Directory,
            0x6000 => {
                let (major, minor) = device_number(&map);
                Kind::BlockDevice { major, minor }
            }
            0x8000 => Kind::File,
            0xa000 => Kind::Symlink(self.target(&node)?),
            0xc000 => Kind::Socket,
            _ => return Err(damaged("it is of no kind")),
        };
        Ok(node)
    }

    /// Seconds as 32 bits with a sign, 2 bits above them, 30 bits of nanoseconds; without these in small inodes.
    fn mtime(&self, bytes: &[u8]) -> Timestamp {
        let seconds = i64::from(u32_at(bytes, 0x10).cast_signed());
        let has_extra = self.inode_bytes > 128 && u16_at(bytes, 0x80) >= 12;
        let extra = if has_extra { u32_at(bytes, 0x88) } else { 0 };
        let nanoseconds = (extra >> 2).min(999_999_999);
        Timestamp { seconds: seconds + (i64::from(extra & 3) << 32), nanoseconds }
    }

    fn target(&self, node: &Node) -> Result<Vec<u8>, FileSystemError> {
        let damaged = |what| FileSystemError::Inode { inode: node.number, what };
        if node.size == 0 || node.size >= u64::from(self.block_bytes) {
            return Err(damaged("a symbolic link has an impossible length"));
        }
        let length = usize::try_from(node.size).expect("at most a block");
        let target = if length < 60 && node.flags & EXTENTS == 0 {
            node.map[..length].to_vec()
        } else {
            let runs = self.runs(node)?;
            let first = runs.first().filter(|run| run.logical == 0);
            let run = first.ok_or_else(|| damaged("a symbolic link points to nothing"))?;
            let mut block = self.block(run.block)?;
            block.truncate(length);
            block
        };
        if target.contains(&0) {
            return Err(damaged("there is a NUL in what a symbolic link points to"));
        }
        Ok(target)
    }

    /// What is in a folder, in the order of the bytes, without `.` and `..`.
    ///
    /// # Errors
    /// When it is damaged.
    pub(crate) fn names(&self, folder: &Node) -> Result<BTreeMap<Vec<u8>, u32>, FileSystemError> {
        let damaged = |what| FileSystemError::Inode { inode: folder.number, what };
        let mut names = BTreeMap::new();
        for run in self.runs(folder)? {
            for block in run.block..run.block + u64::from(run.count) {
                let block = self.counted_block(block)?;
                let mut rest = &block[..];
                // Index blocks and checksums are entries without an inode.
                while rest.len() >= 8 {
                    let (inode, length) = (u32_at(rest, 0), usize::from(u16_at(rest, 4)));
                    let name_bytes = usize::from(rest[6]);
                    if length < 8 || length > rest.len() || 8 + name_bytes > length {
                        return Err(damaged("an entry of a folder has an impossible length"));
                    }
                    let name = &rest[8..8 + name_bytes];
                    rest = &rest[length..];
                    if inode == 0 || name == b"." || name == b".." {
                        continue;
                    }
                    if name.is_empty() || name.iter().any(|&byte| byte == b'/' || byte == 0) {
                        return Err(damaged("a name is none"));
                    }
                    if names.insert(name.to_vec(), inode).is_some() {
                        return Err(damaged("a name is in a folder twice"));
                    }
                }
            }
        }
        Ok(names)
    }

    /// What a path from the root stands for, symbolic links in it followed; `None`: nothing.
    ///
    /// # Errors
    /// When something on the way is damaged.
    pub(crate) fn resolve(&self, path: &[u8]) -> Result<Option<Node>, FileSystemError> {
        /// As Linux: path_resolution(7).
        const MOST_LINKS: u32 = 40;
        let mut links = 0;
        let mut way = vec![self.node(ROOT)?];
        let mut parts: Vec<Vec<u8>> = split(path);
        while let Some(part) = parts.pop() {
            if part == b".." {
                if way.len() > 1 {
                    way.pop();
                }
                continue;
            }
            let here = way.last().expect("the root stays");
            if here.kind != Kind::Directory {
                return Ok(None);
            }
            let Some(&number) = self.names(here)?.get(&part) else { return Ok(None) };
            let node = self.node(number)?;
            if let Kind::Symlink(target) = &node.kind {
                links += 1;
                if links > MOST_LINKS {
                    return Ok(None);
                }
                if target.starts_with(b"/") {
                    way.truncate(1);
                }
                parts.extend(split(target));
            } else {
                way.push(node);
            }
        }
        Ok(way.pop())
    }

    /// A block of a folder or a map.
    fn counted_block(&self, number: u64) -> Result<Vec<u8>, FileSystemError> {
        let take = |left: u64| left.checked_sub(1);
        let taken = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        taken.map_err(|_| FileSystemError::Circular)?;
        self.block(number)
    }

    fn block(&self, number: u64) -> Result<Vec<u8>, FileSystemError> {
        let mut block = vec![0; self.block_bytes as usize];
        self.device.read(&mut block, self.offset(number)?)?;
        Ok(block)
    }

    /// Fills `buffer` from a block on; it is in the file system, as all that [`Self::runs`] gives.
    pub(crate) fn read(
        &self,
        buffer: &mut [u8],
        block: u64,
        offset: u64,
    ) -> Result<(), FileSystemError> {
        Ok(self.device.read(buffer, self.offset(block)? + offset)?)
    }

    fn offset(&self, block: u64) -> Result<u64, FileSystemError> {
        if block == 0 || block >= self.blocks {
            return Err(FileSystemError::Superblock("a block lies outside of the file system"));
        }
        Ok(block * u64::from(self.block_bytes))
    }
}

/// The parts of a path, the last first.
fn split(path: &[u8]) -> Vec<Vec<u8>> {
    let parts = path.split(|&byte| byte == b'/').filter(|part| !part.is_empty() && *part != b".");
    parts.rev().map(<[u8]>::to_vec).collect()
}

/// Where the descriptors of groups are (group_descr.rst).
#[derive(Debug)]
struct Descriptors {
    first: u64,
    blocks_in_group: u64,
    bytes: u64,
    /// From which block of descriptors on each stands in the groups that it describes.
    first_meta: Option<u64>,
    is_sparse: bool,
}

impl Descriptors {
    fn block_of(&self, group: u64, in_block: u64) -> u64 {
        let index = group / in_block;
        match self.first_meta {
            Some(first_meta) if index >= first_meta => {
                let group = index * in_block;
                self.first + group * self.blocks_in_group + u64::from(self.has_superblock(group))
            }
            _ => self.first + 1 + index,
        }
    }

    /// sparse_super: groups 0 and 1, and powers of 3, 5 and 7.
    fn has_superblock(&self, group: u64) -> bool {
        let is_power = |base: u64| {
            let mut power = base;
            while power < group {
                power *= base;
            }
            power == group
        };
        !self.is_sparse || group <= 1 || [3, 5, 7].into_iter().any(is_power)
    }
}

/// The old form in the first word, or the new one in the second (linux/kdev_t.h).
fn device_number(map: &[u8]) -> (u32, u32) {
    let (old, new) = (u32_at(map, 0), u32_at(map, 4));
    if old != 0 {
        (old >> 8 & 0xff, old & 0xff)
    } else {
        (new >> 8 & 0xfff, new & 0xff | new >> 12 & 0xf_ff00)
    }
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
