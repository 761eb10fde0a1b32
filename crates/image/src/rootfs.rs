//! From a tar of a root filesystem (plain, gzip, xz, zstd) to an ext4 image with everything in it as root would see it:
//! owners, modes, devices, hard links, attributes. As root or as an ordinary user.
//!
//! ```text
//! tar file ─► unpack ─► listing ─► GNU tar ─► scratch folder ─► mke2fs ─► debugfs ─► image
//!                       (attributes, root's    (fakeroot for an           (attributes,
//!                        own mode)              ordinary user)             root's own mode)
//! ```
//!
//! The names in the archive never leave the scratch folder: GNU tar refuses `..`, makes absolute names relative, and
//! makes symlinks that point out only after all else. Nothing here follows a link out of the tree.
//! Not kept: fractions of seconds, and times after 2038 (mke2fs 1.47.0 writes 32 bits).

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ChildStdin;
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2};
use sha2::{Digest, Sha256};

use crate::artifact::{self, ArtifactError, failed, free_bytes};
use crate::compression::{self, Bounded, Format};
use crate::ext4::{self, BLOCK, Content, Ext4Error, Identity, data_bytes};
use crate::kernel::hex;
use crate::listing::{Listing, ListingError, Xattrs};
use crate::posix_acl::{self, Names};
use crate::programs::{ProgramError, TAR};
use crate::{Progress, Trouble, Watch};

/// No root filesystem is larger when it is unpacked.
const LARGEST: u64 = 256 << 30;

/// Stays free on the host's file system.
const RESERVE: u64 = 256 << 20;

/// Space is looked at again after so many bytes.
const SPACE_STEP: u64 = 16 << 20;

const UNPACKING: Duration = Duration::from_secs(3600);

/// Where an init is looked for, in this order.
const INITS: [&str; 5] =
    ["/sbin/init", "/usr/lib/systemd/systemd", "/lib/systemd/systemd", "/bin/init", "/init"];

/// A root filesystem in its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportedRootfs {
    /// SHA-256 of the image, hex.
    pub digest: String,
    /// What the image takes on the host.
    pub size_bytes: u64,
    /// How large the file system in it is; the file has this length.
    pub file_system_bytes: u64,
    /// The program that boots it, if it has one.
    pub init: Option<String>,
    /// How many entries the archive had.
    pub entries: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    #[error("cannot read {path}")]
    Read {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("{path} cannot be unpacked")]
    Unpack {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("{0} is not a tar archive (plain, or compressed with gzip, xz or zstd)")]
    NotATar(PathBuf),
    #[error("the archive {0} has nothing in it")]
    Empty(PathBuf),
    #[error("the list of {path} cannot be read")]
    Listing {
        path: PathBuf,
        #[source]
        cause: ListingError,
    },
    #[error("tar cannot extract {path}")]
    Tar {
        path: PathBuf,
        #[source]
        cause: ProgramError,
    },
    #[error(
        "the access control list of {0:?} in the archive is damaged, or names somebody that the image does not know"
    )]
    Acl(String),
    #[error(
        "{folder} has {free} bytes free, the import needs about {needed} and leaves {RESERVE} free"
    )]
    NoSpace { folder: PathBuf, free: u64, needed: u64 },
    #[error("cannot look at the extracted {path}")]
    Walk {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("cannot write the image's file system")]
    Ext4(#[from] Ext4Error),
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
}

impl RootfsError {
    #[must_use]
    pub fn trouble(&self) -> Trouble {
        match self {
            Self::NoSpace { .. } => Trouble::NoSpace,
            Self::Tar { cause, .. } if cause.is_no_space() => Trouble::NoSpace,
            Self::Ext4(cause) if cause.is_no_space() => Trouble::NoSpace,
            Self::Artifact(cause) if cause.is_no_space() => Trouble::NoSpace,
            Self::Tar { cause: ProgramError::Absent { .. }, .. }
            | Self::Ext4(
                Ext4Error::Make(ProgramError::Absent { .. })
                | Ext4Error::Amend(ProgramError::Absent { .. }),
            ) => Trouble::Missing,
            Self::Tar { cause: ProgramError::Deadline { .. }, .. }
            | Self::Ext4(Ext4Error::Make(ProgramError::Deadline { .. })) => Trouble::Timeout,
            Self::Artifact(_) | Self::Ext4(_) | Self::Walk { .. } => Trouble::Host,
            _ => Trouble::Input,
        }
    }

