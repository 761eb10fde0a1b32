//! Entries of a tar stream, one after the other: ustar, pax and GNU tar; long names, extended attributes, sparse files in
//! GNU tar's old form and in pax 1.0 (what GNU tar, bsdtar and we write). The tar crate knows the headers' layout; what is
//! here is what must be bounded since nothing of a stream is believed, and that holes stay holes.

use std::io::{self, Read};

use tar::{EntryType, GnuExtSparseHeader, Header};

use crate::shown;
use crate::times::Time;

const BLOCK: usize = 512;

/// What lies before an entry: pax records, or a long name.
const LARGEST_EXTENSION: u64 = 1 << 20;

/// Pieces of a sparse file, kept in memory, 16 bytes each.
const MOST_SEGMENTS: usize = 1 << 20;

/// linux/limits.h: PATH_MAX and NAME_MAX.
const LONGEST_PATH: usize = 4095;
const LONGEST_PART: usize = 255;

/// Why the stream cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error("cannot read the stream")]
    Read(#[source] io::Error),
    #[error("this is not a tar stream")]
    NotATar,
    #[error("the tar stream is cut off")]
    Cut,
    #[error("a header of the tar stream is damaged: its checksum is wrong")]
    Checksum,
    #[error("the tar stream has {what} of {name} that is damaged or of a kind that is not known")]
    Damaged { name: String, what: &'static str },
    #[error("what the tar stream says of {name} before it is more than {LARGEST_EXTENSION} bytes")]
    LargeExtension { name: String },
    #[error("the tar stream has a name with `..` in it: {name}")]
    Upwards { name: String },
    #[error("the tar stream has a name or a target that is too long: {name}")]
    LongName { name: String },
}

#[derive(Debug)]
pub(crate) struct Entry {
    /// No `/` at either end, no `.`, no empty part, no `..`. Empty for the stream's root.
    pub(crate) name: Vec<u8>,
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Time,
    /// Full name (`user.x`) and value.
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Folder,
    /// Its stored bytes follow.
    File {
        size: u64,
        segments: Vec<Segment>,
    },
    Symlink(Vec<u8>),
    /// A second name of what has this name, in the form of [`Entry::name`].
    Link(Vec<u8>),
    Fifo,
    Device,
}

/// Where stored bytes of a file belong: in order, without overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

pub(crate) struct Archive<R> {
    source: R,
    /// Stored bytes of the present entry that were not read yet, and the padding behind them.
    left: u64,
    padding: u64,
    started: bool,
    ended: bool,
}

/// What was said before an entry's own header.
#[derive(Default)]
struct Before {
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    records: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Before {
    fn record(&self, key: &[u8]) -> Option<&[u8]> {
        let mut found = self.records.iter().rev().filter(|(name, _)| name == key);
        found.next().map(|(_, value)| &value[..])
    }

    fn number(&self, key: &[u8]) -> Option<u64> {
        std::str::from_utf8(self.record(key)?).ok()?.parse().ok()
    }
}

impl<R: Read> Archive<R> {
    pub(crate) fn new(source: R) -> Self {
        Self { source, left: 0, padding: 0, started: false, ended: false }
    }

    /// The next entry; what was not read of the last one is skipped. `None` behind the end mark, which must be there.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, ArchiveError> {
        if self.ended {
            return Ok(None);
        }
        self.skip(self.left + self.padding)?;
        (self.left, self.padding) = (0, 0);
        let mut before = Before::default();
        loop {
            let block = self.block()?;
            if block.iter().all(|&byte| byte == 0) {
                self.ended = true;
                return Ok(None);
            }
            let header = Header::from_byte_slice(&block);
            check(header, self.started)?;
            self.started = true;
            match header.entry_type() {
                EntryType::GNULongName => before.long_name = Some(self.long(header)?),
                EntryType::GNULongLink => before.long_link = Some(self.long(header)?),
                EntryType::XHeader => {
                    let bytes = self.extension(header)?;
                    let damaged = || damaged(&header.path_bytes(), "an extended header");
                    before.records = records(&bytes).ok_or_else(damaged)?;
                }
                // Of all that follows: comments, and defaults that nobody we know of sends.
                EntryType::XGlobalHeader => drop(self.extension(header)?),
                _ => return self.entry(header, &before).map(Some),
            }
        }
    }

    /// Stored bytes of the present entry, in their order; 0 at their end.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> Result<usize, ArchiveError> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let count = read(&mut self.source, &mut buffer[..most])?;
        if count == 0 {
            return Err(ArchiveError::Cut);
        }
        self.left -= count as u64;
        Ok(count)
    }

    /// Reads the source to its end: who sends it knows then that all was taken.
    pub(crate) fn finish(mut self) -> Result<(), ArchiveError> {
        let mut buffer = vec![0; 64 << 10];
        while read(&mut self.source, &mut buffer)? > 0 {}
        Ok(())
    }

    fn entry(&mut self, header: &Header, before: &Before) -> Result<Entry, ArchiveError> {
        let raw_name = before
            .record(b"GNU.sparse.name")
            .or_else(|| before.record(b"path"))
            .or(before.long_name.as_deref())
            .map_or_else(|| header.path_bytes().into_owned(), <[u8]>::to_vec);
        let damaged = |what| damaged(&raw_name, what);
        let link = || {
            let said = before.record(b"linkpath").or(before.long_link.as_deref());
            let link = said.map(<[u8]>::to_vec);
            link.or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned))
                .unwrap_or_default()
        };
        let name = plain(&raw_name)?;
        let stored = match before.number(b"size") {
            Some(size) => size,
            None => header.entry_size().map_err(|_| damaged("the size"))?,
        };
        let kind = match header.entry_type() {
            // Old tars have no type for a folder.
            EntryType::Regular if raw_name.ends_with(b"/") => Kind::Folder,
            EntryType::Regular | EntryType::Continuous => {
                self.begin(stored);
                self.file(before, stored, &raw_name)?
            }
            EntryType::GNUSparse => self.old_sparse(header, stored, &raw_name)?,
            EntryType::Link => Kind::Link(plain(&link())?),
            EntryType::Symlink => {
                let target = link();
                if target.is_empty() || target.len() > LONGEST_PATH || target.contains(&0) {
                    return Err(damaged("the target"));
                }
                Kind::Symlink(target)
            }
            EntryType::Directory => Kind::Folder,
            EntryType::Fifo => Kind::Fifo,
            EntryType::Char | EntryType::Block => Kind::Device,
            _ => return Err(damaged("the type")),
        };
        let id = |key: &[u8], field: io::Result<u64>| {
            let id = before.number(key).or_else(|| field.ok());
            // chown(2) takes the last as "leave it".
            id.and_then(|id| u32::try_from(id).ok()).filter(|&id| id != u32::MAX)
        };
        let mtime = match before.record(b"mtime") {
            Some(text) => Time::parse(text).ok_or_else(|| damaged("the time"))?,
            None => Time {
                seconds: header
                    .mtime()
                    .ok()
                    .and_then(|seconds| i64::try_from(seconds).ok())
                    .ok_or_else(|| damaged("the time"))?,
                nanoseconds: 0,
            },
        };
        let xattrs = before.records.iter().filter_map(|(key, value)| {
            let name = key.strip_prefix(b"SCHILY.xattr.")?;
            let is_one = !name.is_empty() && name.len() <= LONGEST_PART && !name.contains(&0);
            is_one.then(|| (name.to_vec(), value.clone()))
        });
        Ok(Entry {
            name,
            kind,
            mode: header.mode().map_err(|_| damaged("the mode"))? & 0o7777,
            uid: id(b"uid", header.uid()).ok_or_else(|| damaged("the owner"))?,
            gid: id(b"gid", header.gid()).ok_or_else(|| damaged("the group"))?,
            mtime,
            xattrs: xattrs.collect(),
        })
    }

    /// So many stored bytes follow.
    fn begin(&mut self, stored: u64) {
        self.left = stored;
        self.padding = stored.wrapping_neg() % BLOCK as u64;
    }

    /// A file that may be sparse in the form of pax.
    fn file(&mut self, before: &Before, stored: u64, name: &[u8]) -> Result<Kind, ArchiveError> {
        let is_sparse = before.records.iter().any(|(key, _)| key.starts_with(b"GNU.sparse."));
        if !is_sparse {
            return Ok(Kind::File { size: stored, segments: whole(stored) });
        }
        let numbers = (before.number(b"GNU.sparse.major"), before.number(b"GNU.sparse.minor"));
        let size = before.number(b"GNU.sparse.realsize");
        let (Some(size), (Some(1), Some(0))) = (size, numbers) else {
            return Err(damaged(name, "the map of holes"));
        };
        let segments = self.map_before_content(name)?;
        checked(size, segments, self.left, name)
    }

    /// GNU tar's manual, "PAX Format, Version 1.0": decimal numbers, each on a line, in the first blocks of the content.
    fn map_before_content(&mut self, name: &[u8]) -> Result<Vec<Segment>, ArchiveError> {
        let mut block = [0; BLOCK];
        let mut at = BLOCK;
        let mut number = |archive: &mut Self| -> Result<u64, ArchiveError> {
            let mut digits = String::new();
            loop {
                if at == BLOCK {
                    let left = archive.left.checked_sub(BLOCK as u64);
                    archive.left = left.ok_or_else(|| damaged(name, "the map of holes"))?;
                    block = archive.block()?;
                    at = 0;
                }
                at += 1;
                match block[at - 1] {
                    b'\n' => {
                        return digits.parse().map_err(|_| damaged(name, "the map of holes"));
                    }
                    digit if digit.is_ascii_digit() && digits.len() < 20 => {
                        digits.push(char::from(digit));
                    }
                    _ => return Err(damaged(name, "the map of holes")),
                }
            }
        };
        let count = number(self)?;
        if count > MOST_SEGMENTS as u64 {
            return Err(damaged(name, "the map of holes"));
        }
        (0..count).map(|_| Ok(Segment { offset: number(self)?, length: number(self)? })).collect()
    }

    /// GNU tar's own form: four pieces in the header, 21 more in each block that follows.
    fn old_sparse(
        &mut self,
        header: &Header,
        stored: u64,
        name: &[u8],
    ) -> Result<Kind, ArchiveError> {
        let wrong = || damaged(name, "the map of holes");
        let gnu = header.as_gnu().ok_or_else(wrong)?;
        let size = gnu.real_size().map_err(|_| wrong())?;
        let mut segments = Vec::new();
        let mut add = |pieces: &[tar::GnuSparseHeader]| {
            for piece in pieces.iter().take_while(|piece| !piece.is_empty()) {
                let (offset, length) = (piece.offset(), piece.length());
                let (Ok(offset), Ok(length)) = (offset, length) else { return Err(wrong()) };
                segments.push(Segment { offset, length });
            }
            if segments.len() > MOST_SEGMENTS { Err(wrong()) } else { Ok(()) }
        };
        add(&gnu.sparse)?;
        let mut more = gnu.is_extended();
        while more {
            let mut block = GnuExtSparseHeader::new();
            *block.as_mut_bytes() = self.block()?;
            add(block.sparse())?;
            more = block.is_extended();
        }
        self.begin(stored);
        checked(size, segments, stored, name)
    }

    fn long(&mut self, header: &Header) -> Result<Vec<u8>, ArchiveError> {
        let mut bytes = self.extension(header)?;
        if let Some(end) = bytes.iter().position(|&byte| byte == 0) {
            bytes.truncate(end);
        }
        Ok(bytes)
    }

    /// The content of a header that is not an entry, with the padding read.
    fn extension(&mut self, header: &Header) -> Result<Vec<u8>, ArchiveError> {
        let name = header.path_bytes();
        let size = header.entry_size().map_err(|_| damaged(&name, "the size"))?;
        let length = usize::try_from(size).ok().filter(|_| size <= LARGEST_EXTENSION);
        let length = length.ok_or_else(|| ArchiveError::LargeExtension { name: shown(&name) })?;
        let mut bytes = vec![0; length.next_multiple_of(BLOCK)];
        fill(&mut self.source, &mut bytes)?;
        bytes.truncate(length);
        Ok(bytes)
    }

    fn block(&mut self) -> Result<[u8; BLOCK], ArchiveError> {
        let mut block = [0; BLOCK];
        fill(&mut self.source, &mut block)?;
        Ok(block)
    }

    fn skip(&mut self, mut count: u64) -> Result<(), ArchiveError> {
        let mut buffer = [0; 16 << 10];
        while count > 0 {
            let most = usize::try_from(count).unwrap_or(usize::MAX).min(buffer.len());
            let read = read(&mut self.source, &mut buffer[..most])?;
            if read == 0 {
                return Err(ArchiveError::Cut);
            }
            count -= read as u64;
        }
        Ok(())
    }
}

