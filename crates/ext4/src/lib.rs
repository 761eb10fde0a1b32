//! A writer of ext4 file systems. The tree of inodes is in memory; the data of files goes to the image file as it comes,
//! and [`Image::finish`] writes all else: folders, extended attributes, the inode tables, bitmaps, the journal and the
//! superblock. It starts no program, mounts nothing and needs no privilege.
//!
//! ```text
//!  create ──► add, link, unlink, append, ... ──► finish ──► a clean file system
//! ```
//!
//! The same calls with the same options make the same bytes. The image file is sparse: free blocks, blocks of zeros, unused
//! inodes and the journal's body are holes in it. Nothing else than [`Image`] may write to the file until it is finished.
//!
//! The format is described in the kernel's Documentation/filesystems/ext4; what is left open there is as e2fsck wants it.

mod acl;
mod attributes;
mod checksum;
mod data;
mod directory;
mod encoding;
mod error;
mod extents;
mod finish;
mod hash;
mod image;
mod inode;
mod journal;
mod layout;
mod output;
mod space;
mod superblock;
mod xattrs;

pub use attributes::{Attributes, InodeId, Kind, Options, Spare, Timestamp};
pub use error::Ext4Error;
pub use finish::Finished;
pub use image::Image;

/// Bytes of a block.
pub(crate) const BLOCK: usize = 4096;

pub(crate) const BLOCK_BYTES: u64 = 4096;

/// Blocks of a group: as many as one block has bits.
pub(crate) const GROUP_BLOCKS: u32 = 32768;

/// Bytes of an inode on disk.
pub(crate) const INODE_BYTES: usize = 256;

/// `EXT4_LINK_MAX`.
pub const MOST_LINKS: u32 = 65000;

/// A file has at most 2^32 - 1 blocks: the number of a block is 32 bits wide, and the last one means "none".
pub const MOST_FILE_BYTES: u64 = 0xffff_ffff * BLOCK_BYTES;

/// With its NUL it fits in a block.
pub const MOST_SYMLINK_BYTES: usize = BLOCK - 1;
