//! The end: folders, extended attributes and extent trees take their blocks, then the size is decided, then the tables are
//! written. The superblock is last; until then no kernel takes the file for a file system.

use std::fs::File;
use std::ops::Range;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use crate::attributes::{Attributes, InodeId, Kind, Spare, Timestamp};
use crate::checksum::{crc32c, file_system_seed, inode_seed};
use crate::data::{Extent, extend};
use crate::directory::{self, Entry, Owner, Written};
use crate::encoding::put;
use crate::error::{Ext4Error, failed};
use crate::extents::{self, Tree};
use crate::image::{Content, Image, Names, ROOT, index};
use crate::inode::{self, Record};
use crate::layout::{DESCRIPTOR, FIRST_INODE, INODES_IN_BLOCK, Layout, layout};
use crate::space::has_superblock;
use crate::superblock::{self, Counts, Group, JournalCopy};
use crate::{BLOCK, BLOCK_BYTES, GROUP_BLOCKS, INODE_BYTES, hash, journal, xattrs};

const ROOT_INODE: u32 = 2;

/// Where e2fsck puts what has lost its name. mke2fs gives it four blocks, so that nothing must be allocated for that.
const LOST_AND_FOUND: &[u8] = b"lost+found";
const LOST_AND_FOUND_BLOCKS: u32 = 4;

/// A file system that is whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Finished {
    /// Also the length of the file.
    pub file_system_bytes: u64,
    pub free_bytes: u64,
    /// In use, those of the file system itself included.
    pub inodes: u32,
    pub free_inodes: u32,
}

impl Image {
    /// Writes all that is not written yet and gives the file back. It is not synced.
    ///
    /// # Errors
    /// The file system would be too large, a folder has too many names, or the image file cannot be written.
    pub fn finish(mut self, spare: Spare) -> Result<(File, Finished), Ext4Error> {
        let empty = self.add_lost_and_found()?;
        let numbers = Numbers::new(&self);
        let seed = file_system_seed(&self.options.uuid);
        for position in 0..self.inodes.len() {
            if let Some(number) = numbers.by_id[position] {
                self.place_blocks(position, number.get(), &numbers, seed, empty)?;
            }
        }
        let layout = layout(&self.space, &self.options, numbers.in_use(), spare)?;
        self.space.advance(layout.frontier, layout.used_blocks);
        for run in &layout.skipped {
            self.space.add_free(run.start, run.count);
        }
        self.punch_free_blocks()?;
        let finished = self.write_tables(&layout, &numbers, seed)?;
        let file = self.output.into_file().map_err(failed("write the end"))?;
        file.set_len(finished.file_system_bytes).map_err(failed("set the size"))?;
        Ok((file, finished))
    }

    /// Its id if it was made now: it is empty, and has more blocks than it needs.
    fn add_lost_and_found(&mut self) -> Result<Option<InodeId>, Ext4Error> {
        if self.lookup(ROOT, LOST_AND_FOUND).is_some() {
            return Ok(None);
        }
        // It is none of those that are counted for the caller.
        self.options.most_inodes = self.options.most_inodes.saturating_add(1);
        let mtime = self.inode(ROOT).attributes.mtime;
        let attributes = Attributes { mode: 0o700, mtime, ..Attributes::default() };
        self.add(ROOT, LOST_AND_FOUND, Kind::Directory, attributes).map(Some)
    }

