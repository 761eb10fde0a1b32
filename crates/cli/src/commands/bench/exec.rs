//! `banger bench exec`

use std::process::Stdio;
use std::time::{Duration, Instant};

use banger_api::client::Client;
use banger_api::exec::{FromAgent, Start, ToAgent, Word};
use banger_api::{Code, Problem};
use futures_util::{SinkExt, StreamExt};
use serde::Serialize;
use tokio_tungstenite::tungstenite::Message;

use super::figures::{Figures, Samples};
use crate::commands::DONE;
use crate::context::Context;
use crate::failure::Failure;
use crate::programs;

/// Time `true` in a running VM: to the exit frame, and as the whole `banger vm exec`
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The guest's own time is the agent's, from before its fork to the exit of the command. What banger adds to
it is the rest of the round trip.

Examples:
  banger bench exec web
  banger bench exec web -n 100 --format json"
)]
pub(crate) struct Args {
    /// A running VM
    vm: String,
    /// How many rounds
    #[arg(short = 'n', long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
}

#[derive(Debug, Serialize)]
struct Report {
    /// In the guest: fork to exit.
    guest: Option<Figures>,
    /// From the request to the exit frame, connection included.
    round_trip: Option<Figures>,
    /// Each round trip less its own guest time.
    added: Option<Figures>,
    /// `banger vm exec VM -- true` as a process, to its exit status.
    command: Option<Figures>,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let client = context.client().await?;
    let own = std::env::current_exe()
        .map_err(|e| Problem::new(Code::Internal, "cannot tell where banger is").cause(&e))?;
    let (mut guest, mut round_trip, mut added, mut command): (Samples, Samples, Samples, Samples) =
        Default::default();
    for _ in 0..args.rounds {
        let begun = Instant::now();
        let in_guest = one(&client, &args.vm).await?;
        let took = begun.elapsed();
        guest.push(in_guest);
        round_trip.push(took);
        added.push(took.saturating_sub(in_guest));
        let begun = Instant::now();
        let mut process = programs::new(&own);
        process.args(["vm", "exec", &args.vm, "--", "true"]).stdin(Stdio::null());
        let status = process
            .status()
            .map_err(|e| Problem::new(Code::Internal, "cannot run banger").cause(&e))?;
        if !status.success() {
            return Err(Problem::new(
                Code::Internal,
                format!("`banger vm exec` ended with {status}"),
            )
            .into());
        }
        command.push(begun.elapsed());
    }
    let report = Report {
        guest: guest.figures(),
        round_trip: round_trip.figures(),
        added: added.figures(),
        command: command.figures(),
    };
    let shown = |figures: Option<Figures>| figures.map(|f| f.to_string()).unwrap_or_default();
    context.print(&report, || {
        format!(
            "in the guest  {}\nround trip    {}\nbanger adds   {}\nvm exec       {}\n",
            shown(report.guest),
            shown(report.round_trip),
            shown(report.added),
            shown(report.command)
        )
    })?;
    Ok(DONE)
}

/// Runs `true` once; what it took in the guest.
async fn one(client: &Client, vm: &str) -> Result<Duration, Problem> {
    let broken = |error: &(dyn std::error::Error + 'static)| {
        Problem::new(Code::Guest, "the exec broke").cause(error)
    };
    let mut socket = client.websocket(&format!("/v1/vms/{vm}/exec")).await?;
    let argv = vec![Word::new("true").expect("there is no NUL in it")];
    let start = Start { argv, no_stdin: true, ..Start::default() };
    socket
        .send(Message::Binary(ToAgent::Start(Box::new(start)).encode()))
        .await
        .map_err(|e| broken(&e))?;
    while let Some(message) = socket.next().await {
        let Message::Binary(frame) = message.map_err(|e| broken(&e))? else { continue };
        match FromAgent::decode(&frame).map_err(|e| broken(&e))? {
            FromAgent::Exit(exit) => return Ok(Duration::from_micros(exit.microseconds)),
            FromAgent::Refused(refused) => return Err(Problem::new(Code::Guest, refused.message)),
            _ => {}
        }
    }
    Err(Problem::new(Code::Guest, "the exec ended without an exit"))
}
