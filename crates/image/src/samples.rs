//! Tars for tests, written byte by byte: with every name, owner, device and record that a tar can hold, and those it
//! should not. And a look at the tree that layers make, as text.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;

use banger_ext4::{Image, InodeId, Kind, Options};

use crate::layers::{Layers, Limits, Stop};
use crate::tarball::{Allowance, Refusal, TarError, Tarball};

pub(crate) const TIME: i64 = 1_234_567_890;

/// An entry to be written.
#[derive(Clone)]
pub(crate) struct Item {
    pub name: Vec<u8>,
    pub kind: u8,
    pub mode: u32,
    pub owner: (u32, u32),
    pub mtime: i64,
    pub content: Vec<u8>,
    pub target: Vec<u8>,
    pub device: (u32, u32),
    pub records: Vec<(Vec<u8>, Vec<u8>)>,
    /// What the header says of the size, if it lies.
    pub size: Option<u64>,
}

pub(crate) fn item(name: impl AsRef<[u8]>, kind: u8) -> Item {
    Item {
        name: name.as_ref().to_vec(),
        kind,
        mode: if kind == b'5' { 0o755 } else { 0o644 },
        owner: (0, 0),
        mtime: TIME,
        content: Vec::new(),
        target: Vec::new(),
        device: (0, 0),
        records: Vec::new(),
        size: None,
    }
}

