//! The tree of a file system under construction: names and inodes, in memory.

use std::collections::{BTreeMap, btree_map::Entry};
use std::fs::File;

use crate::attributes::{Attributes, InodeId, Kind, Options};
use crate::data::Extent;
use crate::error::{Ext4Error, failed, shown};
use crate::extents::Tree;
use crate::layout;
use crate::output::Output;
use crate::space::Space;
use crate::{MOST_LINKS, MOST_SYMLINK_BYTES, xattrs};

/// A file system under construction.
#[derive(Debug)]
pub struct Image {
    pub(crate) options: Options,
    pub(crate) output: Output,
    pub(crate) space: Space,
    /// By id. One that is gone leaves its place empty, so that its id never means another.
    pub(crate) inodes: Vec<Option<Box<Inode>>>,
    /// How many there are, the root not counted.
    count: u32,
    /// How many names all folders have.
    names: u32,
}

#[derive(Debug)]
pub(crate) struct Inode {
    pub kind: Kind,
    pub attributes: Attributes,
    /// As ext4 counts them: a folder has one from its parent, one from itself, one from each folder in it.
    pub links: u32,
    pub content: Content,
    /// Where extended attributes are that the inode has no room for, or 0. Known when the file system is finished.
    pub xattr_block: u32,
    /// How the extents are found if the inode has no room for them. Known when the file system is finished.
    pub tree: Option<Box<Tree>>,
    /// A folder with an index.
    pub indexed: bool,
}

pub(crate) type Names = BTreeMap<Box<[u8]>, InodeId>;

#[derive(Debug)]
pub(crate) enum Content {
    None,
    Names {
        parent: InodeId,
        names: Names,
    },
    /// A file's; of folders and long symbolic links when the file system is finished.
    Data {
        bytes: u64,
        extents: Vec<Extent>,
    },
}

pub(crate) const ROOT: InodeId = InodeId(0);

impl Image {
    /// Begins a file system in `file`, which is empty and open for reading and writing. Its root has mode 755 and owner 0.
    ///
    /// # Errors
    /// The file is not empty, or the options ask for what cannot be.
    pub fn create(file: File, options: Options) -> Result<Self, Ext4Error> {
        let bytes = file.metadata().map_err(failed("find the size"))?.len();
        if bytes != 0 {
            return Err(Ext4Error::NotEmpty { bytes });
        }
        let space = layout::space(&options)?;
        let root = Inode {
            links: 2,
            ..Inode::new(Kind::Directory, Attributes { mode: 0o755, ..Attributes::default() }, ROOT)
        };
        Ok(Self {
            options,
            output: Output::new(file),
            space,
            inodes: vec![Some(Box::new(root))],
            count: 0,
            names: 0,
        })
    }

    /// Another identity than the options gave: whoever makes it of the content knows that only at the end.
    pub fn set_identity(&mut self, uuid: [u8; 16], hash_seed: [u8; 16]) {
        (self.options.uuid, self.options.hash_seed) = (uuid, hash_seed);
    }

    #[must_use]
    pub fn root(&self) -> InodeId {
        ROOT
    }

    /// Makes a new inode with a name in the folder `parent`.
    ///
    /// # Errors
    /// The name is there already or is none (1 to 255 bytes, no `/`, no NUL, not `.` and not `..`), the parent is no folder,
    /// ext4 cannot hold what the inode is to be, or there are as many as there may be.
    pub fn add(
        &mut self,
        parent: InodeId,
        name: &[u8],
        kind: Kind,
        attributes: Attributes,
    ) -> Result<InodeId, Ext4Error> {
        check_kind(&kind)?;
        xattrs::check(&attributes.xattrs)?;
        let Ok(number) = u32::try_from(self.inodes.len()) else {
            return Err(self.too_many());
        };
        let id = InodeId(number);
        self.enter(parent, name, id)?;
        if kind == Kind::Directory {
            self.inode_mut(parent).links += 1;
        }
        self.inodes.push(Some(Box::new(Inode::new(kind, attributes, parent))));
        self.count += 1;
        Ok(id)
    }

    /// Gives `target`, which is no folder, one more name.
    ///
    /// # Errors
    /// As [`Image::add`], and if `target` is a folder or has 65000 names.
    pub fn link(&mut self, parent: InodeId, name: &[u8], target: InodeId) -> Result<(), Ext4Error> {
        let inode = self.inode(target);
        if inode.kind == Kind::Directory {
            return Err(Ext4Error::LinkToDirectory { name: shown(name) });
        }
        if inode.links >= MOST_LINKS {
            return Err(Ext4Error::Links { name: shown(name) });
        }
        self.enter(parent, name, target)?;
        self.inode_mut(target).links += 1;
        Ok(())
    }

    fn enter(&mut self, parent: InodeId, name: &[u8], id: InodeId) -> Result<(), Ext4Error> {
        check_name(name)?;
        let too_many = self.too_many();
        let is_full = self.names >= self.options.most_inodes;
        let Content::Names { names, .. } = &mut self.inode_mut(parent).content else {
            return Err(Ext4Error::NotADirectory { name: shown(name) });
        };
        match names.entry(name.into()) {
            Entry::Occupied(_) => Err(Ext4Error::Exists { name: shown(name) }),
            Entry::Vacant(_) if is_full => Err(too_many),
            Entry::Vacant(place) => {
                place.insert(id);
                self.names += 1;
                Ok(())
            }
        }
    }

