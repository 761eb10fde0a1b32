//! Layers of an image, applied one upon the other to a file system under construction, as the OCI image specification
//! says it (layer.md, "Applying Changesets"):
//!
//! - a later entry of one name replaces an earlier one, only a folder over a folder stays and takes the new attributes;
//! - `.wh.NAME` hides what lower layers have under this name, `.wh..wh..opq` all that they have in its folder; what the
//!   marker's own layer brings stays, before the marker and after it. Other names with `.wh..wh.` are of aufs and mean nothing.
//!
//! Where the specification is silent, what umoci and Docker do is done: links on the way to an entry are followed within
//! the tree, and `..` in them ends at the root; folders that no entry made are made; a hard link is to what has the name
//! then. Nothing of a link's target is ever looked up on the host.

use std::collections::{HashMap, HashSet};
use std::io::BufRead;

use banger_ext4::{Attributes, Ext4Error, Image, InodeId, Kind, Timestamp};

use crate::posix_acl::{self, Names};
use crate::tarball::{
    Acl, Content, Entry, EntryKind, Refusal, Segment, TarError, Tarball, refused, shown,
};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const AUFS: &[u8] = b".wh..wh.";

/// linux/namei.h: MAXSYMLINKS.
const MOST_LINKS: u32 = 40;

/// Parts of names that are looked up for one image. An ordinary one has some dozens for each entry at most.
const MOST_STEPS: u64 = 1 << 28;

/// passwd and group are not larger.
const LARGEST_NAMES: u64 = 1 << 20;

/// How large an image may be; what is larger is refused before it fills the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one layer, decompressed.
    pub layer_bytes: u64,
    /// Bytes of all layers together, decompressed; and of the files in the image.
    pub total_bytes: u64,
    /// Entries of all layers together, and files and folders in the image.
    pub entries: u64,
    /// Bytes of names and of link targets, all of which are kept in memory while the image is made.
    pub name_bytes: u64,
    /// Bytes of extended attributes, likewise.
    pub xattr_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            layer_bytes: 64 << 30,
            total_bytes: 64 << 30,
            entries: 4 << 20,
            name_bytes: 256 << 20,
            xattr_bytes: 64 << 20,
        }
    }
}

/// Why a layer cannot be applied.
#[derive(Debug)]
pub(crate) enum Stop<E> {
    Tar(TarError),
    /// What the caller's look at the space said.
    Caller(E),
}

impl<E> From<TarError> for Stop<E> {
    fn from(error: TarError) -> Self {
        Self::Tar(error)
    }
}

/// A file system that grows layer by layer.
pub(crate) struct Layers {
    image: Image,
    limits: Limits,
    /// Counted over all layers.
    pub entries: u64,
    name_bytes: u64,
    xattr_bytes: u64,
    steps: u64,
    /// Of inodes that have some in text; of those as well that are gone by now.
    acls: HashMap<InodeId, Acl>,
    upper: Upper,
    /// The folder of the last entry, since most entries lie in the same folder as the one before.
    last: Option<(Vec<u8>, Vec<InodeId>)>,
}

/// What belongs to the present layer, so that its whiteouts spare it. Of the lowest layer nothing is written down: there
/// is nothing below it to hide.
#[derive(Default)]
struct Upper {
    is_lowest: bool,
    /// Inodes that it made.
    made: HashSet<InodeId>,
    /// Names that it gave to what may be a lower layer's.
    linked: HashSet<(InodeId, Vec<u8>)>,
    /// Folders of lower layers that it said something of, or has something in; with all folders above them.
    touched: HashSet<InodeId>,
    /// Folders that have nothing of lower layers any more, neither have the folders in them.
    cleaned: HashSet<InodeId>,
}

/// How far names lead.
struct Way {
    /// The folders from the root to the last that is there.
    folders: Vec<InodeId>,
    /// What is to be made below it.
    missing: Vec<Vec<u8>>,
}

impl Way {
    fn end(&self) -> InodeId {
        *self.folders.last().expect("the root is always there")
    }
}

impl Layers {
    pub(crate) fn new(image: Image, limits: Limits) -> Self {
        Self {
            image,
            limits,
            entries: 0,
            name_bytes: 0,
            xattr_bytes: 0,
            steps: 0,
            acls: HashMap::new(),
            upper: Upper { is_lowest: true, ..Upper::default() },
            last: None,
        }
    }

