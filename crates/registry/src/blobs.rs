//! The store of blobs: files that are named by the SHA-256 of what they hold.
//!
//! ```text
//! sha256/HEX    whole: its digest and size were verified before it got this name
//! partial/HEX   being downloaded: what is there is the beginning of the blob, and the next try goes on from there
//! partial/new-… being copied, before its digest is known
//! leases/…      what a living pull or import needs, one digest a line; its owner has it locked
//! lock          shared while a lease grows, exclusive while blobs are removed
//! ```
//!
//! Whoever writes in `partial` has that file locked (flock), so that nobody else does, in this process or another; the
//! lock goes with the process. A process that is killed leaves partials and leases, and these are known by nobody
//! having them locked. [`Store::gc`] removes them.

use std::collections::BTreeSet;
use std::error::Error;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt, MetadataExt as _, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::digest::{Digest, Hasher};
use crate::locks::{Mode, lock_within, try_lock};

const WHOLE: &str = "sha256";
const PARTIAL: &str = "partial";
const LEASES: &str = "leases";
const LOCK: &str = "lock";
const NEW: &str = "new-";

/// Others hold the store's lock for as long as it takes to remove files.
const STORE_LOCK_DEADLINE: Duration = Duration::from_secs(60);
/// Others hold a partial for as long as a download takes; they give up by themselves when it stalls.
const PARTIAL_LOCK_DEADLINE: Duration = Duration::from_secs(30 * 60);
/// Left to others on the file system, whose machines must go on writing.
const RESERVE_BYTES: u64 = 256 << 20;
const PIECE_BYTES: usize = 1 << 17;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot {act} {path}")]
    File {
        act: &'static str,
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("blob {digest} is needed by a pull or an import that is going on")]
    Held { digest: Digest },
    #[error("cannot tell which blobs are needed, so none was removed")]
    Keep(#[source] Box<dyn Error + Send + Sync>),
}

impl StoreError {
    /// The file system is full, or the owner's quota is.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        let Self::File { cause, .. } = self else { return false };
        matches!(cause.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }

    /// Somebody else held a lock for too long.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::File { cause, .. } if cause.kind() == io::ErrorKind::TimedOut)
    }
}

/// Fits `map_err`: what we did to what.
pub(crate) fn failed(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    move |cause| StoreError::File { act, path: path.to_owned(), cause }
}

/// The content is not what its name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wrong {
    pub(crate) found: Digest,
}

/// What came was not what was announced.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AddError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot read")]
    Read(#[source] io::Error),
    #[error("digest {found} instead of {expected}")]
    Wrong { expected: Digest, found: Digest },
    #[error("{found} bytes instead of {expected}")]
    Size { expected: u64, found: u64 },
    #[error("more than {limit} bytes")]
    TooLarge { limit: u64 },
}

#[derive(Debug, Clone)]
pub struct Store {
    folder: PathBuf,
}

/// A blob that is whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    pub digest: Digest,
    pub size_bytes: u64,
    /// When a pull or an import last made use of it.
    pub last_used: SystemTime,
}

/// A blob that is not what its name says.
#[derive(Debug)]
pub struct Damage {
    pub digest: Digest,
    pub size_bytes: u64,
    pub why: DamageCause,
}

#[derive(Debug)]
pub enum DamageCause {
    /// It holds something else, with this digest.
    Content(Digest),
    Unreadable(io::Error),
}

/// What [`Store::gc`] removed, or would.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Freed {
    pub blobs: Vec<Digest>,
    /// Downloads and copies that nobody goes on with.
    pub partials: Vec<PathBuf>,
    pub bytes: u64,
}

