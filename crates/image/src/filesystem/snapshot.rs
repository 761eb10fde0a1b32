//! A device that stands as an image and a store of what was written over it: device-mapper's snapshot target, read without
//! device-mapper. The format: drivers/md/dm-snap-persistent.c, Linux 6.1.
//!
//! ```text
//!  store: │ header │ area of entries │ chunk │ chunk │ ... │ area of entries │ chunk │ ...
//! ```
//! An entry says which chunk of the device is in which chunk of the store.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::{Device, FileSystemError, u32_at};

/// "SnAp".
const MAGIC: u32 = 0x7041_6e53;
const SECTOR: u64 = 512;

#[derive(Debug)]
pub(crate) struct Snapshot {
    base: File,
    base_bytes: u64,
    store: File,
    chunk_bytes: u64,
    /// From a chunk of the device to one of the store.
    moved: HashMap<u64, u64>,
}

impl Snapshot {
    /// # Errors
    /// When `store` is none.
    pub(crate) fn open(base: File, store: File) -> Result<Self, FileSystemError> {
        let refused = |what| Err(FileSystemError::Snapshot(what));
        let mut header = [0; 16];
        store.read_exact_at(&mut header, 0)?;
        let base_bytes = base.metadata()?.len();
        let store_bytes = store.metadata()?.len();
        // A device that was never written to, or never made.
        if header == [0; 16] {
            return Ok(Self {
                base,
                base_bytes,
                store,
                chunk_bytes: SECTOR,
                moved: HashMap::new(),
            });
        }
        if u32_at(&header, 0) != MAGIC || u32_at(&header, 8) != 1 {
            return refused("it does not begin as one");
        }
        if u32_at(&header, 4) == 0 {
            return refused("the kernel gave it up: it was full, or could not be written");
        }
        let chunk_bytes = u64::from(u32_at(&header, 12)) * SECTOR;
        if !chunk_bytes.is_power_of_two() || !(SECTOR..=1 << 20).contains(&chunk_bytes) {
            return refused("its chunks have an impossible size");
        }
        let in_area = chunk_bytes / 16;
        let chunks = store_bytes / chunk_bytes;
        let mut moved = HashMap::new();
        let mut area = vec![0; usize::try_from(chunk_bytes).expect("at most a MiB")];
        let mut at = 1;
        // Each area stands before its chunks, and the first entry that is empty is behind the last.
        'areas: while at < chunks {
            store.read_exact_at(&mut area, at * chunk_bytes)?;
            for entry in area.chunks_exact(16) {
                let word = |at: usize| {
                    u64::from(u32_at(entry, at)) | u64::from(u32_at(entry, at + 4)) << 32
                };
                let (old, new) = (word(0), word(8));
                if new == 0 {
                    break 'areas;
                }
                if new >= chunks {
                    return refused("an entry points behind its end");
                }
                moved.insert(old, new);
            }
            at += in_area + 1;
        }
        Ok(Self { base, base_bytes, store, chunk_bytes, moved })
    }
}

impl Device for Snapshot {
    fn read(&self, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !buffer.is_empty() {
            let (chunk, within) = (offset / self.chunk_bytes, offset % self.chunk_bytes);
            let most = usize::try_from(self.chunk_bytes - within).unwrap_or(usize::MAX);
            let (part, rest) = buffer.split_at_mut(most.min(buffer.len()));
            if let Some(new) = self.moved.get(&chunk) {
                self.store.read_exact_at(part, new * self.chunk_bytes + within)?;
            } else {
                // Behind the image the device is zeros: the snapshot is larger.
                let there =
                    usize::try_from(self.base_bytes.saturating_sub(offset)).unwrap_or(usize::MAX);
                let (there, zeros) = part.split_at_mut(there.min(part.len()));
                self.base.read_exact_at(there, offset)?;
                zeros.fill(0);
            }
            offset += part.len() as u64;
            buffer = rest;
        }
        Ok(())
    }
}