    /// What to do next, where there is something.
    #[must_use]
    pub fn remedy(&self) -> Option<String> {
        let cause = match self {
            Self::NoSpace { folder, .. } => {
                return Some(format!("free space on the file system of {}", folder.display()));
            }
            Self::Tar { cause, .. }
            | Self::Ext4(Ext4Error::Make(cause) | Ext4Error::Amend(cause)) => cause,
            _ => return None,
        };
        match cause {
            ProgramError::Absent { package, .. } => Some(format!("install the package {package}")),
            _ => None,
        }
    }
}

/// Imports the root filesystem in the archive `tar` into the image `out`, which appears when it is whole.
///
/// # Errors
/// When `tar` is no archive of a root filesystem, or the host lacks space or a program; then nothing is left.
pub fn import_rootfs(
    tar: &Path,
    out: &Path,
    watch: Watch<'_>,
) -> Result<ImportedRootfs, RootfsError> {
    let read = |cause| RootfsError::Read { path: tar.to_owned(), cause };
    let file = File::open(tar).map_err(read)?;
    let metadata = file.metadata().map_err(read)?;
    if !metadata.is_file() {
        return Err(read(io::Error::other("it is not a regular file")));
    }
    let origin = Origin { path: tar, length: metadata.len() };
    artifact::write(out, |image, draft| fill(file, &origin, image, draft, watch))
}

/// Where an archive comes from.
pub(crate) struct Origin<'a> {
    /// For messages.
    pub path: &'a Path,
    /// 0 when nobody knows.
    pub length: u64,
}

/// Fills `image`, the new and empty file at `draft`, from the archive in `source`.
pub(crate) fn fill(
    source: impl Read + Send,
    origin: &Origin<'_>,
    image: &mut File,
    draft: &Path,
    watch: Watch<'_>,
) -> Result<ImportedRootfs, RootfsError> {
    let folder = draft.parent().expect("a draft lies in a folder");
    require_space(folder, origin.length.saturating_mul(2))?;
    artifact::in_scratch(folder, |scratch| {
        let tree = scratch.join("tree");
        fs::create_dir(&tree).map_err(failed("create", &tree))?;
        fs::set_permissions(&tree, PermissionsExt::from_mode(0o755))
            .map_err(failed("set the mode of", &tree))?;
        let identity = identity(scratch);

        watch(Progress::Stage {
            name: "unpack",
            text: &format!("unpacking {}", origin.path.display()),
        });
        let unpacked = unpack(source, origin, &tree, &identity, watch)?;
        let init = find_init(&tree)?;
        let attributes = attributes(unpacked.listing.xattrs, &unpacked.listing.acls, &tree)?;
        let content = measure(&tree, attributes.len() as u64)?;
        require_space(folder, content.allocated_bytes())?;

        watch(Progress::Stage {
            name: "write",
            text: &format!("writing {} entries to the filesystem", unpacked.listing.entries),
        });
        ext4::make(&tree, draft, content, &unpacked.uuid, &identity)?;
        ext4::amend(draft, unpacked.listing.root, &attributes, scratch)?;

        watch(Progress::Stage { name: "digest", text: "computing the image's digest" });
        let digest = digest(image).map_err(failed("read", draft))?;
        let metadata = image.metadata().map_err(failed("look at", draft))?;
        Ok(ImportedRootfs {
            digest,
            size_bytes: metadata.blocks() * 512,
            file_system_bytes: metadata.len(),
            init,
            entries: unpacked.listing.entries,
        })
    })
}

fn identity(scratch: &Path) -> Identity {
    if rustix::process::geteuid().is_root() {
        Identity::Root
    } else {
        Identity::Fakeroot { state: scratch.join("fakeroot") }
    }
}

fn require_space(folder: &Path, needed: u64) -> Result<(), RootfsError> {
    let free = free_bytes(folder)?;
    if free < needed.saturating_add(RESERVE) {
        return Err(RootfsError::NoSpace { folder: folder.to_owned(), free, needed });
    }
    Ok(())
}