impl Store {
    /// The store in this folder, made if it is not there; only we may enter.
    ///
    /// # Errors
    /// When a folder cannot be made.
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        for folder in [folder, &folder.join(WHOLE), &folder.join(PARTIAL), &folder.join(LEASES)] {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(folder)
                .map_err(failed("create", folder))?;
        }
        Ok(Self { folder: folder.to_owned() })
    }

    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where that blob is when it is whole.
    #[must_use]
    pub fn path(&self, digest: Digest) -> PathBuf {
        self.folder.join(WHOLE).join(digest.hex())
    }

    fn partial_path(&self, digest: Digest) -> PathBuf {
        self.folder.join(PARTIAL).join(digest.hex())
    }

    /// The file of a blob that is whole and has this size; it counts as used now. One of another size does not count.
    ///
    /// # Errors
    /// When it cannot be looked at.
    pub fn whole(&self, digest: Digest, size_bytes: u64) -> Result<Option<PathBuf>, StoreError> {
        let path = self.path(digest);
        let Some(file) = open_if_there(&path)? else { return Ok(None) };
        let found = file.metadata().map_err(failed("look at", &path))?;
        if !found.is_file() || found.len() != size_bytes {
            return Ok(None);
        }
        file.set_modified(SystemTime::now()).map_err(failed("date", &path))?;
        Ok(Some(path))
    }

    /// The content of a small blob that is whole, verified.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn read_small(
        &self,
        digest: Digest,
        limit: u64,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.path(digest);
        let Some(file) = open_if_there(&path)? else { return Ok(None) };
        let mut bytes = Vec::new();
        file.take(limit.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(failed("read", &path))?;
        Ok((Digest::of(&bytes) == digest).then_some(bytes))
    }

    /// Bytes that may still be written here.
    ///
    /// # Errors
    /// When the file system does not say.
    pub fn room_bytes(&self) -> Result<u64, StoreError> {
        let space = rustix::fs::statvfs(&self.folder)
            .map_err(|errno| failed("look for space in", &self.folder)(errno.into()))?;
        Ok(space.f_bavail.saturating_mul(space.f_frsize).saturating_sub(RESERVE_BYTES))
    }

    /// What is still to be downloaded of blobs of these sizes.
    pub(crate) fn missing_bytes(&self, blobs: &[(Digest, u64)]) -> Result<u64, StoreError> {
        let mut missing: u64 = 0;
        for (digest, size) in blobs {
            if self.whole(*digest, *size)?.is_none() {
                let there = stat_if_there(&self.partial_path(*digest))?.map_or(0, |it| it.len());
                missing = missing.saturating_add(size.saturating_sub(there));
            }
        }
        Ok(missing)
    }

    /// A new lease that holds nothing yet.
    ///
    /// # Errors
    /// When its file cannot be made.
    pub fn lease(&self) -> Result<Lease, StoreError> {
        let _growing = self.lock(Mode::Shared)?;
        let path = self.folder.join(LEASES).join(random_name()?);
        let file = OpenOptions::new()
            .append(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(failed("create", &path))?;
        try_lock(&file, Mode::Exclusive).map_err(failed("lock", &path))?;
        Ok(Lease { store: self.clone(), path, file: Arc::new(file) })
    }

    fn lock(&self, mode: Mode) -> Result<File, StoreError> {
        let path = self.folder.join(LOCK);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed("open", &path))?;
        lock_within(&file, mode, STORE_LOCK_DEADLINE).map_err(failed("lock", &path))?;
        Ok(file)
    }

    /// The blob itself when it is whole; else the right to write it, as soon as nobody else has that. May wait for
    /// another download, which it tells by `waits`.
    pub(crate) fn claim(
        &self,
        digest: Digest,
        size_bytes: u64,
        waits: impl Fn(),
    ) -> Result<Claimed, StoreError> {
        let path = self.partial_path(digest);
        loop {
            if self.whole(digest, size_bytes)?.is_some() {
                return Ok(Claimed::Whole);
            }
            let file = open_partial(&path)?;
            if !try_lock(&file, Mode::Exclusive).map_err(failed("lock", &path))? {
                waits();
                lock_within(&file, Mode::Exclusive, PARTIAL_LOCK_DEADLINE)
                    .map_err(failed("wait for the download to", &path))?;
            }
            // Whoever had it may have finished it, or thrown it away.
            if !is_at(&file, &path)? {
                continue;
            }
            // Finished between our look and our lock, with the partial made anew by our open.
            if self.whole(digest, size_bytes)?.is_some() {
                fs::remove_file(&path).map_err(failed("remove", &path))?;
                return Ok(Claimed::Whole);
            }
            let mut partial = Partial {
                store: self.clone(),
                path,
                file,
                hasher: Hasher::default(),
                length: 0,
                inherited: false,
            };
            partial.take_over(size_bytes)?;
            return Ok(Claimed::Partial(partial));
        }
    }

    /// Copies a blob into the store. `expected` is what it must be; without, its digest is found out and it may have
    /// `limit` bytes.
    pub(crate) fn add(
        &self,
        lease: &Lease,
        source: &mut dyn Read,
        expected: Option<(Digest, u64)>,
        limit: u64,
    ) -> Result<(Digest, u64), AddError> {
        let mut partial = match expected {
            Some((digest, size)) => {
                lease.hold(&[digest])?;
                match self.claim(digest, size, || ())? {
                    Claimed::Whole => return Ok((digest, size)),
                    Claimed::Partial(partial) => partial,
                }
            }
            None => self.unnamed()?,
        };
        partial.restart()?;
        let limit = expected.map_or(limit, |(_, size)| size);
        let copied = copy(source, &mut partial, limit);
        let length = partial.length;
        let finished = copied.and_then(|()| match expected {
            Some((_, size)) if length != size => {
                Err(AddError::Size { expected: size, found: length })
            }
            Some((expected, size)) => match partial.finish(expected)? {
                Ok(_) => Ok((expected, size)),
                Err(Wrong { found }) => Err(AddError::Wrong { expected, found }),
            },
            None => {
                let digest = partial.hasher.clone().finish();
                lease.hold(&[digest])?;
                partial
                    .finish(digest)?
                    .map_err(|Wrong { found }| AddError::Wrong { expected: digest, found })?;
                Ok((digest, length))
            }
        });
        if finished.is_err() {
            // The first error is the one to tell; what stays is a partial that nobody has locked.
            drop(partial.discard());
        }
        finished
    }

    /// Writes a small blob that we have in memory.
    pub(crate) fn put(&self, lease: &Lease, bytes: &[u8]) -> Result<Digest, AddError> {
        let expected = (Digest::of(bytes), bytes.len() as u64);
        self.add(lease, &mut &*bytes, Some(expected), expected.1).map(|(digest, _)| digest)
    }

    fn unnamed(&self) -> Result<Partial, StoreError> {
        let path = self.folder.join(PARTIAL).join(format!("{NEW}{}", random_name()?));
        // Under the store's lock nobody takes it for a leftover before we have locked it.
        let _growing = self.lock(Mode::Shared)?;
        let file = open_partial(&path)?;
        try_lock(&file, Mode::Exclusive).map_err(failed("lock", &path))?;
        let hasher = Hasher::default();
        Ok(Partial { store: self.clone(), path, file, hasher, length: 0, inherited: false })
    }

    /// All whole blobs, sorted by digest.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn list(&self) -> Result<Vec<Blob>, StoreError> {
        let mut blobs = Vec::new();
        for path in entries(&self.folder.join(WHOLE))? {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let Some(digest) = Digest::from_hex(name) else { continue };
            let Some(found) = stat_if_there(&path)? else { continue };
            let last_used = found.modified().map_err(failed("look at", &path))?;
            blobs.push(Blob { digest, size_bytes: found.len(), last_used });
        }
        blobs.sort_by_key(|blob| blob.digest);
        Ok(blobs)
    }

    /// Reads every whole blob again. `each` is told the bytes of each one that was read.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn verify(&self, mut each: impl FnMut(&Blob)) -> Result<Vec<Damage>, StoreError> {
        let mut damages = Vec::new();
        for blob in self.list()? {
            let path = self.path(blob.digest);
            let found = File::open(&path).and_then(|mut file| hash_all(&mut file));
            let why = match found {
                Ok((digest, _)) if digest == blob.digest => None,
                Ok((digest, _)) => Some(DamageCause::Content(digest)),
                // Removed meanwhile.
                Err(cause) if cause.kind() == io::ErrorKind::NotFound => None,
                Err(cause) => Some(DamageCause::Unreadable(cause)),
            };
            each(&blob);
            damages.extend(why.map(|why| Damage {
                digest: blob.digest,
                size_bytes: blob.size_bytes,
                why,
            }));
        }
        Ok(damages)
    }

    /// Removes one whole blob; it being gone is success.
    ///
    /// # Errors
    /// When a living lease holds it, or it cannot be removed.
    pub fn remove(&self, digest: Digest) -> Result<(), StoreError> {
        let _removing = self.lock(Mode::Exclusive)?;
        if self.leased()?.contains(&digest) {
            return Err(StoreError::Held { digest });
        }
        remove_if_there(&self.path(digest))?;
        sync_folder(&self.folder.join(WHOLE))
    }

    /// Removes, or with `dry_run` only lists, blobs that neither `keep` names nor a living lease holds and that nobody
    /// used for `older_than`; and the partials and leases that killed processes left, partials only if so old.
    ///
    /// `keep` is asked while no lease can grow: a pull whose lease has ended by then has recorded what it needs, so what
    /// it answers must be read from the records at that moment.
    ///
    /// # Errors
    /// When `keep` fails, or a file cannot be removed; what could be removed has gone.
    pub fn gc(
        &self,
        older_than: Duration,
        dry_run: bool,
        keep: impl FnOnce() -> Result<BTreeSet<Digest>, Box<dyn Error + Send + Sync>>,
    ) -> Result<Freed, StoreError> {
        let _removing = self.lock(Mode::Exclusive)?;
        // Leases first: one that ends after this still counts, and one that has ended is in the records.
        let mut needed = self.leased()?;
        needed.extend(keep().map_err(StoreError::Keep)?);
        let now = SystemTime::now();
        let is_old =
            |last_used: SystemTime| now.duration_since(last_used).unwrap_or_default() >= older_than;
        let mut freed = Freed::default();
        let mut first_error = None;
        let mut take = |path: &Path, bytes: u64| {
            let removed = if dry_run { Ok(()) } else { remove_if_there(path) };
            match removed {
                Ok(()) => freed.bytes += bytes,
                Err(error) => {
                    first_error.get_or_insert(error);
                    return false;
                }
            }
            true
        };
        let mut blobs = Vec::new();
        for blob in self.list()? {
            if !needed.contains(&blob.digest)
                && is_old(blob.last_used)
                && take(&self.path(blob.digest), blob.size_bytes)
            {
                blobs.push(blob.digest);
            }
        }
        let mut partials = Vec::new();
        for path in entries(&self.folder.join(PARTIAL))? {
            let Some(file) = open_if_there(&path)? else { continue };
            let found = file.metadata().map_err(failed("look at", &path))?;
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let is_dead = match Digest::from_hex(name) {
                Some(digest) => {
                    !needed.contains(&digest)
                        && is_old(found.modified().map_err(failed("look at", &path))?)
                }
                None => name.starts_with(NEW),
            };
            let unlocked =
                is_dead && try_lock(&file, Mode::Exclusive).map_err(failed("lock", &path))?;
            if unlocked && take(&path, found.blocks().saturating_mul(512)) {
                partials.push(path);
            }
        }
        partials.sort();
        (freed.blobs, freed.partials) = (blobs, partials);
        if let Some(error) = first_error {
            return Err(error);
        }
        if !dry_run {
            sync_folder(&self.folder.join(WHOLE))?;
        }
        Ok(freed)
    }

    /// What living leases hold. Removes the others; the caller has the store's lock.
    fn leased(&self) -> Result<BTreeSet<Digest>, StoreError> {
        let mut held = BTreeSet::new();
        for path in entries(&self.folder.join(LEASES))? {
            let Some(mut file) = open_if_there(&path)? else { continue };
            if try_lock(&file, Mode::Exclusive).map_err(failed("lock", &path))? {
                remove_if_there(&path)?;
                continue;
            }
            let mut text = String::new();
            file.read_to_string(&mut text).map_err(failed("read", &path))?;
            held.extend(text.lines().filter_map(Digest::from_hex));
        }
        Ok(held)
    }
}

