//! Entries of a tar, one after the other, with all that the dialects say of them: ustar, pax, GNU tar and star; long names,
//! extended attributes, access control lists, sparse files in their four forms. The tar crate knows the header's layout;
//! the rest is here, since what lies before an entry must be bounded, and holes must stay holes.
//!
//! Nothing is believed: every size is compared with a limit before it is read. What is not understood is refused by name.
//! Knows nothing of layers; see [`crate::layers`].

use std::collections::BTreeMap;
use std::io::{self, BufRead};

use banger_ext4::{Attributes, Ext4Error, Timestamp};

use crate::pax;

const BLOCK: usize = 512;

/// linux/limits.h: PATH_MAX, with the NUL that ends it.
const LONGEST_PATH: usize = 4095;
/// linux/limits.h: NAME_MAX.
const LONGEST_PART: usize = 255;
/// A target needs room in one block of ext4.
const LONGEST_TARGET: usize = 4095;

/// What lies before an entry: pax records, or a long name.
const LARGEST_EXTENSION: u64 = 1 << 20;

/// linux/limits.h: XATTR_NAME_MAX, XATTR_SIZE_MAX.
const LONGEST_XATTR_NAME: usize = 255;
const LARGEST_XATTR: usize = 64 << 10;

/// More pieces than a file of a tar has. They are kept in memory, 16 bytes each.
const MOST_SEGMENTS: usize = 1 << 20;

/// The kernel's doc "ext4, blockmap": 2^32 blocks of 4 KiB.
const LARGEST_FILE: u64 = (1 << 44) - 4096;

/// include/linux/kdev_t.h: 12 bits of major and 20 of minor.
const MAJORS: i64 = 1 << 12;
const MINORS: i64 = 1 << 20;

/// Why the archive cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    #[error("the archive cannot be read")]
    Read(#[source] io::Error),
    #[error("it is not a tar archive")]
    NotATar,
    #[error("the header at byte {at} of the archive is damaged: its checksum is wrong")]
    Checksum { at: u64 },
    #[error("the archive ends at byte {at}, in the midst of an entry")]
    Cut { at: u64 },
    #[error("the archive ends at byte {at} without its end mark")]
    NoEnd { at: u64 },
    #[error("the archive has a block of zeros at byte {at}, and goes on behind it")]
    LoneZeros { at: u64 },
    #[error("{name:?} of the archive is refused")]
    Entry {
        name: String,
        #[source]
        cause: Refusal,
    },
}

/// Why an entry is not taken.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("the layer unpacks to more than the limit of {0} bytes")]
    LayerBytes(u64),
    #[error("the image unpacks to more than the limit of {0} bytes")]
    TotalBytes(u64),
    #[error("there are more entries than the limit of {0}")]
    Entries(u64),
    #[error("the names and link targets take more than the limit of {0} bytes")]
    NameBytes(u64),
    #[error("the extended attributes take more than the limit of {0} bytes")]
    XattrBytes(u64),
    #[error("the names of this image lead through too many links and folders")]
    Steps,

    #[error("its header says no number for its {0}")]
    Number(&'static str),
    #[error("its extended header is damaged")]
    Pax,
    #[error("a header for all that follows says {0:?}, which can be said of one entry only")]
    Global(String),
    #[error("its extended header is larger than {LARGEST_EXTENSION} bytes")]
    LargeExtension,
    #[error("it is of a type that is not known: {}", .0.escape_ascii())]
    Type(u8),
    #[error("its owner or group is none: ids go up to {}", u32::MAX - 1)]
    Owner,
    #[error("its device number is none: majors are less than {MAJORS}, minors than {MINORS}")]
    Device,
    #[error("it is larger than a file of ext4 can be: {LARGEST_FILE} bytes")]
    LargeFile,
    #[error("its map of a sparse file is damaged")]
    Sparse,
    #[error("its map of a sparse file has more than {MOST_SEGMENTS} pieces")]
    SparsePieces,
    #[error("it is a folder, and has content")]
    FolderContent,

    #[error("a part of its name is `..`")]
    Upwards,
    #[error("its name holds a NUL")]
    Nul,
    #[error("its name is longer than {LONGEST_PATH} bytes")]
    LongName,
    #[error("a part of its name is longer than {LONGEST_PART} bytes")]
    LongPart,
    #[error(
        "the target of the link is empty, holds a NUL, or is longer than {LONGEST_TARGET} bytes"
    )]
    Target,
    #[error(
        "the name of an extended attribute is empty, holds a NUL, or is longer than {LONGEST_XATTR_NAME} bytes"
    )]
    XattrName,
    #[error("an extended attribute is larger than {LARGEST_XATTR} bytes")]
    LargeXattr,

    #[error("{0:?} on the way to it is not a folder")]
    NotAFolder(String),
    #[error("there are too many links on the way to it, or they go round in circles")]
    Loop,
    #[error("it stands in the place of the root folder, which stays a folder")]
    Root,
    #[error("it is a link to {0:?}, which is not there")]
    Nothing(String),
    #[error("it is a link to the folder {0:?}")]
    LinkToFolder(String),
    #[error("it is a link to itself")]
    LinkToItself,
    #[error("it is a whiteout of nothing: `.wh.` stands before the name of what it hides")]
    Whiteout,
    #[error("it lies in a folder whose name is a whiteout's: names with `.wh.` are not for files")]
    InWhiteout,
    #[error("its access control list is damaged, or names somebody that the image does not know")]
    Acl,
    #[error("the file system does not take it")]
    Ext4(#[source] Ext4Error),
}

