//! From this host into a guest.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use banger_api::files::{Copied, FoundKind, Owner, Write};
use banger_api::{Code, Problem};
use banger_files::Pack;
use tokio_util::sync::CancellationToken;

use super::meter::Meter;
use super::place::os;
use super::plan::{Plan, plan, shown};
use super::{Guest, How, Outcome, WORTH_RESUMING, word};
use crate::progress::Progress;

/// Copies a file or a tree.
pub(crate) async fn upload(
    from: &[u8],
    guest: &Guest,
    to: &[u8],
    how: &How,
    progress: &Progress,
    stop: &CancellationToken,
) -> Result<Outcome, Problem> {
    let looked = banger_files::look(Path::new(&os(from)), None, false);
    let looked = looked.map_err(|error| local("look at", from, &error))?;
    let found = looked.found.ok_or_else(|| {
        Problem::new(Code::NotFound, format!("there is no {} on this host", shown(from)))
    })?;
    let there = guest.look(to, None, false).await?.found;
    let plan = plan(from, found.kind, to, there.map(|there| there.kind))?;
    let source = banger_files::open(Path::new(&os(from)));
    let source = source.map_err(|error| local("open", from, &error))?;
    let is_big = found.kind == FoundKind::File && found.size >= WORTH_RESUMING;
    let resume = if is_big { there_already(&source, guest, &plan).await? } else { 0 };
    let write = Write {
        folder: word(&plan.folder)?,
        create: how.parents,
        only: plan.top.as_deref().map(word).transpose()?,
        owner: owner(how),
        exact: how.exact,
        resume,
    };
    let total = if found.kind == FoundKind::File { found.size - resume } else { 0 };
    let text = format!("copying {}", shown(from));
    let mut meter = Meter::new(progress, text, total);
    let what = Pack { top: plan.top, from: resume, mode: None };
    let from = from.to_vec();
    let pack = move |to: &mut banger_files::Writer| -> Result<Copied, Problem> {
        let packed = banger_files::pack(source, &what, to, &mut |bytes| meter.add(bytes));
        meter.end();
        packed.map_err(|error| {
            banger_files::problem(&error).within(format!("cannot copy {}", shown(&from)))
        })
    };
    let written = banger_files::write(guest.socket().await?, write, stop, pack).await;
    let (sent, done) = written.map_err(|problem| with_parents(problem, how))?;
    Ok(Outcome::of(done.copied, sent, resume))
}

/// Passes a tar stream on from stdin.
pub(crate) async fn upload_tar(
    guest: &Guest,
    to: &[u8],
    how: &How,
    stop: &CancellationToken,
) -> Result<Outcome, Problem> {
    let write = Write {
        folder: word(to)?,
        create: how.parents,
        only: None,
        owner: how.owner.clone().map_or(Owner::Stream, Owner::User),
        exact: true,
        resume: 0,
    };
    let pass = |to: &mut banger_files::Writer| {
        let passed = io::copy(&mut io::stdin().lock(), to);
        let failed = |error| Problem::new(Code::Internal, "cannot read stdin").cause(&error);
        passed.map(|_| Copied::default()).map_err(failed)
    };
    let written = banger_files::write(guest.socket().await?, write, stop, pass).await;
    let (sent, done) = written.map_err(|problem| with_parents(problem, how))?;
    Ok(Outcome::of(done.copied, sent, 0))
}

fn with_parents(problem: Problem, how: &How) -> Problem {
    match problem.code {
        Code::NotFound if !how.parents && problem.remedy.is_none() => {
            problem.remedy("make the folder first, or have it made with --parents")
        }
        _ => problem,
    }
}

fn owner(how: &How) -> Owner {
    match &how.owner {
        Some(user) => Owner::User(user.clone()),
        None if how.exact => Owner::Stream,
        None => Owner::Folder,
    }
}

/// Bytes of the source that the guest has from a copy that broke; 0 if it has others.
async fn there_already(source: &OwnedFd, guest: &Guest, plan: &Plan) -> Result<u64, Problem> {
    let Some(part) = guest.look(&plan.path(), None, true).await?.part else { return Ok(0) };
    let file = source.as_fd().try_clone_to_owned().map(File::from);
    let hash = move || file.and_then(|file| banger_files::prefix_sha256(&file, part.length));
    let ours = tokio::task::spawn_blocking(hash).await;
    // A source that is shorter, or cannot be read, is copied from its beginning, and says why.
    let is_same = matches!(ours, Ok(Ok(ours)) if ours == part.sha256);
    Ok(if is_same { part.length } else { 0 })
}

pub(super) fn local(doing: &str, path: &[u8], error: &io::Error) -> Problem {
    let code = banger_files::problem(error).code;
    Problem::new(code, format!("cannot {doing} {}", shown(path))).cause(error)
}