    /// Applies a layer. `check` gets the bytes of the image's files, again and again, and may stop it all.
    pub(crate) fn apply<R: BufRead, E>(
        &mut self,
        tarball: &mut Tarball<R>,
        check: &mut impl FnMut(u64) -> Result<(), E>,
    ) -> Result<(), Stop<E>> {
        while let Some(mut entry) = tarball.next()? {
            let name = std::mem::take(&mut entry.name);
            let made = self.count(&name, &entry).and_then(|()| self.place(&name, entry));
            let made = made.map_err(|cause| refused(&name, cause))?;
            if let Some((id, content)) = made {
                self.fill(&name, id, &content, tarball, check)?;
            }
            check(self.image.data_bytes()).map_err(Stop::Caller)?;
        }
        self.upper = Upper::default();
        Ok(())
    }

    /// Turns the lists that are in text into what is kept, by the names that the image itself has.
    pub(crate) fn finish(mut self) -> Result<Image, TarError> {
        if self.acls.is_empty() {
            return Ok(self.image);
        }
        let names = Names {
            users: posix_acl::ids(&self.text("etc/passwd")?),
            groups: posix_acl::ids(&self.text("etc/group")?),
        };
        // Only what is in the tree: some that had a list were removed again.
        let mut folders = vec![self.image.root()];
        self.set_acl(self.image.root(), b"/", &names)?;
        while let Some(folder) = folders.pop() {
            let mut listed = Vec::new();
            for (name, id) in self.image.names(folder) {
                if *self.image.kind(id) == Kind::Directory {
                    folders.push(id);
                }
                if self.acls.contains_key(&id) {
                    listed.push((name.to_vec(), id));
                }
            }
            for (name, id) in listed {
                self.set_acl(id, &name, &names)?;
            }
        }
        Ok(self.image)
    }

    fn set_acl(&mut self, id: InodeId, name: &[u8], names: &Names) -> Result<(), TarError> {
        let Some(acl) = self.acls.remove(&id) else { return Ok(()) };
        let mut attributes = self.image.attributes(id).clone();
        for (text, key) in [(&acl.access, posix_acl::ACCESS), (&acl.default, posix_acl::DEFAULT)] {
            let Some(text) = text else { continue };
            let value =
                posix_acl::encode(text, names).ok_or_else(|| refused(name, Refusal::Acl))?;
            attributes.xattrs.insert(key.as_bytes().to_vec(), value);
        }
        settle_acl(&mut attributes);
        self.image
            .set_attributes(id, attributes)
            .map_err(|cause| refused(name, Refusal::Ext4(cause)))
    }