struct Unpacked {
    listing: Listing,
    /// Made of the archive's digest: the same archive gives a file system of the same identity.
    uuid: String,
}

/// Extracts the archive into `tree` and reads its listing on the way.
fn unpack(
    source: impl Read + Send,
    origin: &Origin<'_>,
    tree: &Path,
    identity: &Identity,
    watch: Watch<'_>,
) -> Result<Unpacked, RootfsError> {
    let path = origin.path;
    let broken = |cause| RootfsError::Unpack { path: path.to_owned(), cause };
    let counted = Counted { source, done: 0, told: 0, total: origin.length, watch };
    let mut packed = BufReader::with_capacity(256 << 10, counted);
    let format = Format::detect(packed.fill_buf().map_err(broken)?);
    let plain = compression::reader(format, packed).map_err(broken)?;
    let mut plain = BufReader::with_capacity(256 << 10, Bounded::new(plain, LARGEST));
    check_start(&mut plain, path)?;

    let tar = |cause| RootfsError::Tar { path: path.to_owned(), cause };
    let call = identity.call(TAR, UNPACKING, true).map_err(tar)?.watched(watch).args([
        "--extract".into(),
        "--file=-".into(),
        "--directory".into(),
        tree.as_os_str().to_owned(),
        "--preserve-permissions".into(),
        "--same-owner".into(),
        "--numeric-owner".into(),
        "--delay-directory-restore".into(),
        "--warning=no-timestamp".into(),
    ]);
    let mut listed = None;
    let mut plain = Some(plain);
    let extracted = call.fed_by(&mut |stdin| {
        if let Some(plain) = plain.take() {
            let mut tee = Tee::new(plain, stdin, tree);
            let listing = Listing::read(&mut tee);
            listed = Some((listing, tee.finish()));
        }
    });
    let (listing, passed) = listed.expect("a program that was started is fed");
    // What stopped the stream is the cause; tar then only says that its input ended.
    let digest = match passed {
        Err(Stop::Space { free, needed }) => {
            return Err(RootfsError::NoSpace { folder: tree.to_owned(), free, needed });
        }
        Err(Stop::Artifact(error)) => return Err(error.into()),
        Err(Stop::Source(cause)) => return Err(broken(cause)),
        Ok(digest) => digest,
    };
    extracted.map_err(tar)?;
    let listing = listing.map_err(|cause| RootfsError::Listing { path: path.to_owned(), cause })?;
    if listing.entries == 0 {
        return Err(RootfsError::Empty(path.to_owned()));
    }
    Ok(Unpacked { listing, uuid: uuid(&digest) })
}

/// Refuses what does not begin with a header whose checksum is right.
fn check_start(plain: &mut impl BufRead, path: &Path) -> Result<(), RootfsError> {
    let start =
        plain.fill_buf().map_err(|cause| RootfsError::Unpack { path: path.to_owned(), cause })?;
    let Some(block) = start.first_chunk::<512>() else {
        return Err(RootfsError::NotATar(path.to_owned()));
    };
    if block.iter().all(|&byte| byte == 0) {
        return Err(RootfsError::Empty(path.to_owned()));
    }
    let blank = block
        .iter()
        .enumerate()
        .map(|(at, &byte)| if (148..156).contains(&at) { b' ' } else { byte });
    let sum: u32 = blank.map(u32::from).sum();
    match tar::Header::from_byte_slice(block).cksum() {
        Ok(written) if written == sum => Ok(()),
        _ => Err(RootfsError::NotATar(path.to_owned())),
    }
}

/// Tells how much of a file was read.
struct Counted<'a, R> {
    source: R,
    done: u64,
    told: u64,
    total: u64,
    watch: Watch<'a>,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(buffer)?;
        self.done += count as u64;
        if count == 0 || self.done - self.told >= 1 << 20 {
            self.told = self.done;
            (self.watch)(Progress::Bytes { done: self.done, total: self.total });
        }
        Ok(count)
    }
}

/// Why the stream was stopped.
enum Stop {
    Source(io::Error),
    Space { free: u64, needed: u64 },
    Artifact(ArtifactError),
}

