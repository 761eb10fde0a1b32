//! How large the file system becomes, and where its tables are. Decided when all other blocks are known; the file is not
//! touched here.
//!
//! ```text
//!  superblock, descriptors │ data, folders, ... │ journal, bitmaps, inode tables │ free
//! ```
//! Copies of the superblock are in between. With flex_bg the tables of a group may be anywhere.

use crate::attributes::{Options, Spare};
use crate::data::{Extent, extend};
use crate::error::Ext4Error;
use crate::space::{Frontier, Run, Space, has_superblock};
use crate::{BLOCK, BLOCK_BYTES, GROUP_BLOCKS, INODE_BYTES, extents, journal};

/// Bytes of a descriptor, without the 64bit feature.
pub(crate) const DESCRIPTOR: usize = 32;

const DESCRIPTORS_IN_BLOCK: u32 = 128;

/// Inodes in a block of a table.
pub(crate) const INODES_IN_BLOCK: u32 = 16;

/// A bitmap is one block.
const MOST_INODES_IN_GROUP: u32 = 32768;

/// The first inode that is not for the file system itself.
pub(crate) const FIRST_INODE: u32 = 11;

/// With more the number of a block does not fit in 32 bits.
const MOST_GROUPS: u32 = (1 << 17) - 1;

const GROUP_BYTES: u64 = GROUP_BLOCKS as u64 * BLOCK_BYTES;

/// Free when it is new, for a guest that does not grow it.
const SPARE_INODES: u32 = 1024;

#[derive(Debug)]
pub(crate) struct Layout {
    pub groups: u32,
    pub inodes_in_group: u32,
    /// Blocks of group descriptors behind each copy of the superblock.
    pub descriptor_blocks: u32,
    pub journal: Vec<Extent>,
    /// For its extents, if its inode has no room for them.
    pub journal_tree: Vec<u32>,
    /// One for each group.
    pub block_bitmaps: Vec<u32>,
    pub inode_bitmaps: Vec<u32>,
    pub inode_tables: Vec<u32>,
    /// Left free so that no table is across a copy of the superblock.
    pub skipped: Vec<Run>,
    pub frontier: Frontier,
    /// Blocks of the journal and the tables.
    pub used_blocks: u64,
}

/// # Errors
/// The options ask for what cannot be.
pub(crate) fn space(options: &Options) -> Result<Space, Ext4Error> {
    let refused = |rule| Err(Ext4Error::Options { rule });
    if options.label.len() > 16 {
        return refused("a label has at most 16 bytes");
    }
    if options.bytes_per_inode < 4096 {
        return refused("an inode is for at least 4096 bytes");
    }
    let groups = most_groups(options);
    if groups == 0 {
        return refused("the smallest file system has one group of 128 MiB");
    }
    let journal = journal_blocks(options);
    if journal != 0 && !(u64::from(journal::FEWEST_BLOCKS)..1 << 31).contains(&journal) {
        return refused("a journal has at least 4 MiB");
    }
    Ok(Space::new(1 + descriptor_blocks(groups), groups * GROUP_BLOCKS))
}

fn most_groups(options: &Options) -> u32 {
    u32::try_from(options.largest_bytes / GROUP_BYTES).unwrap_or(MOST_GROUPS).min(MOST_GROUPS)
}

fn journal_blocks(options: &Options) -> u64 {
    options.journal_bytes.div_ceil(BLOCK_BYTES)
}

fn descriptor_blocks(groups: u32) -> u32 {
    groups.div_ceil(DESCRIPTORS_IN_BLOCK)
}

/// Whole blocks of them.
fn inodes_in_group(options: &Options) -> u32 {
    let wanted = GROUP_BYTES.div_ceil(u64::from(options.bytes_per_inode));
    u32::try_from(wanted)
        .unwrap_or(MOST_INODES_IN_GROUP)
        .next_multiple_of(INODES_IN_BLOCK)
        .min(MOST_INODES_IN_GROUP)
}

