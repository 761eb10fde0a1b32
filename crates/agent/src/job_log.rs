//! What a job wrote: frames of `banger_api::exec`, each behind its length (u32, big-endian), in files of the guest's.
//!
//! ```text
//! FOLDER/output.0  output.8388731  output.16777512      named by what was written before them, in bytes
//!          └─ removed when there are more than two
//! ```
//! One writes, any number read meanwhile: whoever reads asks for no more than is known to be written.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use banger_api::exec::MAX_CONTENT;
use bytes::Bytes;

/// When a file is as large, the next one begins.
const FILE_BYTES: u64 = 8 << 20;
/// That many are kept.
const FILES: usize = 2;
const HEAD: u64 = 4;

const NAME: &str = "output.";

/// The writer's end.
#[derive(Debug)]
pub(crate) struct Log {
    folder: PathBuf,
    file: File,
    begin: u64,
    end: u64,
}

impl Log {
    pub(crate) fn create(folder: &Path) -> io::Result<Self> {
        Ok(Self { folder: folder.to_owned(), file: begin(folder, 0)?, begin: 0, end: 0 })
    }

    /// Where it ends now, counted from the first byte that was ever written to it.
    pub(crate) fn append(&mut self, frame: &[u8]) -> io::Result<u64> {
        if self.end - self.begin >= FILE_BYTES {
            self.file = begin(&self.folder, self.end)?;
            self.begin = self.end;
            let mut files = files(&self.folder)?;
            let old = files.len().saturating_sub(FILES);
            for begin in files.drain(..old) {
                fs::remove_file(path(&self.folder, begin))?;
            }
        }
        let length = u32::try_from(frame.len()).expect("a frame is smaller than a mebibyte");
        let whole = [&length.to_be_bytes()[..], frame].concat();
        if let Err(error) = self.file.write_all(&whole) {
            // A part of a frame is none: the next one begins where this one did.
            self.file.set_len(self.end - self.begin)?;
            self.file.seek(SeekFrom::End(0))?;
            return Err(error);
        }
        self.end += HEAD + u64::from(length);
        Ok(self.end)
    }
}

/// A reader's end.
#[derive(Debug)]
pub(crate) struct Reader {
    folder: PathBuf,
    at: u64,
    open: Option<File>,
}

impl Reader {
    /// From the oldest that is kept.
    pub(crate) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), at: 0, open: None }
    }

    /// The next frame of those that end at `end` or before.
    pub(crate) fn next(&mut self, end: u64) -> io::Result<Option<Bytes>> {
        while self.at < end {
            let Some(file) = &mut self.open else {
                self.open_next()?;
                continue;
            };
            match frame(file) {
                Ok(frame) => {
                    self.at += HEAD + frame.len() as u64;
                    return Ok(Some(frame));
                }
                // The next one begins where this one ends.
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => self.open = None,
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Opens the file that holds what is at our place, or the oldest one if that is gone.
    fn open_next(&mut self) -> io::Result<()> {
        let files = files(&self.folder)?;
        let holds = files.iter().rev().find(|begin| **begin <= self.at).or(files.first());
        let begin = *holds.ok_or(ErrorKind::NotFound)?;
        let mut file = File::open(path(&self.folder, begin))?;
        if begin > self.at {
            self.at = begin;
        } else {
            if self.at - begin >= file.metadata()?.len() {
                return Err(damaged());
            }
            file.seek(SeekFrom::Start(self.at - begin))?;
        }
        self.open = Some(file);
        Ok(())
    }
}

/// How many bytes of the oldest frames are no longer there.
pub(crate) fn dropped(folder: &Path) -> io::Result<u64> {
    Ok(files(folder)?.first().copied().unwrap_or_default())
}

/// Where it ends, when nobody writes any more.
pub(crate) fn end(folder: &Path) -> io::Result<u64> {
    let Some(begin) = files(folder)?.last().copied() else { return Ok(0) };
    Ok(begin + fs::metadata(path(folder, begin))?.len())
}

fn frame(file: &mut File) -> io::Result<Bytes> {
    let mut head = [0; 4];
    file.read_exact(&mut head)?;
    let length = usize::try_from(u32::from_be_bytes(head)).unwrap_or(usize::MAX);
    if length > MAX_CONTENT + 1 {
        return Err(damaged());
    }
    let mut frame = vec![0; length];
    file.read_exact(&mut frame)?;
    Ok(frame.into())
}

fn damaged() -> io::Error {
    io::Error::new(ErrorKind::InvalidData, "what the job wrote was changed or cut short")
}

fn begin(folder: &Path, at: u64) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).open(path(folder, at))
}

fn path(folder: &Path, begin: u64) -> PathBuf {
    folder.join(format!("{NAME}{begin}"))
}

/// Where each begins, in order.
fn files(folder: &Path) -> io::Result<Vec<u64>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        found.extend(name.to_str().and_then(|name| name.strip_prefix(NAME)?.parse::<u64>().ok()));
    }
    found.sort_unstable();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_as_they_were_written_and_no_further_than_asked() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = Log::create(folder.path()).unwrap();
        let first = log.append(b"one").unwrap();
        let second = log.append(b"").unwrap();
        let mut reader = Reader::new(folder.path());
        assert_eq!(reader.next(0).unwrap(), None);
        assert_eq!(reader.next(first).unwrap().unwrap(), "one");
        assert_eq!(reader.next(first).unwrap(), None);
        assert_eq!(reader.next(second).unwrap().unwrap(), "");
        assert_eq!(reader.next(second).unwrap(), None);
        assert_eq!(end(folder.path()).unwrap(), second);
        assert_eq!(dropped(folder.path()).unwrap(), 0);
    }

    #[test]
    fn the_newest_is_kept_and_a_reader_that_is_late_goes_on_with_the_oldest_there_is() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = Log::create(folder.path()).unwrap();
        let mut end_now = log.append(b"the first").unwrap();
        let mut late = Reader::new(folder.path());
        let mut early = Reader::new(folder.path());
        assert_eq!(early.next(end_now).unwrap().unwrap(), "the first");
        let large = vec![7; MAX_CONTENT];
        for _ in 0..40 {
            end_now = log.append(&large).unwrap();
            assert_eq!(early.next(end_now).unwrap().unwrap().len(), large.len(), "none is missed");
        }
        end_now = log.append(b"the last").unwrap();
        let kept = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap());
        let kept: u64 = kept.map(|entry| entry.metadata().unwrap().len()).sum();
        assert!((8 << 20..20 << 20).contains(&kept), "{kept}");
        assert!(dropped(folder.path()).unwrap() > 16 << 20);
        let mut frames = Vec::new();
        while let Some(frame) = late.next(end_now).unwrap() {
            frames.push(frame);
        }
        assert!(frames.len() >= 8 && frames.len() < 40, "{}", frames.len());
        assert_eq!(frames.last().unwrap(), "the last");
    }

    #[test]
    fn a_damaged_length_is_an_error_and_no_memory() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("output.0"), [255, 255, 255, 255, 1]).unwrap();
        assert_eq!(Reader::new(folder.path()).next(5).unwrap_err().kind(), ErrorKind::InvalidData);
    }
}
