//! The server of a user's files, for sftp, scp and sshfs: a process of that user's, so the kernel decides what it may do.
//! The protocol (version 3, draft-ietf-secsh-filexfer-02) is `russh-sftp`'s; what it asks for is done here, one thing after
//! the other, as `OpenSSH`'s own server does, with that one's extensions (PROTOCOL, 4, of `OpenSSH`).
//!
//! Names that are not UTF-8 are no names to the library: they are left out of lists. rsync and tar bring them.

use std::collections::HashMap;
use std::fs::{self, File, ReadDir};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use russh_sftp::extensions::{
    ExpandPathExtension, FsyncExtension, HardlinkExtension, LimitsExtension, Statvfs,
    StatvfsExtension,
};
use russh_sftp::protocol::{
    Attrs, Data, ExtendedReply, File as Entry, FileAttributes, Handle, Name, OpenFlags, Packet,
    Status, StatusCode, Version,
};
use russh_sftp::server::{Config, Handler, StatusReply, run_with_config};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, Timespec, Timestamps};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

use crate::console;

/// The longest packet that a client may send, in bytes, and the longest data in one: as `OpenSSH`'s server has it.
const LARGEST_PACKET: u32 = 256 * 1024;
const LARGEST_DATA: u32 = LARGEST_PACKET - 1024;

/// Files and folders that a client may have open.
const MOST_HANDLES: usize = 512;

/// Entries of a folder in one answer, as `OpenSSH`'s server has it.
const ENTRIES: usize = 100;

const POSIX_RENAME: &str = "posix-rename@openssh.com";
const LSETSTAT: &str = "lsetstat@openssh.com";
const STATVFS: &str = "statvfs@openssh.com";
const FSTATVFS: &str = "fstatvfs@openssh.com";
const HARDLINK: &str = "hardlink@openssh.com";
const FSYNC: &str = "fsync@openssh.com";
const LIMITS: &str = "limits@openssh.com";
const EXPAND_PATH: &str = "expand-path@openssh.com";

const EXTENSIONS: [(&str, &str); 8] = [
    (POSIX_RENAME, "1"),
    (STATVFS, "2"),
    (FSTATVFS, "2"),
    (HARDLINK, "1"),
    (FSYNC, "1"),
    (LSETSTAT, "1"),
    (LIMITS, "1"),
    (EXPAND_PATH, "1"),
];

/// The process: its stdin and stdout are the client's.
pub(crate) fn run() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            console::say(&format!("cannot serve files: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn serve() -> io::Result<()> {
    let dup = |fd| rustix::io::fcntl_dupfd_cloexec(fd, 3);
    let (stdin, stdout) = (dup(rustix::stdio::stdin())?, dup(rustix::stdio::stdout())?);
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let stream = tokio::io::join(
            pipe::Receiver::from_owned_fd(stdin)?,
            pipe::Sender::from_owned_fd(stdout)?,
        );
        let (ended, when_ended) = oneshot::channel();
        let files = Files { open: HashMap::new(), next: 0, _ended: ended };
        let config = Config { max_client_packet_len: LARGEST_PACKET };
        run_with_config(stream, files, config).await;
        // It is dropped with the handler, when the client's end has come.
        drop::<Result<(), _>>(when_ended.await);
        Ok(())
    })
}

/// What a client has open.
#[derive(Debug)]
enum Open {
    File { file: File, appends: bool },
    Folder { path: PathBuf, entries: ReadDir },
}

#[derive(Debug)]
struct Files {
    open: HashMap<String, Open>,
    next: u64,
    _ended: oneshot::Sender<()>,
}

/// What went wrong with a request.
#[derive(Debug)]
struct Wrong(StatusReply);

impl From<io::Error> for Wrong {
    fn from(error: io::Error) -> Self {
        let code = match error.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => StatusCode::NoSuchFile,
            ErrorKind::PermissionDenied => StatusCode::PermissionDenied,
            ErrorKind::UnexpectedEof => StatusCode::Eof,
            _ => StatusCode::Failure,
        };
        Self(StatusReply::new(code).with_message(error.to_string()))
    }
}

