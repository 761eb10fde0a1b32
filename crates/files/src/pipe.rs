//! Between a thread that packs or unpacks, which blocks, and the session, which must not: a few chunks on their way, and who
//! is ahead waits.

use std::io::{self, Read, Write};

use banger_api::files::CHUNK;
use bytes::Bytes;
use tokio::sync::mpsc;

/// Chunks under way: enough that neither side waits for the other at each one.
const CHUNKS: usize = 4;

/// Where a stream that is packed goes.
#[derive(Debug)]
pub struct Writer {
    chunks: mpsc::Sender<Bytes>,
    buffer: Vec<u8>,
}

/// A writer, and its chunks; their end is when the writer is gone.
#[must_use]
pub fn writer() -> (Writer, mpsc::Receiver<Bytes>) {
    let (chunks, receiver) = mpsc::channel(CHUNKS);
    (Writer { chunks, buffer: Vec::with_capacity(CHUNK) }, receiver)
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(CHUNK - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..count]);
        if self.buffer.len() == CHUNK {
            self.flush()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::replace(&mut self.buffer, Vec::with_capacity(CHUNK));
        self.chunks.blocking_send(chunk.into()).map_err(|_| {
            io::Error::new(io::ErrorKind::BrokenPipe, "nobody takes the stream any more")
        })
    }
}

/// A piece of a stream that is unpacked.
#[derive(Debug)]
pub enum Piece {
    Data(Bytes),
    /// All of it has come. A stream that ends without this was cut off.
    End,
}

/// Where a stream that is unpacked comes from.
#[derive(Debug)]
pub struct Reader {
    pieces: mpsc::Receiver<Piece>,
    present: Bytes,
    ended: bool,
}

/// A reader, and where its pieces are put.
#[must_use]
pub fn reader() -> (mpsc::Sender<Piece>, Reader) {
    let (sender, pieces) = mpsc::channel(CHUNKS);
    (sender, Reader { pieces, present: Bytes::new(), ended: false })
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.present.is_empty() && !self.ended {
            match self.pieces.blocking_recv() {
                Some(Piece::Data(bytes)) => self.present = bytes,
                Some(Piece::End) => self.ended = true,
                None => {
                    let cut = "the stream was cut off before its end";
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, cut));
                }
            }
        }
        let bytes = self.present.split_to(self.present.len().min(buffer.len()));
        buffer[..bytes.len()].copy_from_slice(&bytes);
        Ok(bytes.len())
    }
}
