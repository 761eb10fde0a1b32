//! Grows a mounted ext4 to the size of its disk, when the daemon has given the disk more room.
#![expect(unsafe_code, reason = "EXT4_IOC_RESIZE_FS has no safe wrapper")]

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::ioctl::{Setter, ioctl, opcode};

#[derive(Debug, thiserror::Error)]
pub(crate) enum GrowError {
    #[error("cannot read the ext4 superblock of {device}")]
    Superblock {
        device: String,
        #[source]
        cause: io::Error,
    },
    #[error("cannot grow the file system on {device} to {blocks} blocks")]
    Resize {
        device: String,
        blocks: u64,
        #[source]
        cause: io::Error,
    },
}

/// Nothing happens when the file system fills its disk but for less than one block group, the unit it grows by.
pub(crate) fn grow(mounted: impl AsFd, device: &Path, size_bytes: u64) -> Result<(), GrowError> {
    let name = || device.display().to_string();
    let superblock = Superblock::read(device)
        .map_err(|cause| GrowError::Superblock { device: name(), cause })?;
    let blocks = size_bytes / superblock.block_bytes;
    if blocks < superblock.blocks + superblock.blocks_per_group {
        return Ok(());
    }
    resize(mounted, blocks).map_err(|cause| GrowError::Resize { device: name(), blocks, cause })
}

fn resize(mounted: impl AsFd, blocks: u64) -> io::Result<()> {
    /// `EXT4_IOC_RESIZE_FS`, fs/ext4/ext4.h of the kernel.
    const RESIZE: rustix::ioctl::Opcode = opcode::write::<u64>(b'f', 16);
    // SAFETY: the kernel reads one u64 at the pointer for this number and writes nothing.
    let request = unsafe { Setter::<RESIZE, u64>::new(blocks) };
    // SAFETY: as above; on a descriptor of another file system the kernel answers ENOTTY.
    Ok(unsafe { ioctl(mounted, request) }?)
}

/// What the size takes: offsets from the kernel's Documentation/filesystems/ext4/super.rst.
struct Superblock {
    blocks: u64,
    block_bytes: u64,
    blocks_per_group: u64,
}

impl Superblock {
    fn read(device: &Path) -> io::Result<Self> {
        let mut bytes = [0_u8; 1024];
        File::open(device)?.read_exact_at(&mut bytes, 1024)?;
        Self::parse(&bytes)
    }

    fn parse(bytes: &[u8; 1024]) -> io::Result<Self> {
        let word = |at: usize| {
            u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes are four bytes"))
        };
        if bytes[0x38..0x3a] != [0x53, 0xef] {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the magic number is not ext4's",
            ));
        }
        let has_64bit = word(0x60) & 0x80 != 0;
        let high = if has_64bit { u64::from(word(0x150)) } else { 0 };
        let block_bytes = 1024_u64
            .checked_shl(word(0x18))
            .filter(|bytes| (1024..=65536).contains(bytes))
            .ok_or_else(|| {
                io::Error::new(io::ErrorKind::InvalidData, "its block size is not possible")
            })?;
        Ok(Self {
            blocks: high << 32 | u64::from(word(4)),
            block_bytes,
            blocks_per_group: u64::from(word(0x20)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_is_read_from_the_superblock() {
        let mut bytes = [0_u8; 1024];
        bytes[0x38..0x3a].copy_from_slice(&[0x53, 0xef]);
        bytes[4..8].copy_from_slice(&7_u32.to_le_bytes());
        bytes[0x18..0x1c].copy_from_slice(&2_u32.to_le_bytes());
        bytes[0x20..0x24].copy_from_slice(&32768_u32.to_le_bytes());
        bytes[0x60..0x64].copy_from_slice(&0x80_u32.to_le_bytes());
        bytes[0x150..0x154].copy_from_slice(&1_u32.to_le_bytes());
        let superblock = Superblock::parse(&bytes).unwrap();
        assert_eq!((superblock.blocks, superblock.block_bytes), ((1 << 32) + 7, 4096));
        bytes[0x38] = 0;
        assert!(Superblock::parse(&bytes).is_err());
    }
}