/// One entry. Names are as they shall be in the tree: no `/` at either end, no `.`, no empty part, no `..`.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Empty for the root folder.
    pub name: Vec<u8>,
    pub kind: EntryKind,
    pub attributes: Attributes,
    pub acl: Acl,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum EntryKind {
    Folder,
    /// Its stored bytes follow: see [`Tarball::piece`].
    File(Content),
    Symlink(Vec<u8>),
    /// A second name of what has this name.
    Link(Vec<u8>),
    CharDevice {
        major: u32,
        minor: u32,
    },
    BlockDevice {
        major: u32,
        minor: u32,
    },
    Fifo,
}

/// What a file holds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Content {
    pub size: u64,
    /// Where the stored bytes belong, in order, without overlap; `None`: they are all there is.
    pub segments: Option<Vec<Segment>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    pub offset: u64,
    pub length: u64,
}

/// Access control lists in their text form, to be made binary when the names in them can be looked up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Acl {
    pub access: Option<String>,
    pub default: Option<String>,
}

impl Acl {
    pub(crate) fn is_empty(&self) -> bool {
        self.access.is_none() && self.default.is_none()
    }
}

/// How many bytes the archive may have, and what to say when it has more.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Allowance {
    pub bytes: u64,
    pub refusal: fn(u64) -> Refusal,
    /// The limit as it was set, for the message.
    pub limit: u64,
}

pub(crate) struct Tarball<R> {
    source: R,
    /// Bytes of the archive that were read.
    at: u64,
    allowance: Allowance,
    /// Bytes of the present entry that were not read yet, and the padding behind them.
    left: u64,
    padding: u64,
    /// Records for all that follows, by key.
    global: BTreeMap<Vec<u8>, Vec<u8>>,
    ended: bool,
    marked: bool,
}

/// What was said before an entry's own header.
#[derive(Default)]
struct Before {
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    records: Option<Vec<u8>>,
}

impl<R: BufRead> Tarball<R> {
    pub(crate) fn new(source: R, allowance: Allowance) -> Self {
        Self {
            source,
            at: 0,
            allowance,
            left: 0,
            padding: 0,
            global: BTreeMap::new(),
            ended: false,
            marked: false,
        }
    }

