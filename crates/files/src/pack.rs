//! A file or a tree becomes a tar stream: GNU tar's headers, pax records for what they have no room for, holes in GNU tar's
//! sparse form. Symbolic links are sent as they are, second names of a file as links to its first.
//!
//! Every folder is opened once, relative to the one above it and never through a link, so a tree that changes meanwhile
//! does not lead elsewhere.

use std::collections::HashMap;
use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io::{self, Read, Write};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

use banger_api::files::Copied;
use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, SeekFrom, Stat, fstat, openat, readlinkat, seek, statat,
};
use rustix::io::Errno;
use tar::{Builder, EntryType, GnuExtSparseHeader, Header};

use crate::archive::Segment;
use crate::times::Time;
use crate::{joined, shown, xattrs};

/// What is sent of what was opened.
#[derive(Debug, Clone, Default)]
pub struct Pack {
    /// What it is called in the stream. A file must be called something; a folder without has its content at the root.
    pub top: Option<Vec<u8>>,
    /// Bytes of a single file that the other side has: they are sent as a hole.
    pub from: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum PackError {
    #[error("cannot {doing} {name}")]
    Entry {
        doing: &'static str,
        name: String,
        #[source]
        cause: io::Error,
    },
    #[error("cannot send {name}")]
    Send {
        name: String,
        #[source]
        cause: io::Error,
    },
    #[error("{name} lies more than {MOST_FOLDERS} folders deep")]
    Deep { name: String },
    #[error("{name} is neither a file nor a folder")]
    Kind { name: String },
}

/// Open at once; an agent may have 1024 files.
const MOST_FOLDERS: usize = 500;

/// Files with fewer bytes of holes are sent as they are read.
const SPARSE: u64 = 64 << 10;

const LISTED: usize = 20;

/// Sends what `source` is. `told` hears of the bytes of files as they are sent.
///
/// # Errors
/// At the first file that cannot be read or sent; it is named.
pub fn pack(
    source: OwnedFd,
    how: &Pack,
    to: &mut dyn Write,
    told: &mut dyn FnMut(u64),
) -> Result<Copied, PackError> {
    let top = how.top.as_deref().unwrap_or_default();
    let stat = fstat(&source).map_err(|error| failed("look at", top, error))?;
    let mut work = Work {
        tar: ManuallyDrop::new(Builder::new(to)),
        told,
        copied: Copied::default(),
        first_names: HashMap::new(),
    };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile if !top.is_empty() => {
            work.file(&File::from(source), top, how.from)?;
        }
        FileType::Directory => work.tree(source, top)?,
        _ => return Err(PackError::Kind { name: shown(top) }),
    }
    let end = ManuallyDrop::into_inner(work.tar).into_inner();
    end.map_err(|cause| PackError::Send { name: "the end of the stream".into(), cause })?;
    Ok(work.copied)
}

struct Work<'a> {
    /// It would write the end of a tar when it is dropped, and so make a stream that broke look whole.
    tar: ManuallyDrop<Builder<&'a mut dyn Write>>,
    told: &'a mut dyn FnMut(u64),
    copied: Copied,
    /// Of files with more than one name, the one that was sent.
    first_names: HashMap<(u64, u64), Vec<u8>>,
}

/// A folder on the way, and what of it is still to be sent.
struct Level {
    folder: OwnedFd,
    name: Vec<u8>,
    left: std::vec::IntoIter<CString>,
}

