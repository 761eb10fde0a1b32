//! What a command writes, to its last byte and no further.
//!
//! A command's output ends when the command does, not when its pipe does: a program that it left behind may hold the pipe
//! for ever. What the command itself wrote is in the pipe by then, so exactly that much is still read.

use std::io;
use std::os::fd::OwnedFd;

use banger_api::exec::FromAgent;
use bytes::Bytes;
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, watch};

/// As much as a pipe holds, by default.
const CHUNK: usize = 64 * 1024;

/// More than a terminal's buffers hold: a terminal does not say how much is in it.
const TERMINAL_REST: usize = 1 << 20;

/// Our end of something that the command writes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Pipe,
    Terminal,
}

/// Sends every piece to the client until the end; `ended` becomes true when the command has ended.
///
/// # Errors
/// When it cannot be read, or nobody takes the pieces any more.
pub(crate) async fn pump(
    source: &AsyncFd<OwnedFd>,
    kind: Kind,
    mut ended: watch::Receiver<bool>,
    client: &mpsc::Sender<FromAgent>,
    frame: fn(Bytes) -> FromAgent,
) -> io::Result<()> {
    let mut buffer = vec![0_u8; CHUNK];
    loop {
        tokio::select! {
            biased;
            () = async { drop(ended.wait_for(|&ended| ended).await) } => break,
            length = read(source, &mut buffer) => match length? {
                0 => return Ok(()),
                length => send(client, frame(Bytes::copy_from_slice(&buffer[..length]))).await?,
            }
        }
    }
    let fd = source.get_ref();
    let mut rest = match kind {
        Kind::Pipe => usize::try_from(rustix::io::ioctl_fionread(fd)?).unwrap_or(usize::MAX),
        Kind::Terminal => TERMINAL_REST,
    };
    while rest > 0 {
        let wanted = rest.min(CHUNK);
        let length = match end_of_terminal(rustix::io::read(fd, &mut buffer[..wanted])) {
            Ok(0) | Err(Errno::AGAIN) => break,
            Err(Errno::INTR) => continue,
            length => length?,
        };
        rest -= length;
        send(client, frame(Bytes::copy_from_slice(&buffer[..length]))).await?;
    }
    Ok(())
}

async fn send(client: &mpsc::Sender<FromAgent>, frame: FromAgent) -> io::Result<()> {
    client.send(frame).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
}

async fn read(source: &AsyncFd<OwnedFd>, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        let mut ready = source.readable().await?;
        match ready
            .try_io(|source| Ok(end_of_terminal(rustix::io::read(source.get_ref(), &mut *buffer))?))
        {
            Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(result) => return result,
            Err(_would_block) => {}
        }
    }
}

/// A terminal that nobody has open any more says EIO once it is empty (pty(7)).
fn end_of_terminal(result: rustix::io::Result<usize>) -> rustix::io::Result<usize> {
    if result == Err(Errno::IO) { Ok(0) } else { result }
}