    /// The next entry; what was not read of the last one is skipped.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, TarError> {
        if self.ended {
            return Ok(None);
        }
        self.skip(self.left)?;
        self.skip_padding()?;
        (self.left, self.padding) = (0, 0);
        let mut before = Before::default();
        loop {
            let at = self.at;
            let Some(block) = self.block()? else {
                if before.long_name.is_some()
                    || before.long_link.is_some()
                    || before.records.is_some()
                {
                    return Err(TarError::Cut { at });
                }
                if at == 0 {
                    return Err(TarError::NotATar);
                }
                self.ended = true;
                return Ok(None);
            };
            if is_zero(&block) {
                match self.block()? {
                    Some(second) if !is_zero(&second) => return Err(TarError::LoneZeros { at }),
                    _ => (self.ended, self.marked) = (true, true),
                }
                return Ok(None);
            }
            if !checksum_is_right(&block) {
                return Err(if at == 0 { TarError::NotATar } else { TarError::Checksum { at } });
            }
            let header = tar::Header::from_byte_slice(&block);
            self.charge(0).map_err(|cause| refused(&header.path_bytes(), cause))?;
            match header.as_old().linkflag[0] {
                b'L' => before.long_name = Some(until_nul(self.extension(header)?)),
                b'K' => before.long_link = Some(until_nul(self.extension(header)?)),
                b'x' => before.records = Some(self.extension(header)?),
                b'g' => {
                    let bytes = self.extension(header)?;
                    self.remember(&bytes).map_err(|cause| refused(&header.path_bytes(), cause))?;
                }
                _ => {
                    let name = before
                        .long_name
                        .clone()
                        .unwrap_or_else(|| header.path_bytes().into_owned());
                    return self.entry(header, before).map(Some).map_err(|error| match error {
                        Stop::Tar(error) => error,
                        Stop::Entry(cause) => refused(&name, cause),
                    });
                }
            }
        }
    }

    /// Reads what is behind the end, to the source's own end.
    pub(crate) fn finish(&mut self) -> Result<(), TarError> {
        loop {
            let count = self.source.fill_buf().map_err(TarError::Read)?.len();
            if count == 0 {
                return Ok(());
            }
            self.charge(count as u64)
                .map_err(|cause| refused(b"what is behind the archive's end", cause))?;
            self.source.consume(count);
            self.at += count as u64;
        }
    }

    /// The archive said that it ends, rather than to end only.
    pub(crate) fn has_end_mark(&self) -> bool {
        self.marked
    }

    pub(crate) fn into_source(self) -> R {
        self.source
    }

    /// How many bytes were read.
    pub(crate) fn position(&self) -> u64 {
        self.at
    }

    /// The next stored bytes of the present entry, `most` at the most; empty at their end. [`Self::consume`] passes over them.
    pub(crate) fn piece(&mut self, most: u64) -> Result<&[u8], TarError> {
        let most = usize::try_from(self.left.min(most)).unwrap_or(usize::MAX);
        if most == 0 {
            return Ok(&[]);
        }
        let bytes = self.source.fill_buf().map_err(TarError::Read)?;
        if bytes.is_empty() {
            return Err(TarError::Cut { at: self.at });
        }
        Ok(&bytes[..bytes.len().min(most)])
    }

    pub(crate) fn consume(&mut self, count: usize) {
        self.source.consume(count);
        self.at += count as u64;
        self.left -= count as u64;
    }

    /// Whether so many bytes more are allowed.
    fn charge(&self, count: u64) -> Result<(), Refusal> {
        if self.at.saturating_add(count) > self.allowance.bytes {
            return Err((self.allowance.refusal)(self.allowance.limit));
        }
        Ok(())
    }

    fn skip(&mut self, mut count: u64) -> Result<(), TarError> {
        while count > 0 {
            let bytes = self.source.fill_buf().map_err(TarError::Read)?.len();
            if bytes == 0 {
                return Err(TarError::Cut { at: self.at });
            }
            let step = usize::try_from(count).map_or(bytes, |count| count.min(bytes));
            self.source.consume(step);
            self.at += step as u64;
            count -= step as u64;
        }
        Ok(())
    }

    /// The padding of the last entry may be missing (`umoci insert` writes such layers): who needs to know whether the archive
    /// is whole asks for its end mark or its digest.
    fn skip_padding(&mut self) -> Result<(), TarError> {
        let mut padding = vec![0; usize::try_from(self.padding).expect("less than a block")];
        self.read(&mut padding).map(drop)
    }

    /// Fills `bytes`, and tells how many there were.
    fn read(&mut self, bytes: &mut [u8]) -> Result<usize, TarError> {
        let mut done = 0;
        while done < bytes.len() {
            let there = self.source.fill_buf().map_err(TarError::Read)?;
            if there.is_empty() {
                break;
            }
            let step = there.len().min(bytes.len() - done);
            bytes[done..done + step].copy_from_slice(&there[..step]);
            self.source.consume(step);
            done += step;
        }
        self.at += done as u64;
        Ok(done)
    }

    /// The next block; `None` at the end.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        let mut block = [0; BLOCK];
        match self.read(&mut block)? {
            BLOCK => Ok(Some(block)),
            0 => Ok(None),
            _ if self.at < BLOCK as u64 => Err(TarError::NotATar),
            _ => Err(TarError::Cut { at: self.at }),
        }
    }

    /// A block that must be there.
    fn next_block(&mut self) -> Result<[u8; BLOCK], TarError> {
        self.block()?.ok_or(TarError::Cut { at: self.at })
    }

    /// The content of a header that is not an entry, with the padding read.
    fn extension(&mut self, header: &tar::Header) -> Result<Vec<u8>, TarError> {
        let name = header.path_bytes();
        let size = size(header).map_err(|cause| refused(&name, cause))?;
        if size > LARGEST_EXTENSION {
            return Err(refused(&name, Refusal::LargeExtension));
        }
        self.charge(size).map_err(|cause| refused(&name, cause))?;
        let length = usize::try_from(size).expect("it is less than LARGEST_EXTENSION");
        let mut bytes = vec![0; length];
        if self.read(&mut bytes)? < length {
            return Err(TarError::Cut { at: self.at });
        }
        self.skip(padding(size))?;
        Ok(bytes)
    }

    /// Records for all that follows. One entry's name, size and map make no sense there.
    fn remember(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        for (key, value) in pax::records(bytes).ok_or(Refusal::Pax)? {
            if matches!(key, b"path" | b"linkpath" | b"size") || key.starts_with(b"GNU.sparse.") {
                return Err(Refusal::Global(shown(key)));
            }
            // Of all others only these say something; so that what is kept is bounded.
            if matches!(key, b"uid" | b"gid" | b"mtime") {
                self.global.insert(key.to_vec(), value.to_vec());
            }
        }
        Ok(())
    }

    fn entry(&mut self, header: &tar::Header, before: Before) -> Result<Entry, Stop> {
        let mut said = Said::default();
        for (key, value) in &self.global {
            said.add(key, value)?;
        }
        if let Some(bytes) = &before.records {
            for (key, value) in pax::records(bytes).ok_or(Refusal::Pax)? {
                said.add(key, value)?;
            }
        }
        let raw_name = said
            .sparse
            .name
            .take()
            .or(said.path.take())
            .or(before.long_name)
            .unwrap_or_else(|| header.path_bytes().into_owned());
        let raw_link = said.link.take().or(before.long_link).or_else(|| {
            let field = &header.as_old().linkname;
            Some(field.split(|&byte| byte == 0).next().unwrap_or_default().to_vec())
        });
        let raw_link = raw_link.unwrap_or_default();
        let name = plain(&raw_name)?;
        let attributes = said.attributes(header)?;

        let kind = match header.as_old().linkflag[0] {
            // A file whose name ends so is a folder of a tar from before there were types.
            0 | b'0' if raw_name.ends_with(b"/") => {
                if said.size.map_or_else(|| size(header), Ok)? != 0 {
                    return Err(Refusal::FolderContent.into());
                }
                EntryKind::Folder
            }
            0 | b'0' | b'7' => EntryKind::File(self.file(header, &mut said)?),
            b'S' => EntryKind::File(self.old_sparse_file(header, &said)?),
            // These have no content, whatever their size says: of a link it is that of its file.
            b'1' => EntryKind::Link(plain(&raw_link)?),
            b'2' => EntryKind::Symlink(raw_link),
            b'3' => device(header).map(|(major, minor)| EntryKind::CharDevice { major, minor })?,
            b'4' => device(header).map(|(major, minor)| EntryKind::BlockDevice { major, minor })?,
            b'5' => EntryKind::Folder,
            b'6' => EntryKind::Fifo,
            other => return Err(Refusal::Type(other).into()),
        };
        if let EntryKind::Symlink(target) = &kind
            && (target.is_empty() || target.len() > LONGEST_TARGET || target.contains(&0))
        {
            return Err(Refusal::Target.into());
        }
        Ok(Entry { name, kind, attributes, acl: said.acl })
    }

    /// A file that may be sparse in one of the pax forms.
    fn file(&mut self, header: &tar::Header, said: &mut Said) -> Result<Content, Stop> {
        let stored = said.size.map_or_else(|| size(header), Ok)?;
        self.charge(stored)?;
        (self.left, self.padding) = (stored, padding(stored));
        let sparse = &mut said.sparse;
        let segments = match (sparse.major, sparse.minor) {
            (None | Some(0), _) if sparse.segments.is_empty() && sparse.size.is_none() => {
                return content(stored, None, stored);
            }
            (None | Some(0), _) => std::mem::take(&mut sparse.segments),
            (Some(1), Some(0)) => self.map_before_content()?,
            _ => return Err(Refusal::Sparse.into()),
        };
        content(sparse.size.ok_or(Refusal::Sparse)?, Some(segments), self.left)
    }

    /// GNU tar's manual, "PAX Format, Version 1.0": decimal numbers, each on a line, in the first blocks of the content.
    fn map_before_content(&mut self) -> Result<Vec<Segment>, Stop> {
        let mut block = [0; BLOCK];
        let mut at = BLOCK;
        let mut number = |tarball: &mut Self| -> Result<u64, Stop> {
            let mut digits = Vec::new();
            loop {
                if at == BLOCK {
                    tarball.left = tarball.left.checked_sub(BLOCK as u64).ok_or(Refusal::Sparse)?;
                    block = tarball.next_block()?;
                    at = 0;
                }
                at += 1;
                match block[at - 1] {
                    b'\n' => return Ok(pax::decimal(&digits).ok_or(Refusal::Sparse)?),
                    _ if digits.len() == 20 => return Err(Refusal::Sparse.into()),
                    digit => digits.push(digit),
                }
            }
        };
        let count = number(self)?;
        if count > MOST_SEGMENTS as u64 {
            return Err(Refusal::SparsePieces.into());
        }
        let mut segments = Vec::new();
        for _ in 0..count {
            segments.push(Segment { offset: number(self)?, length: number(self)? });
        }
        Ok(segments)
    }

    /// GNU tar's own form: four pieces in the header, 21 more in each block that follows.
    fn old_sparse_file(&mut self, header: &tar::Header, said: &Said) -> Result<Content, Stop> {
        let gnu = header.as_gnu().ok_or(Refusal::Sparse)?;
        let stored = said.size.map_or_else(|| size(header), Ok)?;
        self.charge(stored)?;
        let mut segments = Vec::new();
        let mut add = |piece: &[u8]| {
            let (offset, length) = piece.split_at(12);
            if piece[0] == 0 || length[0] == 0 {
                return Ok(());
            }
            let number = |field| pax::number(field).and_then(|number| u64::try_from(number).ok());
            let (offset, length) = (number(offset), number(length));
            let (Some(offset), Some(length)) = (offset, length) else {
                return Err(Refusal::Sparse);
            };
            segments.push(Segment { offset, length });
            if segments.len() > MOST_SEGMENTS { Err(Refusal::SparsePieces) } else { Ok(()) }
        };
        for piece in &gnu.sparse {
            add(&[piece.offset, piece.numbytes].concat())?;
        }
        let mut more = gnu.is_extended();
        while more {
            self.charge(BLOCK as u64)?;
            let block = self.next_block()?;
            for piece in block[..504].chunks_exact(24) {
                add(piece)?;
            }
            more = block[504] == 1;
        }
        (self.left, self.padding) = (stored, padding(stored));
        let size = pax::number(&gnu.realsize).and_then(|size| u64::try_from(size).ok());
        content(size.ok_or(Refusal::Number("size"))?, Some(segments), stored)
    }
}