impl Work<'_> {
    fn tree(&mut self, root: OwnedFd, top: &[u8]) -> Result<(), PackError> {
        let mut levels = vec![self.enter(root, top.to_vec())?];
        while let Some(level) = levels.last_mut() {
            let Some(own) = level.left.next() else {
                levels.pop();
                continue;
            };
            let name = joined(&level.name, own.to_bytes());
            match self.child(level.folder.as_fd(), &own, &name) {
                Ok(Some(folder)) if levels.len() < MOST_FOLDERS => {
                    let next = self.enter(folder, name)?;
                    levels.push(next);
                }
                Ok(Some(_)) => return Err(PackError::Deep { name: shown(&name) }),
                Ok(None) => {}
                Err(PackError::Entry { cause, .. }) if cause.kind() == io::ErrorKind::NotFound => {
                    self.leave_out(format!("{}: it was removed meanwhile", shown(&name)));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Sends the folder itself, and lists it.
    fn enter(&mut self, folder: OwnedFd, name: Vec<u8>) -> Result<Level, PackError> {
        let stat = fstat(&folder).map_err(|error| failed("look at", &name, error))?;
        let mut header = header(&stat, EntryType::Directory);
        self.records(&folder, &stat, &name, true)?;
        let shown_name = if name.is_empty() { b"./".to_vec() } else { joined(&name, b"") };
        self.append(&mut header, &shown_name, io::empty())?;
        let mut names = Vec::new();
        let listing = Dir::read_from(&folder).map_err(|error| failed("list", &name, error))?;
        for entry in listing {
            let entry = entry.map_err(|error| failed("list", &name, error))?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                names.push(entry.file_name().to_owned());
            }
        }
        // The same tree gives the same stream.
        names.sort();
        Ok(Level { folder, name, left: names.into_iter() })
    }

    /// Sends one entry; a folder is opened for the caller to enter.
    fn child(
        &mut self,
        folder: BorrowedFd<'_>,
        own: &CStr,
        name: &[u8],
    ) -> Result<Option<OwnedFd>, PackError> {
        let stat = statat(folder, own, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| failed("look at", name, error))?;
        let open = |more| {
            // NONBLOCK: what has become a fifo meanwhile must not hold us up.
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
            openat(folder, own, flags | OFlags::CLOEXEC | more, Mode::empty())
                .map_err(|error| failed("open", name, error))
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Directory {
            return open(OFlags::DIRECTORY).map(Some);
        }
        if stat.st_nlink > 1 && kind != FileType::Socket {
            if let Some(first) = self.first_names.get(&(stat.st_dev, stat.st_ino)).cloned() {
                let mut header = header(&stat, EntryType::Link);
                self.records_of_time(&stat)?;
                self.target(&mut header, &first)?;
                return self.append(&mut header, name, io::empty()).map(|()| None);
            }
            self.first_names.insert((stat.st_dev, stat.st_ino), name.to_vec());
        }
        match kind {
            FileType::RegularFile => {
                let file = open(OFlags::empty())?;
                self.file(&File::from(file), name, 0)?;
            }
            FileType::Symlink => {
                let link = readlinkat(folder, own, Vec::new())
                    .map_err(|error| failed("read the link", name, error))?;
                let mut header = header(&stat, EntryType::Symlink);
                self.records_of_time(&stat)?;
                self.target(&mut header, link.to_bytes())?;
                self.append(&mut header, name, io::empty())?;
            }
            FileType::Fifo => {
                self.records_of_time(&stat)?;
                self.append(&mut header(&stat, EntryType::Fifo), name, io::empty())?;
            }
            FileType::Socket => self.leave_out(format!("{}: a socket", shown(name))),
            _ => self.leave_out(format!("{}: a device", shown(name))),
        }
        Ok(None)
    }

    fn leave_out(&mut self, what: String) {
        self.copied.left_out_count += 1;
        if self.copied.left_out.len() < LISTED {
            self.copied.left_out.push(what);
        }
    }

    fn file(&mut self, file: &File, name: &[u8], from: u64) -> Result<(), PackError> {
        // As it is now that it is open.
        let stat = fstat(file).map_err(|error| failed("look at", name, error))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(failed("open", name, Errno::NOENT));
        }
        let size = u64::try_from(stat.st_size).unwrap_or_default();
        let allocated = u64::try_from(stat.st_blocks).unwrap_or_default().saturating_mul(512);
        let segments = if from > 0 || allocated.saturating_add(SPARSE) <= size {
            segments(file, size, from).map_err(|error| failed("find the holes of", name, error))?
        } else {
            vec![Segment { offset: 0, length: size }]
        };
        let stored: u64 = segments.iter().map(|segment| segment.length).sum();
        self.records(file, &stat, name, false)?;
        let mut header = header(&stat, EntryType::Regular);
        header.set_size(stored);
        let mut maps = Vec::new();
        if stored < size {
            maps = map_holes(&mut header, &segments, size);
        }
        let mut content = Content {
            file,
            segments: &segments,
            done: 0,
            cut: false,
            failed: None,
            told: &mut *self.told,
        };
        let data = Read::chain(&maps[..], &mut content);
        let sent = self.tar.append_data(&mut header, path(name), data);
        if let Some(cause) = content.failed {
            return Err(PackError::Entry { doing: "read", name: shown(name), cause });
        }
        if content.cut {
            self.leave_out(format!("{}: it became shorter while it was read", shown(name)));
        }
        sent.map_err(|cause| PackError::Send { name: shown(name), cause })?;
        self.copied.entries += 1;
        self.copied.bytes += stored;
        Ok(())
    }

    fn append(
        &mut self,
        header: &mut Header,
        name: &[u8],
        data: impl Read,
    ) -> Result<(), PackError> {
        self.copied.entries += 1;
        self.tar
            .append_data(header, path(name), data)
            .map_err(|cause| PackError::Send { name: shown(name), cause })
    }

    /// What the header has no room for.
    fn records(
        &mut self,
        file: impl AsFd,
        stat: &Stat,
        name: &[u8],
        is_folder: bool,
    ) -> Result<(), PackError> {
        let xattrs =
            xattrs::of(&file).map_err(|error| failed("read attributes of", name, error))?;
        let keys: Vec<(String, Vec<u8>)> = xattrs
            .into_iter()
            .filter(|(name, _)| is_folder || name != b"system.posix_acl_default")
            .filter_map(|(name, value)| {
                Some((format!("SCHILY.xattr.{}", String::from_utf8(name).ok()?), value))
            })
            .collect();
        let time = time(stat).text();
        let records = keys
            .iter()
            .map(|(key, value)| (key.as_str(), &value[..]))
            .chain([("mtime", time.as_bytes())]);
        self.tar
            .append_pax_extensions(records)
            .map_err(|cause| PackError::Send { name: shown(name), cause })
    }

    fn records_of_time(&mut self, stat: &Stat) -> Result<(), PackError> {
        let time = time(stat).text();
        self.tar
            .append_pax_extensions([("mtime", time.as_bytes())])
            .map_err(|cause| PackError::Send { name: "a time".into(), cause })
    }

    /// What a link leads to, word for word; before the entry itself if it is too long for its header.
    fn target(&mut self, header: &mut Header, target: &[u8]) -> Result<(), PackError> {
        if header.set_link_name_literal(target).is_ok() {
            return Ok(());
        }
        let mut long = Header::new_gnu();
        long.set_entry_type(EntryType::GNULongLink);
        long.set_mode(0o644);
        long.set_uid(0);
        long.set_gid(0);
        long.set_mtime(0);
        long.set_size(target.len() as u64 + 1);
        self.tar
            .append_data(&mut long, "././@LongLink", Read::chain(target, &b"\0"[..]))
            .map_err(|cause| PackError::Send { name: "a link's target".into(), cause })
    }
}

/// Bytes of a file between its holes. What the file has no more is zeros: the header has told the size already.
struct Content<'a> {
    file: &'a File,
    segments: &'a [Segment],
    /// Of the first of `segments`.
    done: u64,
    cut: bool,
    /// Why it could not be read: not the same as why it could not be sent.
    failed: Option<io::Error>,
    told: &'a mut dyn FnMut(u64),
}

impl Read for Content<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some((segment, rest)) = self.segments.split_first() {
            let most = usize::try_from(segment.length - self.done).unwrap_or(usize::MAX);
            if most == 0 {
                (self.segments, self.done) = (rest, 0);
                continue;
            }
            let most = most.min(buffer.len());
            let count = match self.file.read_at(&mut buffer[..most], segment.offset + self.done) {
                Ok(0) => {
                    self.cut = true;
                    buffer[..most].fill(0);
                    most
                }
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    let told = io::Error::from(error.kind());
                    self.failed = Some(error);
                    return Err(told);
                }
            };
            self.done += count as u64;
            (self.told)(count as u64);
            return Ok(count);
        }
        Ok(0)
    }
}

