//! What is written to the image file: gathered while it is in a row, blocks of zeros left out where the file has a hole.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::{BLOCK, BLOCK_BYTES};

const GATHERED: usize = 1 << 20;

static ZEROS: [u8; BLOCK] = [0; BLOCK];

#[derive(Debug)]
pub(crate) struct Output {
    file: File,
    /// What goes to `at`. A block that it ends in is filled up with zeros when something else is written.
    gathered: Vec<u8>,
    at: u64,
    /// Where it goes the file was never written.
    fresh: bool,
}

impl Output {
    pub(crate) fn new(file: File) -> Self {
        Self { file, gathered: Vec::with_capacity(GATHERED), at: 0, fresh: true }
    }

    /// Writes `bytes` at `at`. `fresh`: the blocks were never written. Of a block that is written for the first time since
    /// it was taken, the first write begins at its start; what it does not fill reads as zeros.
    pub(crate) fn write(&mut self, at: u64, bytes: &[u8], fresh: bool) -> io::Result<()> {
        let mut bytes = bytes;
        let mut at = at;
        while !bytes.is_empty() {
            if !self.goes_on(at, fresh) {
                self.flush()?;
                (self.at, self.fresh) = (at, fresh);
                if at.is_multiple_of(BLOCK_BYTES) && bytes.len() >= GATHERED {
                    let whole = bytes.len() / BLOCK * BLOCK;
                    store(&self.file, at, &bytes[..whole], fresh)?;
                    bytes = &bytes[whole..];
                    at += whole as u64;
                    self.at = at;
                    continue;
                }
            }
            // At most a block.
            let gap = usize::try_from(at - self.end()).unwrap_or(0);
            self.gathered.resize(self.gathered.len() + gap, 0);
            let count = bytes.len().min(GATHERED - self.gathered.len());
            self.gathered.extend_from_slice(&bytes[..count]);
            bytes = &bytes[count..];
            at += count as u64;
            if self.gathered.len() == GATHERED {
                self.store_whole_blocks()?;
            }
        }
        Ok(())
    }

    fn end(&self) -> u64 {
        self.at + self.gathered.len() as u64
    }

    /// Is `at` where what was gathered ends, or in the rest of the block that it ends in, or the start of the next block?
    fn goes_on(&self, at: u64, fresh: bool) -> bool {
        let end = self.end();
        let room = GATHERED - self.gathered.len();
        !self.gathered.is_empty()
            && self.fresh == fresh
            && at >= end
            && at <= end.next_multiple_of(BLOCK_BYTES)
            && room > BLOCK
    }

    /// Keeps the part of a block at the end.
    fn store_whole_blocks(&mut self) -> io::Result<()> {
        let whole = self.end() / BLOCK_BYTES * BLOCK_BYTES;
        let count = usize::try_from(whole.saturating_sub(self.at)).unwrap_or(0);
        store(&self.file, self.at, &self.gathered[..count], self.fresh)?;
        self.gathered.drain(..count);
        self.at += count as u64;
        Ok(())
    }

    pub(crate) fn flush(&mut self) -> io::Result<()> {
        let rest = self.end().next_multiple_of(BLOCK_BYTES) - self.end();
        let rest = usize::try_from(rest).unwrap_or(0);
        self.gathered.resize(self.gathered.len() + rest, 0);
        store(&self.file, self.at, &self.gathered, self.fresh)?;
        self.at = self.end();
        self.gathered.clear();
        Ok(())
    }

    /// Reads back.
    pub(crate) fn read(&mut self, at: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.flush()?;
        let mut done = 0;
        while done < buffer.len() {
            match self.file.read_at(&mut buffer[done..], at + done as u64) {
                // Blocks of zeros behind the end of what was written.
                Ok(0) => {
                    buffer[done..].fill(0);
                    return Ok(());
                }
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    pub(crate) fn into_file(mut self) -> io::Result<File> {
        self.flush()?;
        Ok(self.file)
    }
}

/// Writes from `at` to the end of a block; without the blocks of zeros where the file is `fresh`.
fn store(file: &File, at: u64, bytes: &[u8], fresh: bool) -> io::Result<()> {
    if !fresh {
        return file.write_all_at(bytes, at);
    }
    let into_block = usize::try_from(at % BLOCK_BYTES).unwrap_or(0);
    let mut start = 0;
    let mut position = 0;
    while position < bytes.len() {
        // The first may begin inside a block.
        let inside = if position == 0 { into_block } else { 0 };
        let next = (position + BLOCK - inside).min(bytes.len());
        if bytes[position..next] == ZEROS[..next - position] && next - position == BLOCK {
            if start < position {
                file.write_all_at(&bytes[start..position], at + start as u64)?;
            }
            start = next;
        }
        position = next;
    }
    if start < bytes.len() {
        file.write_all_at(&bytes[start..], at + start as u64)?;
    }
    Ok(())
}