    /// Removes a name: a folder with everything below it, a file when it was its last name. Blocks are used again.
    ///
    /// # Errors
    /// There is no such name.
    pub fn unlink(&mut self, parent: InodeId, name: &[u8]) -> Result<(), Ext4Error> {
        let Content::Names { names, .. } = &mut self.inode_mut(parent).content else {
            return Err(Ext4Error::NotADirectory { name: shown(name) });
        };
        let Some(id) = names.remove(name) else {
            return Err(Ext4Error::Missing { name: shown(name) });
        };
        if self.inode(id).kind == Kind::Directory {
            self.inode_mut(parent).links -= 1;
        }
        // No recursion: a tree may be deeper than a stack.
        let mut gone = vec![id];
        while let Some(id) = gone.pop() {
            self.names -= 1;
            let inode = self.inode_mut(id);
            if inode.kind != Kind::Directory && inode.links > 1 {
                inode.links -= 1;
                continue;
            }
            let inode = self.inodes[index(id)].take().expect("a named inode is there");
            self.count -= 1;
            match inode.content {
                Content::None => {}
                Content::Names { names, .. } => gone.extend(names.into_values()),
                Content::Data { extents, .. } => {
                    for extent in extents {
                        self.space.release(extent.block, extent.count);
                    }
                }
            }
        }
        Ok(())
    }

    /// What has this name in the folder `parent`; of what is no folder, nothing.
    #[must_use]
    pub fn lookup(&self, parent: InodeId, name: &[u8]) -> Option<InodeId> {
        match &self.inode(parent).content {
            Content::Names { names, .. } => names.get(name).copied(),
            _ => None,
        }
    }

    /// The names in a folder, in the order of their bytes; of what is no folder, none.
    pub fn names(&self, directory: InodeId) -> impl Iterator<Item = (&[u8], InodeId)> {
        let names = match &self.inode(directory).content {
            Content::Names { names, .. } => Some(names),
            _ => None,
        };
        names.into_iter().flatten().map(|(name, &id)| (&**name, id))
    }

    #[must_use]
    pub fn kind(&self, id: InodeId) -> &Kind {
        &self.inode(id).kind
    }

    #[must_use]
    pub fn attributes(&self, id: InodeId) -> &Attributes {
        &self.inode(id).attributes
    }

    /// # Errors
    /// ext4 cannot hold the extended attributes; then they are as they were.
    pub fn set_attributes(&mut self, id: InodeId, attributes: Attributes) -> Result<(), Ext4Error> {
        xattrs::check(&attributes.xattrs)?;
        self.inode_mut(id).attributes = attributes;
        Ok(())
    }

    /// As stat(2) counts them: names, and for a folder 2 and one for each folder in it.
    #[must_use]
    pub fn links(&self, id: InodeId) -> u32 {
        self.inode(id).links
    }

    /// Bytes of a file or a symbolic link; of anything else 0.
    #[must_use]
    pub fn size(&self, id: InodeId) -> u64 {
        let inode = self.inode(id);
        match (&inode.content, &inode.kind) {
            (Content::Data { bytes, .. }, _) => *bytes,
            (_, Kind::Symlink(target)) => target.len() as u64,
            _ => 0,
        }
    }

    /// Bytes of the blocks that files take now.
    #[must_use]
    pub fn data_bytes(&self) -> u64 {
        self.space.used_blocks() * crate::BLOCK_BYTES
    }

    /// How many inodes there are, the root not counted.
    #[must_use]
    pub fn inodes(&self) -> u32 {
        self.count
    }

    /// An id outlives its inode only if its holder removed it.
    pub(crate) fn inode(&self, id: InodeId) -> &Inode {
        self.inodes[index(id)].as_deref().expect("the inode was not removed")
    }

    pub(crate) fn inode_mut(&mut self, id: InodeId) -> &mut Inode {
        self.inodes[index(id)].as_deref_mut().expect("the inode was not removed")
    }

    fn too_many(&self) -> Ext4Error {
        Ext4Error::TooManyInodes { most_inodes: self.options.most_inodes }
    }

    pub(crate) fn too_large(&self) -> Ext4Error {
        Ext4Error::TooLarge { largest_bytes: self.options.largest_bytes }
    }
}

impl Inode {
    fn new(kind: Kind, attributes: Attributes, parent: InodeId) -> Self {
        let (links, content) = match kind {
            Kind::Directory => (2, Content::Names { parent, names: Names::new() }),
            Kind::File => (1, Content::Data { bytes: 0, extents: Vec::new() }),
            _ => (1, Content::None),
        };
        Self { kind, attributes, links, content, xattr_block: 0, tree: None, indexed: false }
    }
}

pub(crate) fn index(id: InodeId) -> usize {
    id.0 as usize
}

fn check_name(name: &[u8]) -> Result<(), Ext4Error> {
    let rule = if name.is_empty() {
        "a name has at least one byte"
    } else if name.len() > 255 {
        "a name has at most 255 bytes"
    } else if name == b"." || name == b".." {
        "every folder has it already"
    } else if name.contains(&b'/') || name.contains(&0) {
        "there is no / and no NUL in a name"
    } else {
        return Ok(());
    };
    Err(Ext4Error::Name { name: shown(name), rule })
}

fn check_kind(kind: &Kind) -> Result<(), Ext4Error> {
    match *kind {
        Kind::Symlink(ref target) => {
            if target.is_empty() || target.len() > MOST_SYMLINK_BYTES {
                return Err(Ext4Error::Symlink { bytes: target.len() });
            }
            if target.contains(&0) {
                return Err(Ext4Error::Name {
                    name: shown(target),
                    rule: "there is no NUL in what a symbolic link points to",
                });
            }
        }
        // linux/kdev_t.h: 12 bits and 20 bits.
        Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor }
            if major >= 1 << 12 || minor >= 1 << 20 =>
        {
            return Err(Ext4Error::Device { major, minor });
        }
        _ => {}
    }
    Ok(())
}
