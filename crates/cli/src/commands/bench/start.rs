//! `banger bench start`

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use banger_api::bench::StartPlan;
use banger_api::client::Client;
use banger_api::operation::{Event, StageTime};
use banger_api::vm::{CreateVm, Vm};
use banger_api::{Code, Problem};
use http::Method;
use serde::Serialize;

use super::figures::{Figures, Samples};
use crate::commands::DONE;
use crate::context::Context;
use crate::failure::Failure;
use crate::programs;

/// Compare the start of a jailed VM with a minimal program that does the same, run by run in turns
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Each round starts a VM, and lets `banger-bare` start one with the same limits, devices, jail and API
calls, without ledger, helper or checks. Compared are the time from the first claim to the answer to
InstanceStart, and from there on until the guest's agent is ready. Needs root, for banger-bare.

Examples:
  sudo banger bench start
  sudo banger bench start -n 20 --format json"
)]
pub(crate) struct Args {
    /// How many rounds
    #[arg(short = 'n', long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// The minimal program, if it is not beside banger
    #[arg(long)]
    bare: Option<PathBuf>,
}

/// How long a VM took from the first act.
#[derive(Debug, Clone, Copy)]
struct Times {
    /// To the answer to InstanceStart.
    started: Duration,
    /// To the agent's ready event.
    ready: Duration,
}

#[derive(Debug, Serialize)]
struct Report {
    vmm: String,
    rounds: u32,
    succeeded: u32,
    bare_started: Option<Figures>,
    started: Option<Figures>,
    bare_ready: Option<Figures>,
    ready: Option<Figures>,
    /// p50 by p50.
    started_ratio: Option<f64>,
    ready_ratio: Option<f64>,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let client = context.client().await?;
    let bare = match args.bare {
        Some(path) => path,
        None => std::env::current_exe()
            .map_err(|e| internal("tell where banger is", &e))?
            .with_file_name("banger-bare"),
    };
    let vm = create(&client).await?;
    let mut times: [Vec<Times>; 2] = Default::default();
    let mut succeeded = 0;
    let mut vmm = String::new();
    let mut measured: Result<(), Problem> = Ok(());
    // One round that does not count fills the caches for both alike.
    for round in 0..=args.rounds {
        let both = async {
            let plan: StartPlan = client.get("/v1/bench/start").await?;
            vmm.clone_from(&plan.vmm);
            Ok((start_bare(&bare, &plan)?, start(&client, &vm).await?))
        };
        match both.await {
            Ok(_) if round == 0 => {}
            Ok((bare, ours)) => {
                succeeded += 1;
                times[0].push(bare);
                times[1].push(ours);
                context.hint(&format!(
                    "round {round}: bare {} and {} ms, banger {} and {} ms",
                    bare.started.as_millis(),
                    bare.ready.as_millis(),
                    ours.started.as_millis(),
                    ours.ready.as_millis()
                ));
            }
            Err(problem) if round == 0 => {
                measured = Err(problem);
                break;
            }
            Err(problem) => context.hint(&format!("round {round} failed: {problem}")),
        }
    }
    end(&client, Method::DELETE, &format!("/v1/vms/{}", vm.id)).await?;
    measured?;
    let figures = |of: usize, which: fn(&Times) -> Duration| {
        let mut samples = Samples::default();
        times[of].iter().for_each(|times| samples.push(which(times)));
        samples.figures()
    };
    let ratio = |ours: Option<Figures>, bare: Option<Figures>| {
        ours.zip(bare).map(|(ours, bare)| ours.p50_ms / bare.p50_ms)
    };
    let [bare_started, started] = [0, 1].map(|of| figures(of, |times| times.started));
    let [bare_ready, ready] = [0, 1].map(|of| figures(of, |times| times.ready));
    let report = Report {
        vmm,
        rounds: args.rounds,
        succeeded,
        bare_started,
        started,
        bare_ready,
        ready,
        started_ratio: ratio(started, bare_started),
        ready_ratio: ratio(ready, bare_ready),
    };
    context.print(&report, || human(&report))?;
    Ok(DONE)
}