impl From<rustix::io::Errno> for Wrong {
    fn from(error: rustix::io::Errno) -> Self {
        io::Error::from(error).into()
    }
}

impl From<StatusCode> for Wrong {
    fn from(code: StatusCode) -> Self {
        Self(StatusReply::new(code))
    }
}

impl From<Wrong> for StatusReply {
    fn from(wrong: Wrong) -> Self {
        wrong.0
    }
}

impl Files {
    fn keep(&mut self, id: u32, open: Open) -> Result<Handle, Wrong> {
        if self.open.len() >= MOST_HANDLES {
            let most = format!("{MOST_HANDLES} files are open already");
            return Err(Wrong(StatusReply::new(StatusCode::Failure).with_message(most)));
        }
        self.next += 1;
        let handle = self.next.to_string();
        self.open.insert(handle.clone(), open);
        Ok(Handle { id, handle })
    }

    fn file(&self, handle: &str) -> Result<&File, Wrong> {
        match self.open.get(handle) {
            Some(Open::File { file, .. }) => Ok(file),
            _ => Err(StatusCode::BadMessage.into()),
        }
    }
}

fn done(id: u32) -> Status {
    Status {
        id,
        status_code: StatusCode::Ok,
        error_message: String::new(),
        language_tag: String::new(),
    }
}

/// A client's path: an empty one is the folder where it begins.
fn path(text: &str) -> &Path {
    Path::new(if text.is_empty() { "." } else { text })
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the protocol has 32 bits"
)]
fn attributes(data: &fs::Metadata) -> FileAttributes {
    FileAttributes {
        size: Some(data.len()),
        uid: Some(data.uid()),
        gid: Some(data.gid()),
        permissions: Some(data.mode()),
        atime: Some(data.atime() as u32),
        mtime: Some(data.mtime() as u32),
        ..FileAttributes::default()
    }
}

/// As `ls -l` has it: clients show this text as it is.
fn entry(name: String, data: &fs::Metadata) -> Entry {
    let mut entry = Entry::new(name, attributes(data));
    let kind = match data.mode() & 0o170_000 {
        0o040_000 => 'd',
        0o120_000 => 'l',
        0o020_000 => 'c',
        0o060_000 => 'b',
        0o010_000 => 'p',
        0o140_000 => 's',
        _ => '-',
    };
    entry.longname.replace_range(..1, kind.encode_utf8(&mut [0; 4]));
    entry
}

/// Whom attributes are set of.
enum Whom<'a> {
    Path(&'a Path, AtFlags),
    File(&'a File),
}

/// In the order of `OpenSSH`'s server: a mode may take away the right to do the rest.
fn set(whom: &Whom<'_>, wanted: &FileAttributes) -> Result<(), Wrong> {
    if let Some(size) = wanted.size {
        match whom {
            Whom::File(file) => file.set_len(size)?,
            Whom::Path(_, AtFlags::SYMLINK_NOFOLLOW) => {
                return Err(StatusCode::OpUnsupported.into());
            }
            Whom::Path(path, _) => File::options().write(true).open(path)?.set_len(size)?,
        }
    }
    if let (Some(atime), Some(mtime)) = (wanted.atime, wanted.mtime) {
        let time = |seconds: u32| Timespec { tv_sec: i64::from(seconds), tv_nsec: 0 };
        let times = Timestamps { last_access: time(atime), last_modification: time(mtime) };
        match whom {
            Whom::File(file) => rustix::fs::futimens(file, &times)?,
            Whom::Path(path, flags) => rustix::fs::utimensat(CWD, *path, &times, *flags)?,
        }
    }
    if let (Some(uid), Some(gid)) = (wanted.uid, wanted.gid) {
        let uid = Some(rustix::process::Uid::from_raw(uid));
        let gid = Some(rustix::process::Gid::from_raw(gid));
        match whom {
            Whom::File(file) => rustix::fs::fchown(file, uid, gid)?,
            Whom::Path(path, flags) => rustix::fs::chownat(CWD, *path, uid, gid, *flags)?,
        }
    }
    if let Some(mode) = wanted.permissions {
        let mode = fs::Permissions::from_mode(mode & 0o7777);
        match whom {
            Whom::File(file) => file.set_permissions(mode)?,
            // Linux has no modes of links (fchmodat2(2) says so), and clients ask for them with all else.
            Whom::Path(path, AtFlags::SYMLINK_NOFOLLOW)
                if path.symlink_metadata()?.is_symlink() => {}
            Whom::Path(path, _) => fs::set_permissions(path, mode)?,
        }
    }
    Ok(())
}

/// `.` and `..` are followed, links too, and what is not there may be the last part, as realpath(3) of `OpenSSH` has it.
fn real(path: &Path) -> io::Result<PathBuf> {
    match path.canonicalize() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let path = std::path::absolute(path)?;
            match (path.parent(), path.file_name()) {
                (Some(parent), Some(name)) => Ok(parent.canonicalize()?.join(name)),
                _ => Err(error),
            }
        }
        found => found,
    }
}

