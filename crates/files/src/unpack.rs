//! A tar stream becomes files below a folder, and nowhere else, whatever is in it.
//!
//! A file gets its name when it is whole (see `part.rs`). A folder that was there before keeps its owner and mode; a new one
//! gets its own at the end, when nothing more is made in it. Devices and sockets are not made; they are told of.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use banger_api::files::Copied;
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Uid, chownat, fchmod, fchown, fstat, futimens, linkat,
    mkdirat, mknodat, openat, renameat, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;

use crate::archive::{Archive, ArchiveError, Entry, Kind, Segment};
use crate::beneath::{Target, parted};
use crate::{part, shown, xattrs};

/// How a stream is unpacked.
#[derive(Debug, Clone, Default)]
pub struct Unpack {
    /// The only name at the stream's root; other entries are refused. `None`: any.
    pub only: Option<Vec<u8>>,
    pub ids: Ids,
    /// All bits of the modes, and the attributes of the system; without, permissions as `umask` leaves them.
    pub exact: bool,
    pub umask: u32,
    /// Bytes of the stream's only file that are there from a copy that broke.
    pub resume: u64,
}

/// Whose the files are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Ids {
    /// This process's.
    #[default]
    Own,
    /// As the stream says.
    Stream,
    /// All of them this user's and this group's.
    All(u32, u32),
}

/// Why a stream was not unpacked to its end. What was unpacked before stays.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error("cannot {doing} {name}")]
    Entry {
        doing: &'static str,
        name: String,
        #[source]
        cause: io::Error,
    },
    #[error("{name} of the stream is refused")]
    Refused {
        name: String,
        #[source]
        cause: Refusal,
    },
}

/// Why an entry is not taken.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("a symbolic link on the way to it leads out of the folder that is copied into")]
    LeadsOut,
    #[error("only {0} was asked for")]
    NotAsked(String),
    #[error("it is not a folder, and stands in the place of the one that is copied into")]
    Root,
    #[error("a folder is in its place")]
    FolderInPlace,
    #[error("what is in its place is not a folder")]
    NotAFolder,
    #[error("it is a link to what is not asked for, or to a folder: {0}")]
    Link(String),
    #[error("{0} bytes of a broken copy were to be there, and are not")]
    Resume(u64),
    #[error("the stream makes more than {MOST_FOLDERS} folders")]
    Folders,
}

/// They are kept in memory to the end.
const MOST_FOLDERS: usize = 1 << 20;

/// What a report lists of what was left out.
const LISTED: usize = 20;

/// Unpacks all of `source` below `target`. `told` hears of the bytes of files as they are written.
///
/// # Errors
/// At the first entry that cannot be made or is refused; it is named.
pub fn unpack(
    source: impl Read,
    target: &Target,
    how: &Unpack,
    told: &mut dyn FnMut(u64),
) -> Result<Copied, UnpackError> {
    let mut archive = Archive::new(source);
    let mut work =
        Work { target, how, told, copied: Copied::default(), made: Vec::new(), at: None };
    while let Some(entry) = archive.next()? {
        work.entry(&entry, &mut archive)?;
        work.copied.entries += 1;
    }
    work.finish_folders()?;
    archive.finish()?;
    Ok(work.copied)
}

struct Work<'a> {
    target: &'a Target,
    how: &'a Unpack,
    told: &'a mut dyn FnMut(u64),
    copied: Copied,
    /// New folders, to be finished.
    made: Vec<Made>,
    /// The folder of the last entry, which mostly is the next one's too.
    at: Option<(Vec<u8>, Arc<OwnedFd>)>,
}

struct Made {
    entry: Entry,
    identity: (u64, u64),
}

/// Where an entry is made.
struct Place<'a> {
    folder: BorrowedFd<'a>,
    name: &'a OsStr,
    part: Vec<u8>,
}

impl Place<'_> {
    fn part(&self) -> &OsStr {
        OsStr::from_bytes(&self.part)
    }
}

