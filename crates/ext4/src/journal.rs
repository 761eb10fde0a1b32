//! The superblock of an empty journal (Documentation/filesystems/ext4/journal.rst). The rest of the journal is a hole.

use crate::BLOCK;
use crate::encoding::put;

/// The inode of the journal.
pub(crate) const INODE: u32 = 8;

/// jbd2 wants at least so many.
pub(crate) const FEWEST_BLOCKS: u32 = 1024;

pub(crate) fn superblock(blocks: u32, uuid: &[u8; 16]) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put32 = |at, value: u32| put(&mut block, at, &value.to_be_bytes());
    put32(0x00, 0xc03b_3998);
    // A superblock of version 2.
    put32(0x04, 4);
    put32(0x0c, 4096);
    put32(0x10, blocks);
    // The log begins in block 1, with transaction 1. It starts at 0: nothing is in it.
    put32(0x14, 1);
    put32(0x18, 1);
    // One file system uses it.
    put32(0x40, 1);
    put(&mut block, 0x30, uuid);
    block
}
