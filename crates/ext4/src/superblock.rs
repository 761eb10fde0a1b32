//! The superblock and the group descriptors (Documentation/filesystems/ext4/super.rst and group_descr.rst).

use crate::attributes::Options;
use crate::checksum::crc32c;
use crate::directory::HASH_VERSION;
use crate::encoding::{high32, low16, low32, put, put16, put32};
use crate::extents::Root;
use crate::layout::{DESCRIPTOR, FIRST_INODE, Layout};
use crate::{GROUP_BLOCKS, INODE_BYTES, inode, journal};

/// In block 0 it stands behind the boot sector; in its copies at the start of the block.
pub(crate) const AT: usize = 1024;

pub(crate) const BYTES: usize = 1024;

const HAS_JOURNAL: u32 = 0x4;
const EXT_ATTR: u32 = 0x8;
const DIR_INDEX: u32 = 0x20;

const FILETYPE: u32 = 0x2;
const EXTENTS: u32 = 0x40;
const FLEX_BG: u32 = 0x200;

const SPARSE_SUPER: u32 = 0x1;
const LARGE_FILE: u32 = 0x2;
const HUGE_FILE: u32 = 0x8;
const DIR_NLINK: u32 = 0x20;
const EXTRA_ISIZE: u32 = 0x40;
const METADATA_CSUM: u32 = 0x400;

/// Groups whose tables the kernel keeps together when it makes new ones: 2 to this.
const FLEX: u8 = 4;

/// What mke2fs sets: `user_xattr` and `acl`.
const MOUNT_OPTIONS: u32 = 0x4 | 0x8;

/// Names are hashed as unsigned bytes.
const UNSIGNED_HASH: u32 = 0x2;

/// What is counted when all is placed.
#[derive(Debug)]
pub(crate) struct Counts {
    pub free_blocks: u64,
    pub free_inodes: u32,
}

/// The journal's inode in short, for when that is damaged.
#[derive(Debug, Clone, Copy)]
pub(crate) struct JournalCopy {
    pub root: Root,
    pub bytes: u64,
}

/// The copy in `group`.
pub(crate) fn superblock(
    options: &Options,
    layout: &Layout,
    counts: &Counts,
    journal: Option<JournalCopy>,
    group: u32,
) -> [u8; BYTES] {
    let mut to = [0; BYTES];
    put32(&mut to, 0x00, layout.groups * layout.inodes_in_group);
    put32(&mut to, 0x04, layout.groups * GROUP_BLOCKS);
    put32(&mut to, 0x0c, low32(counts.free_blocks));
    put32(&mut to, 0x10, counts.free_inodes);
    // Blocks and clusters are 2^(10 + 2) bytes.
    put32(&mut to, 0x18, 2);
    put32(&mut to, 0x1c, 2);
    put32(&mut to, 0x20, GROUP_BLOCKS);
    put32(&mut to, 0x24, GROUP_BLOCKS);
    put32(&mut to, 0x28, layout.inodes_in_group);
    // Never checked because of how often it was mounted.
    put16(&mut to, 0x36, 0xffff);
    put16(&mut to, 0x38, 0xef53);
    // Clean; go on when there are errors.
    put16(&mut to, 0x3a, 1);
    put16(&mut to, 0x3c, 1);
    // Revision 1: inodes may be larger than 128 bytes.
    put32(&mut to, 0x4c, 1);
    put32(&mut to, 0x54, FIRST_INODE);
    put16(&mut to, 0x58, u16::try_from(INODE_BYTES).expect("256 is below 2^16"));
    put16(&mut to, 0x5a, low16(group));
    let with_journal = if journal.is_some() { HAS_JOURNAL } else { 0 };
    put32(&mut to, 0x5c, with_journal | EXT_ATTR | DIR_INDEX);
    put32(&mut to, 0x60, FILETYPE | EXTENTS | FLEX_BG);
    let read_only = SPARSE_SUPER | LARGE_FILE | HUGE_FILE | DIR_NLINK | EXTRA_ISIZE | METADATA_CSUM;
    put32(&mut to, 0x64, read_only);
    put(&mut to, 0x68, &options.uuid);
    put(&mut to, 0x78, options.label.as_bytes());
    if let Some(journal) = journal {
        put32(&mut to, 0xe0, journal::INODE);
        to[0xfd] = 1;
        put(&mut to, 0x10c, &journal.root);
        put32(&mut to, 0x148, high32(journal.bytes));
        put32(&mut to, 0x14c, low32(journal.bytes));
    }
    put(&mut to, 0xec, &options.hash_seed);
    to[0xfc] = HASH_VERSION;
    put32(&mut to, 0x100, MOUNT_OPTIONS);
    put16(&mut to, 0x15c, inode::EXTRA);
    put16(&mut to, 0x15e, inode::EXTRA);
    put32(&mut to, 0x160, UNSIGNED_HASH);
    to[0x174] = FLEX;
    // crc32c.
    to[0x175] = 1;
    let checksum = crc32c(!0, &to[..0x3fc]);
    put32(&mut to, 0x3fc, checksum);
    to
}

/// The inode table needs no zeroing by the kernel; and nothing is in it.
const INODE_ZEROED: u16 = 0x4;
const INODE_UNINIT: u16 = 0x1;

/// What is in a group.
#[derive(Debug)]
pub(crate) struct Group {
    pub number: u32,
    pub free_blocks: u32,
    pub free_inodes: u32,
    pub directories: u32,
    /// Inodes at the end of the table that were never used.
    pub unused_inodes: u32,
    pub block_bitmap_checksum: u32,
    pub inode_bitmap_checksum: u32,
}

pub(crate) fn descriptor(group: &Group, layout: &Layout, seed: u32) -> [u8; DESCRIPTOR] {
    let mut to = [0; DESCRIPTOR];
    let index = group.number as usize;
    put32(&mut to, 0x00, layout.block_bitmaps[index]);
    put32(&mut to, 0x04, layout.inode_bitmaps[index]);
    put32(&mut to, 0x08, layout.inode_tables[index]);
    put16(&mut to, 0x0c, low16(group.free_blocks));
    put16(&mut to, 0x0e, low16(group.free_inodes));
    put16(&mut to, 0x10, low16(group.directories));
    let unused = if group.free_inodes == layout.inodes_in_group { INODE_UNINIT } else { 0 };
    put16(&mut to, 0x12, INODE_ZEROED | unused);
    put16(&mut to, 0x18, low16(group.block_bitmap_checksum));
    put16(&mut to, 0x1a, low16(group.inode_bitmap_checksum));
    put16(&mut to, 0x1c, low16(group.unused_inodes));
    let checksum = crc32c(crc32c(seed, &group.number.to_le_bytes()), &to);
    put16(&mut to, 0x1e, low16(checksum));
    to
}