    /// The text of a file of the image; nothing when it is none.
    fn text(&mut self, name: &str) -> Result<String, TarError> {
        let name = name.as_bytes();
        let found = self.find(name).map_err(|cause| refused(name, cause))?;
        let Some(id) = found.filter(|&id| *self.image.kind(id) == Kind::File) else {
            return Ok(String::new());
        };
        let bytes = self.image.read(id, LARGEST_NAMES);
        let bytes = bytes.map_err(|cause| refused(name, Refusal::Ext4(cause)))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Whether `name` is a program, its links followed within the tree.
    pub(crate) fn is_program(&mut self, name: &str) -> bool {
        let found = self.find(name.as_bytes()).unwrap_or_default();
        found.is_some_and(|id| {
            *self.image.kind(id) == Kind::File && self.image.attributes(id).mode & 0o111 != 0
        })
    }

    /// What a name leads to, the last link followed as well.
    fn find(&mut self, name: &[u8]) -> Result<Option<InodeId>, Refusal> {
        match self.walk(name, Last::Anything) {
            Ok((way, last)) if way.missing.is_empty() => Ok(Some(last.unwrap_or(way.end()))),
            Ok(_) | Err(Refusal::NotAFolder(_) | Refusal::Loop) => Ok(None),
            Err(cause) => Err(cause),
        }
    }

    fn count(&mut self, name: &[u8], entry: &Entry) -> Result<(), Refusal> {
        self.entries += 1;
        let limits = self.limits;
        if self.entries > limits.entries {
            return Err(Refusal::Entries(limits.entries));
        }
        let acl = [&entry.acl.access, &entry.acl.default].into_iter().flatten().map(String::len);
        let xattrs = &entry.attributes.xattrs;
        let xattrs = xattrs.iter().map(|(name, value)| name.len() + value.len());
        self.xattr_bytes += xattrs.chain(acl).sum::<usize>() as u64;
        if self.xattr_bytes > limits.xattr_bytes {
            return Err(Refusal::XattrBytes(limits.xattr_bytes));
        }
        let target = match &entry.kind {
            EntryKind::Symlink(target) => target.len(),
            _ => 0,
        };
        let last = name.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
        self.count_name(last.len() + target)
    }

    fn count_name(&mut self, length: usize) -> Result<(), Refusal> {
        self.name_bytes += length as u64;
        if self.name_bytes > self.limits.name_bytes {
            return Err(Refusal::NameBytes(self.limits.name_bytes));
        }
        Ok(())
    }

    /// Gives an entry its place in the tree. Of a file its content is to follow.
    fn place(&mut self, name: &[u8], entry: Entry) -> Result<Option<(InodeId, Content)>, Refusal> {
        if name.is_empty() {
            let EntryKind::Folder = entry.kind else { return Err(Refusal::Root) };
            let root = self.image.root();
            self.set_attributes(root, entry.attributes, entry.acl)?;
            return Ok(None);
        }
        let (parent, last) = match name.iter().rposition(|&byte| byte == b'/') {
            Some(at) => (&name[..at], &name[at + 1..]),
            None => (&b""[..], name),
        };
        let mut parts = name.split(|&byte| byte == b'/');
        let is_opaque = last == OPAQUE;
        // Below one of aufs's own folders, or one of its files.
        if parts.clone().any(|part| part.starts_with(AUFS)) && !is_opaque {
            return Ok(None);
        }
        if last.starts_with(WHITEOUT) {
            if parts.any(|part| part.starts_with(WHITEOUT) && part != last) {
                return Err(Refusal::InWhiteout);
            }
            let hidden = &last[WHITEOUT.len()..];
            if !is_opaque && matches!(hidden, b"" | b"." | b"..") {
                return Err(Refusal::Whiteout);
            }
            self.hide(parent, (!is_opaque).then_some(hidden))?;
            return Ok(None);
        }
        if parts.any(|part| part.starts_with(WHITEOUT)) {
            return Err(Refusal::InWhiteout);
        }

        let way = self.folder(parent, entry.attributes.mtime)?;
        let folder = way.end();
        let existing = self.image.lookup(folder, last);
        if let Some(id) = existing
            && matches!(entry.kind, EntryKind::Folder)
            && *self.image.kind(id) == Kind::Directory
        {
            self.upper.touch(way.folders.iter().copied().chain([id]));
            self.last = Some((parent.to_vec(), way.folders));
            self.set_attributes(id, entry.attributes, entry.acl)?;
            return Ok(None);
        }
        if let EntryKind::Link(target) = &entry.kind
            && target == name
        {
            return Err(Refusal::LinkToItself);
        }
        if existing.is_some() {
            self.unlink(folder, last)?;
        }
        self.upper.touch(way.folders.iter().copied());
        if let EntryKind::Link(target) = &entry.kind {
            let target_id = self.target(target)?;
            self.image.link(folder, last, target_id).map_err(Refusal::Ext4)?;
            self.upper.link(folder, last);
            return Ok(None);
        }
        let (kind, content) = match entry.kind {
            EntryKind::Folder => (Kind::Directory, None),
            EntryKind::File(content) => (Kind::File, Some(content)),
            EntryKind::Symlink(target) => (Kind::Symlink(target), None),
            EntryKind::CharDevice { major, minor } => (Kind::CharDevice { major, minor }, None),
            EntryKind::BlockDevice { major, minor } => (Kind::BlockDevice { major, minor }, None),
            EntryKind::Fifo => (Kind::Fifo, None),
            EntryKind::Link(_) => unreachable!("it was linked above"),
        };
        let mut attributes = entry.attributes;
        settle_acl(&mut attributes);
        if matches!(kind, Kind::Symlink(_)) {
            // symlink(7): it is always so, whatever an archive says.
            attributes.mode = 0o777;
        }
        let id = self.add(folder, last, kind, attributes)?;
        if !entry.acl.is_empty() {
            self.acls.insert(id, entry.acl);
        }
        self.last = Some((parent.to_vec(), way.folders));
        Ok(content.map(|content| (id, content)))
    }

    /// What a hard link is to: the name's own inode, be it a symbolic link.
    fn target(&mut self, target: &[u8]) -> Result<InodeId, Refusal> {
        let nothing = || Refusal::Nothing(shown(target));
        let found = match self.walk(target, Last::NotFollowed) {
            Ok((way, last)) if way.missing.is_empty() => last.unwrap_or(way.end()),
            Ok(_) | Err(Refusal::NotAFolder(_)) => return Err(nothing()),
            Err(cause) => return Err(cause),
        };
        if *self.image.kind(found) == Kind::Directory {
            return Err(Refusal::LinkToFolder(shown(target)));
        }
        Ok(found)
    }

    fn add(
        &mut self,
        folder: InodeId,
        name: &[u8],
        kind: Kind,
        attributes: Attributes,
    ) -> Result<InodeId, Refusal> {
        if u64::from(self.image.inodes()) >= self.limits.entries {
            return Err(Refusal::Entries(self.limits.entries));
        }
        let id = self.image.add(folder, name, kind, attributes).map_err(Refusal::Ext4)?;
        self.upper.make(id);
        Ok(id)
    }

    fn set_attributes(
        &mut self,
        id: InodeId,
        mut attributes: Attributes,
        acl: Acl,
    ) -> Result<(), Refusal> {
        settle_acl(&mut attributes);
        self.image.set_attributes(id, attributes).map_err(Refusal::Ext4)?;
        if acl.is_empty() {
            self.acls.remove(&id);
        } else {
            self.acls.insert(id, acl);
        }
        Ok(())
    }

    fn unlink(&mut self, folder: InodeId, name: &[u8]) -> Result<(), Refusal> {
        // It may have led through what goes now.
        self.last = None;
        self.image.unlink(folder, name).map_err(Refusal::Ext4)
    }

    /// The folder `name`, made where it is not there, as nobody said what it is like: root's, 755.
    fn folder(&mut self, name: &[u8], mtime: Timestamp) -> Result<Way, Refusal> {
        if let Some((last, folders)) = self.last.take()
            && last == name
        {
            return Ok(Way { folders, missing: Vec::new() });
        }
        let (mut way, _) = self.walk(name, Last::Folder)?;
        for part in std::mem::take(&mut way.missing) {
            self.count_name(part.len())?;
            let attributes = Attributes { mode: 0o755, mtime, ..Attributes::default() };
            self.upper.touch(way.folders.iter().copied());
            way.folders.push(self.add(way.end(), &part, Kind::Directory, attributes)?);
        }
        Ok(way)
    }

    /// Follows `name` from the root, links within the tree. Where there is nothing any more, the rest is `missing`. The
    /// second is what the last part is, when that is no folder.
    fn walk(&mut self, name: &[u8], last: Last) -> Result<(Way, Option<InodeId>), Refusal> {
        let mut way = Way { folders: vec![self.image.root()], missing: Vec::new() };
        let mut rest: Vec<Vec<u8>> = Vec::new();
        let push = |rest: &mut Vec<Vec<u8>>, name: &[u8]| {
            rest.extend(name.split(|&byte| byte == b'/').rev().map(<[u8]>::to_vec));
        };
        push(&mut rest, name);
        let mut links = 0;
        while let Some(part) = rest.pop() {
            self.steps += 1;
            if self.steps > MOST_STEPS {
                return Err(Refusal::Steps);
            }
            match &part[..] {
                b"" | b"." => continue,
                b".." => {
                    if way.missing.pop().is_none() && way.folders.len() > 1 {
                        way.folders.pop();
                    }
                    continue;
                }
                _ => {}
            }
            let found =
                if way.missing.is_empty() { self.image.lookup(way.end(), &part) } else { None };
            let Some(id) = found else {
                way.missing.push(part);
                continue;
            };
            let is_last = rest.is_empty();
            match self.image.kind(id) {
                Kind::Directory => way.folders.push(id),
                Kind::Symlink(_) if is_last && last == Last::NotFollowed => {
                    return Ok((way, Some(id)));
                }
                Kind::Symlink(target) => {
                    links += 1;
                    if links > MOST_LINKS {
                        return Err(Refusal::Loop);
                    }
                    if target.starts_with(b"/") {
                        way.folders.truncate(1);
                    }
                    push(&mut rest, target);
                }
                _ if is_last && last != Last::Folder => return Ok((way, Some(id))),
                _ => return Err(Refusal::NotAFolder(shown(&part))),
            }
        }
        Ok((way, None))
    }

    /// Removes what lower layers have under `name` in `parent`, or all that they have there.
    fn hide(&mut self, parent: &[u8], name: Option<&[u8]>) -> Result<(), Refusal> {
        if self.upper.is_lowest {
            return Ok(());
        }
        let (way, _) = self.walk(parent, Last::Folder)?;
        if !way.missing.is_empty() {
            return Ok(());
        }
        let folder = way.end();
        match name {
            None => self.clean(folder),
            Some(name) => match self.image.lookup(folder, name) {
                Some(id) => self.hide_one(folder, name, id),
                None => Ok(()),
            },
        }
    }

    fn hide_one(&mut self, folder: InodeId, name: &[u8], id: InodeId) -> Result<(), Refusal> {
        match self.upper.share(folder, name, id) {
            Share::Whole => Ok(()),
            Share::Inside => self.clean(id),
            Share::None => self.unlink(folder, name),
        }
    }

    /// Removes from a folder and from all below it what the present layer did not bring.
    fn clean(&mut self, folder: InodeId) -> Result<(), Refusal> {
        let mut folders = vec![folder];
        while let Some(folder) = folders.pop() {
            if self.upper.made.contains(&folder) || !self.upper.cleaned.insert(folder) {
                continue;
            }
            let names: Vec<_> =
                self.image.names(folder).map(|(name, id)| (name.to_vec(), id)).collect();
            for (name, id) in names {
                match self.upper.share(folder, &name, id) {
                    Share::Whole => {}
                    Share::Inside => folders.push(id),
                    Share::None => self.unlink(folder, &name)?,
                }
            }
        }
        Ok(())
    }

    /// Writes a file's content.
    fn fill<R: BufRead, E>(
        &mut self,
        name: &[u8],
        id: InodeId,
        content: &Content,
        tarball: &mut Tarball<R>,
        check: &mut impl FnMut(u64) -> Result<(), E>,
    ) -> Result<(), Stop<E>> {
        let whole = [Segment { offset: 0, length: content.size }];
        let segments = content.segments.as_deref().unwrap_or(&whole);
        let ext4 = |cause: Ext4Error| refused(name, Refusal::Ext4(cause));
        for segment in segments {
            if segment.length > 0 && segment.offset > self.image.size(id) {
                self.image.seek(id, segment.offset).map_err(ext4)?;
            }
            let mut left = segment.length;
            while left > 0 {
                let piece = tarball.piece(left)?;
                let count = piece.len();
                self.image.append(id, piece).map_err(ext4)?;
                tarball.consume(count);
                left -= count as u64;
                if self.image.data_bytes() > self.limits.total_bytes {
                    return Err(refused(name, Refusal::TotalBytes(self.limits.total_bytes)).into());
                }
                check(self.image.data_bytes()).map_err(Stop::Caller)?;
            }
        }
        if content.size > self.image.size(id) {
            self.image.set_size(id, content.size).map_err(ext4)?;
        }
        Ok(())
    }
}

/// What [`Layers::walk`] does with a name's last part.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Last {
    /// It is a folder, or a link to one.
    Folder,
    /// It is anything, a link itself.
    NotFollowed,
    /// It is anything but a link, which is followed.
    Anything,
}

