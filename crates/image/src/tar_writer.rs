//! Writes tar archives: ustar, with pax extended headers for what that has no room for (POSIX.1-2017, pax), extended
//! attributes as star names them, and holes in GNU tar's sparse format 1.0. The same tree gives the same bytes.

use std::collections::HashMap;
use std::io::{self, Write};

use banger_ext4::{Attributes, Kind, Timestamp};

use crate::filesystem::Run;
use crate::union::{Entry, Key, Union, UnionError, shown};

const BLOCK: u64 = 512;

/// Files with holes of so many bytes keep them; smaller ones are zeros, which every reader takes.
const SPARSE: u64 = 1 << 20;

/// The largest number of a field of 8 bytes, and of 12.
const MOST_7_DIGITS: u64 = 0o777_7777;
const MOST_11_DIGITS: u64 = 0o777_7777_7777;

#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error("cannot read what is to be archived")]
    Read(#[from] UnionError),
    #[error("cannot write the archive")]
    Write(#[source] io::Error),
    #[error(
        "{path} would remove another file when it is unpacked: OCI layers take that name for a mark"
    )]
    Whiteout { path: String },
    #[error("it has more than {0} names: the file system is damaged")]
    Names(u64),
    #[error("the data of {path} is that of other files too: the file system is damaged")]
    Shared { path: String },
}

/// What was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Written {
    pub entries: u64,
    /// They are no files, and no archive has them.
    pub sockets: u64,
}

/// Writes the whole tree as an OCI layer.
///
/// # Errors
/// When it cannot be read or written, or has what a layer cannot have.
pub(crate) fn write(
    union: &Union,
    to: &mut impl Write,
    told: &mut dyn FnMut(u64),
) -> Result<Written, ArchiveError> {
    let mut written = Written::default();
    let mut first_names: HashMap<Key, Vec<u8>> = HashMap::new();
    let mut left = union.bytes();
    let most = union.most_entries();
    let mut walk = union.walk();
    while let Some(entry) = walk.next()? {
        let name = entry.path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
        if name.starts_with(b".wh.") {
            return Err(ArchiveError::Whiteout { path: shown(&entry.path) });
        }
        if entry.kind == Kind::Socket {
            written.sockets += 1;
            continue;
        }
        written.entries += 1;
        if written.entries > most {
            return Err(ArchiveError::Names(most));
        }
        if entry.kind != Kind::Directory && entry.links > 1 {
            if let Some(first) = first_names.get(&entry.key) {
                let header = Header { target: first, ..Header::new(&entry, b'1') };
                header.write(to).map_err(ArchiveError::Write)?;
                continue;
            }
            first_names.insert(entry.key, entry.path.clone());
        }
        match &entry.kind {
            Kind::File => file(union, &entry, to, &mut left, told)?,
            Kind::Directory => Header::new(&entry, b'5').write(to).map_err(ArchiveError::Write)?,
            Kind::Symlink(target) => {
                let header = Header { target, ..Header::new(&entry, b'2') };
                header.write(to).map_err(ArchiveError::Write)?;
            }
            Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } => {
                let is_char = matches!(entry.kind, Kind::CharDevice { .. });
                let kind = if is_char { b'3' } else { b'4' };
                let header = Header { device: (*major, *minor), ..Header::new(&entry, kind) };
                header.write(to).map_err(ArchiveError::Write)?;
            }
            Kind::Fifo => Header::new(&entry, b'6').write(to).map_err(ArchiveError::Write)?,
            Kind::Socket => unreachable!("sockets are left out above"),
        }
    }
    // Two blocks of zeros are the end.
    to.write_all(&[0; 1024]).map_err(ArchiveError::Write)?;
    Ok(written)
}

fn file(
    union: &Union,
    entry: &Entry,
    to: &mut impl Write,
    left: &mut u64,
    told: &mut dyn FnMut(u64),
) -> Result<(), ArchiveError> {
    let block_bytes = union.block_bytes(entry);
    let size = entry.size();
    let mut segments = Vec::new();
    let mut stored = 0;
    for (offset, runs) in union.data(entry)? {
        let blocks: u64 = runs.iter().map(|run| u64::from(run.count)).sum();
        let bytes = (blocks * block_bytes).min(size - offset);
        // Every block is one file's.
        *left = left
            .checked_sub(blocks * block_bytes)
            .ok_or_else(|| ArchiveError::Shared { path: shown(&entry.path) })?;
        stored += bytes;
        segments.push(Segment { offset, bytes, runs });
    }
    let is_sparse = size - stored >= SPARSE;
    if is_sparse {
        let map = sparse_map(&segments, size);
        let header = Header { size: stored + map.len() as u64, ..Header::new(entry, b'0') };
        header
            .sparse(size)
            .write(to)
            .and_then(|()| to.write_all(&map))
            .map_err(ArchiveError::Write)?;
        for segment in &segments {
            segment_data(union, entry, segment, to, told)?;
        }
        return pad(to, stored).map_err(ArchiveError::Write);
    }
    let header = Header { size, ..Header::new(entry, b'0') };
    header.write(to).map_err(ArchiveError::Write)?;
    let mut at = 0;
    for segment in &segments {
        zeros(to, segment.offset - at).map_err(ArchiveError::Write)?;
        segment_data(union, entry, segment, to, told)?;
        at = segment.offset + segment.bytes;
    }
    zeros(to, size - at).and_then(|()| pad(to, size)).map_err(ArchiveError::Write)
}

