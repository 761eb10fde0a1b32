//! What a tar says of its entries that the extracted tree does not show, read while the stream passes on to tar:
//! extended attributes and access control lists (an ordinary user cannot set them on files of the host), and the mode
//! and owner of the root folder. Never touches the tree.

use std::collections::BTreeMap;
use std::io::{self, Read};

use crate::posix_acl;

/// Attribute name → value.
pub(crate) type Xattrs = BTreeMap<String, Vec<u8>>;

/// The root folder's own entry (`./`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Root {
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    pub mtime: u64,
}

/// A text form of an access control list, to be made binary when the names in it can be looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Acl {
    pub access: Option<String>,
    pub default: Option<String>,
}

#[derive(Debug, Default)]
pub(crate) struct Listing {
    pub entries: u64,
    pub root: Option<Root>,
    /// By path within the archive, without `./` before or `/` behind.
    pub xattrs: BTreeMap<Vec<u8>, Xattrs>,
    pub acls: BTreeMap<Vec<u8>, Acl>,
}

#[derive(Debug, thiserror::Error)]
pub enum ListingError {
    #[error("the archive cannot be read")]
    Read(#[source] io::Error),
    #[error(
        "{0:?} has an extended attribute whose value or name is larger than ext4 allows (64 KiB, 255 bytes)"
    )]
    LargeXattr(String),
    #[error(
        "{0:?} has a name that cannot be kept together with its extended attributes: it holds a newline or a NUL"
    )]
    Name(String),
    #[error("the archive has more extended attributes than are kept ({MOST_XATTRS} bytes)")]
    TooManyXattrs,
}

/// All attributes are kept in memory until the tree is written.
const MOST_XATTRS: usize = 64 << 20;

/// linux/limits.h: XATTR_NAME_MAX, XATTR_SIZE_MAX.
const LONGEST_NAME: usize = 255;
const LARGEST_VALUE: usize = 64 << 10;

impl Listing {
    /// Reads the archive in `source` to its end mark.
    pub(crate) fn read(source: impl Read) -> Result<Self, ListingError> {
        let mut listing = Self::default();
        let mut kept = 0;
        let mut archive = tar::Archive::new(source);
        for entry in archive.entries().map_err(ListingError::Read)? {
            let mut entry = entry.map_err(ListingError::Read)?;
            listing.add(&mut entry, &mut kept)?;
        }
        Ok(listing)
    }

    fn add<R: Read>(
        &mut self,
        entry: &mut tar::Entry<'_, R>,
        kept: &mut usize,
    ) -> Result<(), ListingError> {
        let mut path = plain(&entry.path_bytes());
        let (mut xattrs, mut acl) = (Xattrs::new(), Acl { access: None, default: None });
        if let Some(extensions) = entry.pax_extensions().map_err(ListingError::Read)? {
            for extension in extensions {
                let extension = extension.map_err(ListingError::Read)?;
                let (key, value) = (extension.key_bytes(), extension.value_bytes());
                *kept += key.len() + value.len();
                let text = || String::from_utf8_lossy(value).into_owned();
                match key {
                    // A sparse file's own name; `path` then has a made-up one (GNU tar, sparse format 1.0).
                    b"GNU.sparse.name" => path = plain(value),
                    b"SCHILY.acl.access" => acl.access = Some(text()),
                    b"SCHILY.acl.default" => acl.default = Some(text()),
                    _ => {
                        let name = key
                            .strip_prefix(b"SCHILY.xattr.")
                            .or_else(|| key.strip_prefix(b"LIBARCHIVE.xattr-plain."));
                        if let Some(name) = name {
                            let name =
                                std::str::from_utf8(name).ok().filter(|name| is_xattr_name(name));
                            let name = name.filter(|_| value.len() <= LARGEST_VALUE);
                            let name =
                                name.ok_or_else(|| ListingError::LargeXattr(shown(&path)))?;
                            xattrs.insert(name.to_owned(), value.to_vec());
                        }
                    }
                }
            }
        }
        if *kept > MOST_XATTRS {
            return Err(ListingError::TooManyXattrs);
        }
        // The list has precedence over its copy among the attributes: it is the one with names.
        for (text, name) in [(&acl.access, posix_acl::ACCESS), (&acl.default, posix_acl::DEFAULT)] {
            if text.is_some() {
                xattrs.remove(name);
            }
        }
        let has_any = !xattrs.is_empty() || acl.access.is_some() || acl.default.is_some();
        if has_any && (path.contains(&b'\n') || path.contains(&0)) {
            return Err(ListingError::Name(shown(&path)));
        }
        self.entries += 1;
        let header = entry.header();
        if path.is_empty() && header.entry_type().is_dir() {
            // Fields that nobody filled in mean what they mean to tar.
            self.root = Some(Root {
                mode: header.mode().unwrap_or(0o755) & 0o7777,
                uid: header.uid().unwrap_or(0),
                gid: header.gid().unwrap_or(0),
                mtime: header.mtime().unwrap_or(0),
            });
        }
        // A later entry of one name replaces the earlier; a second name (hard link) leaves the file's attributes alone.
        if !header.entry_type().is_hard_link() || has_any {
            put(&mut self.xattrs, &path, (!xattrs.is_empty()).then_some(xattrs));
            let has_acl = acl.access.is_some() || acl.default.is_some();
            put(&mut self.acls, &path, has_acl.then_some(acl));
        }
        Ok(())
    }
}

fn put<T>(map: &mut BTreeMap<Vec<u8>, T>, path: &[u8], value: Option<T>) {
    match value {
        Some(value) => drop(map.insert(path.to_vec(), value)),
        None => drop(map.remove(path)),
    }
}

/// `./a/b/` → `a/b`, `/a` → `a`.
fn plain(path: &[u8]) -> Vec<u8> {
    let parts = path.split(|&byte| byte == b'/').filter(|part| !part.is_empty() && *part != b".");
    parts.collect::<Vec<_>>().join(&b'/')
}

fn is_xattr_name(name: &str) -> bool {
    let graphic = |byte: u8| byte.is_ascii_graphic() && byte != b'"';
    name.len() <= LONGEST_NAME && name.contains('.') && name.bytes().all(graphic)
}

fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}
