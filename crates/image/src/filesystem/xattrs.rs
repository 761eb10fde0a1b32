//! Extended attributes on disk (attributes.rst): some in the inode, some in one block.

use std::collections::BTreeMap;

use super::{FileSystem, FileSystemError, u16_at, u32_at};

const MAGIC: u32 = 0xea02_0000;
const ENTRY: usize = 16;
const BLOCK_HEADER: usize = 32;

type Attributes = BTreeMap<Vec<u8>, Vec<u8>>;

impl FileSystem {
    pub(super) fn xattrs(&self, inode: u32, bytes: &[u8]) -> Result<Attributes, FileSystemError> {
        let mut found = Attributes::new();
        if bytes.len() > 128 {
            let start = 128 + usize::from(u16_at(bytes, 0x80));
            if start + 8 <= bytes.len() && u32_at(bytes, start) == MAGIC {
                let area = &bytes[start + 4..];
                read(inode, area, 0, &mut found)?;
            }
        }
        let number = u64::from(u16_at(bytes, 0x76)) << 32 | u64::from(u32_at(bytes, 0x68));
        if number != 0 {
            let block = self.block(number)?;
            if u32_at(&block, 0) != MAGIC {
                let what = "its block of attributes is none";
                return Err(FileSystemError::Inode { inode, what });
            }
            read(inode, &block, BLOCK_HEADER, &mut found)?;
        }
        Ok(found)
    }
}

/// Entries from `first` on; values are found by their distance from the start of `area`.
fn read(
    inode: u32,
    area: &[u8],
    first: usize,
    found: &mut Attributes,
) -> Result<(), FileSystemError> {
    let damaged =
        || FileSystemError::Inode { inode, what: "an attribute lies outside of its place" };
    let mut at = first;
    // A word of zeros ends them.
    while at + 4 <= area.len() && u32_at(area, at) != 0 {
        if at + ENTRY > area.len() {
            return Err(damaged());
        }
        let name_bytes = usize::from(area[at]);
        let index = area[at + 1];
        let name = area.get(at + ENTRY..at + ENTRY + name_bytes).ok_or_else(damaged)?;
        let size = usize::try_from(u32_at(area, at + 8)).unwrap_or(usize::MAX);
        if u32_at(area, at + 4) != 0 {
            return Err(FileSystemError::Feature(
                "attributes in inodes of their own (ea_inode)".into(),
            ));
        }
        let start = usize::from(u16_at(area, at + 2));
        let value = match size {
            0 => &[][..],
            _ => {
                let end = start.checked_add(size).ok_or_else(damaged)?;
                area.get(start..end).ok_or_else(damaged)?
            }
        };
        if let Some((name, value)) =
            named(index, name, value).map_err(|what| FileSystemError::Inode { inode, what })?
        {
            found.insert(name, value);
        }
        at += (ENTRY + name_bytes).next_multiple_of(4);
    }
    Ok(())
}

type Named = Option<(Vec<u8>, Vec<u8>)>;

/// As getxattr(2) has them. `None`: what Linux would not show.
fn named(index: u8, name: &[u8], value: &[u8]) -> Result<Named, &'static str> {
    let prefix: &[u8] = match index {
        1 => b"user.",
        2 => return Ok(Some((crate::posix_acl::ACCESS.into(), list(value)?))),
        3 => return Ok(Some((crate::posix_acl::DEFAULT.into(), list(value)?))),
        4 => b"trusted.",
        6 => b"security.",
        _ => return Ok(None),
    };
    if name.is_empty() || name.contains(&0) {
        return Err("the name of an attribute is none");
    }
    Ok(Some(([prefix, name].concat(), value.to_vec())))
}

/// From ext4's form of an access control list (fs/ext4/acl.h) to the kernel's (linux/posix_acl_xattr.h).
fn list(value: &[u8]) -> Result<Vec<u8>, &'static str> {
    const WRONG: &str = "an access control list is none";
    let mut rest = value.strip_prefix(&1_u32.to_le_bytes()).ok_or(WRONG)?;
    let mut list = 2_u32.to_le_bytes().to_vec();
    while !rest.is_empty() {
        let (entry, tail) = rest.split_at_checked(4).ok_or(WRONG)?;
        list.extend(entry);
        // Only named users and groups have an id.
        if matches!(u16_at(entry, 0), 0x02 | 0x08) {
            let (id, tail) = tail.split_at_checked(4).ok_or(WRONG)?;
            list.extend(id);
            rest = tail;
        } else {
            list.extend(u32::MAX.to_le_bytes());
            rest = tail;
        }
    }
    Ok(list)
}
