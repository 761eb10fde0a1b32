//! Files to and from the guest: a WebSocket in, a tar stream packed or unpacked, as `banger_api::files` lays down.
//!
//! ```text
//! client ── frames ── this ── a few chunks ── thread: pack or unpack ── files
//! ```
//!
//! The thread blocks where the disk or the client is slow; memory stays bounded by the few chunks between.

use std::ffi::OsStr;
use std::fs::DirBuilder;
use std::io::Write as _;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use banger_api::exec::Word;
use banger_api::files::{Copied, Done, FromAgent, Owner, Read, Start, ToAgent, Write};
use banger_api::{Code, Problem};
use banger_files::{Ids, Pack, Piece, Reader, Target, Unpack, Writer};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use crate::exec::say_goodbye;
use crate::users;

type Sink<S> = SplitSink<WebSocketStream<S>, Message>;
type Frames<S> = SplitStream<WebSocketStream<S>>;

/// The client is no longer there, so nobody is to be told.
struct Gone;

/// Serves one session from its first frame to its last.
pub(crate) async fn serve<S>(socket: WebSocketStream<S>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut sink, mut frames) = socket.split();
    let Ok(ToAgent::Start(start)) = next(&mut frames).await else { return };
    let ended = match *start {
        Start::Look(look) => {
            let path = look.path.clone();
            let looked = in_thread(move || {
                absolute(&look.path)?;
                banger_files::look(&look).map_err(|error| at("look at", &path, &error))
            });
            let looked = answer(looked).await;
            Ok(looked.map(|looked| Done { looked: Some(looked), ..Done::default() }))
        }
        Start::Read(read) => serve_read(read, &mut sink, &mut frames).await,
        Start::Write(write) => serve_write(write, &mut frames).await,
    };
    let last = match ended {
        Ok(Ok(done)) => FromAgent::Done(Box::new(done)),
        Ok(Err(problem)) => FromAgent::Failed(Box::new(problem)),
        Err(Gone) => return,
    };
    // What a client that is told of a failure still sends is thrown away here.
    if sink.send(Message::Binary(last.encode())).await.is_ok() {
        say_goodbye(sink, frames).await;
    }
}

async fn serve_read<S>(
    read: Read,
    sink: &mut Sink<S>,
    frames: &mut Frames<S>,
) -> Result<Result<Done, Problem>, Gone>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut writer, mut chunks) = banger_files::writer();
    let packed = in_thread(move || {
        let copied = pack(&read, &mut writer)?;
        writer.flush().map_err(|error| banger_files::problem(&error))?;
        Ok(copied)
    });
    let post = async {
        while let Some(chunk) = chunks.recv().await {
            sink.send(Message::Binary(FromAgent::Data(chunk).encode())).await.map_err(|_| Gone)?;
        }
        Ok(())
    };
    tokio::select! {
        posted = post => posted?,
        // A client that reads has nothing more to say but goodbye.
        _ = next(frames) => return Err(Gone),
    }
    Ok(answer(packed).await.map(|copied| Done { copied, ..Done::default() }))
}

fn pack(read: &Read, to: &mut Writer) -> Result<Copied, Problem> {
    let path = absolute(&read.path)?;
    let source = banger_files::open(path).map_err(|error| at("open", &read.path, &error))?;
    let is_folder = rustix::fs::fstat(&source).is_ok_and(|stat| {
        rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Directory
    });
    let top = match &read.top {
        Some(top) => Some(one_name(top)?),
        None if is_folder => None,
        None => path.file_name().map(|name| name.as_bytes().to_vec()),
    };
    let how = Pack { top, from: read.from };
    banger_files::pack(source, &how, to, &mut |_| ()).map_err(|error| {
        let message = format!("cannot copy {} from the guest", shown(&read.path));
        within(message, &banger_files::problem(&error))
    })
}

async fn serve_write<S>(write: Write, frames: &mut Frames<S>) -> Result<Result<Done, Problem>, Gone>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (pieces, mut reader) = banger_files::reader();
    let unpacked = in_thread(move || unpack(&write, &mut reader));
    loop {
        let piece = match next(frames).await {
            Ok(ToAgent::Data(bytes)) => Piece::Data(bytes),
            Ok(ToAgent::End) => Piece::End,
            Ok(ToAgent::Start(_)) | Err(Gone) => {
                // The thread ends where it is: the file that it was at does not appear.
                drop(pieces);
                drop(answer(unpacked).await);
                return Err(Gone);
            }
        };
        let is_end = matches!(piece, Piece::End);
        // A thread that takes no more has ended, and says why.
        if pieces.send(piece).await.is_err() || is_end {
            break;
        }
    }
    Ok(answer(unpacked).await.map(|copied| Done { copied, ..Done::default() }))
}

