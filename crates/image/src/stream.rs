//! The archives of an image as one run of plain bytes: read and decompressed in a thread of their own, so that this work
//! goes side by side with hashing and writing. The channel between them is short, so little is held in memory.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::sync::mpsc::{Receiver, SyncSender};

use sha2::{Digest, Sha256};

use crate::compression::{self, Format};
use crate::{Progress, Watch};

/// Bytes that one message carries.
const PIECE: u64 = 256 << 10;

/// Messages on their way.
pub(crate) const AHEAD: usize = 16;

/// What comes of an archive: pieces, then one of the others.
pub(crate) enum Message {
    Piece(Vec<u8>),
    End,
    Failed(io::Error),
}

/// Where an archive is read from.
pub(crate) enum Source<'s> {
    File(File),
    Stream(Box<dyn Read + Send + 's>),
}

/// Progress over all archives, in bytes of them as they are stored.
pub(crate) struct Counter<'a> {
    pub done: u64,
    told: u64,
    /// 0 when nobody knows.
    pub total: u64,
    watch: Watch<'a>,
}

impl<'a> Counter<'a> {
    pub(crate) fn new(total: u64, watch: Watch<'a>) -> Self {
        Self { done: 0, told: 0, total, watch }
    }

    fn add(&mut self, count: usize) {
        self.done += count as u64;
        if count == 0 || self.done - self.told >= 1 << 20 {
            self.told = self.done;
            (self.watch)(Progress::Bytes { done: self.done, total: self.total });
        }
    }
}

/// Sends all of `source`; false when nobody listens any more.
pub(crate) fn send(
    source: Source<'_>,
    counter: &mut Counter<'_>,
    to: &SyncSender<Message>,
) -> bool {
    let source: Box<dyn Read + Send> = match source {
        Source::File(file) => Box::new(file),
        Source::Stream(stream) => stream,
    };
    let last = match pieces(source, counter, to) {
        Ok(true) => Message::End,
        Ok(false) => return false,
        Err(cause) => Message::Failed(cause),
    };
    to.send(last).is_ok()
}

fn pieces(
    source: Box<dyn Read + Send + '_>,
    counter: &mut Counter<'_>,
    to: &SyncSender<Message>,
) -> io::Result<bool> {
    struct Counted<'c, 'w, R> {
        source: R,
        counter: &'c mut Counter<'w>,
    }
    impl<R: Read> Read for Counted<'_, '_, R> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = self.source.read(buffer)?;
            self.counter.add(count);
            Ok(count)
        }
    }
    let mut packed = BufReader::with_capacity(256 << 10, Counted { source, counter });
    let format = Format::detect(packed.fill_buf()?);
    let mut plain = compression::reader(format, packed)?;
    loop {
        let mut piece = Vec::new();
        (&mut plain).take(PIECE).read_to_end(&mut piece)?;
        if piece.is_empty() {
            return Ok(true);
        }
        if to.send(Message::Piece(piece)).is_err() {
            return Ok(false);
        }
    }
}

/// One archive's plain bytes, as they come. After its end [`Self::digest`] has their hash.
pub(crate) struct Pieces<'r> {
    from: &'r Receiver<Message>,
    piece: Vec<u8>,
    read: usize,
    hash: Sha256,
    digest: Option<[u8; 32]>,
}

impl<'r> Pieces<'r> {
    pub(crate) fn new(from: &'r Receiver<Message>) -> Self {
        Self { from, piece: Vec::new(), read: 0, hash: Sha256::new(), digest: None }
    }

    /// SHA-256 of all of it; `None` before its end.
    pub(crate) fn digest(&self) -> Option<[u8; 32]> {
        self.digest
    }
}

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let there = self.fill_buf()?;
        let count = there.len().min(buffer.len());
        buffer[..count].copy_from_slice(&there[..count]);
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for Pieces<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.read == self.piece.len() && self.digest.is_none() {
            (self.piece, self.read) = (Vec::new(), 0);
            match self.from.recv() {
                Ok(Message::Piece(piece)) => {
                    self.hash.update(&piece);
                    self.piece = piece;
                }
                Ok(Message::End) => self.digest = Some(self.hash.finalize_reset().into()),
                Ok(Message::Failed(cause)) => return Err(cause),
                Err(_) => {
                    return Err(io::Error::other("the thread that reads the archive has ended"));
                }
            }
        }
        Ok(&self.piece[self.read..])
    }

    fn consume(&mut self, count: usize) {
        self.read += count;
    }
}
