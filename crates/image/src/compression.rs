//! Compressed streams: which format it is, and a reader of what is in it. Every reader is bounded by its caller, since
//! a small file can hold a disk full of zeros.

use std::io::{self, BufRead, Read};

use flate2::bufread::MultiGzDecoder;
use liblzma::bufread::XzDecoder;
use liblzma::stream::{CONCATENATED, Stream};
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Plain,
    Gzip,
    Xz,
    Zstd,
    /// The frames of `lz4 -l`, which is what the kernel's build makes.
    Lz4Legacy,
    /// The format before xz, of kernels with `CONFIG_KERNEL_LZMA`.
    Lzma,
    Bzip2,
    Lz4,
}

/// How many first bytes [`Format::detect`] looks at.
pub(crate) const MAGIC_LENGTH: usize = 6;

/// What an xz dictionary may take; `xz -9` needs 65 MiB.
const XZ_MEMORY: u64 = 256 << 20;

/// What a zstd window may take; `zstd --long=27` and less.
const ZSTD_WINDOW: u64 = 128 << 20;

/// lz4(1), legacy frame: no block is larger when it is unpacked.
const LZ4_LEGACY_BLOCK: usize = 8 << 20;

impl Format {
    pub(crate) fn detect(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            // A skippable frame, as pzstd begins with.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [0x02, 0x21, 0x4c, 0x18, ..] => Self::Lz4Legacy,
            [0x04, 0x22, 0x4d, 0x18, ..] => Self::Lz4,
            [b'B', b'Z', b'h', ..] => Self::Bzip2,
            // The default properties, and a dictionary of a whole number of KiB.
            [0x5d, 0, 0, ..] => Self::Lzma,
            _ => Self::Plain,
        }
    }
}

/// What is in `source`. Formats that one file of may hold several streams of are read to the last.
///
/// # Errors
/// When the stream's beginning is broken, or nothing here reads the format.
pub(crate) fn reader<'a>(
    format: Format,
    source: impl BufRead + Send + 'a,
) -> io::Result<Box<dyn Read + Send + 'a>> {
    Ok(match format {
        Format::Plain => Box::new(source),
        Format::Gzip => Box::new(MultiGzDecoder::new(source)),
        Format::Xz => Box::new(XzDecoder::new_stream(
            source,
            Stream::new_stream_decoder(XZ_MEMORY, CONCATENATED)?,
        )),
        Format::Lzma => {
            Box::new(XzDecoder::new_stream(source, Stream::new_lzma_decoder(XZ_MEMORY)?))
        }
        Format::Zstd => Box::new(Zstd::new(source, Frames::All)),
        Format::Lz4Legacy => Box::new(Lz4Legacy { source, block: Vec::new(), read: 0, total: 0 }),
        Format::Bzip2 => return Err(unsupported("bzip2")),
        Format::Lz4 => return Err(unsupported("lz4")),
    })
}

/// All of one stream, which may have other bytes after it (as a kernel's payload has its size).
///
/// # Errors
/// When it is broken, or larger than `limit`.
pub(crate) fn unpack(format: Format, packed: &[u8], limit: u64) -> io::Result<Vec<u8>> {
    let single: Box<dyn Read + Send + '_> = match format {
        Format::Gzip => Box::new(flate2::bufread::GzDecoder::new(packed)),
        Format::Xz => {
            Box::new(XzDecoder::new_stream(packed, Stream::new_stream_decoder(XZ_MEMORY, 0)?))
        }
        Format::Zstd => Box::new(Zstd::new(packed, Frames::One)),
        other => reader(other, packed)?,
    };
    let mut bytes = Vec::new();
    Bounded::new(single, limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn unsupported(name: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::Unsupported,
        format!("{name} is not read; gzip, xz, zstd and legacy lz4 are"),
    )
}

/// More came out than its reader allowed.
#[derive(Debug, thiserror::Error)]
#[error("it unpacks to more than {limit} bytes")]
pub(crate) struct TooLarge {
    limit: u64,
}

/// A reader that fails when more than `limit` bytes come out of it.
pub(crate) struct Bounded<R> {
    source: R,
    left: u64,
    limit: u64,
}

impl<R: Read> Bounded<R> {
    pub(crate) fn new(source: R, limit: u64) -> Self {
        Self { source, left: limit, limit }
    }
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(buffer)?;
        match self.left.checked_sub(count as u64) {
            Some(left) => self.left = left,
            None => return Err(io::Error::other(TooLarge { limit: self.limit })),
        }
        Ok(count)
    }
}

/// Frame after frame (or only the first); skippable frames are skipped.
struct Zstd<R> {
    source: R,
    decoder: FrameDecoder,
    frames: Frames,
}

#[derive(PartialEq)]
enum Frames {
    One,
    All,
}

impl<R: BufRead> Zstd<R> {
    fn new(source: R, frames: Frames) -> Self {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(ZSTD_WINDOW);
        Self { source, decoder, frames }
    }

    /// Begins the next frame; false at the end of the source.
    fn next_frame(&mut self) -> io::Result<bool> {
        loop {
            if self.source.fill_buf()?.is_empty() {
                return Ok(false);
            }
            match self.decoder.reset(&mut self.source) {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    let skipped =
                        io::copy(&mut (&mut self.source).take(u64::from(length)), &mut io::sink())?;
                    if skipped < u64::from(length) {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
            }
        }
    }
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                self.decoder
                    .decode_blocks(&mut self.source, BlockDecodingStrategy::UptoBlocks(1))
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            }
            if self.decoder.can_collect() > 0 {
                return self.decoder.read(buffer);
            }
            // Without a first frame `blocks_decoded` is 0 as well, and then there is one to begin.
            let begun = self.decoder.bytes_read_from_source() > 0;
            if (begun && self.frames == Frames::One) || !self.next_frame()? {
                return Ok(0);
            }
        }
    }
}