/// `~` and `~USER` at the beginning, as expand-path@openssh.com has it.
fn expanded(text: &str) -> Result<PathBuf, Wrong> {
    let Some(rest) = text.strip_prefix('~') else { return Ok(path(text).to_owned()) };
    let (user, rest) = rest.split_once('/').unwrap_or((rest, ""));
    let own = rustix::process::geteuid().as_raw().to_string();
    let user = crate::users::find(Some(if user.is_empty() { &own } else { user }));
    let user = user.map_err(|error| {
        Wrong(StatusReply::new(StatusCode::NoSuchFile).with_message(error.to_string()))
    })?;
    Ok(Path::new(&user.home).join(rest))
}

fn name(id: u32, path: PathBuf) -> Result<Name, Wrong> {
    let text = path.into_os_string().into_string().map_err(|_| StatusCode::Failure)?;
    Ok(Name { id, files: vec![Entry::dummy(text)] })
}

fn parse<T: DeserializeOwned>(data: Vec<u8>) -> Result<T, Wrong> {
    russh_sftp::de::from_bytes(&mut data.into()).map_err(|_| StatusCode::BadMessage.into())
}

fn reply(id: u32, value: &impl Serialize) -> Result<Packet, Wrong> {
    let data = russh_sftp::ser::to_bytes(value).map_err(|_| StatusCode::Failure)?.to_vec();
    Ok(Packet::ExtendedReply(ExtendedReply { id, data }))
}

/// Two paths, each with its length before it.
#[derive(Debug, serde::Deserialize)]
struct Pair {
    from: String,
    to: String,
}

#[derive(Debug, serde::Deserialize)]
struct PathAndAttributes {
    path: String,
    attributes: FileAttributes,
}

fn space(stat: &rustix::fs::StatVfs) -> Statvfs {
    Statvfs {
        block_size: stat.f_bsize,
        fragment_size: stat.f_frsize,
        blocks: stat.f_blocks,
        blocks_free: stat.f_bfree,
        blocks_avail: stat.f_bavail,
        inodes: stat.f_files,
        inodes_free: stat.f_ffree,
        inodes_avail: stat.f_favail,
        fs_id: stat.f_fsid,
        // Read-only and no-setuid have the same bits there.
        flags: stat.f_flag.bits() & 3,
        name_max: stat.f_namemax,
    }
}

impl Handler for Files {
    type Error = Wrong;

    fn unimplemented(&self) -> Wrong {
        StatusCode::OpUnsupported.into()
    }

    async fn init(&mut self, _version: u32, _: HashMap<String, String>) -> Result<Version, Wrong> {
        let extensions = EXTENSIONS.iter().map(|(name, data)| ((*name).into(), (*data).into()));
        Ok(Version { extensions: extensions.collect(), ..Version::new() })
    }

