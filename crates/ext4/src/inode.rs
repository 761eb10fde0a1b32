//! An inode on disk (Documentation/filesystems/ext4/inodes.rst).

use crate::attributes::{Kind, Timestamp};
use crate::checksum::{crc32c, inode_seed};
use crate::encoding::{high16, high32, low16, low32, put, put16, put32};
use crate::error::Ext4Error;
use crate::extents::{self, Root};
use crate::image::{Content, Inode};
use crate::{INODE_BYTES, MOST_LINKS, xattrs};

/// Bytes of the fields behind the first 128.
pub(crate) const EXTRA: u16 = 32;

const EXTENTS: u32 = 0x8_0000;
const INDEX: u32 = 0x1000;

const FIFO: u16 = 0x1000;
const CHAR_DEVICE: u16 = 0x2000;
const DIRECTORY: u16 = 0x4000;
const BLOCK_DEVICE: u16 = 0x6000;
pub(crate) const FILE: u16 = 0x8000;
const SYMLINK: u16 = 0xa000;
const SOCKET: u16 = 0xc000;

/// What an inode has on disk, whoever made it.
#[derive(Debug)]
pub(crate) struct Record {
    /// With its type.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub time: Timestamp,
    pub links: u16,
    pub bytes: u64,
    /// Data, extents and attributes.
    pub blocks: u64,
    pub flags: u32,
    pub root: Root,
    pub xattr_block: u32,
}

impl Record {
    pub(crate) fn new(inode: &Inode) -> Self {
        let mut record = Self {
            mode: type_bits(&inode.kind) | (inode.attributes.mode & 0o7777),
            uid: inode.attributes.uid,
            gid: inode.attributes.gid,
            time: inode.attributes.mtime,
            // With more than MOST_LINKS a folder says 1: not counted (dir_nlink).
            links: if inode.links > MOST_LINKS { 1 } else { low16(inode.links) },
            bytes: 0,
            blocks: u64::from(inode.xattr_block != 0),
            flags: if inode.indexed { INDEX } else { 0 },
            root: [0; 60],
            xattr_block: inode.xattr_block,
        };
        match (&inode.content, &inode.kind) {
            (Content::Data { bytes, extents }, _) => {
                record.bytes = *bytes;
                record.flags |= EXTENTS;
                record.blocks += extents.iter().map(|extent| u64::from(extent.count)).sum::<u64>();
                match &inode.tree {
                    Some(tree) => {
                        record.blocks += u64::from(tree.blocks);
                        record.root = tree.root;
                    }
                    None => record.root = extents::flat(extents),
                }
            }
            (_, Kind::Symlink(target)) => {
                record.bytes = target.len() as u64;
                put(&mut record.root, 0, target);
            }
            (_, Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor }) => {
                record.root[..8].copy_from_slice(&device(*major, *minor));
            }
            _ => {}
        }
        record
    }

    pub(crate) fn extents(mut self, root: Root, blocks: u64) -> Self {
        (self.flags, self.root, self.blocks) = (EXTENTS, root, blocks);
        self
    }

    fn write(&self) -> [u8; INODE_BYTES] {
        let mut to = [0; INODE_BYTES];
        let (seconds, extra) = time(self.time);
        put16(&mut to, 0x00, self.mode);
        put16(&mut to, 0x02, low16(self.uid));
        put32(&mut to, 0x04, low32(self.bytes));
        put16(&mut to, 0x18, low16(self.gid));
        put16(&mut to, 0x1a, self.links);
        // In sectors of 512 bytes.
        let sectors = self.blocks * 8;
        put32(&mut to, 0x1c, low32(sectors));
        put32(&mut to, 0x20, self.flags);
        put(&mut to, 0x28, &self.root);
        put32(&mut to, 0x68, self.xattr_block);
        put32(&mut to, 0x6c, high32(self.bytes));
        put16(&mut to, 0x74, low16(high32(sectors)));
        put16(&mut to, 0x78, high16(self.uid));
        put16(&mut to, 0x7a, high16(self.gid));
        put16(&mut to, 0x80, EXTRA);
        // Access, change, modification, creation; and where the rest of each is.
        for (at, rest) in [(0x08, 0x8c), (0x0c, 0x84), (0x10, 0x88), (0x90, 0x94)] {
            put32(&mut to, at, seconds);
            put32(&mut to, rest, extra);
        }
        to
    }

    /// With its checksum, as inode `number`. `attributes`: what else is in it.
    pub(crate) fn finish(
        &self,
        attributes: &xattrs::Placed,
        number: u32,
        file_system_seed: u32,
    ) -> [u8; INODE_BYTES] {
        let mut to = self.write();
        attributes.write_inode(&mut to);
        let checksum = crc32c(inode_seed(file_system_seed, number), &to);
        put16(&mut to, 0x7c, low16(checksum));
        put16(&mut to, 0x82, high16(checksum));
        to
    }
}