/// Keeps blobs from [`Store::gc`] while somebody works with them and has not recorded that they are needed.
///
/// It ends with its value and all clones of it, or with the process. [`Lease::release`] removes its file too, which `gc` does otherwise.
#[derive(Debug, Clone)]
pub struct Lease {
    store: Store,
    path: PathBuf,
    file: Arc<File>,
}

impl Lease {
    /// From now on these stay. Said before it is looked whether they are there.
    ///
    /// # Errors
    /// When the lease cannot be written.
    pub fn hold(&self, digests: &[Digest]) -> Result<(), StoreError> {
        let _growing = self.store.lock(Mode::Shared)?;
        let lines: String = digests.iter().map(|digest| digest.hex() + "\n").collect();
        (&*self.file).write_all(lines.as_bytes()).map_err(failed("write", &self.path))
    }

    /// Ends the lease.
    ///
    /// # Errors
    /// When its file cannot be removed; the lease has ended then, too.
    pub fn release(self) -> Result<(), StoreError> {
        remove_if_there(&self.path)
    }
}

pub(crate) enum Claimed {
    Whole,
    Partial(Partial),
}

/// A blob that is being written, locked.
pub(crate) struct Partial {
    store: Store,
    path: PathBuf,
    file: File,
    hasher: Hasher,
    length: u64,
    inherited: bool,
}

