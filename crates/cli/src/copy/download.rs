//! From a guest to this host. What the guest sends is not believed: it lands under the name that was asked for, below the
//! folder that was named, or not at all.

use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use banger_api::files::{FoundKind, Read};
use banger_api::{Code, Problem};
use banger_files::{Ids, Target, Unpack};
use tokio_util::sync::CancellationToken;

use super::meter::Meter;
use super::place::os;
use super::plan::{Plan, plan, shown};
use super::upload::local;
use super::{Guest, How, Outcome, WORTH_RESUMING, word};
use crate::progress::Progress;

/// Copies a file or a tree.
pub(crate) async fn download(
    guest: &Guest,
    from: &[u8],
    to: &[u8],
    how: &How,
    progress: &Progress,
    stop: &CancellationToken,
) -> Result<Outcome, Problem> {
    let found = guest.look(from, None, false).await?.found.ok_or_else(|| {
        let message = format!("there is no {} in VM {}", shown(from), guest.name);
        Problem::new(Code::NotFound, message)
    })?;
    let there = banger_files::look(Path::new(&os(to)), None, false);
    let there = there.map_err(|error| local("look at", to, &error))?.found;
    let plan = plan(from, found.kind, to, there.map(|there| there.kind))?;
    let folder = if plan.folder.is_empty() { os(b".") } else { os(&plan.folder) };
    let folder = Path::new(&folder);
    if how.parents {
        std::fs::create_dir_all(folder)
            .map_err(|error| local("make the folder", &plan.folder, &error))?;
    }
    let target = Target::open(folder)
        .map_err(|error| local("open the folder", folder.as_os_str().as_bytes(), &error.into()))?;
    let is_big = found.kind == FoundKind::File && found.size >= WORTH_RESUMING;
    let resume = if is_big { here_already(guest, from, &plan).await? } else { 0 };
    let read =
        Read { path: word(from)?, top: plan.top.as_deref().map(word).transpose()?, from: resume };
    let is_root = rustix::process::geteuid().is_root();
    let unpack = Unpack {
        only: plan.top,
        ids: if how.exact && is_root { Ids::Stream } else { Ids::Own },
        exact: how.exact,
        umask: umask(),
        resume,
    };
    let total = if found.kind == FoundKind::File { found.size - resume } else { 0 };
    let text = format!("copying {}:{}", guest.name, shown(from));
    let mut meter = Meter::new(progress, text, total);
    let to = to.to_vec();
    let take = move |stream: &mut banger_files::Reader| {
        let unpacked =
            banger_files::unpack(stream, &target, &unpack, &mut |bytes| meter.add(bytes));
        meter.end();
        unpacked.map_err(|error| {
            banger_files::problem(&error).within(format!("cannot copy to {}", shown(&to)))
        })
    };
    let (made, done) = banger_files::read(guest.socket().await?, read, stop, take).await?;
    Ok(Outcome::of(made, done.copied, resume))
}

/// Passes a tar stream on to stdout; `None` when nobody takes it any more.
pub(crate) async fn download_tar(
    guest: &Guest,
    from: &[u8],
    stop: &CancellationToken,
) -> Result<Option<Outcome>, Problem> {
    let top = super::plan::own_name(from).map(word).transpose()?;
    let read = Read { path: word(from)?, top, from: 0 };
    let pass = |stream: &mut banger_files::Reader| {
        let mut stdout = io::stdout().lock();
        match io::copy(stream, &mut stdout).and_then(|_| stdout.flush()) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                Err(Problem::new(Code::Cancelled, CLOSED))
            }
            Err(error) => {
                Err(Problem::new(Code::Internal, "cannot pass the stream on").cause(&error))
            }
        }
    };
    match banger_files::read(guest.socket().await?, read, stop, pass).await {
        Ok((_, done)) => Ok(Some(Outcome::of(done.copied, Default::default(), 0))),
        Err(problem) if problem.message == CLOSED => Ok(None),
        Err(problem) => Err(problem),
    }
}

const CLOSED: &str = "nobody reads our stdout any more";

/// Bytes of the file that are here from a copy that broke; 0 if the guest has others.
async fn here_already(guest: &Guest, from: &[u8], plan: &Plan) -> Result<u64, Problem> {
    let path = plan.path();
    let look = move || banger_files::look(Path::new(&os(&path)), None, true);
    let Ok(Ok(ours)) = tokio::task::spawn_blocking(look).await else { return Ok(0) };
    let Some(part) = ours.part else { return Ok(0) };
    let theirs = guest.look(from, Some(part.length), false).await?.prefix_sha256;
    Ok(if theirs.is_some_and(|theirs| theirs == part.sha256) { part.length } else { 0 })
}

/// What this process leaves out of modes. It can be read only by setting it, so it is set back.
fn umask() -> u32 {
    let mask = rustix::process::umask(rustix::fs::Mode::empty());
    rustix::process::umask(mask);
    mask.as_raw_mode()
}