    async fn open(
        &mut self,
        id: u32,
        filename: String,
        flags: OpenFlags,
        attrs: FileAttributes,
    ) -> Result<Handle, Wrong> {
        let mut how = match (flags.contains(OpenFlags::READ), flags.contains(OpenFlags::WRITE)) {
            (true, true) => OFlags::RDWR,
            (false, true) => OFlags::WRONLY,
            _ => OFlags::RDONLY,
        };
        for (flag, bit) in [
            (OpenFlags::CREATE, OFlags::CREATE),
            (OpenFlags::TRUNCATE, OFlags::TRUNC),
            (OpenFlags::EXCLUDE, OFlags::EXCL),
            (OpenFlags::APPEND, OFlags::APPEND),
        ] {
            if flags.contains(flag) {
                how |= bit;
            }
        }
        let mode = Mode::from_raw_mode(attrs.permissions.unwrap_or(0o666) & 0o7777);
        let file = rustix::fs::open(path(&filename), how | OFlags::CLOEXEC, mode)?;
        let appends = flags.contains(OpenFlags::APPEND);
        self.keep(id, Open::File { file: file.into(), appends })
    }

    async fn close(&mut self, id: u32, handle: String) -> Result<Status, Wrong> {
        self.open.remove(&handle).map(|_| done(id)).ok_or_else(|| StatusCode::BadMessage.into())
    }

