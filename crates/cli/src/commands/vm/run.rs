//! `banger vm run`: create, start, a command or a shell, and with `--rm` the end of it all.
//!
//! With `--rm` the stream of the creation's events is the VM's lease: it stays open until the VM is deleted, so
//! whatever ends this process ends the VM too.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use banger_api::channel::InitState;
use banger_api::client::Client;
use banger_api::exec::Start;
use banger_api::operation::Operation;
use banger_api::vm::Vm;
use banger_api::{Code, Problem};
use banger_workspace::Plan;
use clap::ValueEnum;
use http::Method;
use serde_json::Value;

use crate::commands::DONE;
use crate::commands::vm::carry::{self, Carry};
use crate::commands::vm::command::Flags;
use crate::commands::vm::exec::in_workspace;
use crate::commands::vm::spec::Spec;
use crate::context::Context;
use crate::failure::Failure;
use crate::operation::{self, Work};
use crate::signals::Signals;
use crate::workspace::{self, Guest};
use crate::{exec, problem, render, terminal};

/// How long we watch the deletion that `--rm` asked for. The daemon finishes it in any case.
const DELETE_DEADLINE: Duration = Duration::from_secs(5);

/// How long a user who pressed Ctrl-C waits for the name of what goes on.
const LOOK_UP_DEADLINE: Duration = Duration::from_millis(500);

/// Make a VM, start it, and run a command or a shell in it
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Image and kernel are fetched or made first where they are missing. Without a command: a login shell, or the image's own \
program (its entrypoint) if the image has one and no init. The VM stays when the command ends, unless --rm was given. \
With -d the image's program runs from each start on, and the VM stops when that ends. Exits with the command's own \
status, 128+n if signal n ended it; 125 if banger failed, 126 if the command cannot be executed, 127 if there is none \
of that name.

With PATH the git repository that it is in is brought to /root/repo there, where the command or a shell begins: the last ten generations of commits, the branch, and the tracked files as they are in the working tree. Nothing that git ignores goes along. `banger vm workspace export` brings back what was done there; --rm drops it.

Examples:
  banger vm run                                         a shell in a new VM
  banger vm run --rm -- sh -c 'uname -r; exit 3'        one command, nothing left, status 3
  banger vm run --rm --image alpine:3.20 -- ls /         an image of a registry
  banger vm run . -- make test                          in this git repository, brought to /root/repo
  banger vm run -d --name web --memory 2G               start it and come back
  banger vm run -p 8080:80                              127.0.0.1:8080 leads to its port 80
  banger vm run --egress allow:github.com,*.debian.org   it reaches these names and nothing else
  tar c . | banger vm run --rm -w /tmp -- tar x         stdin goes to the command")]