impl Partial {
    /// Bytes that are there, from the beginning of the blob.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// Whether some of it is from an earlier try, which a crash of the host may have spoilt.
    pub(crate) fn is_inherited(&self) -> bool {
        self.inherited
    }

    /// Goes on from what an earlier try left, unless that is more than there should be.
    fn take_over(&mut self, size_bytes: u64) -> Result<(), StoreError> {
        let there = self.file.metadata().map_err(failed("look at", &self.path))?.len();
        if there > size_bytes {
            return self.restart();
        }
        let (hasher, length) = hash_into(&mut self.file).map_err(failed("read", &self.path))?;
        (self.hasher, self.length, self.inherited) = (hasher, length, length > 0);
        Ok(())
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        // Where the hash has come to is where the file goes on, even after a write that failed half-way.
        self.file.seek(SeekFrom::Start(self.length)).map_err(failed("write", &self.path))?;
        self.file.write_all(bytes).map_err(failed("write", &self.path))?;
        self.hasher.update(bytes);
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Throws away what is there and begins anew.
    pub(crate) fn restart(&mut self) -> Result<(), StoreError> {
        self.file.set_len(0).map_err(failed("empty", &self.path))?;
        (self.hasher, self.length, self.inherited) = (Hasher::default(), 0, false);
        Ok(())
    }

    /// Makes it whole, under this name, when it is what the name says; else it stays a partial.
    pub(crate) fn finish(&mut self, digest: Digest) -> Result<Result<PathBuf, Wrong>, StoreError> {
        let found = self.hasher.clone().finish();
        if found != digest {
            return Ok(Err(Wrong { found }));
        }
        // A write that failed half-way and was given up may have left more.
        self.file.set_len(self.length).map_err(failed("cut", &self.path))?;
        self.file.sync_all().map_err(failed("sync", &self.path))?;
        let whole = self.store.path(digest);
        fs::rename(&self.path, &whole).map_err(failed("rename", &self.path))?;
        sync_folder(&self.store.folder.join(WHOLE))?;
        Ok(Ok(whole))
    }

    pub(crate) fn discard(&mut self) -> Result<(), StoreError> {
        remove_if_there(&self.path)
    }
}

fn copy(source: &mut dyn Read, partial: &mut Partial, limit: u64) -> Result<(), AddError> {
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let count = match source.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(AddError::Read(error)),
        };
        if partial.length + count as u64 > limit {
            return Err(AddError::TooLarge { limit });
        }
        partial.write(&piece[..count])?;
    }
}