/// Data between two holes.
struct Segment {
    offset: u64,
    bytes: u64,
    runs: Vec<Run>,
}

fn segment_data(
    union: &Union,
    entry: &Entry,
    segment: &Segment,
    to: &mut impl Write,
    told: &mut dyn FnMut(u64),
) -> Result<(), ArchiveError> {
    const PIECE: u64 = 256 << 10;
    let block_bytes = union.block_bytes(entry);
    let mut left = segment.bytes;
    let mut buffer = Vec::new();
    for run in &segment.runs {
        let mut offset = 0;
        let end = (u64::from(run.count) * block_bytes).min(left);
        while offset < end {
            let count = PIECE.min(end - offset);
            buffer.resize(usize::try_from(count).expect("a piece is small"), 0);
            union.read(entry, &mut buffer, run.block, offset)?;
            to.write_all(&buffer).map_err(ArchiveError::Write)?;
            offset += count;
            told(count);
        }
        left -= end;
    }
    Ok(())
}

/// How many, then offset and bytes of each, a line for each number; as many blocks as that takes.
fn sparse_map(segments: &[Segment], size: u64) -> Vec<u8> {
    let mut all: Vec<_> = segments.iter().map(|segment| (segment.offset, segment.bytes)).collect();
    if all.last().is_none_or(|(offset, bytes)| offset + bytes < size) {
        all.push((size, 0));
    }
    let mut map = format!("{}\n", all.len());
    for (offset, bytes) in all {
        map += &format!("{offset}\n{bytes}\n");
    }
    let mut map = map.into_bytes();
    map.resize(map.len().next_multiple_of(512), 0);
    map
}

fn zeros(to: &mut impl Write, count: u64) -> io::Result<()> {
    io::copy(&mut io::Read::take(io::repeat(0), count), to).map(drop)
}

fn pad(to: &mut impl Write, bytes: u64) -> io::Result<()> {
    zeros(to, bytes.next_multiple_of(BLOCK) - bytes)
}

/// What stands before the data of an entry.
struct Header<'a> {
    path: Vec<u8>,
    kind: u8,
    attributes: &'a Attributes,
    size: u64,
    target: &'a [u8],
    device: (u32, u32),
    records: Vec<(Vec<u8>, Vec<u8>)>,
}

impl<'a> Header<'a> {
    fn new(entry: &'a Entry, kind: u8) -> Self {
        let path = match (entry.path.is_empty(), kind) {
            (true, _) => b"./".to_vec(),
            (false, b'5') => [&entry.path[..], b"/"].concat(),
            (false, _) => entry.path.clone(),
        };
        let attributes = &entry.attributes;
        Self { path, kind, attributes, size: 0, target: b"", device: (0, 0), records: Vec::new() }
    }

    /// A file with holes: its name is a record, for readers that do not know of holes.
    fn sparse(mut self, size: u64) -> Self {
        let name = std::mem::replace(&mut self.path, b"GNUSparseFile.0/file".to_vec());
        let numbers = [("major", 1), ("minor", 0), ("realsize", size)];
        for (key, number) in numbers {
            let key = format!("GNU.sparse.{key}").into_bytes();
            self.records.push((key, number.to_string().into_bytes()));
        }
        self.records.push((b"GNU.sparse.name".to_vec(), name));
        self
    }

