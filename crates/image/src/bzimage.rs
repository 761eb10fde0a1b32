//! A bzImage: the kernel as distributions ship it, with its ELF compressed inside. Only reads; the layout is that of
//! the kernel's Documentation/arch/x86/boot.rst.

use std::io;

use crate::compression::{self, Format};

/// No kernel is larger when it is unpacked. A debug build of everything has about 300 MiB.
pub(crate) const LARGEST: u64 = 512 << 20;

const BOOT_FLAG: usize = 0x1fe;
const MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const KERNEL_VERSION: usize = 0x20e;
const SETUP_SECTS: usize = 0x1f1;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;

#[derive(Debug, thiserror::Error)]
pub enum BzImageError {
    #[error(
        "its boot protocol {0:#06x} is older than 2.08 (Linux 2.6.26), which first says where the kernel is"
    )]
    OldProtocol(u16),
    #[error("it is cut short: {what} lies at byte {at}, it has {length}")]
    Truncated { what: &'static str, at: u64, length: u64 },
    #[error("its payload cannot be unpacked")]
    Payload(#[source] io::Error),
    #[error("its payload has a compression that is not known here: it begins with {0:02x?}")]
    Compression(Vec<u8>),
}

pub(crate) struct BzImage {
    pub vmlinux: Vec<u8>,
    /// `uname -r` of it, as the header says.
    pub release: Option<String>,
}

pub(crate) fn is_bzimage(bytes: &[u8]) -> bool {
    bytes.get(BOOT_FLAG..BOOT_FLAG + 2) == Some(&[0x55, 0xaa])
        && bytes.get(MAGIC..MAGIC + 4) == Some(b"HdrS")
}

/// The kernel in `bytes`, of which [`is_bzimage`] is true.
pub(crate) fn unpack(bytes: &[u8]) -> Result<BzImage, BzImageError> {
    let length = bytes.len() as u64;
    let truncated = |what, at| BzImageError::Truncated { what, at, length };
    let version = u16_at(bytes, VERSION).ok_or_else(|| truncated("the header", VERSION as u64))?;
    if version < 0x0208 {
        return Err(BzImageError::OldProtocol(version));
    }
    let setup_sects = match bytes[SETUP_SECTS] {
        0 => 4,
        sects => u64::from(sects),
    };
    let header_end = || truncated("the header", PAYLOAD_LENGTH as u64 + 4);
    let offset = u32_at(bytes, PAYLOAD_OFFSET).ok_or_else(header_end)?;
    let payload_length = u32_at(bytes, PAYLOAD_LENGTH).ok_or_else(header_end)?;
    let start = (setup_sects + 1) * 512 + u64::from(offset);
    let end = start + u64::from(payload_length);
    let payload = usize::try_from(start)
        .ok()
        .zip(usize::try_from(end).ok())
        .and_then(|(start, end)| bytes.get(start..end))
        .ok_or_else(|| truncated("the end of the payload", end))?;
    let format = Format::detect(payload);
    if format == Format::Plain && !payload.starts_with(b"\x7fELF") {
        return Err(BzImageError::Compression(
            payload.iter().take(compression::MAGIC_LENGTH).copied().collect(),
        ));
    }
    let vmlinux = compression::unpack(format, payload, LARGEST).map_err(BzImageError::Payload)?;
    Ok(BzImage { vmlinux, release: release(bytes) })
}

/// `kernel_version` points, 0x200 less, at a text whose first word is the release.
fn release(bytes: &[u8]) -> Option<String> {
    let at = usize::from(u16_at(bytes, KERNEL_VERSION)?);
    if at == 0 {
        return None;
    }
    let text = bytes.get(at + 0x200..)?;
    let end = text.iter().take(256).position(|&byte| byte == 0 || byte == b' ')?;
    std::str::from_utf8(&text[..end]).ok().filter(|text| !text.is_empty()).map(str::to_owned)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|&chunk| u16::from_le_bytes(chunk))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|&chunk| u32::from_le_bytes(chunk))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A bzImage of protocol 2.15 around `payload`.
    pub(crate) fn image(payload: &[u8], release: &str) -> Vec<u8> {
        let mut bytes = vec![0; 3 * 512];
        bytes[SETUP_SECTS] = 2;
        bytes[BOOT_FLAG..BOOT_FLAG + 2].copy_from_slice(&[0x55, 0xaa]);
        bytes[MAGIC..MAGIC + 4].copy_from_slice(b"HdrS");
        bytes[VERSION..VERSION + 2].copy_from_slice(&0x020f_u16.to_le_bytes());
        bytes[KERNEL_VERSION..KERNEL_VERSION + 2].copy_from_slice(&0x100_u16.to_le_bytes());
        let text = format!("{release} (builder) #1\0");
        bytes[0x300..0x300 + text.len()].copy_from_slice(text.as_bytes());
        bytes[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&16_u32.to_le_bytes());
        bytes[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4]
            .copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
        bytes.extend([0; 16]);
        bytes.extend(payload);
        bytes.extend([0; 40]);
        bytes
    }

    #[test]
    fn the_kernel_and_its_release_are_found() {
        let packed = liblzma::encode_all(&b"\x7fELF and the rest"[..], 1).unwrap();
        let found = unpack(&image(&packed, "6.1.0-9-cloud-amd64")).unwrap();
        assert_eq!(found.vmlinux, b"\x7fELF and the rest");
        assert_eq!(found.release.as_deref(), Some("6.1.0-9-cloud-amd64"));
    }

    #[test]
    fn every_truncation_is_refused() {
        let packed = liblzma::encode_all(&b"\x7fELF and the rest"[..], 1).unwrap();
        let image = image(&packed, "6.1");
        let payload_end = image.len() - 40;
        for length in 0x206..payload_end {
            assert!(unpack(&image[..length]).is_err(), "{length}");
        }
        assert!(!is_bzimage(&image[..0x205]));
    }

    #[test]
    fn a_payload_that_says_to_be_huge_is_refused_without_being_read() {
        let mut image = image(b"\x7fELF", "6.1");
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].fill(0xff);
        assert!(matches!(
            unpack(&image),
            Err(BzImageError::Truncated { what: "the end of the payload", .. })
        ));
    }

    #[test]
    fn an_old_protocol_and_an_unknown_compression_are_named() {
        let mut old = image(b"\x7fELF", "6.1");
        old[VERSION..VERSION + 2].copy_from_slice(&0x0207_u16.to_le_bytes());
        assert!(matches!(unpack(&old), Err(BzImageError::OldProtocol(0x0207))));
        assert!(matches!(unpack(&image(b"\x89LZO....", "6.1")), Err(BzImageError::Compression(_))));
    }
}
