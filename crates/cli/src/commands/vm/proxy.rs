//! `banger vm proxy`: stdin and stdout are an ssh connection to a VM, for ssh's `ProxyCommand`.

use std::os::fd::BorrowedFd;

use banger_api::{Code, Problem};
use rustix::stdio;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;

use crate::commands::DONE;
use crate::commands::targets::vm_path;
use crate::completion;
use crate::context::Context;
use crate::exec::{read_stdin, write_all};
use crate::failure::Failure;

/// Carry an ssh connection to a running VM over stdin and stdout
#[derive(Debug, clap::Args)]
#[command(after_help = "\
For ssh's ProxyCommand: `banger ssh-config` has it. It needs no network and no port of the VM. What stands behind a dot in \
the name is ignored, so web.vm is web.

Examples:
  ssh -o ProxyCommand='banger vm proxy %h' root@web.vm")]
pub(crate) struct Args {
    /// Its name or id, with or without the zone
    #[arg(add = completion::vm_names())]
    vm: String,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let name = args.vm.split('.').next().unwrap_or_default();
    let path = vm_path(name)?;
    let stream = context.client().await?.ssh(&path).await?;
    let (mut from_guest, mut to_guest) = tokio::io::split(stream);
    let there = async {
        match own(stdio::stdin()).and_then(pipe::Receiver::from_owned_fd) {
            Ok(mut stdin) => drop(copy(&mut stdin, &mut to_guest).await),
            // A terminal or a file, which others have open, too: it is not made non-blocking.
            Err(_) => {
                let mut stdin = read_stdin()?;
                while let Some(Ok(bytes)) = stdin.recv().await {
                    if to_guest.write_all(&bytes).await.is_err() {
                        break;
                    }
                }
            }
        }
        // Nobody to tell when the guest has left.
        drop(to_guest.shutdown().await);
        Ok::<(), Problem>(())
    };
    let back = async {
        match own(stdio::stdout()).and_then(pipe::Sender::from_owned_fd) {
            Ok(mut stdout) => copy(&mut from_guest, &mut stdout).await,
            Err(_) => {
                let mut buffer = vec![0; CHUNK];
                loop {
                    match from_guest.read(&mut buffer).await {
                        Ok(0) | Err(_) => break Ok(()),
                        Ok(length) => write_all(stdio::stdout(), &buffer[..length])?,
                    }
                }
            }
        }
    };
    tokio::pin!(back);
    let written = tokio::select! {
        written = &mut back => written,
        // Its answer may still come.
        read = there => {
            read?;
            back.await
        }
    };
    match written {
        Ok(()) => Ok(DONE),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(DONE),
        Err(error) => {
            let message = "cannot pass on what the VM says";
            Err(Problem::new(Code::Internal, message).cause(&error).into())
        }
    }
}

/// What is read at once.
const CHUNK: usize = 64 * 1024;

fn own(fd: BorrowedFd<'_>) -> std::io::Result<std::os::fd::OwnedFd> {
    fd.try_clone_to_owned()
}

/// Until the one has ended, or the other takes no more.
async fn copy(
    from: &mut (impl tokio::io::AsyncRead + Unpin),
    to: &mut (impl tokio::io::AsyncWrite + Unpin),
) -> std::io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        // A connection that broke has ended, and ssh says so.
        let length = from.read(&mut buffer).await.unwrap_or(0);
        if length == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..length]).await?;
        to.flush().await?;
    }
}