/// Why [`Tarball::entry`] stopped: the archive, or the entry.
enum Stop {
    Tar(TarError),
    Entry(Refusal),
}

impl From<TarError> for Stop {
    fn from(error: TarError) -> Self {
        Self::Tar(error)
    }
}

impl From<Refusal> for Stop {
    fn from(cause: Refusal) -> Self {
        Self::Entry(cause)
    }
}

pub(crate) fn refused(name: &[u8], cause: Refusal) -> TarError {
    TarError::Entry { name: shown(name), cause }
}

/// A name for people, cut where it is longer than a line can be.
pub(crate) fn shown(name: &[u8]) -> String {
    const LONGEST: usize = 300;
    let text = String::from_utf8_lossy(&name[..name.len().min(LONGEST)]).into_owned();
    if name.len() > LONGEST { text + "..." } else { text }
}

/// What pax records say of an entry.
#[derive(Default)]
struct Said {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<Timestamp>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    acl: Acl,
    sparse: SparseWords,
}

/// GNU tar's manual, "Storing Sparse Files": the records of the formats 0.0, 0.1 and 1.0.
#[derive(Default)]
struct SparseWords {
    major: Option<u64>,
    minor: Option<u64>,
    name: Option<Vec<u8>>,
    size: Option<u64>,
    offset: Option<u64>,
    segments: Vec<Segment>,
}