/// Passes on to tar what its reader reads, looks at the space, and hashes.
struct Tee<'a, R> {
    source: R,
    tar: Option<BufWriter<ChildStdin>>,
    folder: &'a Path,
    hash: Sha256,
    passed: u64,
    looked: u64,
    stop: Option<Stop>,
}

impl<'a, R: Read> Tee<'a, R> {
    fn new(source: R, stdin: ChildStdin, folder: &'a Path) -> Self {
        let tar = Some(BufWriter::with_capacity(256 << 10, stdin));
        Self { source, tar, folder, hash: Sha256::new(), passed: 0, looked: 0, stop: None }
    }

    /// Passes on the rest; gives the digest of all.
    fn finish(mut self) -> Result<[u8; 32], Stop> {
        let drained = io::copy(&mut self, &mut io::sink());
        if let Some(stop) = self.stop {
            return Err(stop);
        }
        drained.map_err(Stop::Source)?;
        if let Some(tar) = &mut self.tar {
            closed_is_fine(tar.flush()).map_err(Stop::Source)?;
        }
        Ok(self.hash.finalize().into())
    }

    fn pass(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hash.update(bytes);
        if let Some(tar) = &mut self.tar
            && !closed_is_fine(tar.write_all(bytes))?
        {
            self.tar = None;
        }
        self.passed += bytes.len() as u64;
        if self.passed - self.looked >= SPACE_STEP {
            self.looked = self.passed;
            // The image will need as much again as was extracted until now.
            let needed = self.passed;
            match free_bytes(self.folder) {
                Ok(free) if free >= needed + RESERVE => {}
                Ok(free) => return Err(self.stopped(Stop::Space { free, needed })),
                Err(error) => return Err(self.stopped(Stop::Artifact(error))),
            }
        }
        Ok(())
    }

    fn stopped(&mut self, stop: Stop) -> io::Error {
        self.stop = Some(stop);
        io::Error::other("the stream was stopped")
    }
}

impl<R: Read> Read for Tee<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.stop.is_some() {
            return Err(io::Error::other("the stream was stopped"));
        }
        match self.source.read(buffer) {
            Ok(count) => {
                self.pass(&buffer[..count])?;
                Ok(count)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => Err(self.stopped(Stop::Source(error))),
        }
    }
}

/// A tar that failed has closed its stdin; its own error says more than ours would. False when it has.
fn closed_is_fine(written: io::Result<()>) -> io::Result<bool> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        other => other.map(|()| true),
    }
}

/// RFC 9562, version 8: bits of one's own choice.
fn uuid(digest: &[u8; 32]) -> String {
    let mut bytes: [u8; 16] = digest[..16].try_into().expect("16 of 32");
    bytes[6] = bytes[6] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let text = hex(&bytes);
    format!("{}-{}-{}-{}-{}", &text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..])
}

/// All attributes in their binary form.
fn attributes(
    mut xattrs: std::collections::BTreeMap<Vec<u8>, Xattrs>,
    acls: &std::collections::BTreeMap<Vec<u8>, crate::listing::Acl>,
    tree: &Path,
) -> Result<Vec<(Vec<u8>, Xattrs)>, RootfsError> {
    if !acls.is_empty() {
        let names = Names {
            users: posix_acl::ids(&text_in_root(tree, "/etc/passwd")?),
            groups: posix_acl::ids(&text_in_root(tree, "/etc/group")?),
        };
        for (path, acl) in acls {
            for (text, name) in
                [(&acl.access, posix_acl::ACCESS), (&acl.default, posix_acl::DEFAULT)]
            {
                let Some(text) = text else { continue };
                let value = posix_acl::encode(text, &names)
                    .ok_or_else(|| RootfsError::Acl(String::from_utf8_lossy(path).into_owned()))?;
                xattrs.entry(path.clone()).or_default().insert(name.to_owned(), value);
            }
        }
    }
    Ok(xattrs.into_iter().collect())
}