pub(crate) struct Args {
    /// A git repository to work in
    path: Option<PathBuf>,
    /// Delete the VM and its disk when the command ends, whatever its status
    #[arg(long)]
    rm: bool,
    /// Return when the VM is ready, and print its name
    #[arg(short, long, conflicts_with_all = ["rm", "command"])]
    detach: bool,
    /// Wait before the command starts until the guest's init has started everything it wants to
    #[arg(long, value_name = "WHAT")]
    wait: Option<Wait>,
    #[command(flatten)]
    spec: Spec,
    #[command(flatten)]
    carry: Carry,
    #[command(flatten)]
    flags: Flags,
    /// The command and its arguments, passed on word for word
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Wait {
    Init,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let Args { path, spec, carry, flags, rm, detach, wait, command } = args;
    let mut signals = Signals::listen()?;
    let plan = match (&path, carry.given()) {
        (Some(path), _) => Some(signals.unless(planned(path, &carry)).await?),
        (None, Some(flag)) => return Err(carry::needs_a_path(flag).into()),
        (None, None) => None,
    };
    if let Some(plan) = plan.as_ref().filter(|_| carry.dry_run) {
        carry::show(context, plan)?;
        return Ok(DONE);
    }
    let request = spec.request(true, rm, detach);
    let ends_by_itself = [("--rm", rm), ("--ttl", request.ttl.duration().is_some())];
    for (flag, _) in ends_by_itself.iter().filter(|(_, given)| *given && plan.is_some()) {
        context.hint(&format!(
            "{flag} drops what is done in the repository there, unless it is exported before"
        ));
    }
    let client = context.client().await?;
    let mut lease = Work::begin(&client, Method::POST, "/v1/vms", Some(&request)).await?;
    let mut vm = boot(context, &client, &mut lease, &mut signals, rm).await?;

    if let Some(Wait::Init) = wait {
        let waiting = wait_for_init(context, &client, &vm);
        let waited = signals.unless(async { Ok(waiting.await?) }).await;
        if let Err(failure) = waited {
            return leave(context, &client, &vm, rm, &mut signals, Err(failure)).await;
        }
    }
    let mut flags = flags;
    let has_repository = plan.is_some();
    if let Some(plan) = plan {
        let guest = Guest::of(&client, &vm);
        let bringing = async { Ok(guest.bring(context, plan, carry.place()).await?) };
        match signals.unless(bringing).await {
            Ok(workspace) => {
                flags = in_workspace(flags, &vm, &workspace);
                vm.workspace = Some(workspace);
            }
            Err(failure) => {
                if !rm {
                    context.hint(&format!("{} still runs, without the repository", vm.name));
                }
                return leave(context, &client, &vm, rm, &mut signals, Err(failure)).await;
            }
        }
    }
    if detach {
        render::outcome(context, &vm, vm.state)?;
        return Ok(DONE);
    }
    let is_free = command.is_empty() && !has_repository;
    let command = if is_free { program_of(&vm) } else { command };
    let is_shell = command.is_empty();
    let ended = session(&client, &vm, flags.start(command, None), &mut signals).await;
    if !rm && (is_shell || terminal::stderr_is_terminal()) {
        context.hint(&format!(
            "{0} still runs: `banger vm exec {0}` goes back in, `banger vm delete {0}` deletes it",
            vm.name
        ));
    }
    leave(context, &client, &vm, rm, &mut signals, ended).await
}

async fn planned(path: &Path, carry: &Carry) -> Result<Arc<Plan>, Failure> {
    Ok(workspace::plan(path, carry.choice()).await?)
}

/// What runs where nobody named a command: the image's program, if no init would run what the image is for; else a shell.
fn program_of(vm: &Vm) -> Vec<OsString> {
    match vm.init {
        Some(_) => Vec::new(),
        None => vm.config.program().into_iter().map(OsString::from).collect(),
    }
}

/// The VM, running; or why it does not.
async fn boot(
    context: &Context,
    client: &Client,
    lease: &mut Work,
    signals: &mut Signals,
    rm: bool,
) -> Result<Vm, Failure> {
    let mut line = context.progress.line(None);
    let booted = tokio::select! {
        vm = lease.result(&mut line) => vm.map_err(Failure::Problem),
        number = signals.next() => Err(Failure::Signal(number)),
    };
    line.end();
    if let Err(Failure::Signal(_)) = booted {
        if rm {
            context.hint("interrupted; the daemon deletes what it has made so far");
        } else {
            context.hint(&goes_on(client, lease).await);
        }
    }
    booted
}

/// Long work does not die with its client: says so, and how to stop it.
async fn goes_on(client: &Client, lease: &Work) -> String {
    let look_up = async {
        let operation = lease.operation.as_ref()?;
        let operation: Operation = client.get(&format!("/v1/operations/{operation}")).await.ok()?;
        Some(operation.subject)
    };
    let name = tokio::time::timeout(LOOK_UP_DEADLINE, look_up).await.ok().flatten();
    match name {
        Some(name) => format!("interrupted; {name} goes on starting: `banger vm delete {name}` stops it"),
        None => "interrupted; the VM goes on starting: find it with `banger vm list`, stop it with `banger vm delete`"
            .to_owned(),
    }
}

async fn wait_for_init(context: &Context, client: &Client, vm: &Vm) -> Result<(), Problem> {
    let init: InitState = client.get(&format!("/v1/vms/{}/init", vm.id)).await?;
    if init.state != "running" {
        context.hint(&format!("{}: {} says it is {}", vm.name, init.init, init.state));
    }
    Ok(())
}

async fn session(
    client: &Client,
    vm: &Vm,
    start: Start,
    signals: &mut Signals,
) -> Result<u8, Failure> {
    let socket = client.websocket(&format!("/v1/vms/{}/exec", vm.id)).await?;
    exec::session(socket, start, signals).await
}

/// Ends a run: with `--rm` the VM goes first. What became of the command is the outcome, whatever the deletion does.
async fn leave(
    context: &Context,
    client: &Client,
    vm: &Vm,
    rm: bool,
    signals: &mut Signals,
    ended: Result<u8, Failure>,
) -> Result<u8, Failure> {
    if !rm {
        return ended;
    }
    let path = format!("/v1/vms/{}?force=true", vm.id);
    let deleting =
        operation::follow::<Value>(context, client, None, Method::DELETE, &path, None::<&()>);
    tokio::select! {
        deleted = tokio::time::timeout(DELETE_DEADLINE, deleting) => match deleted {
            // Gone already is as good.
            Ok(Err(found)) if found.code != Code::NotFound => problem::show(context, None, &found),
            Ok(_) => {}
            Err(_) => context.hint(&format!("the daemon is still deleting {}", vm.name)),
        },
        _ = signals.next() => context.hint(&format!("the daemon goes on deleting {}", vm.name)),
    }
    ended
}
