//! The blocks of a folder (Documentation/filesystems/ext4/directory.rst). All names in one block if they fit there. Else an
//! index: a hash tree whose leaves are blocks of names, sorted by hash.
//!
//! ```text
//!  block 0: root of the index ─┬─► leaves                  at most 507 of them
//!                              └─► nodes ─► leaves         at most 510 leaves a node
//! ```

use std::ops::Range;

use crate::attributes::Kind;
use crate::checksum::crc32c;
use crate::encoding::{put, put16, put32};
use crate::{BLOCK, hash};

/// An entry without its name.
const HEADER: usize = 8;

/// The last 12 bytes of a block of names hold its checksum, in the form of an entry without an inode.
const TAIL: usize = 12;

/// Bytes of names in a block.
const ROOM: usize = BLOCK - TAIL;

/// How full a leaf is made: a new name does not split it at once.
const FILLED: usize = ROOM - ROOM / 8;

/// `DX_HASH_HALF_MD4`; the superblock says that it is over unsigned bytes.
pub(crate) const HASH_VERSION: u8 = 1;

/// Where the entries of an index block begin: behind `.` and `..` and what the root says, or behind an empty entry.
const ROOT_ENTRIES: usize = 32;
const NODE_ENTRIES: usize = 8;

const INDEX_ENTRY: usize = 8;

/// Without the one place that holds the checksum. The first is taken by the counts, but has a block as well.
const ROOT_MOST: usize = (BLOCK - ROOT_ENTRIES) / INDEX_ENTRY - 1;
const NODE_MOST: usize = (BLOCK - NODE_ENTRIES) / INDEX_ENTRY - 1;

/// A name as it is stored.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry<'a> {
    pub name: &'a [u8],
    pub inode: u32,
    pub file_type: u8,
}

impl Entry<'_> {
    fn bytes(&self) -> usize {
        HEADER + self.name.len().next_multiple_of(4)
    }

    fn write(&self, block: &mut [u8; BLOCK], at: usize, record: usize) {
        put32(block, at, self.inode);
        put16(block, at + 4, u16::try_from(record).expect("a record is at most a block"));
        block[at + 6] = u8::try_from(self.name.len()).expect("a name was checked");
        block[at + 7] = self.file_type;
        put(block, at + HEADER, self.name);
    }
}

/// `EXT4_FT_*`.
pub(crate) fn file_type(kind: &Kind) -> u8 {
    match kind {
        Kind::File => 1,
        Kind::Directory => 2,
        Kind::CharDevice { .. } => 3,
        Kind::BlockDevice { .. } => 4,
        Kind::Fifo => 5,
        Kind::Socket => 6,
        Kind::Symlink(_) => 7,
    }
}

const FOLDER: u8 = 2;

/// Whose blocks they are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Owner {
    pub inode: u32,
    pub parent: u32,
    /// The seed of the checksums of this inode.
    pub seed: u32,
    pub hash_seed: [u32; 4],
}

/// What a folder became.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Written {
    Plain,
    Indexed,
    /// There are more names than an index can hold. Nothing was written.
    TooLarge,
}

/// Gives `write` the blocks of a folder, one after the other.
pub(crate) fn blocks<E>(
    owner: Owner,
    entries: &[Entry<'_>],
    mut write: impl FnMut(&[u8; BLOCK]) -> Result<(), E>,
) -> Result<Written, E> {
    let own = [
        Entry { name: b".", inode: owner.inode, file_type: FOLDER },
        Entry { name: b"..", inode: owner.parent, file_type: FOLDER },
    ];
    let bytes: usize = own.iter().chain(entries).map(Entry::bytes).sum();
    if bytes <= ROOM {
        let all: Vec<&Entry<'_>> = own.iter().chain(entries).collect();
        write(&names(&all, owner.seed))?;
        return Ok(Written::Plain);
    }
    let mut hashed: Vec<Hashed<'_>> = entries
        .iter()
        .map(|entry| {
            let (hash, minor) = hash::half_md4(entry.name, owner.hash_seed);
            Hashed { hash, minor, entry }
        })
        .collect();
    hashed.sort_unstable_by_key(|hashed| (hashed.hash, hashed.minor, hashed.entry.name));
    let leaves = split(hashed.iter().map(|hashed| (hashed.hash, hashed.entry.bytes())));
    let Some(index) = index(owner, own, &leaves) else {
        return Ok(Written::TooLarge);
    };
    for block in &index {
        write(block)?;
    }
    for (_, range) in leaves {
        let leaf: Vec<&Entry<'_>> = hashed[range].iter().map(|hashed| hashed.entry).collect();
        write(&names(&leaf, owner.seed))?;
    }
    Ok(Written::Indexed)
}

struct Hashed<'a> {
    hash: u32,
    minor: u32,
    entry: &'a Entry<'a>,
}

/// A block without names, but for its checksum.
pub(crate) fn empty_block(seed: u32) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    put16(&mut block, 4, u16::try_from(ROOM).expect("it is below a block"));
    finish_names(&mut block, seed);
    block
}