/// Where the file has data, from `from` on (lseek(2), SEEK_DATA).
fn segments(file: &File, size: u64, from: u64) -> Result<Vec<Segment>, Errno> {
    let mut segments = Vec::new();
    let mut at = from;
    while at < size {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            // No more data.
            Err(Errno::NXIO) => break,
            Err(Errno::INVAL) => at,
            Err(error) => return Err(error),
        };
        let end = match seek(file, SeekFrom::Hole(start)) {
            Ok(end) => end.min(size),
            Err(Errno::INVAL) => size,
            // It became shorter.
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error),
        };
        if end <= start {
            break;
        }
        segments.push(Segment { offset: start, length: end - start });
        at = end;
    }
    Ok(segments)
}

/// GNU tar's own form of a file with holes; the blocks that its map needs behind the header.
fn map_holes(header: &mut Header, segments: &[Segment], size: u64) -> Vec<u8> {
    header.set_entry_type(EntryType::GNUSparse);
    let mut all = segments.to_vec();
    if all.last().is_none_or(|last| last.offset + last.length < size) {
        all.push(Segment { offset: size, length: 0 });
    }
    let gnu = header.as_gnu_mut().expect("it was made as one of GNU tar's");
    gnu.set_real_size(size);
    let (first, rest) = all.split_at(all.len().min(gnu.sparse.len()));
    let set = |place: &mut tar::GnuSparseHeader, segment: &Segment| {
        place.set_offset(segment.offset);
        place.set_length(segment.length);
    };
    for (place, segment) in gnu.sparse.iter_mut().zip(first) {
        set(place, segment);
    }
    gnu.set_is_extended(!rest.is_empty());
    let mut blocks = Vec::new();
    let mut chunks = rest.chunks(21).peekable();
    while let Some(chunk) = chunks.next() {
        let mut block = GnuExtSparseHeader::new();
        for (place, segment) in block.sparse_mut().iter_mut().zip(chunk) {
            set(place, segment);
        }
        block.set_is_extended(chunks.peek().is_some());
        blocks.extend(block.as_bytes());
    }
    blocks
}

fn header(stat: &Stat, kind: EntryType) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(stat.st_mode & 0o7777);
    header.set_uid(stat.st_uid.into());
    header.set_gid(stat.st_gid.into());
    // Its record says it with its fraction; this is for readers without records.
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or_default());
    header.set_size(0);
    header
}

fn time(stat: &Stat) -> Time {
    Time {
        seconds: stat.st_mtime,
        nanoseconds: u32::try_from(stat.st_mtime_nsec).unwrap_or_default(),
    }
}

fn path(name: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(name))
}

fn failed(doing: &'static str, name: &[u8], error: Errno) -> PackError {
    let name = if name.is_empty() { "the folder".to_owned() } else { shown(name) };
    PackError::Entry { doing, name, cause: error.into() }
}