/// A stopped VM of the default sizes, whose disk has been made by a first start.
async fn create(client: &Client) -> Result<Vm, Problem> {
    let request = CreateVm { start: true, ..CreateVm::default() };
    let mut events = client.events(Method::POST, "/v1/vms", Some(&request)).await?;
    while let Some(event) = events.next().await? {
        match event {
            Event::Done { result, .. } => {
                let vm: Vm = serde_json::from_value(result)
                    .map_err(|e| internal("read what the daemon made", &e))?;
                end(client, Method::POST, &format!("/v1/vms/{}/kill", vm.id)).await?;
                return Ok(vm);
            }
            Event::Failed { problem } => return Err(problem),
            _ => {}
        }
    }
    Err(Problem::new(Code::Daemon, "the daemon ended before the VM was ready"))
}

/// Starts the VM, then ends it.
async fn start(client: &Client, vm: &Vm) -> Result<Times, Problem> {
    let path = format!("/v1/vms/{}/start", vm.id);
    let mut events = client.events(Method::POST, &path, Some(&serde_json::json!({}))).await?;
    while let Some(event) = events.next().await? {
        match event {
            Event::Done { stages, .. } => {
                end(client, Method::POST, &format!("/v1/vms/{}/kill", vm.id)).await?;
                return Ok(Times {
                    started: sum(&stages, &["claims", "machine"]),
                    ready: sum(&stages, &["claims", "machine", "boot"]),
                });
            }
            Event::Failed { problem } => return Err(problem),
            _ => {}
        }
    }
    Err(Problem::new(Code::Daemon, "the daemon ended before the VM was ready"))
}

fn sum(stages: &[StageTime], names: &[&str]) -> Duration {
    let wanted = stages.iter().filter(|stage| names.contains(&stage.name.as_str()));
    Duration::from_micros(wanted.map(|stage| stage.microseconds).sum())
}

async fn end(client: &Client, method: Method, path: &str) -> Result<(), Problem> {
    let body = (method == Method::POST).then(|| serde_json::json!({}));
    let mut events = client.events(method, path, body.as_ref()).await?;
    while let Some(event) = events.next().await? {
        if let Event::Failed { problem } = event {
            return Err(problem);
        }
    }
    Ok(())
}

fn start_bare(program: &Path, plan: &StartPlan) -> Result<Times, Problem> {
    let failed = |e: std::io::Error| {
        Problem::new(Code::Missing, format!("cannot run {}", program.display()))
            .cause(&e)
            .remedy("build it with `cargo build --package banger-bare`, or name it by --bare")
    };
    let mut command = programs::new(program);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let mut child = command.spawn().map_err(failed)?;
    let json = serde_json::to_vec(plan).expect("a plan is plain data");
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(&json).map_err(failed)?;
    }
    let output = child.wait_with_output().map_err(failed)?;
    let said = String::from_utf8_lossy(&output.stdout);
    let microseconds = |what: &str| {
        let line = said.lines().find_map(|line| line.strip_prefix(what))?;
        line.trim().parse().ok().map(Duration::from_micros)
    };
    match (output.status.success(), microseconds("started "), microseconds("ready ")) {
        (true, Some(started), Some(ready)) => Ok(Times { started, ready }),
        _ => Err(Problem::new(
            Code::Internal,
            format!("{} ended with {}: {said:?}", program.display(), output.status),
        )),
    }
}

fn internal(act: &str, cause: &(dyn std::error::Error + 'static)) -> Problem {
    Problem::new(Code::Internal, format!("cannot {act}")).cause(cause)
}

fn human(report: &Report) -> String {
    let shown = |figures: Option<Figures>| {
        figures.map_or("no round succeeded".to_owned(), |f| f.to_string())
    };
    let ratio = |ratio: Option<f64>| ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.3}"));
    format!(
        "VMM              {}
started, bare    {}
started, banger  {}
ready, bare      {}
ready, banger    {}
started / bare   {} (p50 by p50)
ready / bare     {} (p50 by p50)
succeeded        {} of {} rounds
",
        report.vmm,
        shown(report.bare_started),
        shown(report.started),
        shown(report.bare_ready),
        shown(report.ready),
        ratio(report.started_ratio),
        ratio(report.ready_ratio),
        report.succeeded,
        report.rounds,
    )
}