    /// Gives an inode the blocks it has besides a file's data, and writes them.
    fn place_blocks(
        &mut self,
        position: usize,
        number: u32,
        numbers: &Numbers,
        seed: u32,
        lost_and_found: Option<InodeId>,
    ) -> Result<(), Ext4Error> {
        let own_seed = inode_seed(seed, number);
        let inode = self.inodes[position].as_deref_mut().expect("an inode with a number is there");
        match (&mut inode.content, &inode.kind) {
            (Content::Names { parent, names }, _) => {
                let (parent, names) = (numbers.of(*parent), std::mem::take(names));
                let hash_seed = hash::seed(&self.options.hash_seed);
                let owner = Owner { inode: number, parent, seed: own_seed, hash_seed };
                let (mut extents, indexed) = self.write_folder(owner, &names, numbers)?;
                if lost_and_found.map(index) == Some(position) {
                    for logical in 1..LOST_AND_FOUND_BLOCKS {
                        let empty = directory::empty_block(own_seed);
                        self.write_next(&mut extents, logical, &empty, "write a folder")?;
                    }
                }
                let blocks: u64 = extents.iter().map(|extent| u64::from(extent.count)).sum();
                let inode = self.inode_at(position);
                inode.content = Content::Data { bytes: blocks * BLOCK_BYTES, extents };
                inode.indexed = indexed;
            }
            // With its NUL it fits in the inode's 60 bytes, or has a block.
            (Content::None, Kind::Symlink(target)) if target.len() >= 60 => {
                let mut block = [0; BLOCK];
                put(&mut block, 0, target);
                let bytes = target.len() as u64;
                let mut extents = Vec::new();
                self.write_next(&mut extents, 0, &block, "write a symbolic link")?;
                self.inode_at(position).content = Content::Data { bytes, extents };
            }
            _ => {}
        }
        self.place_extents(position, own_seed)?;
        let attributes = xattrs::place(&self.inode_at(position).attributes.xattrs)?;
        if attributes.needs_block() {
            let block = self.take_block()?;
            self.write_block(block, &attributes.block(block.0, seed), "write extended attributes")?;
            self.inode_at(position).xattr_block = block.0;
        }
        Ok(())
    }

    fn inode_at(&mut self, position: usize) -> &mut crate::image::Inode {
        self.inodes[position].as_deref_mut().expect("an inode with a number is there")
    }

    /// Gives where it is, and whether it has an index.
    fn write_folder(
        &mut self,
        owner: Owner,
        names: &Names,
        numbers: &Numbers,
    ) -> Result<(Vec<Extent>, bool), Ext4Error> {
        let entries: Vec<Entry<'_>> = names
            .iter()
            .map(|(name, &id)| Entry {
                name,
                inode: numbers.of(id),
                file_type: directory::file_type(&self.inode(id).kind),
            })
            .collect();
        let mut extents = Vec::new();
        let mut logical = 0;
        let written = directory::blocks(owner, &entries, |block| {
            self.write_next(&mut extents, logical, block, "write a folder")?;
            logical += 1;
            Ok::<_, Ext4Error>(())
        })?;
        match written {
            Written::Plain => Ok((extents, false)),
            Written::Indexed => Ok((extents, true)),
            Written::TooLarge => Err(Ext4Error::DirectoryTooLarge { names: names.len() }),
        }
    }

    /// A tree if the inode has no room for its extents.
    fn place_extents(&mut self, position: usize, own_seed: u32) -> Result<(), Ext4Error> {
        let Content::Data { extents, .. } = &mut self.inode_at(position).content else {
            return Ok(());
        };
        if extents.len() <= extents::IN_INODE {
            return Ok(());
        }
        let taken = std::mem::take(extents);
        let tree = extents::tree(&taken, own_seed, |node| {
            let block = self.take_block()?;
            self.write_block(block, node, "write where a file is")?;
            Ok::<_, Ext4Error>(block.0)
        })?;
        let inode = self.inode_at(position);
        inode.tree = Some(Box::new(tree));
        if let Content::Data { extents, .. } = &mut inode.content {
            *extents = taken;
        }
        Ok(())
    }

    /// A block, and whether it was never written.
    fn take_block(&mut self) -> Result<(u32, bool), Ext4Error> {
        let run = self.space.allocate(0, 1).ok_or_else(|| self.too_large())?;
        Ok((run.start, run.fresh))
    }

    fn write_block(
        &mut self,
        (block, fresh): (u32, bool),
        bytes: &[u8; BLOCK],
        act: &'static str,
    ) -> Result<(), Ext4Error> {
        self.output.write(u64::from(block) * BLOCK_BYTES, bytes, fresh).map_err(failed(act))
    }