/// The smallest file system that holds what `space` has, `inodes` and a journal, and has free what is asked for.
pub(crate) fn layout(
    space: &Space,
    options: &Options,
    inodes: u32,
    spare: Spare,
) -> Result<Layout, Ext4Error> {
    let too_large = Ext4Error::TooLarge { largest_bytes: options.largest_bytes };
    let in_group = inodes_in_group(options);
    let needed = u64::from(inodes) + u64::from(inodes / 16) + u64::from(SPARE_INODES + FIRST_INODE);
    let needed_groups = u32::try_from(needed.div_ceil(u64::from(in_group))).unwrap_or(u32::MAX);
    let spare_blocks = spare.bytes.div_ceil(BLOCK_BYTES);
    let mut groups = needed_groups.max(space.frontier.next().div_ceil(GROUP_BLOCKS));
    while groups <= most_groups(options) {
        let placed = place(space, options, groups);
        let missing = match &placed {
            Some(layout) => spare_blocks.saturating_sub(free_blocks(space, layout)),
            None => u64::from(GROUP_BLOCKS),
        };
        match placed {
            Some(layout) if missing == 0 => return Ok(layout),
            // A group more has fewer blocks free than these.
            _ => {
                let more = missing.div_ceil(u64::from(GROUP_BLOCKS));
                groups = groups.saturating_add(u32::try_from(more).unwrap_or(u32::MAX));
            }
        }
    }
    Err(too_large)
}

/// The tables of so many groups. `None`: they do not fit.
fn place(space: &Space, options: &Options, groups: u32) -> Option<Layout> {
    let mut frontier = space.frontier.limited_to(groups);
    let inodes_in_group = inodes_in_group(options);
    let mut layout = Layout {
        groups,
        inodes_in_group,
        descriptor_blocks: descriptor_blocks(groups),
        journal: Vec::new(),
        journal_tree: Vec::new(),
        block_bitmaps: Vec::new(),
        inode_bitmaps: Vec::new(),
        inode_tables: Vec::new(),
        skipped: Vec::new(),
        frontier,
        used_blocks: 0,
    };
    let mut missing = u32::try_from(journal_blocks(options)).ok()?;
    while missing > 0 {
        let run = frontier.take(missing)?;
        missing -= run.count;
        layout.used_blocks += u64::from(run.count);
        let logical = layout.journal.last().map_or(0, |last| last.logical + last.count);
        let (block, count, fresh) = (run.start, run.count, true);
        extend(&mut layout.journal, Extent { logical, block, count, fresh });
    }
    let (mut entries, mut nodes) = (layout.journal.len(), 0);
    while entries > extents::IN_INODE {
        entries = entries.div_ceil(extents::IN_BLOCK);
        nodes += entries;
    }
    for _ in 0..nodes {
        layout.journal_tree.push(frontier.take(1)?.start);
    }
    layout.used_blocks += nodes as u64;
    for bitmaps in [&mut layout.block_bitmaps, &mut layout.inode_bitmaps] {
        for _ in 0..groups {
            bitmaps.push(frontier.take(1)?.start);
        }
    }
    let table = inodes_in_group / INODES_IN_BLOCK;
    for _ in 0..groups {
        let (start, skipped) = frontier.take_whole(table)?;
        layout.inode_tables.push(start);
        layout.skipped.extend(skipped);
    }
    layout.used_blocks += u64::from(groups) * u64::from(2 + table);
    layout.frontier = frontier;
    Some(layout)
}

/// Blocks that nothing is in.
pub(crate) fn free_blocks(space: &Space, layout: &Layout) -> u64 {
    let copies = (0..layout.groups).filter(|&group| has_superblock(group)).count() as u64;
    let all = u64::from(layout.groups) * u64::from(GROUP_BLOCKS);
    // More is taken than there is: a layout of such a size has no place for its tables.
    all.saturating_sub(
        space.used_blocks() + layout.used_blocks + copies * u64::from(1 + layout.descriptor_blocks),
    )
}

const _: () = assert!(BLOCK / INODE_BYTES == INODES_IN_BLOCK as usize);
const _: () = assert!(BLOCK / DESCRIPTOR == DESCRIPTORS_IN_BLOCK as usize);
