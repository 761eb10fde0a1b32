//! Numbers at places in a buffer. ext4 is little-endian, its journal big-endian.

pub(crate) fn put(buffer: &mut [u8], at: usize, bytes: &[u8]) {
    buffer[at..at + bytes.len()].copy_from_slice(bytes);
}

pub(crate) fn put16(buffer: &mut [u8], at: usize, value: u16) {
    put(buffer, at, &value.to_le_bytes());
}

pub(crate) fn put32(buffer: &mut [u8], at: usize, value: u32) {
    put(buffer, at, &value.to_le_bytes());
}

/// The low 16 bits.
pub(crate) fn low16(value: u32) -> u16 {
    u16::try_from(value & 0xffff).expect("16 bits are left")
}

/// The high 16 bits.
pub(crate) fn high16(value: u32) -> u16 {
    low16(value >> 16)
}

/// The low 32 bits.
pub(crate) fn low32(value: u64) -> u32 {
    u32::try_from(value & 0xffff_ffff).expect("32 bits are left")
}

/// The high 32 bits.
pub(crate) fn high32(value: u64) -> u32 {
    low32(value >> 32)
}