impl Work<'_> {
    fn entry(
        &mut self,
        entry: &Entry,
        archive: &mut Archive<impl Read>,
    ) -> Result<(), UnpackError> {
        self.check(entry)?;
        if entry.name.is_empty() {
            return match entry.kind {
                Kind::Folder => Ok(()),
                _ => Err(refused(b"the root", Refusal::Root)),
            };
        }
        if entry.kind == Kind::Device {
            self.leave_out(format!("{}: a device, which is not made", shown(&entry.name)));
            return Ok(());
        }
        let (folder_name, name) = parted(&entry.name);
        let folder = self.parent(folder_name)?;
        let place = Place {
            folder: folder.as_fd(),
            name: OsStr::from_bytes(name),
            part: part::part_of(name),
        };
        if entry.kind == Kind::Folder {
            return self.folder(entry, &place);
        }
        let there = statat(place.folder, place.name, AtFlags::SYMLINK_NOFOLLOW);
        if there.is_ok_and(|it| FileType::from_raw_mode(it.st_mode) == FileType::Directory) {
            return Err(refused(&entry.name, Refusal::FolderInPlace));
        }
        match &entry.kind {
            Kind::File { size, segments } => self.file(entry, *size, segments, &place, archive),
            Kind::Symlink(link) => self.symlink(entry, link, &place),
            Kind::Link(other) => self.link(entry, other, &place),
            Kind::Fifo => self.fifo(entry, &place),
            Kind::Folder | Kind::Device => unreachable!("they are dealt with above"),
        }
    }

    /// What the stream may hold: only the one name at its root, if one was asked for.
    fn check(&self, entry: &Entry) -> Result<(), UnpackError> {
        let Some(only) = &self.how.only else { return Ok(()) };
        let is_asked = |name: &[u8]| name.split(|&byte| byte == b'/').next() == Some(&only[..]);
        if !is_asked(&entry.name) && !(entry.name.is_empty() && entry.kind == Kind::Folder) {
            return Err(refused(&entry.name, Refusal::NotAsked(shown(only))));
        }
        match &entry.kind {
            Kind::Link(other) if !is_asked(other) => {
                Err(refused(&entry.name, Refusal::Link(shown(other))))
            }
            _ => Ok(()),
        }
    }

    fn leave_out(&mut self, what: String) {
        self.copied.left_out_count += 1;
        if self.copied.left_out.len() < LISTED {
            self.copied.left_out.push(what);
        }
    }

    /// The folder of this name; made, with those above it, when the stream did not say it before.
    fn parent(&mut self, name: &[u8]) -> Result<Arc<OwnedFd>, UnpackError> {
        if let Some((at, folder)) = &self.at
            && at == name
        {
            return Ok(Arc::clone(folder));
        }
        let opened = match self.target.folder(name) {
            Err(Errno::NOENT) if !name.is_empty() => {
                let (above, own) = parted(name);
                let above = self.parent(above)?;
                let own = OsStr::from_bytes(own);
                match mkdirat(&above, own, Mode::from_raw_mode(0o777 & !self.how.umask)) {
                    // A link that leads nowhere: EEXIST here, ENOENT above.
                    Err(Errno::EXIST) | Ok(()) => {}
                    Err(error) => return Err(failed("make the folder", name, error)),
                }
                if let Ids::All(uid, gid) = self.how.ids {
                    chown_link(above.as_fd(), own, uid, gid)
                        .map_err(|error| failed("give away the folder", name, error))?;
                }
                self.target.folder(name)
            }
            opened => opened,
        };
        let folder = Arc::new(opened.map_err(|error| on_the_way(name, error))?);
        self.at = Some((name.to_vec(), Arc::clone(&folder)));
        Ok(folder)
    }

    fn folder(&mut self, entry: &Entry, place: &Place<'_>) -> Result<(), UnpackError> {
        match mkdirat(place.folder, place.name, Mode::from_raw_mode(0o700)) {
            Ok(()) => {}
            // It keeps what it has. That it is a folder, and below the target, shows by opening it.
            Err(Errno::EXIST) => {
                return self
                    .target
                    .folder(&entry.name)
                    .map(drop)
                    .map_err(|error| on_the_way(&entry.name, error));
            }
            Err(error) => return Err(failed("make the folder", &entry.name, error)),
        }
        if self.made.len() == MOST_FOLDERS {
            return Err(refused(&entry.name, Refusal::Folders));
        }
        let stat = statat(place.folder, place.name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| failed("look at the folder", &entry.name, error))?;
        let entry = Entry {
            name: entry.name.clone(),
            kind: Kind::Folder,
            xattrs: entry.xattrs.clone(),
            ..*entry
        };
        self.made.push(Made { entry, identity: (stat.st_dev, stat.st_ino) });
        Ok(())
    }

    /// Owner, mode and time of new folders, from the innermost outwards: what is made in a folder changes its time.
    fn finish_folders(&mut self) -> Result<(), UnpackError> {
        for Made { entry, identity } in std::mem::take(&mut self.made).into_iter().rev() {
            // By its name without any link, and only if it is still the one that was made here.
            let Ok(folder) = self.target.folder_without_links(&entry.name) else { continue };
            let stat = fstat(&folder).map_err(|e| failed("look at the folder", &entry.name, e))?;
            if (stat.st_dev, stat.st_ino) == identity {
                self.finish(&entry, &File::from(folder))?;
            }
        }
        Ok(())
    }

    fn file(
        &mut self,
        entry: &Entry,
        size: u64,
        segments: &[Segment],
        place: &Place<'_>,
        archive: &mut Archive<impl Read>,
    ) -> Result<(), UnpackError> {
        let resume = self.how.resume;
        let write = |cause| UnpackError::Entry { doing: "write", name: shown(&entry.name), cause };
        let file = if resume > 0 {
            let file = part::reopen(place.folder, &place.part, true).map_err(write)?;
            let length = file.metadata().map_err(write)?.len();
            if length != resume || segments.first().is_some_and(|first| first.offset < resume) {
                return Err(refused(&entry.name, Refusal::Resume(resume)));
            }
            file
        } else {
            part::create(place.folder, &place.part).map_err(write)?
        };
        let written = self.content(&file, entry, segments, archive).and_then(|()| {
            // What lies behind the last piece is a hole too.
            file.set_len(size).map_err(write)?;
            self.finish(entry, &file)?;
            renameat(place.folder, place.part(), place.folder, place.name)
                .map_err(|error| failed("name", &entry.name, error))
        });
        if written.is_err() && size < SMALLEST_PART {
            // It is not worth going on with. The error that counts is the first.
            unlinkat(place.folder, place.part(), AtFlags::empty()).ok();
        }
        written
    }

    fn content(
        &mut self,
        file: &File,
        entry: &Entry,
        segments: &[Segment],
        archive: &mut Archive<impl Read>,
    ) -> Result<(), UnpackError> {
        let mut buffer = vec![0; 128 << 10];
        for segment in segments {
            let mut done = 0;
            while done < segment.length {
                let most = usize::try_from(segment.length - done).unwrap_or(usize::MAX);
                let most = most.min(buffer.len());
                let count = archive.read(&mut buffer[..most])?;
                file.write_all_at(&buffer[..count], segment.offset + done).map_err(|cause| {
                    UnpackError::Entry { doing: "write", name: shown(&entry.name), cause }
                })?;
                done += count as u64;
                self.copied.bytes += count as u64;
                (self.told)(count as u64);
            }
        }
        Ok(())
    }

    fn symlink(
        &mut self,
        entry: &Entry,
        link: &[u8],
        place: &Place<'_>,
    ) -> Result<(), UnpackError> {
        self.make_room(entry, place)?;
        let made = symlinkat(OsStr::from_bytes(link), place.folder, place.part())
            .and_then(|()| match self.ids(entry) {
                Some((uid, gid)) => chown_link(place.folder, place.part(), uid, gid),
                None => Ok(()),
            })
            .and_then(|()| {
                let stamps = entry.mtime.stamps();
                utimensat(place.folder, place.part(), &stamps, AtFlags::SYMLINK_NOFOLLOW)
            })
            .and_then(|()| renameat(place.folder, place.part(), place.folder, place.name));
        made.map_err(|error| failed("make the symbolic link", &entry.name, error))
    }

    fn link(&mut self, entry: &Entry, other: &[u8], place: &Place<'_>) -> Result<(), UnpackError> {
        let (folder_name, name) = parted(other);
        let name = OsStr::from_bytes(name);
        let folder = self.target.folder(folder_name).map_err(|error| on_the_way(other, error))?;
        let stat = statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| failed("find, for another name of it,", other, error))?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            return Err(refused(&entry.name, Refusal::Link(shown(other))));
        }
        self.make_room(entry, place)?;
        let made = linkat(&folder, name, place.folder, place.part(), AtFlags::empty())
            .and_then(|()| renameat(place.folder, place.part(), place.folder, place.name))
            // Two names of one file are left as they are (rename(2)).
            .and_then(|()| match unlinkat(place.folder, place.part(), AtFlags::empty()) {
                Err(Errno::NOENT) => Ok(()),
                done => done,
            });
        made.map_err(|error| failed("make the link", &entry.name, error))
    }

    fn fifo(&mut self, entry: &Entry, place: &Place<'_>) -> Result<(), UnpackError> {
        self.make_room(entry, place)?;
        let mode = Mode::from_raw_mode(0o600);
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = mknodat(place.folder, place.part(), FileType::Fifo, mode, 0)
            .and_then(|()| openat(place.folder, place.part(), flags, Mode::empty()));
        let fifo = made.map_err(|error| failed("make the fifo", &entry.name, error))?;
        self.finish(entry, &File::from(fifo))?;
        renameat(place.folder, place.part(), place.folder, place.name)
            .map_err(|error| failed("name", &entry.name, error))
    }

    fn make_room(&self, entry: &Entry, place: &Place<'_>) -> Result<(), UnpackError> {
        part::remove_left(place.folder, &place.part).map_err(|cause| UnpackError::Entry {
            doing: "make room for",
            name: shown(&entry.name),
            cause,
        })
    }

    fn ids(&self, entry: &Entry) -> Option<(u32, u32)> {
        match self.how.ids {
            Ids::Own => None,
            Ids::Stream => Some((entry.uid, entry.gid)),
            Ids::All(uid, gid) => Some((uid, gid)),
        }
    }

    /// Owner, mode, attributes, time: in this order, since each may undo what stands behind it.
    fn finish(&mut self, entry: &Entry, file: &File) -> Result<(), UnpackError> {
        if let Some((uid, gid)) = self.ids(entry) {
            fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
                .map_err(|error| failed("give away", &entry.name, error))?;
        }
        let mode = if self.how.exact { entry.mode } else { entry.mode & 0o777 & !self.how.umask };
        fchmod(file, Mode::from_raw_mode(mode))
            .map_err(|error| failed("set the mode of", &entry.name, error))?;
        for (name, value) in &entry.xattrs {
            if !xattrs::is_kept(name, self.how.exact) {
                continue;
            }
            if let Err(error) = xattrs::set(file, name, value) {
                let (name, of) = (shown(name), shown(&entry.name));
                self.leave_out(format!("{of}: its attribute {name} ({})", io::Error::from(error)));
            }
        }
        futimens(file, &entry.mtime.stamps())
            .map_err(|error| failed("set the time of", &entry.name, error))
    }
}

/// A copy that broke is gone on with from this size on: 16 MiB.
pub(crate) const SMALLEST_PART: u64 = 16 << 20;

fn chown_link(folder: BorrowedFd<'_>, name: &OsStr, uid: u32, gid: u32) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    chownat(folder, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
}

fn failed(doing: &'static str, name: &[u8], error: Errno) -> UnpackError {
    UnpackError::Entry { doing, name: shown(name), cause: error.into() }
}

fn refused(name: &[u8], cause: Refusal) -> UnpackError {
    UnpackError::Refused { name: shown(name), cause }
}

/// Why a folder below the target could not be opened.
fn on_the_way(name: &[u8], error: Errno) -> UnpackError {
    match error {
        Errno::XDEV | Errno::LOOP => refused(name, Refusal::LeadsOut),
        Errno::NOTDIR => refused(name, Refusal::NotAFolder),
        error => failed("open the folder", name, error),
    }
}
