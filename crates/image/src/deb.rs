//! Debian packages: an ar archive whose member `data.tar` (compressed or not) holds the files (deb(5)). Only reads.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Take};
use std::path::Path;

use crate::compression::{self, Bounded, Format};

pub(crate) const MAGIC: &[u8] = b"!<arch>\n";

/// No kernel package has more in it: Debian's largest, with all debugging symbols, has 5 GiB.
const LARGEST_DATA: u64 = 8 << 30;

#[derive(Debug, thiserror::Error)]
pub enum DebError {
    #[error("cannot read the package")]
    Read(#[source] io::Error),
    #[error("the package is damaged: the header of its member {0} is none")]
    Header(usize),
    #[error("the package has no member data.tar in its first {0}")]
    NoData(usize),
    #[error("the package's data.tar is cut short")]
    Truncated,
    #[error("the package's {0} has a compression that is not read")]
    Compression(String),
}

/// deb(5) has three members; a few more may come before the third.
const MOST_MEMBERS: usize = 16;

/// The files of the package at `path`.
pub(crate) fn open(path: &Path) -> Result<tar::Archive<Box<dyn Read + Send>>, DebError> {
    let file = File::open(path).map_err(DebError::Read)?;
    let length = file.metadata().map_err(DebError::Read)?.len();
    let (name, member) = data_member(file, length)?;
    let format = match name.strip_prefix("data.tar").expect("data_member found it so") {
        "" => Format::Plain,
        ".gz" => Format::Gzip,
        ".xz" => Format::Xz,
        ".zst" => Format::Zstd,
        _ => return Err(DebError::Compression(name)),
    };
    let data = compression::reader(format, BufReader::with_capacity(256 << 10, member))
        .map_err(DebError::Read)?;
    Ok(tar::Archive::new(Box::new(Bounded::new(data, LARGEST_DATA))))
}

/// The member with the files, and its name.
fn data_member<R: Read + Seek>(mut source: R, length: u64) -> Result<(String, Take<R>), DebError> {
    let mut magic = [0; 8];
    source.read_exact(&mut magic).map_err(DebError::Read)?;
    let mut at = MAGIC.len() as u64;
    for number in 0..MOST_MEMBERS {
        if at == length {
            return Err(DebError::NoData(number));
        }
        source.seek(SeekFrom::Start(at)).map_err(DebError::Read)?;
        let mut header = [0; 60];
        source.read_exact(&mut header).map_err(DebError::Read)?;
        let (name, size) = member(&header).ok_or(DebError::Header(number))?;
        at += 60;
        let end = at.checked_add(size).filter(|&end| end <= length);
        if name.starts_with("data.tar") {
            return if end.is_some() {
                Ok((name.to_owned(), source.take(size)))
            } else {
                Err(DebError::Truncated)
            };
        }
        // Members begin at even places.
        at = end.ok_or(DebError::Truncated)?.next_multiple_of(2).min(length);
    }
    Err(DebError::NoData(MOST_MEMBERS))
}

/// Name and size in a member's header: `name[16] date[12] uid[6] gid[6] mode[8] size[10] "`\n"`.
fn member(header: &[u8; 60]) -> Option<(&str, u64)> {
    let name = std::str::from_utf8(&header[..16]).ok()?.trim_end_matches(' ').trim_end_matches('/');
    let size = std::str::from_utf8(&header[48..58]).ok()?.trim_end_matches(' ');
    let all_digits = !size.is_empty() && size.bytes().all(|byte| byte.is_ascii_digit());
    (header[58..] == *b"`\n" && all_digits).then_some((name, size.parse().ok()?))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Cursor;

    use super::*;

    pub(crate) fn package(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        for (name, content) in members {
            bytes.extend(
                format!(
                    "{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n",
                    0,
                    0,
                    0,
                    100_644,
                    content.len()
                )
                .bytes(),
            );
            bytes.extend(*content);
            if content.len() % 2 == 1 {
                bytes.push(b'\n');
            }
        }
        bytes
    }

    fn data(bytes: &[u8]) -> Result<(String, Vec<u8>), DebError> {
        let (name, mut member) = data_member(Cursor::new(bytes), bytes.len() as u64)?;
        let mut content = Vec::new();
        member.read_to_end(&mut content).unwrap();
        Ok((name, content))
    }

    #[test]
    fn the_data_is_found_behind_members_of_odd_length() {
        let bytes = package(&[
            ("debian-binary", b"2.0"),
            ("control.tar.xz/", b"c"),
            ("data.tar.xz", b"files"),
        ]);
        assert_eq!(data(&bytes).unwrap(), ("data.tar.xz".to_owned(), b"files".to_vec()));
    }

    #[test]
    fn every_truncation_is_refused() {
        let bytes = package(&[("debian-binary", b"2.0\n"), ("data.tar", b"files")]);
        for length in 0..bytes.len() - 1 {
            assert!(data(&bytes[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn sizes_that_are_none_and_sizes_that_are_too_large_are_refused() {
        for size in ["-1", "99999999999", "0x10", "", " 5"] {
            let mut bytes = package(&[("debian-binary", b"2.0\n"), ("data.tar", b"files")]);
            bytes[8 + 48..8 + 58].copy_from_slice(format!("{size:<10.10}").as_bytes());
            assert!(data(&bytes).is_err(), "{size:?} was taken");
        }
    }

    #[test]
    fn a_package_without_files_and_a_compression_that_is_not_read_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.deb");
        for (member, expected) in
            [("x", "no member data.tar"), ("data.tar.bz2", "data.tar.bz2 has a compression")]
        {
            std::fs::write(&path, package(&[(member, b"12")])).unwrap();
            let error = open(&path).map(|_| ()).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
    }
}