pub(crate) fn file(name: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Item {
    Item { content: content.as_ref().to_vec(), ..item(name, b'0') }
}

pub(crate) fn folder(name: impl AsRef<[u8]>) -> Item {
    item(name, b'5')
}

pub(crate) fn symlink(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Item {
    Item { target: target.as_ref().to_vec(), mode: 0o777, ..item(name, b'2') }
}

pub(crate) fn hard_link(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Item {
    Item { target: target.as_ref().to_vec(), ..item(name, b'1') }
}

pub(crate) fn device(name: impl AsRef<[u8]>, kind: u8, major: u32, minor: u32) -> Item {
    Item { device: (major, minor), ..item(name, kind) }
}

impl Item {
    pub(crate) fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    pub(crate) fn owner(mut self, uid: u32, gid: u32) -> Self {
        self.owner = (uid, gid);
        self
    }

    pub(crate) fn mtime(mut self, mtime: i64) -> Self {
        self.mtime = mtime;
        self
    }

    pub(crate) fn record(mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.records.push((key.as_ref().to_vec(), value.as_ref().to_vec()));
        self
    }

    pub(crate) fn xattr(self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.record(format!("SCHILY.xattr.{name}"), value)
    }

    pub(crate) fn size(mut self, size: u64) -> Self {
        self.size = Some(size);
        self
    }

    /// The header's block; what it has no room for is cut off.
    pub(crate) fn header(&self) -> [u8; 512] {
        let mut block = [0; 512];
        let mut put = |at: usize, length: usize, bytes: &[u8]| {
            let length = bytes.len().min(length);
            block[at..at + length].copy_from_slice(&bytes[..length]);
        };
        put(0, 100, &self.name);
        put(100, 8, format!("{:07o}", self.mode).as_bytes());
        put(108, 8, &octal_or_binary::<8>(self.owner.0.into()));
        put(116, 8, &octal_or_binary::<8>(self.owner.1.into()));
        let size = self.size.unwrap_or(self.content.len() as u64);
        put(124, 12, &octal_or_binary::<12>(size.try_into().unwrap()));
        put(136, 12, &octal_or_binary::<12>(self.mtime));
        put(156, 1, &[self.kind]);
        put(157, 100, &self.target);
        put(257, 8, b"ustar\x0000");
        put(329, 8, &octal_or_binary::<8>(self.device.0.into()));
        put(337, 8, &octal_or_binary::<8>(self.device.1.into()));
        sealed(block)
    }

    /// All that stands in the archive for it.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut records = self.records.clone();
        let has = |key: &[u8]| self.records.iter().any(|(have, _)| have == key);
        if self.name.len() > 100 && !has(b"path") {
            records.push((b"path".to_vec(), self.name.clone()));
        }
        if self.target.len() > 100 && !has(b"linkpath") {
            records.push((b"linkpath".to_vec(), self.target.clone()));
        }
        let mut bytes = Vec::new();
        if !records.is_empty() {
            let content = records_bytes(&records);
            let before = Item { content, ..item("PaxHeaders/x", b'x') };
            bytes.extend(before.bytes());
        }
        bytes.extend(self.header());
        bytes.extend(&self.content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    }
}

/// A header with its checksum.
pub(crate) fn sealed(mut block: [u8; 512]) -> [u8; 512] {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

fn octal_or_binary<const LENGTH: usize>(number: i64) -> [u8; LENGTH] {
    let mut field = [0; LENGTH];
    let digits = format!("{number:0width$o}", width = LENGTH - 1);
    if number >= 0 && digits.len() == LENGTH - 1 {
        field[..LENGTH - 1].copy_from_slice(digits.as_bytes());
    } else {
        let wide = i128::from(number).to_be_bytes();
        field.copy_from_slice(&wide[16 - LENGTH..]);
        field[0] |= 0x80;
    }
    field
}

pub(crate) fn records_bytes(records: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (key, value) in records {
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

/// An archive of these.
pub(crate) fn tar(items: &[Item]) -> Vec<u8> {
    let mut bytes: Vec<u8> = items.iter().flat_map(Item::bytes).collect();
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// The reasons of an error, from the outermost to the first cause.
pub(crate) fn reasons(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        write!(text, ": {error}").unwrap();
        cause = error.source();
    }
    text
}

/// A tree in a temporary file.
pub(crate) struct Made {
    pub image: Image,
}

pub(crate) fn layers(limits: Limits) -> Layers {
    let options = Options {
        uuid: [1; 16],
        hash_seed: [2; 16],
        label: "test".to_owned(),
        bytes_per_inode: 16384,
        journal_bytes: 0,
        largest_bytes: 1 << 40,
        most_inodes: 1 << 22,
    };
    Layers::new(Image::create(tempfile::tempfile().unwrap(), options).unwrap(), limits)
}

/// Applies archives one upon the other.
pub(crate) fn make(archives: &[Vec<u8>], limits: Limits) -> Result<Made, TarError> {
    let mut made = layers(limits);
    for archive in archives {
        let bytes = limits.layer_bytes;
        let allowance = Allowance { bytes, refusal: Refusal::LayerBytes, limit: bytes };
        let mut tarball = Tarball::new(&archive[..], allowance);
        match made.apply(&mut tarball, &mut |_| Ok::<(), ()>(())) {
            Ok(()) => tarball.finish()?,
            Err(Stop::Tar(error)) => return Err(error),
            Err(Stop::Caller(())) => unreachable!("nobody stops it"),
        }
    }
    Ok(Made { image: made.finish()? })
}

pub(crate) fn made(layers: &[&[Item]]) -> Made {
    let archives: Vec<_> = layers.iter().map(|items| tar(items)).collect();
    make(&archives, Limits::default()).unwrap_or_else(|error| panic!("{}", reasons(&error)))
}

/// The tree as text, a line for each name: `a/`, `a/file = content`, `a/link -> target`, `node c 1:3`. Names of one file
/// with several end with its first: `b = content (a)`.
pub(crate) fn tree(layers: &[&[Item]]) -> Vec<String> {
    made(layers).tree()
}

impl Made {
    pub(crate) fn tree(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut first_names: BTreeMap<InodeId, String> = BTreeMap::new();
        let mut folders = vec![(String::new(), self.image.root())];
        while let Some((path, folder)) = folders.pop() {
            let names: Vec<_> =
                self.image.names(folder).map(|(name, id)| (name.to_vec(), id)).collect();
            for (name, id) in names {
                let name = format!("{path}{}", String::from_utf8_lossy(&name));
                let mut line = match self.image.kind(id).clone() {
                    Kind::Directory => format!("{name}/"),
                    Kind::File => {
                        let content = self.image.read(id, 1 << 20).unwrap();
                        format!("{name} = {}", String::from_utf8_lossy(&content))
                    }
                    Kind::Symlink(target) => {
                        format!("{name} -> {}", String::from_utf8_lossy(&target))
                    }
                    Kind::CharDevice { major, minor } => format!("{name} c {major}:{minor}"),
                    Kind::BlockDevice { major, minor } => format!("{name} b {major}:{minor}"),
                    Kind::Fifo => format!("{name} p"),
                    Kind::Socket => format!("{name} s"),
                };
                if *self.image.kind(id) == Kind::Directory {
                    folders.push((format!("{name}/"), id));
                } else if self.image.links(id) > 1 {
                    let first = first_names.entry(id).or_insert(name.clone());
                    write!(line, " ({first})").unwrap();
                }
                lines.push(line);
            }
        }
        lines.sort();
        lines
    }

    pub(crate) fn id(&self, path: &str) -> InodeId {
        let mut id = self.image.root();
        for part in path.split('/').filter(|part| !part.is_empty()) {
            id = self.image.lookup(id, part.as_bytes()).unwrap_or_else(|| panic!("no {path}"));
        }
        id
    }

    /// `755 0:0 1234567890.0`.
    pub(crate) fn facts(&self, path: &str) -> String {
        let attributes = self.image.attributes(self.id(path));
        let (mode, uid, gid) = (attributes.mode, attributes.uid, attributes.gid);
        let time = attributes.mtime;
        format!("{mode:o} {uid}:{gid} {}.{}", time.seconds, time.nanoseconds)
    }

    pub(crate) fn xattrs(&self, path: &str) -> Vec<(String, Vec<u8>)> {
        let xattrs = &self.image.attributes(self.id(path)).xattrs;
        xattrs
            .iter()
            .map(|(name, value)| (String::from_utf8_lossy(name).into_owned(), value.clone()))
            .collect()
    }
}
