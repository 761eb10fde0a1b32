//! What can go wrong, by name.

use std::io;

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Ext4Error {
    #[error("cannot {act} of the file system image")]
    Io {
        act: &'static str,
        #[source]
        cause: io::Error,
    },
    #[error("the file for a new file system must be empty, and has {bytes} bytes")]
    NotEmpty { bytes: u64 },
    #[error("a file system cannot be made so: {rule}")]
    Options { rule: &'static str },
    #[error("the name {name:?} is not possible: {rule}")]
    Name { name: String, rule: &'static str },
    #[error("{name:?} is there already")]
    Exists { name: String },
    #[error("there is no {name:?}")]
    Missing { name: String },
    #[error("{name:?} would be in what is not a folder")]
    NotADirectory { name: String },
    #[error("{name:?} would be a second name of a folder")]
    LinkToDirectory { name: String },
    #[error("{name:?} would be name {} of a file: ext4 allows {}", crate::MOST_LINKS + 1, crate::MOST_LINKS)]
    Links { name: String },
    #[error("only a regular file has data")]
    NotAFile,
    #[error("cannot go back from byte {from} to byte {to} of a file: data is written in order")]
    Backwards { from: u64, to: u64 },
    #[error("a file cannot have {bytes} bytes: the most is {} on ext4", crate::MOST_FILE_BYTES)]
    FileTooLarge { bytes: u64 },
    #[error("a symbolic link has 1 to {} bytes, not {bytes}", crate::MOST_SYMLINK_BYTES)]
    Symlink { bytes: usize },
    #[error("Linux has no device {major}:{minor}")]
    Device { major: u32, minor: u32 },
    #[error("the extended attribute {name:?} cannot be kept: {rule}")]
    XattrName { name: String, rule: &'static str },
    #[error("the access control list in {name:?} is not valid: {rule}")]
    Acl { name: String, rule: &'static str },
    #[error(
        "extended attributes of {bytes} bytes are too many: ext4 keeps at most 4 KiB for one file"
    )]
    XattrsTooLarge { bytes: usize },
    #[error("a folder with {names} names is larger than ext4's index of a folder")]
    DirectoryTooLarge { names: usize },
    #[error("the file system would be larger than {largest_bytes} bytes")]
    TooLarge { largest_bytes: u64 },
    #[error("there would be more than {most_inodes} files, folders and links")]
    TooManyInodes { most_inodes: u32 },
}

impl Ext4Error {
    /// The file system of the host that holds the image is full, or the owner's quota is.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::Io { cause, .. }
            if matches!(cause.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }
}

/// Fits `map_err`: what we did.
pub(crate) fn failed(act: &'static str) -> impl FnOnce(io::Error) -> Ext4Error {
    move |cause| Ext4Error::Io { act, cause }
}

/// A name as an error shows it.
pub(crate) fn shown(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}
