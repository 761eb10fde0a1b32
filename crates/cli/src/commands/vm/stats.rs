//! `banger vm stats`

use banger_api::client::Client;
use banger_api::stats::Stats;
use banger_api::vm::Vm;
use banger_api::{Problem, Size};
use futures_util::future::join_all;

use crate::commands::DONE;
use crate::commands::targets::vm_path;
use crate::context::{Context, Format};
use crate::failure::Failure;
use crate::signals::Signals;
use crate::table::table;
use crate::{completion, terminal};

const HEADINGS: [&str; 7] = ["NAME", "CPU", "MEMORY", "HOST MEM", "DISK", "RECEIVED", "SENT"];

/// To the upper left corner, and away with all that follows it (ECMA-48: CUP, ED).
const AGAIN: &str = "\x1b[H\x1b[J";

/// Show what VMs that run use of this host
#[derive(Debug, clap::Args)]
#[command(
    visible_alias = "top",
    after_help = "\
It takes a second, in which the processors are looked at. CPU: of the host's, by guest and VMM, where 100% is one of them. \
MEMORY: what the guest uses of what it was given, buffers and caches not counted. HOST MEM: what guest and VMM have of the \
host's memory. DISK: what the disk's file takes on the host, of the disk's size. RECEIVED and SENT: by the guest's network, \
since it started.

Examples:
  banger vm stats
  banger vm stats web db --format json
  banger vm stats --watch             until Ctrl-C"
)]
pub(crate) struct Args {
    /// Names or ids, or the beginnings of some; all that run if none is given
    #[arg(value_name = "VM", add = completion::vm_names())]
    targets: Vec<String>,
    /// Again and again, until Ctrl-C
    #[arg(short, long)]
    watch: bool,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let client = context.client().await?;
    if !args.watch {
        show(context, &look(&client, &args.targets).await?, "")?;
        return Ok(DONE);
    }
    let live = context.format == Format::Human && terminal::stdout_is_terminal();
    let mut signals = Signals::listen()?;
    loop {
        let all = tokio::select! {
            all = look(&client, &args.targets) => all?,
            // That is how it ends.
            _ = signals.next() => return Ok(DONE),
        };
        show(context, &all, if live { AGAIN } else { "" })?;
        if all.is_empty() {
            context.hint("no VM runs");
            return Ok(DONE);
        }
    }
}

/// All at once: each takes a second.
async fn look(client: &Client, targets: &[String]) -> Result<Vec<Stats>, Problem> {
    let named = !targets.is_empty();
    let paths = if named {
        targets.iter().map(|target| vm_path(target)).collect::<Result<Vec<_>, _>>()?
    } else {
        let vms: Vec<Vm> = client.get("/v1/vms").await?;
        let up = vms.into_iter().filter(|vm| vm.state.is_up());
        up.map(|vm| format!("/v1/vms/{}", vm.id)).collect()
    };
    let asked = paths.iter().map(|path| {
        let path = format!("{path}/stats");
        async move { client.get::<Stats>(&path).await }
    });
    let all = join_all(asked).await.into_iter();
    // Of those that nobody named, one may have ended meanwhile.
    if named { all.collect() } else { Ok(all.filter_map(Result::ok).collect()) }
}

fn show(context: &Context, all: &[Stats], before: &str) -> Result<(), Failure> {
    context.print(&all, || {
        if context.quiet {
            return all.iter().map(|stats| format!("{}\n", stats.name)).collect();
        }
        before.to_owned() + &table(&HEADINGS, all.iter().map(row))
    })
}

fn row(stats: &Stats) -> Vec<String> {
    let bytes = |bytes: u64| Size::bytes(bytes).to_string();
    let none = || "-".to_owned();
    let used = stats.guest.as_ref().map_or_else(none, |guest| {
        bytes(guest.memory_total_bytes.saturating_sub(guest.memory_available_bytes))
    });
    vec![
        stats.name.to_string(),
        format!("{}%", stats.cpu_percent),
        format!("{used} / {}", stats.memory_bytes),
        bytes(stats.memory_host_bytes),
        format!("{} / {}", bytes(stats.disk_host_bytes), stats.disk_bytes),
        stats.network.map_or_else(none, |network| bytes(network.received_bytes)),
        stats.network.map_or_else(none, |network| bytes(network.sent_bytes)),
    ]
}