fn read(source: &mut impl Read, buffer: &mut [u8]) -> Result<usize, ArchiveError> {
    loop {
        match source.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done.map_err(ArchiveError::Read),
        }
    }
}

fn fill(source: &mut impl Read, mut buffer: &mut [u8]) -> Result<(), ArchiveError> {
    while !buffer.is_empty() {
        match read(source, buffer)? {
            0 => return Err(ArchiveError::Cut),
            count => buffer = &mut buffer[count..],
        }
    }
    Ok(())
}

/// POSIX, pax: the sum of the header's bytes, with blanks for the sum itself.
fn check(header: &Header, started: bool) -> Result<(), ArchiveError> {
    let bytes = header.as_bytes();
    let sum: u32 = bytes[..148].iter().chain(&bytes[156..]).map(|&byte| u32::from(byte)).sum();
    match header.cksum() {
        Ok(said) if said == sum + 8 * u32::from(b' ') => Ok(()),
        _ if started => Err(ArchiveError::Checksum),
        _ => Err(ArchiveError::NotATar),
    }
}

fn damaged(name: &[u8], what: &'static str) -> ArchiveError {
    ArchiveError::Damaged { name: shown(name), what }
}

/// A file without holes.
fn whole(size: u64) -> Vec<Segment> {
    if size == 0 { Vec::new() } else { vec![Segment { offset: 0, length: size }] }
}

