//! A plan as a tar: the files of the working tree as they are now, then each repository's `.git`.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use banger_api::{Code, Problem};
use rustix::fs::{Mode, OFlags, ResolveFlags, fstat, openat2};
use tar::{Builder, EntryType, Header};

use crate::folder;
use crate::plan::{Content, Plan};
use crate::scratch::scratch;

/// What was sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sent {
    pub files: u64,
    /// Of files and of history.
    pub bytes: u64,
}

impl Plan {
    /// Writes all of it into `out` as a tar whose names are below the workspace.
    ///
    /// # Errors
    /// When the repository cannot be read, a file changed under our hands, or `out` takes no more.
    pub fn send(&self, out: impl Write) -> Result<Sent, Problem> {
        let scratch = scratch()?;
        let sent = self.send_by(out, scratch.path());
        let cleared = scratch.close();
        let sent = sent?;
        cleared.map_err(|error| {
            Problem::new(Code::Internal, "cannot clear the folder of the copy").cause(&error)
        })?;
        Ok(sent)
    }

    fn send_by(&self, out: impl Write, scratch: &Path) -> Result<Sent, Problem> {
        let mut tar =
            Tar { builder: Builder::new(out), folders: HashSet::new(), sent: Sent::default() };
        let all = self.all();
        for plan in &all {
            tar.working_tree(plan)?;
        }
        for (number, plan) in all.iter().enumerate() {
            let folder = scratch.join(number.to_string());
            std::fs::create_dir(&folder).map_err(|error| {
                Problem::new(Code::Internal, format!("cannot make {}", folder.display()))
                    .cause(&error)
            })?;
            folder::write(plan, &folder)?;
            let below = Path::new(OsStr::from_bytes(&plan.path)).join(".git");
            tar.tree(&folder, &below).map_err(|error| broken(&below, &error))?;
        }
        let end = tar.builder.into_inner().and_then(|mut out| out.flush());
        end.map_err(|error| broken(Path::new("the end"), &error))?;
        Ok(tar.sent)
    }
}

struct Tar<W: Write> {
    builder: Builder<W>,
    folders: HashSet<PathBuf>,
    sent: Sent,
}

impl<W: Write> Tar<W> {
    fn working_tree(&mut self, plan: &Plan) -> Result<(), Problem> {
        let below = Path::new(OsStr::from_bytes(&plan.path));
        let top = File::open(plan.top()).map_err(|error| broken(plan.top(), &error))?;
        let mut objects = Vec::new();
        for file in &plan.files {
            let path = Path::new(OsStr::from_bytes(&file.path));
            match &file.content {
                Content::Object { oid, mode } => {
                    objects.push((below.join(path), oid.as_str(), *mode))
                }
                Content::Working => self
                    .working_file(&top, path, &below.join(path))
                    .map_err(|error| broken(&plan.top().join(path), &error))?,
            }
        }
        if !below.as_os_str().is_empty() {
            self.folder(below).map_err(|error| broken(below, &error))?;
        }
        if objects.is_empty() {
            return Ok(());
        }
        let oids: Vec<&str> = objects.iter().map(|(_, oid, _)| *oid).collect();
        plan.repo.git.blobs(&oids, |index, size, content| {
            let (path, _, mode) = &objects[index];
            self.object(path, *mode, size, content).map_err(|error| broken(path, &error))
        })
    }

