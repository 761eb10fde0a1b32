//! The files in a tar archive by their names: an OCI archive, or what `docker save` writes. The archive is read once, by
//! its headers; nothing is unpacked. A link is followed once, to a file of the same archive: Docker writes a layer that
//! an image has twice as a link to its first place.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use crate::error::LocalError;
use crate::fetched::Compression;

/// Of files whose names may be those of an image's parts.
const MOST_FILES: usize = 100_000;
/// No part of an image lies deeper: `blobs/sha256/HEX`.
const DEEPEST: usize = 3;
/// Of a name that does not fit a header, with whatever else is said with it.
const LARGEST_EXTENSION: u64 = 64 << 10;

#[derive(Debug)]
pub(crate) struct Archive {
    file: File,
    members: BTreeMap<String, Member>,
    /// A name that leads out of the archive, if one does.
    escapes: Option<String>,
}

#[derive(Debug, Clone)]
enum Member {
    File { offset: u64, size: u64 },
    Link(String),
}

/// What the headers before a member say about it.
#[derive(Default)]
struct Extension {
    name: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    size: Option<u64>,
}

impl Archive {
    pub(crate) fn read(path: &Path) -> Result<Self, LocalError> {
        let failed = |cause| LocalError::Read { what: "it".into(), cause };
        let mut file = File::open(path).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        let mut first = Vec::new();
        (&file).take(6).read_to_end(&mut first).map_err(failed)?;
        match (Compression::of(&first), &first[..]) {
            (Compression::Gzip, _) => return Err(LocalError::Compressed("gzip")),
            (Compression::Zstd, _) => return Err(LocalError::Compressed("zstd")),
            (_, [0xfd, b'7', b'z', b'X', b'Z', 0]) => return Err(LocalError::Compressed("xz")),
            (_, [b'B', b'Z', b'h', ..]) => return Err(LocalError::Compressed("bzip2")),
            _ => {}
        }
        file.seek(SeekFrom::Start(0)).map_err(failed)?;
        let mut found = Self { file, members: BTreeMap::new(), escapes: None };
        found.read_members(length)?;
        Ok(found)
    }

    fn read_members(&mut self, length: u64) -> Result<(), LocalError> {
        let failed = |cause| LocalError::Read { what: "its list of files".into(), cause };
        let same = self.file.try_clone().map_err(failed)?;
        let mut archive = tar::Archive::new(same);
        let mut extension = Extension::default();
        // Raw: the crate itself would read a name of any length.
        for entry in archive.entries_with_seek().map_err(failed)?.raw(true) {
            let mut entry = entry.map_err(failed)?;
            let header = entry.header();
            let kind = header.entry_type();
            let size = header.entry_size().map_err(failed)?;
            if kind.is_pax_local_extensions() || kind.is_gnu_longname() || kind.is_gnu_longlink() {
                if size > LARGEST_EXTENSION {
                    let (what, limit) = ("a name in it".to_owned(), LARGEST_EXTENSION);
                    return Err(LocalError::TooLarge { what, limit });
                }
                let mut text = Vec::new();
                entry.read_to_end(&mut text).map_err(failed)?;
                extension.take(kind, text).map_err(failed)?;
                continue;
            }
            let said = std::mem::take(&mut extension);
            if kind.is_pax_global_extensions() {
                continue;
            }
            if said.size.is_some_and(|other| other != size) {
                let cause = io::Error::other("a file in it is larger than 8 GiB");
                return Err(failed(cause));
            }
            let name = said.name.unwrap_or_else(|| header.path_bytes().into_owned());
            let member = if kind.is_symlink() || kind.is_hard_link() {
                let target = said.target.or_else(|| header.link_name_bytes().map(Into::into));
                let Ok(target) = String::from_utf8(target.unwrap_or_default()) else { continue };
                let from_here = kind.is_symlink() && !target.starts_with('/');
                Member::Link(if from_here { beside(&name, &target) } else { target })
            } else if kind.is_file() || kind.is_contiguous() {
                let offset = entry.raw_file_position();
                if offset.checked_add(size).is_none_or(|end| end > length) {
                    return Err(failed(io::ErrorKind::UnexpectedEof.into()));
                }
                Member::File { offset, size }
            } else {
                continue;
            };
            self.insert(name, member)?;
        }
        Ok(())
    }

    fn insert(&mut self, name: Vec<u8>, member: Member) -> Result<(), LocalError> {
        let Ok(name) = String::from_utf8(name) else { return Ok(()) };
        let Some(name) = inside(&name) else {
            self.escapes.get_or_insert(name.chars().take(200).collect());
            return Ok(());
        };
        if name.split('/').count() <= DEEPEST {
            // The last one of a name counts, as when it is unpacked.
            self.members.insert(name, member);
        }
        if self.members.len() > MOST_FILES {
            return Err(LocalError::ManyFiles(MOST_FILES));
        }
        Ok(())
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.members.contains_key(name)
    }

    /// The file of that name, or the one that it is a link to. What leads elsewhere is refused.
    pub(crate) fn open(&self, name: &str) -> Result<(Part<'_>, u64), LocalError> {
        let escapes = |name: &str| LocalError::Escapes { name: name.chars().take(200).collect() };
        if let Some(name) = &self.escapes {
            return Err(escapes(name));
        }
        let absent = || LocalError::Absent(name.chars().take(200).collect());
        let inner = inside(name).ok_or_else(|| escapes(name))?;
        let member = match self.members.get(&inner) {
            Some(Member::Link(target)) => {
                let target = inside(target).ok_or_else(|| escapes(name))?;
                self.members.get(&target)
            }
            member => member,
        };
        match member {
            Some(Member::File { offset, size }) => {
                Ok((Part { file: &self.file, offset: *offset, left: *size }, *size))
            }
            Some(Member::Link(_)) => Err(escapes(name)),
            None => Err(absent()),
        }
    }
}