fn checked(
    size: u64,
    mut segments: Vec<Segment>,
    stored: u64,
    name: &[u8],
) -> Result<Kind, ArchiveError> {
    let wrong = || damaged(name, "the map of holes");
    let (mut end, mut sum) = (0, 0_u64);
    for segment in &segments {
        let next = segment.offset.checked_add(segment.length).ok_or_else(wrong)?;
        if segment.offset < end || next > size {
            return Err(wrong());
        }
        // It does not overflow: the pieces lie side by side below `size`.
        (end, sum) = (next, sum + segment.length);
    }
    if sum != stored {
        return Err(wrong());
    }
    segments.retain(|segment| segment.length > 0);
    Ok(Kind::File { size, segments })
}

/// The records of an extended header, `LENGTH KEY=VALUE\n` each. The value may hold any byte, so they are not lines.
fn records(mut bytes: &[u8]) -> Option<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut found = Vec::new();
    // Some writers pad with NULs inside the size they tell.
    while bytes.iter().any(|&byte| byte != 0) {
        let blank = bytes.iter().take(20).position(|&byte| byte == b' ')?;
        let length: usize = std::str::from_utf8(&bytes[..blank]).ok()?.parse().ok()?;
        let record = bytes.get(blank + 1..length)?.strip_suffix(b"\n")?;
        let equals = record.iter().position(|&byte| byte == b'=')?;
        found.push((record[..equals].to_vec(), record[equals + 1..].to_vec()));
        bytes = &bytes[length..];
    }
    Some(found)
}

/// `./a//b/` → `a/b`, `/a` → `a`.
fn plain(name: &[u8]) -> Result<Vec<u8>, ArchiveError> {
    let long = || ArchiveError::LongName { name: shown(name) };
    let mut plain = Vec::with_capacity(name.len());
    for part in name.split(|&byte| byte == b'/') {
        match part {
            b"" | b"." => continue,
            b".." => return Err(ArchiveError::Upwards { name: shown(name) }),
            _ if part.len() > LONGEST_PART => return Err(long()),
            _ if part.contains(&0) => return Err(damaged(name, "the name")),
            _ => {}
        }
        if !plain.is_empty() {
            plain.push(b'/');
        }
        plain.extend(part);
    }
    if plain.len() > LONGEST_PATH { Err(long()) } else { Ok(plain) }
}