/// `magic (size block)*`, each block an lz4 block of at most 8 MiB. The kernel's build appends the unpacked size, 4 bytes.
struct Lz4Legacy<R> {
    source: R,
    block: Vec<u8>,
    read: usize,
    total: u64,
}

const LZ4_LEGACY_MAGIC: u32 = 0x184c_2102;

impl<R: BufRead> Lz4Legacy<R> {
    /// The next block into `self.block`; false at the end.
    fn next_block(&mut self) -> io::Result<bool> {
        loop {
            if self.source.fill_buf()?.is_empty() {
                return Ok(false);
            }
            let mut size = [0; 4];
            self.source.read_exact(&mut size)?;
            let size = u32::from_le_bytes(size);
            if size == LZ4_LEGACY_MAGIC {
                continue;
            }
            if self.source.fill_buf()?.is_empty() {
                let unpacked = self.total & u64::from(u32::MAX);
                return if u64::from(size) == unpacked {
                    Ok(false)
                } else {
                    Err(io::ErrorKind::UnexpectedEof.into())
                };
            }
            let length = size as usize;
            if length > lz4_flex::block::get_maximum_output_size(LZ4_LEGACY_BLOCK) {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "an lz4 block is larger than blocks can be",
                ));
            }
            let mut packed = Vec::new();
            (&mut self.source).take(u64::from(size)).read_to_end(&mut packed)?;
            if packed.len() < length {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.block.resize(LZ4_LEGACY_BLOCK, 0);
            let unpacked = lz4_flex::block::decompress_into(&packed, &mut self.block)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            self.block.truncate(unpacked);
            self.read = 0;
            self.total += unpacked as u64;
            return Ok(true);
        }
    }
}

impl<R: BufRead> Read for Lz4Legacy<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.read == self.block.len() {
            if buffer.is_empty() || !self.next_block()? {
                return Ok(0);
            }
        }
        let rest = &self.block[self.read..];
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        self.read += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn all(packed: &[u8]) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        reader(Format::detect(packed), packed)?.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
    }

    fn lz4(bytes: &[u8]) -> Vec<u8> {
        let mut packed = LZ4_LEGACY_MAGIC.to_le_bytes().to_vec();
        for block in bytes.chunks(LZ4_LEGACY_BLOCK) {
            let block = lz4_flex::block::compress(block);
            packed.extend(u32::try_from(block.len()).unwrap().to_le_bytes());
            packed.extend(block);
        }
        packed
    }

    fn sample() -> Vec<u8> {
        (0..9_000_000_u32).map(|n| (n / 1000 % 251) as u8).collect()
    }

    #[test]
    fn every_format_gives_back_what_was_packed() {
        let sample = sample();
        let xz = liblzma::encode_all(&sample[..], 1).unwrap();
        for packed in [sample.clone(), gzip(&sample), xz, zstd(&sample), lz4(&sample)] {
            assert_eq!(all(&packed).unwrap(), sample, "{:?}", Format::detect(&packed));
        }
    }

    #[test]
    fn streams_one_after_the_other_are_read_to_the_last() {
        let xz = |bytes: &[u8]| liblzma::encode_all(bytes, 1).unwrap();
        for two in [
            [gzip(b"one "), gzip(b"two")].concat(),
            [xz(b"one "), xz(b"two")].concat(),
            [zstd(b"one "), vec![0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 9, 9], zstd(b"two")].concat(),
        ] {
            assert_eq!(all(&two).unwrap(), b"one two", "{:?}", Format::detect(&two));
        }
    }

    #[test]
    fn a_kernel_payload_may_have_its_size_after_it() {
        for packed in [
            gzip(b"kernel"),
            liblzma::encode_all(&b"kernel"[..], 1).unwrap(),
            zstd(b"kernel"),
            lz4(b"kernel"),
        ] {
            let format = Format::detect(&packed);
            let payload = [packed, 6_u32.to_le_bytes().to_vec()].concat();
            assert_eq!(unpack(format, &payload, 100).unwrap(), b"kernel", "{format:?}");
        }
    }

    #[test]
    fn a_bomb_is_refused_at_the_limit() {
        let zeros = vec![0; 20 << 20];
        for packed in
            [gzip(&zeros), liblzma::encode_all(&zeros[..], 1).unwrap(), zstd(&zeros), lz4(&zeros)]
        {
            assert!(packed.len() < 1 << 20);
            let error = unpack(Format::detect(&packed), &packed, 1 << 20).unwrap_err();
            assert_eq!(error.to_string(), "it unpacks to more than 1048576 bytes");
        }
    }

    #[test]
    fn a_truncated_stream_is_an_error_and_not_an_end() {
        let sample = &sample()[..300_000];
        for packed in
            [gzip(sample), liblzma::encode_all(sample, 1).unwrap(), zstd(sample), lz4(sample)]
        {
            for length in [packed.len() / 2, packed.len() - 1] {
                assert!(all(&packed[..length]).is_err(), "{:?} {length}", Format::detect(&packed));
            }
        }
    }
}