    fn write(mut self, to: &mut impl Write) -> io::Result<()> {
        let Attributes { mode, uid, gid, mtime, .. } = *self.attributes;
        let mut record = |key: &str, value: &[u8]| {
            self.records.push((key.as_bytes().to_vec(), value.to_vec()));
        };
        if self.path.len() > 100 {
            record("path", &self.path);
        }
        if self.target.len() > 100 {
            record("linkpath", self.target);
        }
        if self.size > MOST_11_DIGITS {
            record("size", self.size.to_string().as_bytes());
        }
        for (key, id) in [("uid", uid), ("gid", gid)] {
            if u64::from(id) > MOST_7_DIGITS {
                record(key, id.to_string().as_bytes());
            }
        }
        let seconds = u64::try_from(mtime.seconds).ok().filter(|&s| s <= MOST_11_DIGITS);
        if mtime.nanoseconds != 0 || seconds.is_none() {
            record("mtime", time(mtime).as_bytes());
        }
        // A name of a file has the attributes of its first.
        if self.kind != b'1' {
            for (name, value) in &self.attributes.xattrs {
                let key = [b"SCHILY.xattr.", &name[..]].concat();
                self.records.push((key, value.clone()));
            }
        }
        let mode = u64::from(mode);
        let header = |path: &[u8], kind, size| {
            let mut block = [0; 512];
            put(&mut block, 0, 100, path);
            put(&mut block, 100, 8, octal(mode, 7).as_bytes());
            let id = |id: u32| Some(u64::from(id)).filter(|&id| id <= MOST_7_DIGITS).unwrap_or(0);
            put(&mut block, 108, 8, octal(id(uid), 7).as_bytes());
            put(&mut block, 116, 8, octal(id(gid), 7).as_bytes());
            put(
                &mut block,
                124,
                12,
                octal(if size > MOST_11_DIGITS { 0 } else { size }, 11).as_bytes(),
            );
            put(&mut block, 136, 12, octal(seconds.unwrap_or(0), 11).as_bytes());
            block[156] = kind;
            put(&mut block, 257, 8, b"ustar\x0000");
            block
        };
        if !self.records.is_empty() {
            let records = records(&self.records);
            to.write_all(&sealed(header(b"PaxHeaders/entry", b'x', records.len() as u64)))?;
            to.write_all(&records)?;
            pad(to, records.len() as u64)?;
        }
        let mut block = header(&self.path, self.kind, self.size);
        put(&mut block, 157, 100, self.target);
        if matches!(self.kind, b'3' | b'4') {
            put(&mut block, 329, 8, octal(self.device.0.into(), 7).as_bytes());
            put(&mut block, 337, 8, octal(self.device.1.into(), 7).as_bytes());
        }
        to.write_all(&sealed(block))
    }
}

/// A whole file of an archive that holds more than a tree: readable for all, of no time.
pub(crate) fn plain_header(path: &str, size: u64) -> [u8; 512] {
    let mut block = [0; 512];
    put(&mut block, 0, 100, path.as_bytes());
    put(&mut block, 100, 8, octal(0o644, 7).as_bytes());
    put(&mut block, 108, 8, octal(0, 7).as_bytes());
    put(&mut block, 116, 8, octal(0, 7).as_bytes());
    // Base 256 where octal ends, at 8 GiB (GNU tar); without a pax header, which would need to know it before.
    if size > MOST_11_DIGITS {
        block[124] = 0x80;
        put(&mut block, 128, 8, &size.to_be_bytes());
    } else {
        put(&mut block, 124, 12, octal(size, 11).as_bytes());
    }
    put(&mut block, 136, 12, octal(0, 11).as_bytes());
    block[156] = b'0';
    put(&mut block, 257, 8, b"ustar\x0000");
    sealed(block)
}

fn put(block: &mut [u8; 512], at: usize, most: usize, bytes: &[u8]) {
    let length = bytes.len().min(most);
    block[at..at + length].copy_from_slice(&bytes[..length]);
}

fn octal(number: u64, digits: usize) -> String {
    format!("{number:0digits$o}")
}

/// With its checksum: the sum of its bytes, with blanks for the sum itself.
fn sealed(mut block: [u8; 512]) -> [u8; 512] {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    put(&mut block, 148, 8, format!("{sum:06o}\0 ").as_bytes());
    block
}

/// `LENGTH KEY=VALUE\n` each, where the length counts its own digits.
fn records(all: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (key, value) in all {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        bytes.extend(format!("{length} ").bytes());
        bytes.extend(key);
        bytes.push(b'=');
        bytes.extend(value);
        bytes.push(b'\n');
    }
    bytes
}

fn time(time: Timestamp) -> String {
    let Timestamp { seconds, nanoseconds } = time;
    let (sign, seconds, nanoseconds) = match (seconds < 0, nanoseconds) {
        (true, 0) => ("-", seconds.unsigned_abs(), 0),
        (true, n) => ("-", (seconds + 1).unsigned_abs(), 1_000_000_000 - n),
        (false, n) => ("", seconds.unsigned_abs(), n),
    };
    match nanoseconds {
        0 => format!("{sign}{seconds}"),
        n => format!("{sign}{seconds}.{n:09}"),
    }
}
