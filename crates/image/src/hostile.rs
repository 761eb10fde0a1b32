//! Input that somebody changed: no parser of this crate panics, whatever byte of its input is another. The changes are
//! random but the same in every run.

use std::io::Read;

use crate::compression::{self, Format};
use crate::listing::Listing;
use crate::modules::{Modinfo, tests::module};
use crate::{bzimage, deb, kernel};

/// xorshift64 (Marsaglia 2003).
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % end as u64).unwrap()
    }

    fn mutate(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        for _ in 0..=self.below(4) {
            match self.below(5) {
                0 => bytes.truncate(self.below(bytes.len() + 1)),
                1 => bytes.extend_from_within(..self.below(bytes.len().min(64) + 1)),
                _ if bytes.is_empty() => {}
                2 => {
                    let (at, value) =
                        (self.below(bytes.len()), [0, 1, 0x7f, 0x80, 0xff][self.below(5)]);
                    let end = (at + 1 + self.below(8)).min(bytes.len());
                    bytes[at..end].fill(value);
                }
                _ => {
                    let at = self.below(bytes.len());
                    bytes[at] ^= 1 << self.below(8);
                }
            }
        }
        bytes
    }
}

fn check(name: &str, sample: &[u8], parse: impl Fn(&[u8]) -> bool) {
    assert!(parse(sample), "{name}: the sample itself must be good");
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut refused = 0;
    for _ in 0..1500 {
        if !parse(&random.mutate(sample)) {
            refused += 1;
        }
    }
    assert!(refused > 0, "{name}: no change was noticed");
}

fn tar_with_attributes() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in
        [("./", &b""[..]), ("./etc/passwd", b"root:x:0:0::/:\n"), (&"long/".repeat(40), b"")]
    {
        builder
            .append_pax_extensions([
                ("SCHILY.xattr.user.a", &b"value"[..]),
                ("SCHILY.acl.access", b"user::rwx"),
            ])
            .unwrap();
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_entry_type(if name.ends_with('/') {
            tar::EntryType::Directory
        } else {
            tar::EntryType::Regular
        });
        builder.append_data(&mut header, name, content).unwrap();
    }
    builder.into_inner().unwrap()
}

#[test]
fn compressed_streams() {
    let sample: Vec<u8> = (0..20_000_u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
    let gzip = {
        let mut encoder = flate2::read::GzEncoder::new(&sample[..], flate2::Compression::fast());
        let mut packed = Vec::new();
        encoder.read_to_end(&mut packed).unwrap();
        packed
    };
    let xz = liblzma::encode_all(&sample[..], 1).unwrap();
    let zstd =
        ruzstd::encoding::compress_to_vec(&sample[..], ruzstd::encoding::CompressionLevel::Fastest);
    let block = lz4_flex::block::compress(&sample);
    let lz4 =
        [&[2, 0x21, 0x4c, 0x18], &u32::try_from(block.len()).unwrap().to_le_bytes()[..], &block]
            .concat();
    for (format, packed) in
        [(Format::Gzip, gzip), (Format::Xz, xz), (Format::Zstd, zstd), (Format::Lz4Legacy, lz4)]
    {
        check(&format!("{format:?}"), &packed, |bytes| {
            compression::unpack(format, bytes, 1 << 20).is_ok()
        });
        check(&format!("{format:?} stream"), &packed, |bytes| {
            let mut unpacked = Vec::new();
            let reader = compression::reader(format, bytes);
            reader.is_ok_and(|reader| {
                compression::Bounded::new(reader, 1 << 20).read_to_end(&mut unpacked).is_ok()
            })
        });
    }
}

#[test]
fn kernel_images() {
    let packed = liblzma::encode_all(&b"\x7fELF and more"[..], 1).unwrap();
    check("bzImage", &bzimage::tests::image(&packed, "6.1.0"), |bytes| {
        bzimage::is_bzimage(bytes) && bzimage::unpack(bytes).is_ok()
    });
    check("vmlinux", &kernel::tests::vmlinux(), |bytes| {
        kernel::check_bootable("x".as_ref(), bytes).is_ok()
    });
}

#[test]
fn kernel_modules() {
    let sample = module(&["depends=a,b", "softdep=pre: c", "alias=d"]);
    check("module", &sample, |bytes| Modinfo::parse(bytes).is_some());
}

#[test]
fn packages() {
    let bytes =
        deb::tests::package(&[("debian-binary", b"2.0\n"), ("data.tar", &tar_with_attributes())]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.deb");
    check("deb", &bytes, |bytes| {
        std::fs::write(&path, bytes).unwrap();
        let Ok(mut archive) = deb::open(&path) else { return false };
        archive.entries().is_ok_and(|mut entries| entries.all(|entry| entry.is_ok()))
    });
}

#[test]
fn listings() {
    check("tar", &tar_with_attributes(), |bytes| Listing::read(bytes).is_ok());
}