fn hash_into(file: &mut File) -> io::Result<(Hasher, u64)> {
    let mut hasher = Hasher::default();
    let (mut piece, mut length) = (vec![0; PIECE_BYTES], 0);
    loop {
        match file.read(&mut piece) {
            Ok(0) => return Ok((hasher, length)),
            Ok(count) => {
                hasher.update(&piece[..count]);
                length += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn hash_all(file: &mut File) -> io::Result<(Digest, u64)> {
    let (hasher, length) = hash_into(file)?;
    Ok((hasher.finish(), length))
}

fn open_partial(path: &Path) -> Result<File, StoreError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(nofollow())
        .open(path)
        .map_err(failed("open", path))
}

fn open_if_there(path: &Path) -> Result<Option<File>, StoreError> {
    match OpenOptions::new().read(true).custom_flags(nofollow()).open(path) {
        Ok(file) => Ok(Some(file)),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(failed("open", path)(cause)),
    }
}

fn stat_if_there(path: &Path) -> Result<Option<fs::Metadata>, StoreError> {
    match fs::symlink_metadata(path) {
        Ok(found) => Ok(Some(found)),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(failed("look at", path)(cause)),
    }
}

fn remove_if_there(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(cause)),
        _ => Ok(()),
    }
}

/// Whether the open file is the one that has this name now.
fn is_at(file: &File, path: &Path) -> Result<bool, StoreError> {
    let open = file.metadata().map_err(failed("look at", path))?;
    let named = stat_if_there(path)?;
    Ok(named.is_some_and(|named| (named.dev(), named.ino()) == (open.dev(), open.ino())))
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let entries = fs::read_dir(folder).map_err(failed("read", folder))?;
    entries.map(|entry| Ok(entry.map_err(failed("read", folder))?.path())).collect()
}

fn sync_folder(folder: &Path) -> Result<(), StoreError> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(failed("sync the folder", folder))
}

