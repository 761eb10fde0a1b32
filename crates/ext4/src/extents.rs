//! Where the blocks of a file are, on disk: up to four extents in the inode, more in a tree of blocks
//! (Documentation/filesystems/ext4/ifork.rst).

use crate::BLOCK;
use crate::checksum::crc32c;
use crate::data::Extent;
use crate::encoding::{put, put16, put32};

const MAGIC: u16 = 0xf30a;

const HEADER: usize = 12;
const ENTRY: usize = 12;

/// What the inode has room for.
pub(crate) const IN_INODE: usize = 4;

/// What a block has room for, before the checksum at its end.
pub(crate) const IN_BLOCK: usize = (BLOCK - HEADER - 4) / ENTRY;

/// The 60 bytes in the inode, `i_block`.
pub(crate) type Root = [u8; 60];

/// A tree with blocks of its own.
#[derive(Debug)]
pub(crate) struct Tree {
    pub root: Root,
    /// How many it takes.
    pub blocks: u32,
}

/// A leaf's extent, or the block of the next lower level from a block of the file on.
#[derive(Clone, Copy)]
enum Entry {
    Leaf(Extent),
    Index { logical: u32, block: u32 },
}

impl Entry {
    fn logical(&self) -> u32 {
        match self {
            Self::Leaf(extent) => extent.logical,
            Self::Index { logical, .. } => *logical,
        }
    }

    fn write(&self, to: &mut [u8]) {
        put32(to, 0, self.logical());
        match self {
            // 32768 is the most; more would mean "not written yet".
            Self::Leaf(extent) => {
                put16(
                    to,
                    4,
                    u16::try_from(extent.count).expect("an extent is at most 32768 blocks"),
                );
                put32(to, 8, extent.block);
            }
            Self::Index { block, .. } => put32(to, 4, *block),
        }
    }
}

fn write_node(to: &mut [u8], entries: &[Entry], most: usize, depth: u16) {
    let number = |count: usize| u16::try_from(count).expect("a node has at most 340 entries");
    put16(to, 0, MAGIC);
    put16(to, 2, number(entries.len()));
    put16(to, 4, number(most));
    put16(to, 6, depth);
    for (place, entry) in to[HEADER..].chunks_exact_mut(ENTRY).zip(entries) {
        entry.write(place);
    }
}

/// The root of at most four extents.
pub(crate) fn flat(extents: &[Extent]) -> Root {
    let mut root = [0; 60];
    let entries: Vec<Entry> = extents.iter().copied().map(Entry::Leaf).collect();
    write_node(&mut root, &entries, IN_INODE, 0);
    root
}

/// A tree for more: each of its blocks goes to `write`, which gives the number of the block it took.
pub(crate) fn tree<E>(
    extents: &[Extent],
    inode_seed: u32,
    mut write: impl FnMut(&[u8; BLOCK]) -> Result<u32, E>,
) -> Result<Tree, E> {
    let mut level: Vec<Entry> = extents.iter().copied().map(Entry::Leaf).collect();
    let (mut depth, mut blocks) = (0, 0);
    while level.len() > IN_INODE {
        let mut above = Vec::with_capacity(level.len().div_ceil(IN_BLOCK));
        for entries in level.chunks(IN_BLOCK) {
            let mut node = [0; BLOCK];
            write_node(&mut node, entries, IN_BLOCK, depth);
            let end = HEADER + IN_BLOCK * ENTRY;
            let checksum = crc32c(inode_seed, &node[..end]);
            put(&mut node, end, &checksum.to_le_bytes());
            above.push(Entry::Index { logical: entries[0].logical(), block: write(&node)? });
            blocks += 1;
        }
        level = above;
        depth += 1;
    }
    let mut root = [0; 60];
    write_node(&mut root, &level, IN_INODE, depth);
    Ok(Tree { root, blocks })
}
