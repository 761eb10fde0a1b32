//! Input that somebody changed: no parser of this crate panics, whatever byte of its input is another. The changes are
//! random but the same in every run.

use std::io::Read;

use crate::compression::{self, Format};
use crate::modules::{Modinfo, tests::module};
use crate::property;
use crate::samples::{self, file, folder, hard_link, item, symlink};
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

/// Every kind of entry and of header before it.
fn every_kind_of_entry() -> [Vec<u8>; 2] {
    let mut sparse = item("old-sparse", b'S').size(10).header();
    sparse[257..265].copy_from_slice(b"ustar  \0");
    sparse[386..398].copy_from_slice(b"00000010000\0");
    sparse[398..410].copy_from_slice(b"00000000012\0");
    sparse[483..495].copy_from_slice(b"00000020000\0");
    let mut map = b"1\n4096\n10\n".to_vec();
    map.resize(512, 0);
    map.extend(b"0123456789");
    let mut lower = samples::tar(&[
        folder("./").mode(0o700),
        file("etc/passwd", "lisa:x:502:1::/:\n"),
        file("a", vec![7; 3000]).xattr("user.a", "value").record("mtime", "5.25"),
        file("l/".repeat(60), ""),
        file("b", "0123456789")
            .record("GNU.sparse.map", "0,5,4096,5")
            .record("GNU.sparse.size", "9000"),
        file("GNUSparseFile.0/c", map)
            .record("GNU.sparse.major", "1")
            .record("GNU.sparse.minor", "0")
            .record("GNU.sparse.name", "c")
            .record("GNU.sparse.realsize", "5000"),
        file("d", "").record("SCHILY.acl.access", "u::rw,u:lisa:r,g::r,m::r,o::-"),
        hard_link("e", "a"),
        symlink("f", "/l"),
        samples::device("g", b'3', 1, 3),
        item("h", b'6'),
    ]);
    lower.truncate(lower.len() - 1024);
    lower.extend(samples::sealed(sparse));
    lower.extend([b'x'; 512]);
    lower.extend([0; 1024]);
    let upper = samples::tar(&[
        folder("l"),
        symlink("f", "/l"),
        file("c", "1"),
        file("f/new", "1"),
        file("l/.wh..wh..opq", ""),
        file(".wh.a", ""),
        folder("b"),
        file("b/.wh.c", ""),
        hard_link("i", "c"),
    ]);
    [lower, upper]
}

/// What the fuzz target begins with, and what was found by it.
fn seeds() -> Vec<(String, Vec<u8>)> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/seeds/layer");
    let mut seeds: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.display().to_string(), std::fs::read(&path).unwrap()))
        .collect();
    seeds.sort();
    seeds
}

#[test]
fn layers() {
    for (name, seed) in seeds() {
        let _may_be_refused = property::holds(&seed);
        assert!(!seed.is_empty(), "{name}");
    }
    for (name, sample) in ["lower", "upper"].iter().zip(every_kind_of_entry()) {
        check(name, &sample, property::holds);
    }
}

/// A checksum that is always right lets the changes come further.
#[test]
fn layers_whose_headers_are_sealed_again() {
    let [lower, _] = every_kind_of_entry();
    check("sealed", &lower, |bytes| property::holds(&property::sealed(bytes)));
}