fn nofollow() -> i32 {
    rustix::fs::OFlags::NOFOLLOW.bits().cast_signed()
}

fn random_name() -> Result<String, StoreError> {
    let mut random = [0_u8; 8];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
        .map_err(|errno| failed("make a name in", Path::new(LEASES))(errno.into()))?;
    Ok(format!("{:016x}", u64::from_ne_bytes(random)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        (folder, store)
    }

    #[track_caller]
    fn partial(store: &Store, content: &[u8]) -> Partial {
        match store.claim(Digest::of(content), content.len() as u64, || ()).unwrap() {
            Claimed::Partial(partial) => partial,
            Claimed::Whole => panic!("it is whole"),
        }
    }

    fn nothing() -> Result<BTreeSet<Digest>, Box<dyn Error + Send + Sync>> {
        Ok(BTreeSet::new())
    }

    #[test]
    fn a_download_goes_on_from_what_the_last_one_left() {
        let (_folder, store) = store();
        let mut first = partial(&store, b"abcdef");
        first.write(b"abc").unwrap();
        assert!(!first.is_inherited());
        drop(first);
        let mut second = partial(&store, b"abcdef");
        assert_eq!((second.length(), second.is_inherited()), (3, true));
        second.write(b"def").unwrap();
        let path = second.finish(Digest::of(b"abcdef")).unwrap().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"abcdef");
        assert_eq!(store.whole(Digest::of(b"abcdef"), 6).unwrap(), Some(path));
        assert!(entries(&store.folder.join(PARTIAL)).unwrap().is_empty());
    }

    #[test]
    fn a_partial_that_is_too_long_begins_anew() {
        let (_folder, store) = store();
        fs::write(store.partial_path(Digest::of(b"ab")), b"abc").unwrap();
        assert_eq!(partial(&store, b"ab").length(), 0);
    }

    #[test]
    fn what_is_not_what_its_name_says_never_becomes_whole() {
        let (_folder, store) = store();
        let mut spoilt = partial(&store, b"abc");
        spoilt.write(b"abX").unwrap();
        let wrong = spoilt.finish(Digest::of(b"abc")).unwrap().unwrap_err();
        assert_eq!(wrong.found, Digest::of(b"abX"));
        assert_eq!(store.list().unwrap(), []);
    }

    #[test]
    fn a_whole_blob_of_another_size_is_not_trusted() {
        let (_folder, store) = store();
        fs::write(store.path(Digest::of(b"abc")), b"ab").unwrap();
        assert_eq!(store.whole(Digest::of(b"abc"), 3).unwrap(), None);
        let mut again = partial(&store, b"abc");
        again.write(b"abc").unwrap();
        again.finish(Digest::of(b"abc")).unwrap().unwrap();
        assert!(store.whole(Digest::of(b"abc"), 3).unwrap().is_some());
    }

    #[test]
    fn the_second_to_want_a_blob_waits_and_finds_it_whole() {
        let (_folder, store) = store();
        let mut first = partial(&store, b"abc");
        let (waits, waiting) = std::sync::mpsc::channel();
        let second = std::thread::spawn({
            let store = store.clone();
            move || store.claim(Digest::of(b"abc"), 3, || waits.send(()).unwrap()).unwrap()
        });
        waiting.recv_timeout(Duration::from_secs(10)).unwrap();
        first.write(b"abc").unwrap();
        first.finish(Digest::of(b"abc")).unwrap().unwrap();
        drop(first);
        assert!(matches!(second.join().unwrap(), Claimed::Whole));
        assert!(entries(&store.folder.join(PARTIAL)).unwrap().is_empty());
    }

    #[test]
    fn the_second_takes_over_when_the_first_gives_up() {
        let (_folder, store) = store();
        let mut first = partial(&store, b"abc");
        first.write(b"a").unwrap();
        let (waits, waiting) = std::sync::mpsc::channel();
        let second = std::thread::spawn({
            let store = store.clone();
            move || store.claim(Digest::of(b"abc"), 3, || waits.send(()).unwrap()).unwrap()
        });
        waiting.recv_timeout(Duration::from_secs(10)).unwrap();
        drop(first);
        let Claimed::Partial(second) = second.join().unwrap() else { panic!() };
        assert_eq!(second.length(), 1);
    }

    #[test]
    fn what_is_added_must_be_what_was_announced() {
        let (_folder, store) = store();
        let lease = store.lease().unwrap();
        let expected = Some((Digest::of(b"abc"), 3));
        let add =
            |mut source: &[u8], expected, limit| store.add(&lease, &mut source, expected, limit);
        assert!(matches!(add(b"abX", expected, 9), Err(AddError::Wrong { .. })));
        assert!(matches!(add(b"ab", expected, 9), Err(AddError::Size { expected: 3, found: 2 })));
        assert!(matches!(add(b"abcd", expected, 9), Err(AddError::TooLarge { limit: 3 })));
        assert!(matches!(add(b"abcd", None, 3), Err(AddError::TooLarge { limit: 3 })));
        assert!(entries(&store.folder.join(PARTIAL)).unwrap().is_empty());
        assert_eq!(store.list().unwrap(), []);
        assert_eq!(add(b"abc", expected, 9).unwrap(), (Digest::of(b"abc"), 3));
        assert_eq!(add(b"other", None, 9).unwrap(), (Digest::of(b"other"), 5));
        assert_eq!(store.list().unwrap().len(), 2);
    }

    #[test]
    fn gc_keeps_what_is_recorded_leased_or_young_and_a_dry_run_keeps_all() {
        let (_folder, store) = store();
        let lease = store.lease().unwrap();
        for content in [&b"recorded"[..], b"leased", b"old", b"young"] {
            let first = store.lease().unwrap();
            store.put(&first, content).unwrap();
            first.release().unwrap();
            let an_hour_ago = SystemTime::now() - Duration::from_secs(3600);
            if content != b"young" {
                File::open(store.path(Digest::of(content)))
                    .unwrap()
                    .set_modified(an_hour_ago)
                    .unwrap();
            }
        }
        lease.hold(&[Digest::of(b"leased")]).unwrap();
        let keep = || Ok(BTreeSet::from([Digest::of(b"recorded")]));
        let minute = Duration::from_secs(60);
        let expected = Freed { blobs: vec![Digest::of(b"old")], partials: vec![], bytes: 3 };
        assert_eq!(store.gc(minute, true, keep).unwrap(), expected);
        assert_eq!(store.list().unwrap().len(), 4);
        assert_eq!(store.gc(minute, false, keep).unwrap(), expected);
        assert_eq!(store.list().unwrap().len(), 3);
        drop(lease);
        let freed = store.gc(Duration::ZERO, false, nothing).unwrap();
        assert_eq!(freed.blobs.len(), 3);
        assert!(entries(&store.folder.join(LEASES)).unwrap().is_empty());
    }

    #[test]
    fn gc_removes_nothing_when_it_cannot_tell_what_is_needed() {
        let (_folder, store) = store();
        store.put(&store.lease().unwrap(), b"x").unwrap();
        let failure = store.gc(Duration::ZERO, false, || Err("no database".into()));
        assert!(matches!(failure, Err(StoreError::Keep(_))));
        assert_eq!(store.list().unwrap().len(), 1);
    }

    #[test]
    fn gc_takes_partials_that_nobody_writes() {
        let (_folder, store) = store();
        let mut living = partial(&store, b"living");
        living.write(b"l").unwrap();
        let mut dead = partial(&store, b"dead");
        dead.write(b"d").unwrap();
        let dead_path = dead.path.clone();
        drop(dead);
        let (living_new, dead_new) = (store.unnamed().unwrap(), store.unnamed().unwrap().path);
        let young = store.gc(Duration::from_secs(60), false, nothing).unwrap();
        assert_eq!(young.partials, [dead_new]);
        let freed = store.gc(Duration::ZERO, false, nothing).unwrap();
        assert_eq!(freed.partials, [dead_path]);
        assert!(living.path.exists() && living_new.path.exists());
    }

    #[test]
    fn a_blob_that_a_pull_needs_is_not_removed() {
        let (_folder, store) = store();
        let lease = store.lease().unwrap();
        let digest = store.put(&lease, b"x").unwrap();
        assert!(matches!(store.remove(digest), Err(StoreError::Held { .. })));
        lease.release().unwrap();
        store.remove(digest).unwrap();
        store.remove(digest).unwrap();
        assert_eq!(store.list().unwrap(), []);
    }

    #[test]
    fn damage_is_found() {
        let (_folder, store) = store();
        let lease = store.lease().unwrap();
        let (good, bad) = (store.put(&lease, b"good").unwrap(), store.put(&lease, b"bad").unwrap());
        assert!(store.verify(|_| ()).unwrap().is_empty());
        fs::write(store.path(bad), b"BAD").unwrap();
        let mut read = Vec::new();
        let damages = store.verify(|blob| read.push(blob.digest)).unwrap();
        assert_eq!(damages.len(), 1);
        assert_eq!(damages[0].digest, bad);
        assert!(
            matches!(damages[0].why, DamageCause::Content(found) if found == Digest::of(b"BAD"))
        );
        read.sort();
        let mut both = [good, bad];
        both.sort();
        assert_eq!(read, both);
    }
}