    /// Writes the block `logical` of what has these `extents` so far.
    fn write_next(
        &mut self,
        extents: &mut Vec<Extent>,
        logical: u32,
        bytes: &[u8; BLOCK],
        act: &'static str,
    ) -> Result<(), Ext4Error> {
        let (block, fresh) = self.take_block()?;
        extend(extents, Extent { logical, block, count: 1, fresh });
        self.write_block((block, fresh), bytes, act)
    }

    /// What removed files leave is no longer in the image, and takes none of the host's space.
    fn punch_free_blocks(&mut self) -> Result<(), Ext4Error> {
        self.output.flush().map_err(failed("write data"))?;
        for (start, count) in self.space.free_runs() {
            let punched = fallocate(
                self.output.file(),
                FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
                u64::from(start) * BLOCK_BYTES,
                u64::from(count) * BLOCK_BYTES,
            );
            match punched {
                Ok(()) => {}
                // The host's file system has no such thing: free blocks may hold anything.
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(()),
                Err(errno) => return Err(failed("free what removed files had")(errno.into())),
            }
        }
        Ok(())
    }

    fn write_tables(
        &mut self,
        layout: &Layout,
        numbers: &Numbers,
        seed: u32,
    ) -> Result<Finished, Ext4Error> {
        let journal = self.journal(layout, seed)?;
        self.write_inodes(layout, numbers, journal.as_ref(), seed)?;
        let mut counts = Counts {
            free_blocks: 0,
            free_inodes: layout.groups * layout.inodes_in_group - numbers.in_use(),
        };
        let directories = self.directories(layout, numbers);
        let mut free = Free::new(self, layout);
        let mut descriptors = vec![0; layout.descriptor_blocks as usize * BLOCK];
        let in_use = |group: u32| {
            let before = group * layout.inodes_in_group;
            numbers.in_use().saturating_sub(before).min(layout.inodes_in_group)
        };
        for number in 0..layout.groups {
            let bitmap = free.bitmap(number);
            let free_blocks: u32 = bitmap.iter().map(|byte| byte.count_zeros()).sum();
            self.write_table_block(layout.block_bitmaps[number as usize], &bitmap)?;
            let used = in_use(number);
            // Also of a group without inodes: who goes by a copy of the superblock does not trust flags.
            let inode_bitmap = inode_bitmap(used, layout.inodes_in_group);
            self.write_table_block(layout.inode_bitmaps[number as usize], &inode_bitmap)?;
            let inode_bitmap = &inode_bitmap[..layout.inodes_in_group as usize / 8];
            let group = Group {
                number,
                free_blocks,
                free_inodes: layout.inodes_in_group - used,
                directories: directories[number as usize],
                unused_inodes: layout.inodes_in_group - used,
                block_bitmap_checksum: crc32c(seed, &bitmap),
                inode_bitmap_checksum: crc32c(seed, inode_bitmap),
            };
            counts.free_blocks += u64::from(free_blocks);
            let at = number as usize * DESCRIPTOR;
            put(&mut descriptors, at, &superblock::descriptor(&group, layout, seed));
        }
        let copy = journal
            .map(|(root, blocks, _)| JournalCopy { root, bytes: u64::from(blocks) * BLOCK_BYTES });
        // The first, which counts, is written last.
        for group in (0..layout.groups).rev().filter(|&group| has_superblock(group)) {
            let record = superblock::superblock(&self.options, layout, &counts, copy, group);
            let mut bytes = vec![0; BLOCK];
            put(&mut bytes, if group == 0 { superblock::AT } else { 0 }, &record);
            bytes.extend(&descriptors);
            self.output
                .write(u64::from(group) * u64::from(GROUP_BLOCKS) * BLOCK_BYTES, &bytes, true)
                .map_err(failed("write the superblock"))?;
        }
        Ok(Finished {
            file_system_bytes: u64::from(layout.groups) * u64::from(GROUP_BLOCKS) * BLOCK_BYTES,
            free_bytes: counts.free_blocks * BLOCK_BYTES,
            inodes: numbers.in_use(),
            free_inodes: counts.free_inodes,
        })
    }

