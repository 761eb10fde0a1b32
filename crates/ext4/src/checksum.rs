//! crc32c as ext4 uses it: it goes on from a seed, and nothing is inverted at the end.

pub(crate) fn crc32c(seed: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, bytes)
}

/// The seed of all checksums of a file system but the superblock's.
pub(crate) fn file_system_seed(uuid: &[u8; 16]) -> u32 {
    crc32c(!0, uuid)
}

/// The seed of an inode, its extent blocks and its folder blocks. Our generation numbers are 0.
pub(crate) fn inode_seed(file_system_seed: u32, number: u32) -> u32 {
    crc32c(crc32c(file_system_seed, &number.to_le_bytes()), &[0; 4])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_check_value_of_crc32c_comes_out() {
        // RFC 3720's polynomial over "123456789".
        assert_eq!(!crc32c(!0, b"123456789"), 0xe306_9283);
    }

    #[test]
    fn a_checksum_goes_on_where_it_stopped() {
        assert_eq!(crc32c(crc32c(7, b"ab"), b"cd"), crc32c(7, b"abcd"));
    }
}