    async fn read(&mut self, id: u32, handle: String, at: u64, length: u32) -> Result<Data, Wrong> {
        let mut data = vec![0; length.min(LARGEST_DATA) as usize];
        let mut filled = 0;
        let file = self.file(&handle)?;
        // A short answer is as good as an end to some clients.
        while filled < data.len() {
            match file.read_at(&mut data[filled..], at + filled as u64) {
                Ok(0) => break,
                Ok(more) => filled += more,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) if filled > 0 => break,
                Err(error) => return Err(error.into()),
            }
        }
        if filled == 0 && length > 0 {
            return Err(StatusCode::Eof.into());
        }
        data.truncate(filled);
        Ok(Data { id, data })
    }

    async fn write(
        &mut self,
        id: u32,
        handle: String,
        at: u64,
        data: Vec<u8>,
    ) -> Result<Status, Wrong> {
        match self.open.get_mut(&handle) {
            Some(Open::File { file, appends: true }) => io::Write::write_all(file, &data)?,
            Some(Open::File { file, .. }) => file.write_all_at(&data, at)?,
            _ => return Err(StatusCode::BadMessage.into()),
        }
        Ok(done(id))
    }

    async fn lstat(&mut self, id: u32, of: String) -> Result<Attrs, Wrong> {
        Ok(Attrs { id, attrs: attributes(&path(&of).symlink_metadata()?) })
    }

    async fn stat(&mut self, id: u32, of: String) -> Result<Attrs, Wrong> {
        Ok(Attrs { id, attrs: attributes(&path(&of).metadata()?) })
    }

    async fn fstat(&mut self, id: u32, handle: String) -> Result<Attrs, Wrong> {
        Ok(Attrs { id, attrs: attributes(&self.file(&handle)?.metadata()?) })
    }

    async fn setstat(
        &mut self,
        id: u32,
        of: String,
        attrs: FileAttributes,
    ) -> Result<Status, Wrong> {
        set(&Whom::Path(path(&of), AtFlags::empty()), &attrs)?;
        Ok(done(id))
    }

    async fn fsetstat(
        &mut self,
        id: u32,
        handle: String,
        attrs: FileAttributes,
    ) -> Result<Status, Wrong> {
        set(&Whom::File(self.file(&handle)?), &attrs)?;
        Ok(done(id))
    }

    async fn opendir(&mut self, id: u32, of: String) -> Result<Handle, Wrong> {
        let path = path(&of).to_owned();
        let entries = fs::read_dir(&path)?;
        self.keep(id, Open::Folder { path, entries })
    }

    async fn readdir(&mut self, id: u32, handle: String) -> Result<Name, Wrong> {
        let Some(Open::Folder { path, entries }) = self.open.get_mut(&handle) else {
            return Err(StatusCode::BadMessage.into());
        };
        let mut files = Vec::new();
        while files.len() < ENTRIES {
            let Some(found) = entries.next() else { break };
            let Ok(name) = found?.file_name().into_string() else { continue };
            // One that goes meanwhile is not there.
            if let Ok(data) = path.join(&name).symlink_metadata() {
                files.push(entry(name, &data));
            }
        }
        if files.is_empty() { Err(StatusCode::Eof.into()) } else { Ok(Name { id, files }) }
    }

    async fn remove(&mut self, id: u32, filename: String) -> Result<Status, Wrong> {
        fs::remove_file(path(&filename))?;
        Ok(done(id))
    }

    async fn mkdir(&mut self, id: u32, of: String, attrs: FileAttributes) -> Result<Status, Wrong> {
        let mode = Mode::from_raw_mode(attrs.permissions.unwrap_or(0o777) & 0o7777);
        rustix::fs::mkdir(path(&of), mode)?;
        Ok(done(id))
    }

    async fn rmdir(&mut self, id: u32, of: String) -> Result<Status, Wrong> {
        fs::remove_dir(path(&of))?;
        Ok(done(id))
    }

    async fn realpath(&mut self, id: u32, of: String) -> Result<Name, Wrong> {
        name(id, real(path(&of))?)
    }

    /// Unlike `posix-rename`, never onto something that is there.
    async fn rename(&mut self, id: u32, from: String, to: String) -> Result<Status, Wrong> {
        let flags = rustix::fs::RenameFlags::NOREPLACE;
        match rustix::fs::renameat_with(CWD, path(&from), CWD, path(&to), flags) {
            // A filesystem that cannot: then it is looked at before.
            Err(rustix::io::Errno::INVAL) => {
                if path(&to).symlink_metadata().is_ok() {
                    return Err(StatusCode::Failure.into());
                }
                fs::rename(path(&from), path(&to))?;
            }
            renamed => renamed?,
        }
        Ok(done(id))
    }

    async fn readlink(&mut self, id: u32, of: String) -> Result<Name, Wrong> {
        name(id, fs::read_link(path(&of))?)
    }

    /// `OpenSSH` has these two the other way round than the draft (PROTOCOL, 4.1), and everybody does as it does.
    async fn symlink(&mut self, id: u32, target: String, link: String) -> Result<Status, Wrong> {
        std::os::unix::fs::symlink(&target, path(&link))?;
        Ok(done(id))
    }

    async fn extended(&mut self, id: u32, what: String, data: Vec<u8>) -> Result<Packet, Wrong> {
        match &*what {
            POSIX_RENAME => {
                let Pair { from, to } = parse(data)?;
                fs::rename(path(&from), path(&to))?;
            }
            HARDLINK => {
                let HardlinkExtension { oldpath, newpath } = parse(data)?;
                fs::hard_link(path(&oldpath), path(&newpath))?;
            }
            FSYNC => {
                let FsyncExtension { handle } = parse(data)?;
                self.file(&handle)?.sync_all()?;
            }
            LSETSTAT => {
                let PathAndAttributes { path: of, attributes } = parse(data)?;
                set(&Whom::Path(path(&of), AtFlags::SYMLINK_NOFOLLOW), &attributes)?;
            }
            STATVFS => {
                let StatvfsExtension { path: of } = parse(data)?;
                return reply(id, &space(&rustix::fs::statvfs(path(&of))?));
            }
            FSTATVFS => {
                let FsyncExtension { handle } = parse(data)?;
                return reply(id, &space(&rustix::fs::fstatvfs(self.file(&handle)?)?));
            }
            LIMITS => {
                return reply(
                    id,
                    &LimitsExtension {
                        max_packet_len: LARGEST_PACKET.into(),
                        max_read_len: LARGEST_DATA.into(),
                        max_write_len: LARGEST_DATA.into(),
                        max_open_handles: MOST_HANDLES as u64,
                    },
                );
            }
            EXPAND_PATH => {
                let ExpandPathExtension { path } = parse(data)?;
                return Ok(name(id, real(&expanded(&path)?)?)?.into());
            }
            _ => return Err(StatusCode::OpUnsupported.into()),
        }
        Ok(done(id).into())
    }
}