impl Said {
    fn add(&mut self, key: &[u8], value: &[u8]) -> Result<(), Refusal> {
        // POSIX: an empty value takes back what was said before.
        let number = |name| -> Result<Option<u64>, Refusal> {
            if value.is_empty() {
                return Ok(None);
            }
            pax::decimal(value).map(Some).ok_or(Refusal::Number(name))
        };
        let bytes = || (!value.is_empty()).then(|| value.to_vec());
        let text = || (!value.is_empty()).then(|| String::from_utf8_lossy(value).into_owned());
        match key {
            b"path" => self.path = bytes(),
            b"linkpath" => self.link = bytes(),
            b"size" => self.size = number("size")?,
            b"uid" => self.uid = number("owner")?,
            b"gid" => self.gid = number("group")?,
            b"mtime" if value.is_empty() => self.mtime = None,
            b"mtime" => self.mtime = Some(pax::time(value).ok_or(Refusal::Number("time"))?),
            b"SCHILY.acl.access" => self.acl.access = text(),
            b"SCHILY.acl.default" => self.acl.default = text(),
            _ => {
                if let Some(word) = key.strip_prefix(b"GNU.sparse.") {
                    return self.sparse.add(word, value);
                }
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.add_xattr(name.to_vec(), value.to_vec())?;
                } else if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
                    let name = pax::percent_decoded(name).ok_or(Refusal::Pax)?;
                    // libarchive says the same twice.
                    if !self.xattrs.contains_key(&name) {
                        self.add_xattr(name, pax::base64_decoded(value).ok_or(Refusal::Pax)?)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn add_xattr(&mut self, name: Vec<u8>, value: Vec<u8>) -> Result<(), Refusal> {
        if name.is_empty() || name.len() > LONGEST_XATTR_NAME || name.contains(&0) {
            return Err(Refusal::XattrName);
        }
        if value.len() > LARGEST_XATTR {
            return Err(Refusal::LargeXattr);
        }
        if is_kept(&name) {
            self.xattrs.insert(name, value);
        }
        Ok(())
    }

    fn attributes(&mut self, header: &tar::Header) -> Result<Attributes, Refusal> {
        let old = header.as_old();
        let id = |said: Option<u64>, field: &[u8], what| -> Result<u32, Refusal> {
            let id = match said {
                Some(id) => i64::try_from(id).map_err(|_| Refusal::Owner)?,
                None => pax::number(field).ok_or(Refusal::Number(what))?,
            };
            // chown(2) takes the last as "leave it".
            u32::try_from(id).ok().filter(|&id| id != u32::MAX).ok_or(Refusal::Owner)
        };
        let mode = pax::number(&old.mode).ok_or(Refusal::Number("mode"))? & 0o7777;
        let mtime = match self.mtime {
            Some(time) => time,
            None => Timestamp {
                seconds: pax::number(&old.mtime).ok_or(Refusal::Number("time"))?,
                nanoseconds: 0,
            },
        };
        let mut xattrs = std::mem::take(&mut self.xattrs);
        // The text has precedence over its copy among the attributes: it is the one with names.
        for (text, name) in [
            (&self.acl.access, crate::posix_acl::ACCESS),
            (&self.acl.default, crate::posix_acl::DEFAULT),
        ] {
            if text.is_some() {
                xattrs.remove(name.as_bytes());
            }
        }
        Ok(Attributes {
            mode: u16::try_from(mode).expect("12 bits"),
            uid: id(self.uid, &old.uid, "owner")?,
            gid: id(self.gid, &old.gid, "group")?,
            mtime,
            xattrs,
        })
    }
}

impl SparseWords {
    fn add(&mut self, word: &[u8], value: &[u8]) -> Result<(), Refusal> {
        let number = || pax::decimal(value).ok_or(Refusal::Sparse);
        match word {
            b"major" => self.major = Some(number()?),
            b"minor" => self.minor = Some(number()?),
            b"name" => self.name = Some(value.to_vec()),
            b"size" | b"realsize" => self.size = Some(number()?),
            b"offset" => self.offset = Some(number()?),
            b"numbytes" => {
                let offset = self.offset.take().ok_or(Refusal::Sparse)?;
                self.segments.push(Segment { offset, length: number()? });
            }
            b"map" => {
                let numbers: Option<Vec<u64>> =
                    value.split(|&byte| byte == b',').map(pax::decimal).collect();
                let numbers = numbers.filter(|numbers| numbers.len().is_multiple_of(2));
                self.segments = numbers
                    .ok_or(Refusal::Sparse)?
                    .chunks_exact(2)
                    .map(|pair| Segment { offset: pair[0], length: pair[1] })
                    .collect();
            }
            _ => {}
        }
        Ok(())
    }
}

/// Whether ext4 has a place for an attribute of this name (fs/ext4/xattr.h, `EXT4_XATTR_INDEX_*`). Others are of other
/// systems, as `com.apple.quarantine` is, and are left behind as they are by every unpacking on Linux.
fn is_kept(name: &[u8]) -> bool {
    let named = |prefix: &[u8]| name.len() > prefix.len() && name.starts_with(prefix);
    named(b"user.")
        || named(b"trusted.")
        || named(b"security.")
        || name == crate::posix_acl::ACCESS.as_bytes()
        || name == crate::posix_acl::DEFAULT.as_bytes()
}

/// A file of this size, whose `stored` bytes belong to `segments`.
fn content(size: u64, segments: Option<Vec<Segment>>, stored: u64) -> Result<Content, Stop> {
    if size > LARGEST_FILE {
        return Err(Refusal::LargeFile.into());
    }
    if let Some(segments) = &segments {
        let (mut end, mut sum) = (0, 0_u64);
        for segment in segments {
            let next = segment.offset.checked_add(segment.length).ok_or(Refusal::Sparse)?;
            if segment.offset < end || next > size {
                return Err(Refusal::Sparse.into());
            }
            // It does not overflow: the pieces lie side by side below `size`.
            (end, sum) = (next, sum + segment.length);
        }
        if sum != stored {
            return Err(Refusal::Sparse.into());
        }
    }
    Ok(Content { size, segments })
}

fn size(header: &tar::Header) -> Result<u64, Refusal> {
    let size = pax::number(&header.as_old().size).and_then(|size| u64::try_from(size).ok());
    size.ok_or(Refusal::Number("size"))
}

fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

fn device(header: &tar::Header) -> Result<(u32, u32), Refusal> {
    let bytes = header.as_bytes();
    // Both ustar and GNU have them here.
    let (major, minor) = (pax::number(&bytes[329..337]), pax::number(&bytes[337..345]));
    let within = |number: Option<i64>, end: i64| {
        let number = number.filter(|number| (0..end).contains(number));
        number.and_then(|number| u32::try_from(number).ok()).ok_or(Refusal::Device)
    };
    Ok((within(major, MAJORS)?, within(minor, MINORS)?))
}

/// `./a//b/` → `a/b`, `/a` → `a`.
fn plain(name: &[u8]) -> Result<Vec<u8>, Refusal> {
    let mut plain = Vec::with_capacity(name.len());
    for part in name.split(|&byte| byte == b'/') {
        match part {
            b"" | b"." => continue,
            b".." => return Err(Refusal::Upwards),
            _ if part.len() > LONGEST_PART => return Err(Refusal::LongPart),
            _ if part.contains(&0) => return Err(Refusal::Nul),
            _ => {}
        }
        if !plain.is_empty() {
            plain.push(b'/');
        }
        plain.extend(part);
    }
    if plain.len() > LONGEST_PATH {
        return Err(Refusal::LongName);
    }
    Ok(plain)
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|&byte| byte == 0) {
        bytes.truncate(end);
    }
    bytes
}

fn is_zero(block: &[u8; BLOCK]) -> bool {
    block.iter().all(|&byte| byte == 0)
}

/// The sum of the header's bytes, its own field taken as blanks; some old tars added them up as signed.
fn checksum_is_right(block: &[u8; BLOCK]) -> bool {
    let (mut plain, mut signed) = (0_i64, 0_i64);
    for (at, &byte) in block.iter().enumerate() {
        let byte = if (148..156).contains(&at) { b' ' } else { byte };
        plain += i64::from(byte);
        signed += i64::from(byte.cast_signed());
    }
    let written = pax::number(&block[148..156]);
    written == Some(plain) || written == Some(signed)
}
