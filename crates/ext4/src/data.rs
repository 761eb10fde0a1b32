//! Data of files: to the image file in the order it comes, in blocks that are taken as they are needed.

use crate::attributes::InodeId;
use crate::error::{Ext4Error, failed};
use crate::image::{Content, Image, index};
use crate::{BLOCK, BLOCK_BYTES, GROUP_BLOCKS, MOST_FILE_BYTES};

/// Blocks in a row, of a file and on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    /// The first in the file.
    pub logical: u32,
    /// The first on disk.
    pub block: u32,
    /// 1 to 32768.
    pub count: u32,
    /// The blocks were never written before they were this file's.
    pub fresh: bool,
}

const LONGEST: u32 = GROUP_BLOCKS;

/// Puts blocks at the end of a file's.
pub(crate) fn extend(extents: &mut Vec<Extent>, next: Extent) {
    if let Some(last) = extents.last_mut()
        && last.logical + last.count == next.logical
        && last.block + last.count == next.block
        && last.count + next.count <= LONGEST
        && last.fresh == next.fresh
    {
        last.count += next.count;
    } else {
        extents.push(next);
    }
}

impl Image {
    /// Adds data at the end of a file.
    ///
    /// # Errors
    /// It is no file, it or the file system would become too large, or the image file cannot be written.
    pub fn append(&mut self, file: InodeId, data: &[u8]) -> Result<(), Ext4Error> {
        let too_large = self.too_large();
        let inode = self.inodes[index(file)].as_deref_mut().expect("the inode was not removed");
        let Content::Data { bytes, extents } = &mut inode.content else {
            return Err(Ext4Error::NotAFile);
        };
        check_size(bytes.saturating_add(data.len() as u64))?;
        let mut data = data;
        while !data.is_empty() {
            let logical = crate::encoding::low32(*bytes / BLOCK_BYTES);
            let inside = usize::try_from(*bytes % BLOCK_BYTES).unwrap_or(0);
            let last = extents.last().copied();
            let (at, count, fresh) = match last {
                // Into the block that it ends in.
                Some(last) if inside > 0 && last.logical + last.count > logical => {
                    let block = last.block + (logical - last.logical);
                    (block, data.len().min(BLOCK - inside), last.fresh)
                }
                _ => {
                    let goal = last.map_or(0, |last| last.block + last.count);
                    let want = (inside + data.len()).div_ceil(BLOCK);
                    let want = u32::try_from(want).unwrap_or(u32::MAX);
                    let Some(run) = self.space.allocate(goal, want) else {
                        return Err(too_large);
                    };
                    let (block, fresh) = (run.start, run.fresh);
                    extend(extents, Extent { logical, block, count: run.count, fresh });
                    if inside > 0 {
                        // Behind a hole that ends in this block.
                        let zeros = [0; BLOCK];
                        self.output
                            .write(u64::from(block) * BLOCK_BYTES, &zeros[..inside], fresh)
                            .map_err(failed("write data"))?;
                    }
                    (block, data.len().min(run.count as usize * BLOCK - inside), fresh)
                }
            };
            self.output
                .write(u64::from(at) * BLOCK_BYTES + inside as u64, &data[..count], fresh)
                .map_err(failed("write data"))?;
            *bytes += count as u64;
            data = &data[count..];
        }
        Ok(())
    }

    /// Leaves a hole from the end of a file to `offset`, where the next data goes.
    ///
    /// # Errors
    /// It is no file, is longer already, or would become too large.
    pub fn seek(&mut self, file: InodeId, offset: u64) -> Result<(), Ext4Error> {
        check_size(offset)?;
        let Content::Data { bytes, .. } = &mut self.inode_mut(file).content else {
            return Err(Ext4Error::NotAFile);
        };
        if offset < *bytes {
            return Err(Ext4Error::Backwards { from: *bytes, to: offset });
        }
        *bytes = offset;
        Ok(())
    }

    /// Ends a file with a hole, so that it has `size` bytes.
    ///
    /// # Errors
    /// As [`Image::seek`].
    pub fn set_size(&mut self, file: InodeId, size: u64) -> Result<(), Ext4Error> {
        self.seek(file, size)
    }

    /// The first `limit` bytes of a file, or all if it has fewer. Writes out what was gathered: not for many files.
    ///
    /// # Errors
    /// It is no file, or the image file cannot be read.
    pub fn read(&mut self, file: InodeId, limit: u64) -> Result<Vec<u8>, Ext4Error> {
        let inode = self.inodes[index(file)].as_deref().expect("the inode was not removed");
        let Content::Data { bytes, extents } = &inode.content else {
            return Err(Ext4Error::NotAFile);
        };
        let too_large = Ext4Error::FileTooLarge { bytes: *bytes };
        let Ok(size) = usize::try_from(limit.min(*bytes)) else {
            return Err(too_large);
        };
        let mut content = vec![0; size];
        for extent in extents {
            let start = u64::from(extent.logical) * BLOCK_BYTES;
            let Some(wanted) = (size as u64).checked_sub(start).filter(|&wanted| wanted > 0) else {
                break;
            };
            let count = wanted.min(u64::from(extent.count) * BLOCK_BYTES);
            // Both are below `size`.
            let range =
                usize::try_from(start).unwrap_or(0)..usize::try_from(start + count).unwrap_or(0);
            self.output
                .read(u64::from(extent.block) * BLOCK_BYTES, &mut content[range])
                .map_err(failed("read data"))?;
        }
        Ok(content)
    }
}

fn check_size(bytes: u64) -> Result<(), Ext4Error> {
    if bytes > MOST_FILE_BYTES { Err(Ext4Error::FileTooLarge { bytes }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_blocks_in_a_row_and_of_one_past_are_one_extent() {
        let first = Extent { logical: 0, block: 100, count: 8, fresh: true };
        let next = Extent { logical: 8, block: 108, count: 2, fresh: true };
        let after = |next| {
            let mut extents = vec![first];
            extend(&mut extents, next);
            extents.len()
        };
        assert_eq!(after(next), 1);
        assert_eq!(after(Extent { logical: 9, ..next }), 2);
        assert_eq!(after(Extent { block: 109, ..next }), 2);
        assert_eq!(after(Extent { fresh: false, ..next }), 2);
        assert_eq!(after(Extent { count: LONGEST - 8, ..next }), 1);
        assert_eq!(after(Extent { count: LONGEST - 7, ..next }), 2);
    }
}