    /// What is not there, or is reached only through a link, does not go: git takes it for deleted too.
    fn working_file(&mut self, top: &File, path: &Path, name: &Path) -> io::Result<()> {
        let open = |flags: OFlags| {
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
            let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            openat2(top.as_fd(), path, flags, Mode::empty(), resolve)
        };
        let found: OwnedFd = match open(OFlags::PATH) {
            Ok(found) => found,
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => {
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        let stat = fstat(&found)?;
        let mut header = Header::new_gnu();
        header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or_default());
        match rustix::fs::FileType::from_raw_mode(stat.st_mode) {
            rustix::fs::FileType::RegularFile => {
                let size = u64::try_from(stat.st_size).unwrap_or_default();
                let content = File::from(open(OFlags::RDONLY | OFlags::NONBLOCK)?);
                header.set_mode(stat.st_mode & 0o777);
                self.file(header, name, size, &mut &content)
            }
            rustix::fs::FileType::Symlink => {
                let target = rustix::fs::readlinkat(&found, "", Vec::new())?;
                self.link(header, name, Path::new(OsStr::from_bytes(target.as_bytes())))
            }
            // A folder where git has a file, and what git cannot keep.
            _ => Ok(()),
        }
    }

    fn object(
        &mut self,
        name: &Path,
        mode: u32,
        size: u64,
        content: &mut dyn Read,
    ) -> io::Result<()> {
        let mut header = Header::new_gnu();
        header.set_mtime(now());
        if mode == 0o120_000 {
            let mut target = Vec::new();
            content.take(size).read_to_end(&mut target)?;
            return self.link(header, name, Path::new(OsStr::from_bytes(&target)));
        }
        header.set_mode(if mode & 0o111 == 0 { 0o644 } else { 0o755 });
        self.file(header, name, size, content)
    }

    /// All below `from`, plain files and folders, as `name`.
    fn tree(&mut self, from: &Path, name: &Path) -> io::Result<()> {
        self.folder(name)?;
        let mut entries = std::fs::read_dir(from)?.collect::<Result<Vec<_>, _>>()?;
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            let inner = name.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                self.tree(&entry.path(), &inner)?;
                continue;
            }
            let content = File::open(entry.path())?;
            let mut header = Header::new_gnu();
            header.set_mtime(now());
            header.set_mode(0o644);
            self.file(header, &inner, content.metadata()?.len(), &mut &content)?;
        }
        Ok(())
    }

    fn file(
        &mut self,
        mut header: Header,
        name: &Path,
        size: u64,
        content: &mut dyn Read,
    ) -> io::Result<()> {
        self.above(name)?;
        header.set_entry_type(EntryType::Regular);
        owned_by_root(&mut header);
        header.set_size(size);
        let mut exact = Exact { content: content.take(size), left: size };
        self.builder.append_data(&mut header, name, &mut exact)?;
        self.sent.files += 1;
        self.sent.bytes += size;
        Ok(())
    }

    fn link(&mut self, mut header: Header, name: &Path, target: &Path) -> io::Result<()> {
        self.above(name)?;
        header.set_entry_type(EntryType::Symlink);
        owned_by_root(&mut header);
        header.set_mode(0o777);
        header.set_size(0);
        self.builder.append_link(&mut header, name, target)?;
        self.sent.files += 1;
        Ok(())
    }

    fn above(&mut self, name: &Path) -> io::Result<()> {
        match name.parent().filter(|above| !above.as_os_str().is_empty()) {
            Some(above) => self.folder(above),
            None => Ok(()),
        }
    }

    fn folder(&mut self, name: &Path) -> io::Result<()> {
        if self.folders.contains(name) {
            return Ok(());
        }
        self.above(name)?;
        self.folders.insert(name.to_owned());
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Directory);
        owned_by_root(&mut header);
        header.set_mode(0o755);
        header.set_mtime(now());
        header.set_size(0);
        self.builder.append_data(&mut header, name, io::empty())
    }
}

/// As many bytes as were announced, or an error: a file that shrinks would shift all that follows it.
struct Exact<R> {
    content: io::Take<R>,
    left: u64,
}

impl<R: Read> Read for Exact<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.content.read(buffer)?;
        self.left -= read as u64;
        if read == 0 && self.left > 0 && !buffer.is_empty() {
            return Err(io::Error::other("it became shorter while it was copied"));
        }
        Ok(read)
    }
}

fn owned_by_root(header: &mut Header) {
    header.set_uid(0);
    header.set_gid(0);
}

fn now() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

fn broken(path: &Path, error: &io::Error) -> Problem {
    Problem::new(Code::Internal, format!("cannot send {}", path.display())).cause(error)
}
