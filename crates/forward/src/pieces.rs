//! Pieces on a stream: a length of two bytes, then as many bytes.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The length of a piece, in bytes.
const HEAD: usize = 2;

/// The longest piece, and the longest datagram, in bytes.
pub(crate) const LONGEST: usize = u16::MAX as usize;

/// Room for one piece and its length.
#[derive(Debug)]
pub(crate) struct Piece(Box<[u8]>);

impl Piece {
    /// For pieces of at most `most` bytes, which are at most [`LONGEST`].
    pub(crate) fn with_room(most: usize) -> Self {
        Self(vec![0; HEAD + most.min(LONGEST)].into_boxed_slice())
    }

    /// Where the next piece's bytes go.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        &mut self.0[HEAD..]
    }

    /// Writes the first `length` bytes of the room as one piece.
    pub(crate) async fn write(
        &mut self,
        length: usize,
        stream: &mut (impl AsyncWrite + Unpin),
    ) -> io::Result<()> {
        let head = u16::try_from(length).expect("the room has no more bytes than a length can say");
        self.0[..HEAD].copy_from_slice(&head.to_be_bytes());
        stream.write_all(&self.0[..HEAD + length]).await?;
        stream.flush().await
    }
}

/// The length of the next piece, whose bytes are to be read next.
///
/// # Errors
/// `UnexpectedEof` when the stream has ended.
pub(crate) async fn length(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<usize> {
    stream.read_u16().await.map(usize::from)
}

/// The next piece whole, in `buffer`, which has room for the longest.
///
/// # Errors
/// `UnexpectedEof` when the stream has ended.
pub(crate) async fn read<'a>(
    buffer: &'a mut [u8],
    stream: &mut (impl AsyncRead + Unpin),
) -> io::Result<&'a [u8]> {
    let length = length(stream).await?;
    stream.read_exact(&mut buffer[..length]).await?;
    Ok(&buffer[..length])
}
