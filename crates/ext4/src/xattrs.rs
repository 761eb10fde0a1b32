//! Extended attributes on disk (Documentation/filesystems/ext4/attributes.rst): in the inode what fits there, the rest in
//! one block. Entries stand at the start, sorted; values from the end.

use std::collections::BTreeMap;

use crate::acl;
use crate::checksum::crc32c;
use crate::encoding::{put, put16, put32};
use crate::error::{Ext4Error, shown};
use crate::{BLOCK, INODE_BYTES};

/// Where attributes begin in an inode: behind the fields that `i_extra_isize` counts.
pub(crate) const IN_INODE: usize = 128 + 32;

const MAGIC: u32 = 0xEA02_0000;

/// In the inode only the magic number; in a block more.
const INODE_HEADER: usize = 4;
const BLOCK_HEADER: usize = 32;

const ENTRY: usize = 16;

/// A word of zeros ends the entries.
const END: usize = 4;

/// One attribute as it is stored. The order of the fields is the order on disk.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Stored {
    index: u8,
    name_bytes: u8,
    name: Vec<u8>,
    value: Vec<u8>,
}

impl Stored {
    fn entry_bytes(&self) -> usize {
        ENTRY + self.name.len().next_multiple_of(4)
    }

    fn bytes(&self) -> usize {
        self.entry_bytes() + self.value.len().next_multiple_of(4)
    }

    /// `ext4_xattr_hash_entry`, over unsigned bytes as since Linux 6.2.
    fn hash(&self) -> u32 {
        let name =
            self.name.iter().fold(0_u32, |hash, &byte| hash.rotate_left(5) ^ u32::from(byte));
        self.value.chunks(4).fold(name, |hash, bytes| {
            let mut word = [0; 4];
            word[..bytes.len()].copy_from_slice(bytes);
            hash.rotate_left(16) ^ u32::from_le_bytes(word)
        })
    }
}

/// What goes where.
#[derive(Debug, Default)]
pub(crate) struct Placed {
    in_inode: Vec<Stored>,
    in_block: Vec<Stored>,
}

/// # Errors
/// ext4 cannot hold them.
pub(crate) fn check(xattrs: &BTreeMap<Vec<u8>, Vec<u8>>) -> Result<(), Ext4Error> {
    place(xattrs).map(|_| ())
}

pub(crate) fn place(xattrs: &BTreeMap<Vec<u8>, Vec<u8>>) -> Result<Placed, Ext4Error> {
    let mut placed = Placed::default();
    if xattrs.is_empty() {
        return Ok(placed);
    }
    let mut all = Vec::new();
    let mut bytes = 0_usize;
    for (name, value) in xattrs {
        bytes = bytes.saturating_add(name.len() + value.len());
        all.extend(stored(name, value)?);
    }
    all.sort_unstable();
    let mut inode_room = INODE_BYTES - IN_INODE - INODE_HEADER - END;
    let mut block_room = BLOCK - BLOCK_HEADER - END;
    for attribute in all {
        let need = attribute.bytes();
        if need <= inode_room {
            inode_room -= need;
            placed.in_inode.push(attribute);
        } else if need <= block_room {
            block_room -= need;
            placed.in_block.push(attribute);
        } else {
            return Err(Ext4Error::XattrsTooLarge { bytes });
        }
    }
    Ok(placed)
}

/// `None`: a value that means the same as no attribute.
fn stored(name: &[u8], value: &[u8]) -> Result<Option<Stored>, Ext4Error> {
    // linux/xattr.h and fs/ext4/xattr.h. What is not here no Linux would show: ext4 has no handler for it.
    const PREFIXES: [(&[u8], u8); 3] = [(b"user.", 1), (b"trusted.", 4), (b"security.", 6)];
    const LISTS: [(&[u8], u8); 2] =
        [(b"system.posix_acl_access", 2), (b"system.posix_acl_default", 3)];
    let refused = |rule| Ext4Error::XattrName { name: shown(name), rule };
    if let Some(&(_, index)) = LISTS.iter().find(|(list, _)| *list == name) {
        let list =
            acl::on_disk(value).map_err(|rule| Ext4Error::Acl { name: shown(name), rule })?;
        return Ok(list.map(|value| Stored { index, name_bytes: 0, name: Vec::new(), value }));
    }
    let (rest, index) = PREFIXES
        .iter()
        .find_map(|(prefix, index)| Some((name.strip_prefix(*prefix)?, *index)))
        .ok_or_else(|| refused("ext4 knows user., trusted., security. and access control lists"))?;
    // attr/xattr.h: XATTR_NAME_MAX is for the whole name.
    if rest.is_empty() || name.len() > 255 || rest.contains(&0) {
        return Err(refused("a name has 1 to 255 bytes and no NUL"));
    }
    let name_bytes = u8::try_from(rest.len()).unwrap_or(u8::MAX);
    Ok(Some(Stored { index, name_bytes, name: rest.to_vec(), value: value.to_vec() }))
}

impl Placed {
    pub(crate) fn needs_block(&self) -> bool {
        !self.in_block.is_empty()
    }

    /// Fills the rest of an inode.
    pub(crate) fn write_inode(&self, inode: &mut [u8; INODE_BYTES]) {
        if self.in_inode.is_empty() {
            return;
        }
        put32(inode, IN_INODE, MAGIC);
        // Values are found from the first entry on. An entry's hash may be 0 here.
        write_entries(&self.in_inode, &mut inode[IN_INODE + INODE_HEADER..], 0, |_| 0);
    }

    /// The block with what the inode has no room for, which is to be at `number` on disk.
    pub(crate) fn block(&self, number: u32, file_system_seed: u32) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        put32(&mut block, 0, MAGIC);
        // One inode has it, and it is one block.
        put32(&mut block, 4, 1);
        put32(&mut block, 8, 1);
        write_entries(&self.in_block, &mut block, BLOCK_HEADER, Stored::hash);
        let hash = self
            .in_block
            .iter()
            .map(Stored::hash)
            .try_fold(0_u32, |sum, hash| (hash != 0).then_some(sum.rotate_left(16) ^ hash));
        put32(&mut block, 12, hash.unwrap_or(0));
        let checksum = crc32c(file_system_seed, &u64::from(number).to_le_bytes());
        let checksum = crc32c(checksum, &block);
        put32(&mut block, 16, checksum);
        block
    }
}

/// Entries from `first` on, values from the end, at offsets from the start of `area`.
fn write_entries(all: &[Stored], area: &mut [u8], first: usize, hash: fn(&Stored) -> u32) {
    let (mut at, mut end) = (first, area.len());
    for attribute in all {
        end -= attribute.value.len().next_multiple_of(4);
        area[at] = attribute.name_bytes;
        area[at + 1] = attribute.index;
        // An empty value is nowhere.
        let offset = if attribute.value.is_empty() { 0 } else { end };
        put16(area, at + 2, u16::try_from(offset).expect("an area is at most a block"));
        let bytes = u32::try_from(attribute.value.len()).expect("it fits in a block");
        put32(area, at + 8, bytes);
        put32(area, at + 12, hash(attribute));
        put(area, at + ENTRY, &attribute.name);
        put(area, end, &attribute.value);
        at += attribute.entry_bytes();
    }
}