/// A block of names. The last entry takes the room that is left.
fn names(entries: &[&Entry<'_>], seed: u32) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut at = 0;
    for (position, entry) in entries.iter().enumerate() {
        let record = if position + 1 == entries.len() { ROOM - at } else { entry.bytes() };
        entry.write(&mut block, at, record);
        at += record;
    }
    finish_names(&mut block, seed);
    block
}

fn finish_names(block: &mut [u8; BLOCK], seed: u32) {
    let checksum = crc32c(seed, &block[..ROOM]);
    put16(block, ROOM + 4, 12);
    block[ROOM + 7] = 0xde;
    put32(block, ROOM + 8, checksum);
}

/// From which hash on a block of the folder has the names. The lowest bit: names of this hash are in the block before too.
#[derive(Clone, Copy)]
struct Pointer {
    hash: u32,
    block: u32,
}

/// From which hash on a leaf has names, and which they are.
type Leaf = (u32, Range<usize>);

/// The root and the nodes, which stand before the leaves. `None`: there are too many leaves.
fn index(owner: Owner, own: [Entry<'_>; 2], leaves: &[Leaf]) -> Option<Vec<[u8; BLOCK]>> {
    let nodes = if leaves.len() <= ROOT_MOST { 0 } else { leaves.len().div_ceil(NODE_MOST) };
    if nodes > ROOT_MOST {
        return None;
    }
    let first_leaf = 1 + nodes;
    let pointers: Vec<Pointer> = leaves
        .iter()
        .enumerate()
        .map(|(position, (hash, _))| pointer(*hash, first_leaf + position))
        .collect();

    let mut root = [0; BLOCK];
    own[0].write(&mut root, 0, 12);
    own[1].write(&mut root, 12, BLOCK - 12);
    root[28] = HASH_VERSION;
    // Bytes of what is said here.
    root[29] = 8;
    root[30] = u8::from(nodes > 0);
    let mut blocks = vec![root];
    if nodes == 0 {
        write_index(&mut blocks[0], ROOT_ENTRIES, ROOT_MOST, &pointers, owner.seed);
    } else {
        let mut above = Vec::with_capacity(nodes);
        for part in pointers.chunks(NODE_MOST) {
            above.push(pointer(part[0].hash, blocks.len()));
            let mut node = [0; BLOCK];
            put16(&mut node, 4, u16::try_from(BLOCK).expect("4096 is below 2^16"));
            write_index(&mut node, NODE_ENTRIES, NODE_MOST, part, owner.seed);
            blocks.push(node);
        }
        write_index(&mut blocks[0], ROOT_ENTRIES, ROOT_MOST, &above, owner.seed);
    }
    Some(blocks)
}

/// Names come as hash and bytes, sorted by hash.
fn split(names: impl Iterator<Item = (u32, usize)>) -> Vec<Leaf> {
    let mut leaves: Vec<Leaf> = Vec::new();
    let (mut filled, mut last) = (0, None);
    for (position, (hash, bytes)) in names.enumerate() {
        filled += bytes;
        match leaves.last_mut() {
            Some((_, range)) if filled <= FILLED => range.end = position + 1,
            _ => {
                let goes_on = last == Some(hash);
                leaves.push((hash | u32::from(goes_on), position..position + 1));
                filled = bytes;
            }
        }
        last = Some(hash);
    }
    leaves
}

fn pointer(hash: u32, block: usize) -> Pointer {
    Pointer { hash, block: u32::try_from(block).expect("an index has fewer than 2^18 leaves") }
}

fn write_index(block: &mut [u8; BLOCK], start: usize, most: usize, all: &[Pointer], seed: u32) {
    let number = |count: usize| u16::try_from(count).expect("a block has at most 511 entries");
    for (position, pointer) in all.iter().enumerate() {
        let at = start + position * INDEX_ENTRY;
        put32(block, at, pointer.hash);
        put32(block, at + 4, pointer.block);
    }
    // The first has no hash: everything below the second's is there.
    put16(block, start, number(most));
    put16(block, start + 2, number(all.len()));
    let tail = start + most * INDEX_ENTRY;
    // Over the entries in use, and over the tail with a checksum of 0.
    let checksum = crc32c(seed, &block[..start + all.len() * INDEX_ENTRY]);
    let checksum = crc32c(checksum, &[0; INDEX_ENTRY]);
    put32(block, tail + 4, checksum);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_that_goes_on_in_the_next_leaf_is_marked_there() {
        let half = FILLED / 2;
        let names = [(2, half), (4, half), (4, half), (4, half), (4, 8), (6, half), (8, half)];
        assert_eq!(split(names.into_iter()), [(2, 0..2), (5, 2..4), (5, 4..6), (8, 6..7)]);
    }

    #[test]
    fn a_leaf_has_room_for_a_new_name() {
        let leaves = split((0..100).map(|number| (number * 2, 264)));
        assert!(leaves.iter().all(|(_, range)| range.len() * 264 + 264 <= ROOM), "{leaves:?}");
        assert_eq!(leaves.last().map(|(_, range)| range.end), Some(100));
    }

    #[test]
    fn an_index_has_two_levels_of_blocks_and_no_more() {
        let owner = Owner { inode: 12, parent: 2, seed: 0, hash_seed: [1; 4] };
        let own = [Entry { name: b".", inode: 12, file_type: FOLDER }; 2];
        let blocks = |count: usize| index(owner, own, &vec![(0, 0..1); count]).map(|all| all.len());
        assert_eq!(blocks(ROOT_MOST), Some(1));
        assert_eq!(blocks(ROOT_MOST + 1), Some(1 + 1));
        assert_eq!(blocks(ROOT_MOST * NODE_MOST), Some(1 + ROOT_MOST));
        assert_eq!(blocks(ROOT_MOST * NODE_MOST + 1), None);
    }
}
