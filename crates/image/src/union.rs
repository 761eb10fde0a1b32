//! The tree that a guest sees as its root: one file system, or an image with what overlayfs keeps of a VM's changes over it
//! (Documentation/filesystems/overlayfs.rst, with `redirect_dir`, `metacopy` and `index`). Read without mounting anything.
//! Entry by entry, in an order that only names decide: a folder before what is in it, names by their bytes.

use std::collections::btree_map::IntoIter;
use std::collections::{BTreeMap, HashMap, HashSet};

use banger_ext4::{Attributes, Kind};

use crate::filesystem::{self, FileSystem, FileSystemError, Node, Run};

/// What overlayfs notes on the inodes of the changes.
const NOTES: &[u8] = b"trusted.overlay.";
const OPAQUE: &[u8] = b"trusted.overlay.opaque";
const REDIRECT: &[u8] = b"trusted.overlay.redirect";
const METACOPY: &[u8] = b"trusted.overlay.metacopy";
const ORIGIN: &[u8] = b"trusted.overlay.origin";

/// No sane tree is deeper, and no archive would be unpacked.
const LONGEST_PATH: usize = 32 << 10;

#[derive(Debug, thiserror::Error)]
pub enum UnionError {
    #[error("the image")]
    Image(#[source] FileSystemError),
    #[error("the disk with the VM's changes")]
    Changes(#[source] FileSystemError),
    #[error("{path} in the VM's changes does not fit the image: {what}")]
    Misfit { path: String, what: &'static str },
    #[error("the folder {path} has two names")]
    Twice { path: String },
    #[error("a path is longer than {LONGEST_PATH} bytes: {path}…")]
    TooLong { path: String },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Side {
    Image,
    Changes,
}

/// Which inode it is: names with the same one are names of one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Key(Side, u32);

#[derive(Debug)]
pub(crate) struct Union {
    image: FileSystem,
    changes: Option<Changes>,
}

#[derive(Debug)]
struct Changes {
    file_system: FileSystem,
    upper: Node,
    /// Files of the image with several names that were changed by one of them: from the inode of the image to that here.
    index: HashMap<u32, u32>,
}

/// An entry of the tree.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Without a slash at either end; of the root, nothing.
    pub path: Vec<u8>,
    pub key: Key,
    pub kind: Kind,
    pub attributes: Attributes,
    /// As the inode counts them, so 1 is certain and more may be fewer here.
    pub links: u32,
    data: (Side, Node),
}

impl Entry {
    pub(crate) fn size(&self) -> u64 {
        self.data.1.size
    }
}

/// A name of the tree: where it is, in the changes, in the image, or a folder in both.
#[derive(Debug, Clone)]
struct Place {
    upper: Option<Node>,
    lower: Option<Node>,
}

/// A folder that is being walked through: its path, and what of it is still to come.
type Folder = (Vec<u8>, IntoIter<Vec<u8>, Place>);

/// A way through the whole tree.
#[derive(Debug)]
pub(crate) struct Walk<'a> {
    union: &'a Union,
    begun: bool,
    folders: Vec<Folder>,
    seen: HashSet<Key>,
}

impl Union {
    pub(crate) fn of_one(image: FileSystem) -> Self {
        Self { image, changes: None }
    }

    /// An image, and the disk that the agent lays over it: with the changes in its folder `upper`, and overlayfs's own notes
    /// in `work/index`.
    pub(crate) fn with_changes(image: FileSystem, disk: FileSystem) -> Result<Self, UnionError> {
        let find = |path: &[u8]| disk.resolve(path).map_err(UnionError::Changes);
        // A VM that never started has changed nothing.
        let Some(upper) = find(b"upper")?.filter(|upper| upper.kind == Kind::Directory) else {
            return Ok(Self::of_one(image));
        };
        let mut index = HashMap::new();
        if let Some(folder) = find(b"work/index")?.filter(|index| index.kind == Kind::Directory) {
            for number in disk.names(&folder).map_err(UnionError::Changes)?.into_values() {
                let node = disk.node(number).map_err(UnionError::Changes)?;
                if node.kind == Kind::File
                    && let Some(origin) = node.attributes.xattrs.get(ORIGIN).and_then(|o| origin(o))
                {
                    index.insert(origin, number);
                }
            }
        }
        Ok(Self { image, changes: Some(Changes { file_system: disk, upper, index }) })
    }

    pub(crate) fn walk(&self) -> Walk<'_> {
        Walk { union: self, begun: false, folders: Vec::new(), seen: HashSet::new() }
    }

    /// Blocks of all that is read: no more of them can be in files.
    pub(crate) fn bytes(&self) -> u64 {
        let of = |fs: &FileSystem| fs.blocks * u64::from(fs.block_bytes);
        of(&self.image) + self.changes.as_ref().map_or(0, |changes| of(&changes.file_system))
    }

    /// More names no sane tree has: most inodes have one.
    pub(crate) fn most_entries(&self) -> u64 {
        let changed = self.changes.as_ref().map_or(0, |changes| changes.file_system.inodes);
        (u64::from(self.image.inodes) + u64::from(changed)) * 16 + (1 << 20)
    }

    /// The data of a file in the tree: offset and bytes, ascending, what lies together joined.
    pub(crate) fn data(&self, entry: &Entry) -> Result<Vec<(u64, Vec<Run>)>, UnionError> {
        let (side, node) = &entry.data;
        let file_system = self.side(*side);
        let runs = file_system.runs(node).map_err(|cause| side.failed(cause))?;
        let mut joined: Vec<(u64, Vec<Run>)> = Vec::new();
        let mut end = 0;
        for run in runs {
            match joined.last_mut() {
                Some((_, part)) if run.logical == end => part.push(run),
                _ => joined.push((run.logical * u64::from(file_system.block_bytes), vec![run])),
            }
            end = run.logical + u64::from(run.count);
        }
        Ok(joined)
    }

    pub(crate) fn block_bytes(&self, entry: &Entry) -> u64 {
        self.side(entry.data.0).block_bytes.into()
    }

    /// Fills `buffer` with data of a file from its block `block` on.
    pub(crate) fn read(
        &self,
        entry: &Entry,
        buffer: &mut [u8],
        block: u64,
        offset: u64,
    ) -> Result<(), UnionError> {
        let side = entry.data.0;
        self.side(side).read(buffer, block, offset).map_err(|cause| side.failed(cause))
    }

    fn side(&self, side: Side) -> &FileSystem {
        match (side, &self.changes) {
            (Side::Changes, Some(changes)) => &changes.file_system,
            _ => &self.image,
        }
    }

    fn node(&self, side: Side, number: u32) -> Result<Node, UnionError> {
        self.side(side).node(number).map_err(|cause| side.failed(cause))
    }

    fn names(&self, side: Side, folder: &Node) -> Result<BTreeMap<Vec<u8>, u32>, UnionError> {
        self.side(side).names(folder).map_err(|cause| side.failed(cause))
    }

    /// What is in a folder.
    fn children(
        &self,
        path: &[u8],
        folder: &Place,
    ) -> Result<BTreeMap<Vec<u8>, Place>, UnionError> {
        let names = |side, node: &Option<Node>| match node {
            Some(node) => self.names(side, node),
            None => Ok(BTreeMap::new()),
        };
        let lower_names = names(Side::Image, &folder.lower)?;
        let upper_names = names(Side::Changes, &folder.upper)?;
        let mut places = BTreeMap::new();
        for (name, number) in &upper_names {
            let node = self.node(Side::Changes, *number)?;
            if (node.kind == Kind::CharDevice { major: 0, minor: 0 }) {
                continue;
            }
            let lower = self.below(&joined(path, name), name, &node, &lower_names)?;
            places.insert(name.clone(), Place { upper: Some(node), lower });
        }
        for (name, number) in lower_names {
            if upper_names.contains_key(&name) {
                continue;
            }
            let lower = self.node(Side::Image, number)?;
            let changed = self.changes.as_ref().and_then(|changes| changes.index.get(&number));
            let place = match changed.filter(|_| lower.kind == Kind::File && lower.links > 1) {
                Some(&number) => {
                    let upper = self.node(Side::Changes, number)?;
                    let has_data = !upper.attributes.xattrs.contains_key(METACOPY);
                    Place { upper: Some(upper), lower: Some(lower).filter(|_| !has_data) }
                }
                None => Place { upper: None, lower: Some(lower) },
            };
            places.insert(name, place);
        }
        Ok(places)
    }

    /// What of the image shows through an inode of the changes: a folder through a folder, data through a file of which
    /// only the attributes were changed.
    fn below(
        &self,
        path: &[u8],
        name: &[u8],
        upper: &Node,
        lower_names: &BTreeMap<Vec<u8>, u32>,
    ) -> Result<Option<Node>, UnionError> {
        let note = |key: &[u8]| upper.attributes.xattrs.get(key);
        let is_folder = upper.kind == Kind::Directory;
        let is_metacopy = upper.kind == Kind::File && note(METACOPY).is_some();
        match note(OPAQUE).map(Vec::as_slice) {
            Some(b"y") if is_folder => return Ok(None),
            None => {}
            Some(_) => return Err(misfit(path, "it is opaque in a way of newer kernels")),
        }
        if !is_folder && !is_metacopy {
            return Ok(None);
        }
        let found = match note(REDIRECT) {
            Some(target) if target.starts_with(b"/") => self.image_path(target)?,
            Some(target) => {
                lower_names.get(target).map(|&at| self.node(Side::Image, at)).transpose()?
            }
            None => lower_names.get(name).map(|&at| self.node(Side::Image, at)).transpose()?,
        };
        let found = found.filter(|lower| lower.kind == upper.kind);
        if is_metacopy && found.is_none() {
            return Err(misfit(path, "the image has no data for it"));
        }
        Ok(found)
    }

    /// A path of folders in the image, as overlayfs notes it: without symbolic links.
    fn image_path(&self, path: &[u8]) -> Result<Option<Node>, UnionError> {
        let mut node = self.node(Side::Image, filesystem::ROOT)?;
        for part in path.split(|&byte| byte == b'/').filter(|part| !part.is_empty()) {
            if node.kind != Kind::Directory {
                return Ok(None);
            }
            match self.names(Side::Image, &node)?.get(part) {
                Some(&number) => node = self.node(Side::Image, number)?,
                None => return Ok(None),
            }
        }
        Ok(Some(node))
    }

    fn root(&self) -> Result<Place, UnionError> {
        let lower = Some(self.node(Side::Image, filesystem::ROOT)?);
        Ok(Place { upper: self.changes.as_ref().map(|changes| changes.upper.clone()), lower })
    }
}

impl Walk<'_> {
    /// The next entry; `None` behind the last.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, UnionError> {
        if !self.begun {
            self.begun = true;
            let root = self.union.root()?;
            return self.enter(Vec::new(), root).map(Some);
        }
        while let Some((path, places)) = self.folders.last_mut() {
            match places.next() {
                Some((name, place)) => {
                    let path = joined(path, &name);
                    if path.len() > LONGEST_PATH {
                        return Err(UnionError::TooLong { path: shown(&path[..200]) });
                    }
                    return self.enter(path, place).map(Some);
                }
                None => {
                    self.folders.pop();
                }
            }
        }
        Ok(None)
    }

    fn enter(&mut self, path: Vec<u8>, place: Place) -> Result<Entry, UnionError> {
        let sides = [(Side::Changes, &place.upper), (Side::Image, &place.lower)];
        let there = || sides.iter().filter_map(|(side, node)| Some((*side, node.as_ref()?)));
        let (side, node) = there().next().expect("a place is in one of them at least");
        if node.kind == Kind::Directory {
            for (side, node) in there() {
                if !self.seen.insert(Key(side, node.number)) {
                    return Err(UnionError::Twice { path: shown(&path) });
                }
            }
            let mut children = self.union.children(&path, &place)?;
            // mke2fs's own, in which e2fsck would put what it finds; we make none.
            if path.is_empty()
                && let Some(found) = children.get(&b"lost+found"[..])
                && found.kind() == Some(&Kind::Directory)
                && self.union.children(b"lost+found", found)?.is_empty()
            {
                children.remove(&b"lost+found"[..]);
            }
            self.folders.push((path.clone(), children.into_iter()));
        }
        let mut attributes = node.attributes.clone();
        if side == Side::Changes {
            attributes.xattrs.retain(|name, _| !name.starts_with(NOTES));
        }
        let key = Key(side, node.number);
        let (kind, links) = (node.kind.clone(), node.links);
        let data = match &place.lower {
            // Only attributes were changed.
            Some(lower) if kind == Kind::File => (Side::Image, lower.clone()),
            _ => (side, node.clone()),
        };
        Ok(Entry { path, key, kind, attributes, links, data })
    }
}

impl Place {
    fn kind(&self) -> Option<&Kind> {
        self.upper.as_ref().or(self.lower.as_ref()).map(|node| &node.kind)
    }
}

impl Side {
    fn failed(self, cause: FileSystemError) -> UnionError {
        match self {
            Self::Image => UnionError::Image(cause),
            Self::Changes => UnionError::Changes(cause),
        }
    }
}

/// The inode that was copied, as fs/overlayfs/overlayfs.h (`struct ovl_fb`) and linux/exportfs.h (FILEID_INO32_GEN) have it:
/// version, magic, length, flags, type, 16 bytes of UUID, inode, generation.
fn origin(value: &[u8]) -> Option<u32> {
    match value {
        [0, 0xfb, _, _, 1, rest @ ..] if rest.len() >= 24 => Some(filesystem::u32_at(rest, 16)),
        _ => None,
    }
}

fn joined(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() }
}

fn misfit(path: &[u8], what: &'static str) -> UnionError {
    UnionError::Misfit { path: shown(path), what }
}

pub(crate) fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).chars().take(200).collect()
}
