//! `banger vm ports`

use banger_api::ports::{GuestPort, Listening, Ports, Published};

use crate::commands::DONE;
use crate::commands::targets::vm_path;
use crate::completion;
use crate::context::Context;
use crate::failure::Failure;
use crate::table::table;

/// Show what a running VM listens on, and where this host reaches it
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Every TCP port is asked for a web page, to know whether it has one.

Examples:
  banger vm ports web
  banger vm ports web --format json")]
pub(crate) struct Args {
    /// Its name or id, or the beginning of one
    #[arg(add = completion::vm_names())]
    vm: String,
}

const HEADINGS: &[&str] = &["PROTO", "ADDRESS", "PORT", "PROCESS", "URL"];

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let path = vm_path(&args.vm)?;
    let ports: Ports = context.client().await?.get(&format!("{path}/ports")).await?;
    context.print(&ports, || {
        if context.quiet {
            return ports.listening.iter().map(|socket| format!("{}\n", to(socket))).collect();
        }
        let listening = ports.listening.iter().map(|socket| row(socket, &args.vm));
        let silent = ports.published.iter().filter(|open| {
            open.problem.is_some() || !ports.listening.iter().any(|s| to(s) == open.port.to())
        });
        table(HEADINGS, listening.chain(silent.map(silent_row)))
    })?;
    Ok(DONE)
}

fn to(socket: &Listening) -> GuestPort {
    GuestPort { protocol: socket.protocol, port: socket.port }
}

fn row(socket: &Listening, vm: &str) -> Vec<String> {
    let place = socket.url.clone().or_else(|| socket.reached_at.clone());
    vec![
        socket.protocol.to_string(),
        socket.address.to_string(),
        socket.port.to_string(),
        socket.process.clone().unwrap_or_else(|| "-".to_owned()),
        place.unwrap_or_else(|| format!("`banger vm forward {vm} {}`", to(socket))),
    ]
}

/// A published port that leads to nothing, or to which nothing leads.
fn silent_row(open: &Published) -> Vec<String> {
    let at = open.port.at();
    let why = match &open.problem {
        Some(problem) => format!("not published at {at}: {problem}"),
        None => format!("{at}, but nothing listens"),
    };
    let port = open.port;
    vec![port.protocol.to_string(), "-".to_owned(), port.guest.to_string(), "-".to_owned(), why]
}
