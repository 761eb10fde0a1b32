//! `banger vm forward`: this process listens, and every connection is a stream of its own through the daemon.

use std::sync::Arc;

use banger_api::client::Client;
use banger_api::ports::{GuestPort, Protocol, PublishedPort};
use banger_api::vm::{State, Vm};
use banger_api::{Code, Problem};
use banger_forward::{Listener, MOST_CONNECTIONS, Transport};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::Semaphore;

use crate::commands::DONE;
use crate::commands::targets::vm_path;
use crate::context::{Context, Format};
use crate::failure::Failure;
use crate::signals::Signals;
use crate::{completion, out};

/// Lead ports of this host to ports of a running VM, until Ctrl-C
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Services that listen only within the guest are reached too, and VMs without a network. `banger vm run -p` does the same \
for as long as the VM runs.

Examples:
  banger vm forward web 8080:80               127.0.0.1:8080 leads to port 80
  banger vm forward db 5432                   the same port on both sides
  banger vm forward web 0:80 5353:53/udp      a free port, and one for datagrams
  banger vm forward web 0.0.0.0:8080:80       for other hosts too")]
pub(crate) struct Args {
    /// Its name or id, or the beginning of one
    #[arg(add = completion::vm_names())]
    vm: String,
    /// Ports, each [ADDRESS:]HOST:GUEST[/udp]; one number is both, HOST 0 a free one
    #[arg(value_name = "PORT", required = true)]
    ports: Vec<PublishedPort>,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let path = vm_path(&args.vm)?;
    let mut signals = Signals::listen()?;
    let client = context.client().await?;
    let vm: Vm = client.get(&path).await?;
    if vm.state != State::Running {
        let problem = Problem::new(Code::WrongState, format!("VM {} is {}", vm.name, vm.state));
        let verb = if vm.state == State::Paused { "resume" } else { "start" };
        return Err(problem.remedy(format!("`banger vm {verb} {}`", vm.name)).into());
    }
    let bound = args.ports.iter().map(|port| bind(*port)).collect::<Result<Vec<_>, _>>()?;
    let ports: Vec<PublishedPort> = bound.iter().map(|(port, _)| *port).collect();
    context.print(&ports, || {
        ports.iter().map(|port| format!("{} -> {}:{}\n", port.at(), vm.name, port.to())).collect()
    })?;
    let limit = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let quiet = context.quiet || context.format == Format::Json;
    let serve = |(port, listener): (PublishedPort, Listener)| {
        let (client, vm, limit) = (client.clone(), vm.clone(), Arc::clone(&limit));
        let dial = move || dial(client.clone(), vm.clone(), port.to(), quiet);
        async move { (port, listener.serve(limit, dial).await) }
    };
    let mut serving: FuturesUnordered<_> = bound.into_iter().map(serve).collect();
    tokio::select! {
        // That is how it ends.
        _ = signals.next() => Ok(DONE),
        Some((port, Err(error))) = serving.next() => {
            let message = format!("{} can no longer be listened on", port.at());
            Err(Problem::new(Code::Internal, message).cause(&error).into())
        }
    }
}

/// The port as it is bound: 0 is then the one that the kernel chose.
fn bind(port: PublishedPort) -> Result<(PublishedPort, Listener), Problem> {
    let transport = match port.protocol {
        Protocol::Tcp => Transport::Connections,
        Protocol::Udp => Transport::Datagrams,
    };
    let bound = Listener::bind(port.at(), transport).and_then(|listener| {
        let host = listener.address()?.port();
        Ok((PublishedPort { host, ..port }, listener))
    });
    bound.map_err(|error| {
        let message = format!("cannot listen on {}{}", port.at(), port.protocol.suffix());
        Problem::new(Code::Conflict, message).cause(&error).remedy(format!(
            "name another port of this host, from 1024 on, or 0 for a free one: 0:{}",
            port.to()
        ))
    })
}

/// A stream to the VM's port; or says why there is none, since whoever connected sees only a reset.
async fn dial(
    client: Client,
    vm: Vm,
    port: GuestPort,
    quiet: bool,
) -> Option<impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Send> {
    let stream = client.guest_port(&format!("/v1/vms/{}", vm.id), port).await;
    stream
        .inspect_err(|problem| {
            if !quiet {
                out::stderr(&format!("{}:{port}: {problem}\n", vm.name));
            }
        })
        .ok()
}
