//! `banger vm cp`

use std::ffi::OsString;

use banger_api::{Code, Problem, Size};
use tokio_util::sync::CancellationToken;

use crate::commands::DONE;
use crate::commands::targets::vm_path;
use crate::context::{Context, Format};
use crate::copy::{self, Guest, How, Outcome, Place};
use crate::failure::{Failure, STDOUT_CLOSED};
use crate::signals::Signals;
use crate::{out, terminal};

/// Copy files and folders to and from a running VM
#[derive(Debug, clap::Args)]
#[command(after_help = "\
One side is NAME:PATH, where a relative PATH is below /root; the other a path of this host, or - for a tar stream. A host \
path with a : in it is written ./a:b.

SRC       DST is a folder   DST is not there          DST is a file
file      DST/file          DST (DST/ is refused)     replaced
folder    DST/folder        DST, as a copy of it      refused
folder/.  its content in it DST, as a copy of it      refused

Permissions, times, symbolic links, hard links and holes are kept; files get the owner of the folder they are copied into, \
on this host yours, and no set-user-id bits. With --archive owners and all bits are kept. Folders that are there keep their \
own. Links within a tree are copied as links, and none is followed out of DST. Devices and sockets are left out, and named.

A file appears under its name when it is whole. A copy of a file of 16 MiB or more that broke goes on where it broke when \
it is repeated, if what is there is still the same.

Examples:
  banger vm cp app.conf web:/etc/app/           into a folder
  banger vm cp -a ./site web:/srv/site          a tree, as it is
  banger vm cp web:/var/log/syslog .            from the VM
  banger vm cp --owner dev src web:/home/dev    for a user of the VM
  tar -c src | banger vm cp - web:/srv          a tar stream, owners as it says
  banger vm cp web:/etc - | tar -t              and the other way round")]
pub(crate) struct Args {
    /// What is copied: PATH, NAME:PATH, or - for a tar stream on stdin
    #[arg(value_name = "SRC", allow_hyphen_values = true)]
    from: OsString,
    /// Where it is copied to: NAME:PATH, PATH, or - for a tar stream on stdout
    #[arg(value_name = "DST", allow_hyphen_values = true)]
    to: OsString,
    /// Keep owners (by number), all bits of the modes, capabilities and access control lists
    #[arg(short, long)]
    archive: bool,
    /// Give it to this user of the VM: NAME, UID, NAME:GROUP or UID:GID
    #[arg(long, value_name = "USER")]
    owner: Option<String>,
    /// Make the folder that DST is in, and those above it
    #[arg(short, long)]
    parents: bool,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let how = How { exact: args.archive, owner: args.owner, parents: args.parents };
    let sides = (Place::parse(&args.from), Place::parse(&args.to));
    let vm = match &sides {
        (Place::Guest { .. }, Place::Guest { .. }) => {
            let problem = refuse("both sides are in a VM");
            return Err(problem.remedy("copy to this host first, or pipe: `banger vm cp A:PATH - | banger vm cp - B:PATH`").into());
        }
        (Place::Guest { vm, .. }, to) => {
            if how.owner.is_some() {
                return Err(
                    refuse("--owner names a user of the VM, and is for copies into it").into()
                );
            }
            if *to == Place::Stream && terminal::stdout_is_terminal() {
                return Err(refuse("a tar stream is not for a terminal")
                    .remedy("pipe it: `banger vm cp NAME:PATH - | tar -t`")
                    .into());
            }
            vm
        }
        (_, Place::Guest { vm, .. }) => vm,
        _ => return Err(refuse("neither side is in a VM").remedy("write it as NAME:PATH").into()),
    };
    let path = vm_path(vm)?;
    let mut signals = Signals::listen()?;
    let client = signals.unless(async { Ok(context.client().await?) }).await?;
    let guest = Guest { client, path, name: vm.clone() };
    let stop = CancellationToken::new();
    let is_stream = matches!(sides, (Place::Stream, _) | (_, Place::Stream));
    let copying = async {
        match &sides {
            (Place::Host(from), Place::Guest { path, .. }) => {
                copy::upload(from, &guest, path, &how, &context.progress, &stop).await.map(Some)
            }
            (Place::Stream, Place::Guest { path, .. }) => {
                copy::upload_tar(&guest, path, &how, &stop).await.map(Some)
            }
            (Place::Guest { path, .. }, Place::Host(to)) => {
                copy::download(&guest, path, to, &how, &context.progress, &stop).await.map(Some)
            }
            (Place::Guest { path, .. }, _) => copy::download_tar(&guest, path, &stop).await,
            _ => unreachable!("it was refused above"),
        }
    };
    tokio::pin!(copying);
    let outcome = tokio::select! {
        outcome = &mut copying => outcome?,
        number = signals.next() => {
            stop.cancel();
            // Until no half file is left. What is at the other end of a pipe may take for ever.
            if !is_stream && copying.await.is_err() {
                context.hint("stopped; a file of 16 MiB or more goes on from here when the command is repeated");
            }
            return Err(Failure::Signal(number));
        }
    };
    let Some(outcome) = outcome else { return Ok(STDOUT_CLOSED) };
    tell(&outcome, &sides.1, context)?;
    Ok(DONE)
}

fn tell(outcome: &Outcome, to: &Place, context: &Context) -> Result<(), Failure> {
    if context.format == Format::Human {
        for what in &outcome.left_out {
            context.progress.suspend(|| out::stderr(&format!("left out: {what}\n")));
        }
        let more = outcome.left_out_count.saturating_sub(outcome.left_out.len() as u64);
        if more > 0 {
            context.progress.suspend(|| out::stderr(&format!("left out: {more} more\n")));
        }
    }
    if *to == Place::Stream {
        return Ok(());
    }
    context.print(outcome, || {
        if context.quiet {
            return String::new();
        }
        let resumed = match outcome.resumed_at {
            0 => String::new(),
            bytes => format!("; {} were there already", Size::bytes(bytes)),
        };
        let entries = if outcome.entries == 1 { "entry" } else { "entries" };
        format!("copied {} {entries}, {}{resumed}\n", outcome.entries, Size::bytes(outcome.bytes))
    })
}

fn refuse(message: &str) -> Problem {
    Problem::new(Code::Invalid, message)
}