impl Extension {
    fn take(&mut self, kind: tar::EntryType, mut text: Vec<u8>) -> io::Result<()> {
        if kind.is_pax_local_extensions() {
            for record in tar::PaxExtensions::new(&text) {
                let record = record?;
                let value = record.value_bytes().to_vec();
                match record.key_bytes() {
                    b"path" => self.name = Some(value),
                    b"linkpath" => self.target = Some(value),
                    b"size" => {
                        let size = String::from_utf8(value).ok().and_then(|text| text.parse().ok());
                        self.size =
                            Some(size.ok_or_else(|| io::Error::other("a size is no number"))?);
                    }
                    _ => {}
                }
            }
            return Ok(());
        }
        while text.last() == Some(&0) {
            text.pop();
        }
        let field = if kind.is_gnu_longname() { &mut self.name } else { &mut self.target };
        *field = Some(text);
        Ok(())
    }
}

/// The name without `.` and empty parts; `None` when it leads out.
fn inside(name: &str) -> Option<String> {
    if name.starts_with('/') {
        return None;
    }
    let mut parts = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => return None,
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// Where a link of that name leads, seen from the archive's top. `..` that leads out stays in the text.
fn beside(name: &[u8], target: &str) -> String {
    let name = String::from_utf8_lossy(name);
    let mut parts: Vec<&str> =
        name.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// One file of the archive.
#[derive(Debug)]
pub(crate) struct Part<'a> {
    file: &'a File,
    offset: u64,
    left: u64,
}

impl Read for Part<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.file.read_at(&mut buffer[..most], self.offset)?;
        self.offset += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, fill: impl FnOnce(&mut tar::Builder<File>)) {
        let mut builder = tar::Builder::new(File::create(path).unwrap());
        fill(&mut builder);
        builder.finish().unwrap();
    }

    /// A member by its raw name, which the tar crate would refuse to write.
    fn member(builder: &mut tar::Builder<File>, kind: tar::EntryType, name: &str, target: &str) {
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(kind);
        let content: &[u8] = if kind.is_file() { b"content" } else { b"" };
        header.as_mut_bytes()[157..157 + target.len()].copy_from_slice(target.as_bytes());
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        builder.append(&header, content).unwrap();
    }

    fn content(archive: &Archive, name: &str) -> Result<String, LocalError> {
        let mut text = String::new();
        archive.open(name)?.0.read_to_string(&mut text).unwrap();
        Ok(text)
    }

    #[test]
    fn files_are_found_by_their_names_and_through_one_link() {
        use tar::EntryType::{Link, Regular, Symlink};
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.tar");
        write(&path, |builder| {
            member(builder, Regular, "./a/layer.tar", "");
            member(builder, Symlink, "b/layer.tar", "../a/layer.tar");
            member(builder, Link, "hard", "a/layer.tar");
            member(builder, Symlink, "twice", "b/layer.tar");
            member(builder, Symlink, "out", "../../etc/passwd");
            member(builder, Symlink, "absolute", "/etc/passwd");
            let mut header = tar::Header::new_gnu();
            header.set_size(4);
            builder
                .append_data(&mut header, format!("blobs/{}", "x".repeat(150)), &b"long"[..])
                .unwrap();
        });
        let archive = Archive::read(&path).unwrap();
        for name in ["a/layer.tar", "b/layer.tar", "./b//layer.tar", "hard"] {
            assert_eq!(content(&archive, name).unwrap(), "content", "{name}");
        }
        assert_eq!(content(&archive, &format!("blobs/{}", "x".repeat(150))).unwrap(), "long");
        for name in ["twice", "out", "absolute", "../a", "/a"] {
            let error = content(&archive, name).unwrap_err();
            assert!(matches!(error, LocalError::Escapes { .. }), "{name}: {error}");
        }
        assert!(matches!(content(&archive, "none"), Err(LocalError::Absent(_))));
    }

    #[test]
    fn an_archive_with_a_name_that_leads_out_is_refused() {
        for name in ["../x", "a/../../x", "/x"] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("a.tar");
            write(&path, |builder| {
                member(builder, tar::EntryType::Regular, "good", "");
                member(builder, tar::EntryType::Regular, name, "");
            });
            let error = content(&Archive::read(&path).unwrap(), "good").unwrap_err();
            assert!(matches!(error, LocalError::Escapes { name: told } if told == name));
        }
    }

    #[test]
    fn what_is_cut_or_compressed_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.tar");
        write(&path, |builder| member(builder, tar::EntryType::Regular, "good", ""));
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..514]).unwrap();
        assert!(matches!(Archive::read(&path), Err(LocalError::Read { .. })));
        std::fs::write(&path, [0x1f, 0x8b, 8, 0]).unwrap();
        assert!(matches!(Archive::read(&path), Err(LocalError::Compressed("gzip"))));
        std::fs::write(&path, b"").unwrap();
        assert!(Archive::read(&path).unwrap().members.is_empty());
    }

    #[test]
    fn a_name_of_any_length_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.tar");
        for kind in [tar::EntryType::XHeader, tar::EntryType::GNULongName] {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(1 << 40);
            header.set_cksum();
            let file = File::create(&path).unwrap();
            file.write_all_at(header.as_bytes(), 0).unwrap();
            file.set_len((1 << 40) + 2048).unwrap();
            assert!(matches!(Archive::read(&path), Err(LocalError::TooLarge { .. })));
        }
    }
}