/// How much of what has a name is the present layer's.
enum Share {
    Whole,
    /// A folder of lower layers that has something of it.
    Inside,
    None,
}

impl Upper {
    fn make(&mut self, id: InodeId) {
        if !self.is_lowest {
            self.made.insert(id);
        }
    }

    fn link(&mut self, folder: InodeId, name: &[u8]) {
        if !self.is_lowest {
            self.linked.insert((folder, name.to_vec()));
        }
    }

    /// The layer has something in the last of these folders, which are in one another.
    fn touch(&mut self, folders: impl DoubleEndedIterator<Item = InodeId>) {
        if self.is_lowest {
            return;
        }
        for folder in folders.rev() {
            // Where that is known already it is known of all above.
            if self.made.contains(&folder) || !self.touched.insert(folder) {
                break;
            }
        }
    }

    fn share(&self, folder: InodeId, name: &[u8], id: InodeId) -> Share {
        if self.made.contains(&id)
            || (!self.linked.is_empty() && self.linked.contains(&(folder, name.to_vec())))
        {
            Share::Whole
        } else if self.touched.contains(&id) {
            Share::Inside
        } else {
            Share::None
        }
    }
}

/// As setxattr(2) does it: a list for owner, group and others alone is the mode, and nothing is kept of it.
fn settle_acl(attributes: &mut Attributes) {
    let Some(list) = attributes.xattrs.get(posix_acl::ACCESS.as_bytes()) else { return };
    if let Some(bits) = posix_acl::as_mode(list) {
        attributes.mode = attributes.mode & !0o777 | bits;
        attributes.xattrs.remove(posix_acl::ACCESS.as_bytes());
    }
}