fn unpack(write: &Write, from: &mut Reader) -> Result<Copied, Problem> {
    let path = absolute(&write.folder)?;
    if write.create {
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(path)
            .map_err(|error| at("make the folder", &write.folder, &error))?;
    }
    let open = |error: rustix::io::Errno| at("open the folder", &write.folder, &error.into());
    let target = Target::open(path).map_err(open)?;
    let ids = match &write.owner {
        Owner::Stream => Ids::Stream,
        Owner::User(user) => {
            let user = users::find(Some(user))
                .map_err(|error| Problem::from_error(Code::Invalid, &error))?;
            Ids::All(user.uid, user.gid)
        }
        Owner::Folder => {
            let stat = rustix::fs::fstat(target.as_fd()).map_err(open)?;
            Ids::All(stat.st_uid, stat.st_gid)
        }
    };
    let only = write.only.as_ref().map(one_name).transpose()?;
    let how = Unpack { only, ids, exact: write.exact, umask: 0, resume: write.resume };
    banger_files::unpack(from, &target, &how, &mut |_| ()).map_err(|error| {
        let message = format!("cannot copy into {} of the guest", shown(&write.folder));
        within(message, &banger_files::problem(&error))
    })
}

fn absolute(path: &Word) -> Result<&Path, Problem> {
    let as_path = Path::new(OsStr::from_bytes(path.as_bytes()));
    if as_path.is_absolute() {
        return Ok(as_path);
    }
    let message = format!("{:?} is no absolute path of the guest", shown(path));
    Err(Problem::new(Code::Invalid, message))
}

fn one_name(word: &Word) -> Result<Vec<u8>, Problem> {
    let name = word.as_bytes();
    if name.is_empty() || name.contains(&b'/') || matches!(name, b"." | b"..") {
        let message = format!("{:?} is not the name of a file", shown(word));
        return Err(Problem::new(Code::Invalid, message));
    }
    Ok(name.to_vec())
}

fn at(doing: &str, path: &Word, error: &std::io::Error) -> Problem {
    within(format!("cannot {doing} {} of the guest", shown(path)), &banger_files::problem(error))
}

/// The problem as the cause of one that says where.
fn within(message: String, problem: &Problem) -> Problem {
    let mut whole = Problem::new(problem.code, message).because(problem.message.clone());
    whole.causes.extend(problem.causes.iter().cloned());
    whole.remedy.clone_from(&problem.remedy);
    whole
}

fn shown(path: &Word) -> String {
    String::from_utf8_lossy(path.as_bytes()).into_owned()
}

/// Work that blocks. The server runs before the guest's other programs; what a copy does is no more than they are.
fn in_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Problem> + Send + 'static,
) -> std::io::Result<oneshot::Receiver<Result<T, Problem>>> {
    let (tell, told) = oneshot::channel();
    let run = move || {
        // On Linux this is the thread's own (setpriority(2), BUGS).
        rustix::process::setpriority_process(None, 0).ok();
        drop(tell.send(work()));
    };
    std::thread::Builder::new().name("files".to_owned()).spawn(run)?;
    Ok(told)
}

async fn answer<T>(
    thread: std::io::Result<oneshot::Receiver<Result<T, Problem>>>,
) -> Result<T, Problem> {
    let died = || Problem::new(Code::Guest, "the agent's thread for files has died");
    match thread {
        Ok(told) => told.await.unwrap_or_else(|_| Err(died())),
        Err(error) => {
            Err(Problem::new(Code::Guest, "the agent cannot start a thread").cause(&error))
        }
    }
}

async fn next<S>(frames: &mut Frames<S>) -> Result<ToAgent, Gone>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        match frames.next().await {
            Some(Ok(Message::Binary(bytes))) => return ToAgent::decode(&bytes).map_err(|_| Gone),
            None | Some(Ok(Message::Close(_)) | Err(_)) => return Err(Gone),
            // Pings are answered by the library; texts are nobody's.
            Some(Ok(_)) => {}
        }
    }
}