    /// Tables are in blocks that were never written: what is all zeros stays a hole.
    fn write_table_block(&mut self, block: u32, bytes: &[u8; BLOCK]) -> Result<(), Ext4Error> {
        self.write_block((block, true), bytes, "write the tables")
    }

    /// Writes the journal's own superblock. Gives the journal's extents in its inode, its blocks, and those of its extents.
    fn journal(
        &mut self,
        layout: &Layout,
        seed: u32,
    ) -> Result<Option<(extents::Root, u32, u32)>, Ext4Error> {
        let Some(first) = layout.journal.first() else {
            return Ok(None);
        };
        let extents = &layout.journal;
        let blocks = extents.iter().map(|extent| extent.count).sum();
        let record = journal::superblock(blocks, &self.options.uuid);
        self.write_block((first.block, true), &record, "write the journal")?;
        if extents.len() <= extents::IN_INODE {
            return Ok(Some((extents::flat(extents), blocks, 0)));
        }
        let mut places = layout.journal_tree.iter().copied();
        let tree: Tree = extents::tree(extents, inode_seed(seed, journal::INODE), |node| {
            let block = places.next().ok_or_else(|| self.too_large())?;
            self.write_block((block, true), node, "write the journal")?;
            Ok::<_, Ext4Error>(block)
        })?;
        Ok(Some((tree.root, blocks, tree.blocks)))
    }

    fn write_inodes(
        &mut self,
        layout: &Layout,
        numbers: &Numbers,
        journal: Option<&(extents::Root, u32, u32)>,
        seed: u32,
    ) -> Result<(), Ext4Error> {
        let mut block = [0; BLOCK];
        for number in 1..=numbers.in_use() {
            let place = (number - 1) % INODES_IN_BLOCK;
            let bytes = if let Some(id) = numbers.id(number) {
                Some(inode::finish(self.inode(id), number, seed)?)
            } else if number == journal::INODE
                && let Some(&(root, blocks, tree_blocks)) = journal
            {
                let record = journal_inode(self.inode(ROOT).attributes.mtime, blocks)
                    .extents(root, u64::from(blocks) + u64::from(tree_blocks));
                Some(record.finish(&xattrs::Placed::default(), number, seed))
            } else {
                None
            };
            if let Some(bytes) = bytes {
                put(&mut block, place as usize * INODE_BYTES, &bytes);
            }
            if place + 1 == INODES_IN_BLOCK || number == numbers.in_use() {
                let group = (number - 1) / layout.inodes_in_group;
                let inside = (number - 1) % layout.inodes_in_group / INODES_IN_BLOCK;
                self.write_table_block(layout.inode_tables[group as usize] + inside, &block)?;
                block = [0; BLOCK];
            }
        }
        Ok(())
    }

    /// How many folders have their inode in each group.
    fn directories(&self, layout: &Layout, numbers: &Numbers) -> Vec<u32> {
        let mut directories = vec![0; layout.groups as usize];
        for (number, id) in (1..).zip(&numbers.by_number) {
            if id.is_some_and(|id| self.inode(id).kind == Kind::Directory) {
                let number: u32 = number;
                directories[((number - 1) / layout.inodes_in_group) as usize] += 1;
            }
        }
        directories
    }
}

fn journal_inode(time: Timestamp, blocks: u32) -> Record {
    Record {
        mode: inode::FILE | 0o600,
        uid: 0,
        gid: 0,
        time,
        links: 1,
        bytes: u64::from(blocks) * BLOCK_BYTES,
        blocks: 0,
        flags: 0,
        root: [0; 60],
        xattr_block: 0,
    }
}

/// One bit for each inode, those behind the group's last one taken.
fn inode_bitmap(used: u32, in_group: u32) -> [u8; BLOCK] {
    let mut bitmap = [0; BLOCK];
    set_bits(&mut bitmap, 0..used);
    set_bits(&mut bitmap, in_group..GROUP_BLOCKS);
    bitmap
}