/// A file of the tree by its name within the root; links lead nowhere else. `None` when there is none.
fn open_in_root(
    tree: &Path,
    name: &str,
    flags: OFlags,
) -> Result<Option<rustix::fd::OwnedFd>, RootfsError> {
    use rustix::io::Errno;
    let walk = |errno: Errno| RootfsError::Walk { path: name.into(), cause: errno.into() };
    let root = openat(CWD, tree, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(walk)?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    match openat2(&root, name, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
        Ok(file) => Ok(Some(file)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO | Errno::ACCESS) => Ok(None),
        Err(errno) => Err(walk(errno)),
    }
}

fn text_in_root(tree: &Path, name: &str) -> Result<String, RootfsError> {
    const LONGEST: u64 = 1 << 20;
    let Some(file) = open_in_root(tree, name, OFlags::RDONLY | OFlags::NONBLOCK)? else {
        return Ok(String::new());
    };
    let mut bytes = Vec::new();
    let is_file = fstat(&file).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_file());
    if is_file {
        File::from(file)
            .take(LONGEST)
            .read_to_end(&mut bytes)
            .map_err(|cause| RootfsError::Walk { path: name.into(), cause })?;
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The first of [`INITS`] that is a program, its links followed within the tree.
fn find_init(tree: &Path) -> Result<Option<String>, RootfsError> {
    for name in INITS {
        let Some(file) = open_in_root(tree, name, OFlags::PATH)? else { continue };
        let stat = fstat(&file)
            .map_err(|errno| RootfsError::Walk { path: name.into(), cause: errno.into() })?;
        if FileType::from_raw_mode(stat.st_mode).is_file() && stat.st_mode & 0o111 != 0 {
            return Ok(Some(name.to_owned()));
        }
    }
    Ok(None)
}

/// Lets an ordinary user's mke2fs read what only root could. fakeroot keeps the archive's own mode, which goes into the image.
fn make_readable(path: &Path, metadata: &fs::Metadata) -> io::Result<()> {
    let needed = match () {
        () if metadata.is_dir() => 0o700,
        () if metadata.is_file() => 0o400,
        () => return Ok(()),
    };
    let mode = metadata.mode() & 0o7777;
    if rustix::process::geteuid().is_root() || mode & needed == needed {
        return Ok(());
    }
    fs::set_permissions(path, PermissionsExt::from_mode(mode | needed))
}

/// How much is in `tree`; `attributes` of the entries have extended attributes.
fn measure(tree: &Path, attributes: u64) -> Result<Content, RootfsError> {
    let mut content = Content { blocks: attributes, inodes: 1 };
    let mut linked = HashSet::new();
    let mut folders = vec![tree.to_owned()];
    while let Some(folder) = folders.pop() {
        let walk = |path: &Path| {
            let path = path.to_owned();
            move |cause| RootfsError::Walk { path, cause }
        };
        let mut names = 0;
        for entry in fs::read_dir(&folder).map_err(walk(&folder))? {
            let entry = entry.map_err(walk(&folder))?;
            let path = entry.path();
            let metadata = fs::symlink_metadata(&path).map_err(walk(&path))?;
            make_readable(&path, &metadata).map_err(walk(&path))?;
            names += 12 + entry.file_name().as_bytes().len() as u64;
            if metadata.is_dir() {
                folders.push(path);
            } else if metadata.nlink() > 1 && !linked.insert((metadata.dev(), metadata.ino())) {
                continue;
            } else if metadata.is_file() {
                let length = metadata.len();
                let data = if metadata.blocks() * 512 < length {
                    File::open(&path)
                        .and_then(|file| data_bytes(&file, length))
                        .map_err(walk(&path))?
                } else {
                    length
                };
                content.blocks += data.div_ceil(BLOCK);
            } else if metadata.is_symlink() && metadata.len() > 59 {
                content.blocks += 1;
            }
            content.inodes += 1;
        }
        // A folder's blocks are two thirds full once they were split.
        content.blocks += names * 3 / 2 / BLOCK + 1;
    }
    Ok(content)
}

fn digest(image: &mut File) -> io::Result<String> {
    use std::io::Seek as _;
    image.rewind()?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match image.read(&mut buffer)? {
            0 => return Ok(hex(&hash.finalize())),
            count => hash.update(&buffer[..count]),
        }
    }
}
