//! Where the data of an inode is: extents (ifork.rst, "Extent Tree"), or the block map of ext2 and ext3.

use super::{EXTENTS, FileSystem, FileSystemError, Node, u16_at, u32_at};

/// Blocks that lie together in the file and on the disk. What is in no run is a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    pub logical: u64,
    pub block: u64,
    pub count: u32,
}

/// More no file of a sane disk has: with 64 MiB of memory for it.
const MOST_RUNS: usize = 4 << 20;

/// Blocks of an extent tree, or of a map: each has one run at least.
const MOST_NODES: u32 = 1 << 20;

/// `EXT4_MAX_EXTENT_DEPTH`.
const MOST_DEPTH: u16 = 5;

/// Longer ones are allocated and not written: they read as zeros.
const LONGEST: u16 = 32768;

impl FileSystem {
    /// The data of a file or folder, ascending, within its size.
    ///
    /// # Errors
    /// When the inode is damaged.
    pub(crate) fn runs(&self, node: &Node) -> Result<Vec<Run>, FileSystemError> {
        let end = node.size.div_ceil(u64::from(self.block_bytes));
        let mut reading = Reading { of: self, inode: node.number, runs: Vec::new(), nodes: 0, end };
        if node.flags & EXTENTS != 0 {
            reading.extents(&node.map, None)?;
        } else {
            reading.map(&node.map)?;
        }
        Ok(reading.runs)
    }
}

struct Reading<'a> {
    of: &'a FileSystem,
    inode: u32,
    runs: Vec<Run>,
    nodes: u32,
    /// Behind the last block of the file.
    end: u64,
}

impl Reading<'_> {
    fn damaged(&self, what: &'static str) -> FileSystemError {
        FileSystemError::Inode { inode: self.inode, what }
    }

    fn push(&mut self, run: Run) -> Result<(), FileSystemError> {
        if run.block == 0 || run.block + u64::from(run.count) > self.of.blocks {
            return Err(self.damaged("its data lies outside of the file system"));
        }
        // Blocks behind the end are allocated ahead (fallocate(2), FALLOC_FL_KEEP_SIZE).
        let left = self.end.saturating_sub(run.logical);
        let count = u32::try_from(left).unwrap_or(u32::MAX).min(run.count);
        if count == 0 {
            return Ok(());
        }
        if let Some(last) = self.runs.last_mut() {
            let (logical, block) =
                (last.logical + u64::from(last.count), last.block + u64::from(last.count));
            if run.logical < logical {
                return Err(self.damaged("its data overlaps"));
            }
            if (run.logical, run.block) == (logical, block)
                && let Some(sum) = last.count.checked_add(count)
            {
                last.count = sum;
                return Ok(());
            }
        }
        if self.runs.len() == MOST_RUNS {
            return Err(self.damaged("its data is in too many pieces"));
        }
        self.runs.push(Run { count, ..run });
        Ok(())
    }

    fn read_node(&mut self, block: u64) -> Result<Vec<u8>, FileSystemError> {
        self.nodes += 1;
        if self.nodes > MOST_NODES {
            return Err(self.damaged("its map has too many blocks"));
        }
        self.of.counted_block(block)
    }

    /// A node of the tree; `above` is the depth of the node that points to it.
    fn extents(&mut self, node: &[u8], above: Option<u16>) -> Result<(), FileSystemError> {
        let entries = u16_at(node, 2);
        let depth = u16_at(node, 6);
        if u16_at(node, 0) != 0xf30a || 12 + usize::from(entries) * 12 > node.len() {
            return Err(self.damaged("its extents are none"));
        }
        let expected = above.map(|above| above - 1);
        if depth > MOST_DEPTH || expected.is_some_and(|expected| depth != expected || entries == 0)
        {
            return Err(self.damaged("its extents are no tree"));
        }
        for entry in node[12..].chunks_exact(12).take(entries.into()) {
            if depth > 0 {
                let block = u64::from(u16_at(entry, 8)) << 32 | u64::from(u32_at(entry, 4));
                let below = self.read_node(block)?;
                self.extents(&below, Some(depth))?;
                continue;
            }
            let length = u16_at(entry, 4);
            if length > LONGEST {
                continue;
            }
            if length == 0 {
                return Err(self.damaged("an extent is empty"));
            }
            let block = u64::from(u16_at(entry, 6)) << 32 | u64::from(u32_at(entry, 8));
            self.push(Run { logical: u32_at(entry, 0).into(), block, count: length.into() })?;
        }
        Ok(())
    }

    /// Twelve blocks, and three that point to more, over one, two and three steps.
    fn map(&mut self, map: &[u8; 60]) -> Result<(), FileSystemError> {
        let mut logical = 0;
        for word in 0..15 {
            self.pointer(
                u32_at(map, word * 4),
                u32::try_from(word.saturating_sub(11)).unwrap_or(0),
                &mut logical,
            )?;
        }
        Ok(())
    }

    /// What one pointer stands for; with `steps` to go until the data. `logical` goes on by all that it could hold.
    fn pointer(
        &mut self,
        block: u32,
        steps: u32,
        logical: &mut u64,
    ) -> Result<(), FileSystemError> {
        if *logical >= self.end {
            return Ok(());
        }
        let in_block = u64::from(self.of.block_bytes / 4);
        if block == 0 {
            *logical += in_block.pow(steps);
            return Ok(());
        }
        if steps == 0 {
            self.push(Run { logical: *logical, block: block.into(), count: 1 })?;
            *logical += 1;
            return Ok(());
        }
        let node = self.read_node(block.into())?;
        for at in (0..node.len()).step_by(4) {
            self.pointer(u32_at(&node, at), steps - 1, logical)?;
        }
        Ok(())
    }
}