fn set_bits(bitmap: &mut [u8; BLOCK], bits: Range<u32>) {
    change_bits(bitmap, bits, |byte, mask| *byte |= mask);
}

fn clear_bits(bitmap: &mut [u8; BLOCK], bits: Range<u32>) {
    change_bits(bitmap, bits, |byte, mask| *byte &= !mask);
}

fn change_bits(bitmap: &mut [u8; BLOCK], bits: Range<u32>, change: fn(&mut u8, u8)) {
    let mut bit = bits.start;
    while bit < bits.end {
        let byte = &mut bitmap[(bit / 8) as usize];
        if bit.is_multiple_of(8) && bits.end - bit >= 8 {
            change(byte, 0xff);
            bit += 8;
        } else {
            change(byte, 1 << (bit % 8));
            bit += 1;
        }
    }
}

/// Runs of free blocks, group by group.
struct Free {
    runs: std::iter::Peekable<std::vec::IntoIter<(u32, u32)>>,
    frontier: u32,
    copy_blocks: u32,
    reserve: u32,
}

impl Free {
    fn new(image: &Image, layout: &Layout) -> Self {
        let runs: Vec<(u32, u32)> = image.space.free_runs().collect();
        Self {
            runs: runs.into_iter().peekable(),
            frontier: layout.frontier.next(),
            copy_blocks: 1 + layout.descriptor_blocks,
            reserve: layout.frontier.reserve(),
        }
    }

    /// The bitmap of the next group: called in the order of groups.
    fn bitmap(&mut self, group: u32) -> [u8; BLOCK] {
        let mut bitmap = [0; BLOCK];
        let start = group * GROUP_BLOCKS;
        set_bits(&mut bitmap, 0..self.frontier.saturating_sub(start).min(GROUP_BLOCKS));
        // A run may go on in the next group.
        while let Some(&(first, count)) = self.runs.peek()
            && first < start + GROUP_BLOCKS
        {
            let end = (first + count - start).min(GROUP_BLOCKS);
            clear_bits(&mut bitmap, first.saturating_sub(start)..end);
            if first + count > start + GROUP_BLOCKS {
                break;
            }
            self.runs.next();
        }
        if has_superblock(group) {
            // The frontier left this out; of the room for descriptors there is less in use than there could be.
            clear_bits(&mut bitmap, 0..self.reserve);
            set_bits(&mut bitmap, 0..self.copy_blocks);
        }
        bitmap
    }
}

/// The numbers of inodes on disk: the root is 2, and from 11 on there are no gaps.
struct Numbers {
    by_id: Vec<Option<std::num::NonZeroU32>>,
    /// That of number 1 first.
    by_number: Vec<Option<InodeId>>,
}

impl Numbers {
    fn new(image: &Image) -> Self {
        let mut numbers = Self {
            by_id: vec![None; image.inodes.len()],
            by_number: vec![None; FIRST_INODE as usize - 1],
        };
        numbers.by_number[ROOT_INODE as usize - 1] = Some(ROOT);
        let first = image.lookup(ROOT, LOST_AND_FOUND);
        numbers.by_number.extend(first.map(Some));
        let ids = (0..).zip(&image.inodes).skip(1).filter(|(_, inode)| inode.is_some());
        let ids = ids.map(|(id, _)| InodeId(id)).filter(|&id| Some(id) != first);
        numbers.by_number.extend(ids.map(Some));
        for (number, id) in (1..).zip(&numbers.by_number) {
            if let Some(id) = *id {
                numbers.by_id[index(id)] = std::num::NonZeroU32::new(number);
            }
        }
        numbers
    }

    fn of(&self, id: InodeId) -> u32 {
        self.by_id[index(id)].expect("an inode with a name has a number").get()
    }

    fn id(&self, number: u32) -> Option<InodeId> {
        self.by_number[number as usize - 1]
    }

    /// The reserved ones and all others.
    fn in_use(&self) -> u32 {
        u32::try_from(self.by_number.len()).unwrap_or(u32::MAX)
    }
}
