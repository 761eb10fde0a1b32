//! `banger bench boot`

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use banger_api::bench::BootPlan;
use banger_api::client::Client;
use banger_api::operation::{Event, StageTime};
use banger_api::vm::{CreateVm, Vm};
use banger_api::{Code, Problem};
use http::Method;
use serde::Serialize;

use super::bare;
use super::figures::{Figures, Samples};
use crate::commands::DONE;
use crate::context::{Context, folders};
use crate::failure::Failure;
use crate::programs;

/// How long one boot may take.
const DEADLINE: Duration = Duration::from_secs(300);

/// Compare `vm run --rm -- true` with its VMM alone, run by run in turns
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Each round boots the VMM alone to the agent's ready event, then times `banger vm run --rm -- true` to its
exit status, then starts a VM once more and adds up the daemon's own work of that start. Both boot the
same kernel, initramfs and disk with the same arguments.

Examples:
  banger bench boot
  banger bench boot -n 20 --format json"
)]
pub(crate) struct Args {
    /// How many rounds
    #[arg(short = 'n', long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
}

#[derive(Debug, Serialize)]
struct Report {
    vmm: String,
    image: String,
    kernel: String,
    disk_driver: String,
    filesystem: String,
    cpus: usize,
    load_before: String,
    rounds: u32,
    succeeded: u32,
    /// The VMM alone, from its start to READY.
    bare: Option<Figures>,
    /// `banger vm run --rm -- true`, to its exit status reaching the caller; the VM is gone by then.
    run: Option<Figures>,
    /// The daemon's work of a start: all its stages but the guest's own boot.
    host_work: Option<Figures>,
    /// p50 of run by p50 of bare.
    ratio: Option<f64>,
    /// Median of each round's own ratio.
    paired_ratio: Option<f64>,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let client = context.client().await?;
    let plan: BootPlan = client.get("/v1/bench/boot").await?;
    let folder = folders()?.cache.join("bench");
    let own = std::env::current_exe().map_err(|e| internal("tell where banger is", &e))?;
    let mut report = Report {
        vmm: plan.vmm.clone(),
        image: plan.image.to_string(),
        kernel: plan.kernel.to_string(),
        disk_driver: plan.disk_driver.clone(),
        filesystem: plan.filesystem.display().to_string(),
        cpus: std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        load_before: std::fs::read_to_string("/proc/loadavg").unwrap_or_default().trim().to_owned(),
        rounds: args.rounds,
        succeeded: 0,
        bare: None,
        run: None,
        host_work: None,
        ratio: None,
        paired_ratio: None,
    };
    let (mut bare_times, mut run_times, mut host_times) = Default::default();
    let mut ratios = Vec::new();
    // One round that does not count fills the caches for both sides alike, and makes the empty disk that both copy.
    for round in 0..=args.rounds {
        let measured = measure(&client, &plan, &folder, &own).await;
        let (bare_time, run_time, host_time) = match measured {
            Ok(times) => times,
            Err(problem) if round > 0 => {
                context.hint(&format!("round {round} failed: {problem}"));
                continue;
            }
            Err(problem) => return Err(problem.into()),
        };
        if round == 0 {
            continue;
        }
        report.succeeded += 1;
        Samples::push(&mut bare_times, bare_time);
        Samples::push(&mut run_times, run_time);
        Samples::push(&mut host_times, host_time);
        ratios.push(run_time.as_secs_f64() / bare_time.as_secs_f64());
        context.hint(&format!(
            "round {round}: bare {} ms, run {} ms, host work {} ms",
            bare_time.as_millis(),
            run_time.as_millis(),
            host_time.as_millis()
        ));
    }
    report.bare = bare_times.figures();
    report.run = run_times.figures();
    report.host_work = host_times.figures();
    report.ratio = report.run.zip(report.bare).map(|(run, bare)| run.p50_ms / bare.p50_ms);
    ratios.sort_by(f64::total_cmp);
    report.paired_ratio = ratios.get(ratios.len() / 2).copied();
    context.print(&report, || human(&report))?;
    Ok(DONE)
}

async fn measure(
    client: &Client,
    plan: &BootPlan,
    folder: &Path,
    own: &Path,
) -> Result<(Duration, Duration, Duration), Problem> {
    // In this order, so that the disk that the bare VMM copies has been made by the first start.
    let host = host_work(client).await?;
    let bare = bare::boot(plan, folder, DEADLINE)?;
    let run = timed_run(own)?;
    Ok((bare, run, host))
}

/// `banger vm run --rm -- true` as a user runs it.
fn timed_run(own: &Path) -> Result<Duration, Problem> {
    let begun = Instant::now();
    let mut command = programs::new(own);
    command.args(["vm", "run", "--rm", "--quiet", "--", "true"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
    let status = command.status().map_err(|e| internal("run banger", &e))?;
    let took = begun.elapsed();
    if status.success() {
        return Ok(took);
    }
    Err(Problem::new(Code::Internal, format!("`banger vm run --rm -- true` ended with {status}")))
}

/// Starts a VM and adds up the daemon's stages; the VM goes with the stream.
async fn host_work(client: &Client) -> Result<Duration, Problem> {
    let request = CreateVm { start: true, ephemeral: true, ..CreateVm::default() };
    let mut events = client.events(Method::POST, "/v1/vms", Some(&request)).await?;
    while let Some(event) = events.next().await? {
        match event {
            Event::Done { stages, result } => {
                let vm: Vm = serde_json::from_value(result)
                    .map_err(|e| internal("read what the daemon made", &e))?;
                let mut deleting = client
                    .events(Method::DELETE, &format!("/v1/vms/{}", vm.id), None::<&()>)
                    .await?;
                while deleting.next().await?.is_some() {}
                return Ok(own_work(&stages));
            }
            Event::Failed { problem } => return Err(problem),
            _ => {}
        }
    }
    Err(Problem::new(Code::Daemon, "the daemon ended before the VM was ready"))
}

fn own_work(stages: &[StageTime]) -> Duration {
    let own = stages.iter().filter(|stage| stage.name != "boot" && stage.name != "queue");
    Duration::from_micros(own.map(|stage| stage.microseconds).sum())
}

fn human(report: &Report) -> String {
    let shown = |figures: Option<Figures>| {
        figures.map_or("no round succeeded".to_owned(), |f| f.to_string())
    };
    let ratio = |ratio: Option<f64>| ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.3}"));
    format!(
        "host          {} CPUs, load {}
boots         {} with kernel {} on {}, {} disks in {}
bare VMM      {}
vm run        {}
host work     {}
vm run / bare {} (p50 by p50), {} (median of the rounds' own)
succeeded     {} of {} rounds
",
        report.cpus,
        report.load_before,
        report.image,
        report.kernel,
        report.vmm,
        report.disk_driver,
        report.filesystem,
        shown(report.bare),
        shown(report.run),
        shown(report.host_work),
        ratio(report.ratio),
        ratio(report.paired_ratio),
        report.succeeded,
        report.rounds,
    )
}

fn internal(act: &str, error: &(dyn std::error::Error + 'static)) -> Problem {
    Problem::new(Code::Internal, format!("cannot {act}")).cause(error)
}
