//! The client's side of a session (`banger_api::files`): packs into it or unpacks out of it in a thread, and gives the
//! problem of whichever side failed first. When it returns, nothing is unpacked any more.

use std::io::{self, Write as _};

use banger_api::files::{Copied, Done, FromAgent, Look, Looked, Read, Start, ToAgent, Write};
use banger_api::{Code, Problem};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use tokio_util::sync::CancellationToken;

use crate::pipe::{self, Piece, Reader, Writer};

/// The WebSocket that a session is on, over whatever stream leads to the agent.
pub type SessionSocket<S> = WebSocketStream<S>;

/// What is at a path of the guest.
///
/// # Errors
/// What the agent says, or that the connection broke.
pub async fn look_at<S>(mut socket: SessionSocket<S>, look: Look) -> Result<Looked, Problem>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    say(&mut socket, ToAgent::Start(Box::new(Start::Look(look)))).await?;
    match next(&mut socket).await? {
        FromAgent::Done(done) => {
            done.looked.ok_or_else(|| Problem::new(Code::Guest, "the agent did not look"))
        }
        FromAgent::Failed(problem) => Err(*problem),
        FromAgent::Data(_) => Err(out_of_order()),
    }
}

/// Writes to the guest what `pack` makes, in a thread of its own; what the guest has made of it.
///
/// # Errors
/// What `pack` or the agent says, that the connection broke, or that it was stopped.
pub async fn write<S>(
    mut socket: SessionSocket<S>,
    write: Write,
    stop: &CancellationToken,
    pack: impl FnOnce(&mut Writer) -> Result<Copied, Problem> + Send + 'static,
) -> Result<(Copied, Done), Problem>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    say(&mut socket, ToAgent::Start(Box::new(Start::Write(write)))).await?;
    let (mut writer, mut chunks) = pipe::writer();
    let mut packed = in_thread("pack", move || {
        let copied = pack(&mut writer)?;
        writer.flush().map_err(|error| crate::problem(&error))?;
        Ok(copied)
    })?;
    let mut sent = None;
    let ended = loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break Err(stopped()),
            frame = next(&mut socket) => match frame {
                Ok(FromAgent::Done(done)) => break Ok(done),
                Ok(FromAgent::Failed(problem)) => break Err(*problem),
                Ok(FromAgent::Data(_)) => break Err(out_of_order()),
                Err(problem) => break Err(problem),
            },
            chunk = chunks.recv(), if sent.is_none() => {
                let said = match chunk {
                    Some(chunk) => say(&mut socket, ToAgent::Data(chunk)).await,
                    None => match outcome(&mut packed).await {
                        Ok(copied) => {
                            sent = Some(copied);
                            say(&mut socket, ToAgent::End).await
                        }
                        Err(problem) => return Err(problem),
                    },
                };
                if let Err(problem) = said {
                    // The agent may have said why before it left.
                    break match next(&mut socket).await {
                        Ok(FromAgent::Failed(problem)) => Err(*problem),
                        _ => Err(problem),
                    };
                }
            }
        }
    };
    // A thread that still packs ends when its chunks go nowhere, or with the process: it may be reading what never comes.
    let done = ended?;
    Ok((sent.ok_or_else(out_of_order)?, *done))
}

/// Reads from the guest, and has `unpack` take it in a thread of its own.
///
/// # Errors
/// What `unpack` or the agent says, that the connection broke, or that it was stopped.
pub async fn read<S, T: Send + 'static>(
    mut socket: SessionSocket<S>,
    read: Read,
    stop: &CancellationToken,
    unpack: impl FnOnce(&mut Reader) -> Result<T, Problem> + Send + 'static,
) -> Result<(T, Done), Problem>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    say(&mut socket, ToAgent::Start(Box::new(Start::Read(read)))).await?;
    let (pieces, mut reader) = pipe::reader();
    let mut unpacked = in_thread("unpack", move || unpack(&mut reader))?;
    let ended = loop {
        let frame = tokio::select! {
            biased;
            () = stop.cancelled() => break Err(stopped()),
            frame = next(&mut socket) => frame,
        };
        let piece = match frame {
            Ok(FromAgent::Data(bytes)) => Piece::Data(bytes),
            Ok(FromAgent::Done(done)) => break Ok(done),
            Ok(FromAgent::Failed(problem)) => break Err(*problem),
            Err(problem) => break Err(problem),
        };
        tokio::select! {
            () = stop.cancelled() => break Err(stopped()),
            given = pieces.send(piece) => if given.is_err() {
                // It has ended, which is too early: it says why.
                outcome(&mut unpacked).await?;
                return Err(out_of_order());
            },
        }
    };
    if ended.is_ok() {
        // It says itself when it has ended before.
        drop(pieces.send(Piece::End).await);
    }
    drop(pieces);
    let unpacked = outcome(&mut unpacked).await;
    let done = ended?;
    Ok((unpacked?, *done))
}

type Outcome<T> = oneshot::Receiver<Result<T, Problem>>;

fn in_thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> Result<T, Problem> + Send + 'static,
) -> Result<Outcome<T>, Problem> {
    let (tell, outcome) = oneshot::channel();
    let run = move || drop(tell.send(work()));
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .map_err(|error| Problem::new(Code::Internal, "cannot start a thread").cause(&error))?;
    Ok(outcome)
}

async fn outcome<T>(outcome: &mut Outcome<T>) -> Result<T, Problem> {
    outcome
        .await
        .unwrap_or_else(|_| Err(Problem::new(Code::Internal, "the thread of a copy has died")))
}

async fn say<S>(socket: &mut SessionSocket<S>, frame: ToAgent) -> Result<(), Problem>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    socket.send(Message::Binary(frame.encode())).await.map_err(|error| lost().cause(&error))
}

/// Loses nothing when dropped.
async fn next<S>(socket: &mut SessionSocket<S>) -> Result<FromAgent, Problem>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        match socket.next().await {
            Some(Ok(Message::Binary(bytes))) => {
                return FromAgent::decode(&bytes).map_err(|error| {
                    Problem::new(Code::Guest, "the guest's agent sent what is no frame")
                        .cause(&error)
                });
            }
            Some(Ok(Message::Close(_))) | None => {
                let cut: io::Error = io::ErrorKind::UnexpectedEof.into();
                return Err(lost().cause(&cut));
            }
            Some(Ok(_)) => {}
            Some(Err(WsError::ConnectionClosed | WsError::AlreadyClosed)) => return Err(lost()),
            Some(Err(error)) => return Err(lost().cause(&error)),
        }
    }
}

fn lost() -> Problem {
    Problem::new(Code::Guest, "the connection to the guest broke before the copy was done")
        .remedy("`banger vm list` shows whether the VM still runs; then repeat the copy")
}

fn out_of_order() -> Problem {
    Problem::new(Code::Guest, "the guest's agent sent a frame out of its order")
}

fn stopped() -> Problem {
    Problem::new(Code::Cancelled, "the copy was stopped")
}