/// An inode of the tree as inode `number`, when all its blocks are known.
pub(crate) fn finish(
    inode: &Inode,
    number: u32,
    file_system_seed: u32,
) -> Result<[u8; INODE_BYTES], Ext4Error> {
    let attributes = xattrs::place(&inode.attributes.xattrs)?;
    Ok(Record::new(inode).finish(&attributes, number, file_system_seed))
}

/// The type in `i_mode`.
pub(crate) fn type_bits(kind: &Kind) -> u16 {
    match kind {
        Kind::Directory => DIRECTORY,
        Kind::File => FILE,
        Kind::Symlink(_) => SYMLINK,
        Kind::CharDevice { .. } => CHAR_DEVICE,
        Kind::BlockDevice { .. } => BLOCK_DEVICE,
        Kind::Fifo => FIFO,
        Kind::Socket => SOCKET,
    }
}

/// The first two words of `i_block`: the old 16 bits in the first, or the new 32 bits in the second.
fn device(major: u32, minor: u32) -> [u8; 8] {
    let mut words = [0; 8];
    if major < 256 && minor < 256 {
        put32(&mut words, 0, major << 8 | minor);
    } else {
        put32(&mut words, 4, (minor & 0xff) | major << 8 | (minor & !0xff) << 12);
    }
    words
}

/// 32 bits of seconds, and: 2 bits that go on above them, then 30 bits of nanoseconds. The highest two bits are not used up to
/// the end: e2fsck takes the last 68 years for a mistake of old kernels.
fn time(time: Timestamp) -> (u32, u32) {
    const FIRST: i64 = -(1 << 31);
    const LAST: i64 = (3 << 32) - (1 << 31) - 1;
    let seconds = time.seconds.clamp(FIRST, LAST);
    let nanoseconds = if seconds == time.seconds { time.nanoseconds.min(999_999_999) } else { 0 };
    // From 1901 on, never below 0: which 2^32 seconds, counted from there.
    let epoch = low32((seconds - FIRST).unsigned_abs() >> 32);
    (low32(seconds.cast_unsigned()), epoch | nanoseconds << 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_and_after_2038_have_their_epoch() {
        let of = |seconds, nanoseconds| time(Timestamp { seconds, nanoseconds });
        // The table in inodes.rst.
        assert_eq!(of(-1, 5), (0xffff_ffff, 5 << 2));
        assert_eq!(of(-0x8000_0000, 0), (0x8000_0000, 0));
        assert_eq!(of(0x7fff_ffff, 0), (0x7fff_ffff, 0));
        assert_eq!(of(0x8000_0000, 0), (0x8000_0000, 1));
        assert_eq!(of(0x1_7fff_ffff, 0), (0x7fff_ffff, 1));
        assert_eq!(of(0x1_8000_0000, 0), (0x8000_0000, 2));
        assert_eq!(of(i64::MAX, 7), (0x7fff_ffff, 2));
        assert_eq!(of(i64::MIN, 7), (0x8000_0000, 0));
        assert_eq!(of(0, u32::MAX), (0, 999_999_999 << 2));
    }

    #[test]
    fn a_device_is_in_the_old_form_if_that_can_hold_it() {
        assert_eq!(device(1, 3), [3, 1, 0, 0, 0, 0, 0, 0]);
        // As stat(1) shows a device of 259:65539 of mke2fs -d.
        assert_eq!(device(0x103, 0x1_0003), [0, 0, 0, 0, 0x03, 0x03, 0x01, 0x10]);
    }
}
