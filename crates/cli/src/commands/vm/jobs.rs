//! `banger vm jobs`

use banger_api::exec::Word;
use banger_api::jobs::{Job, JobSignal, JobState};
use http::Method;
use indicatif::HumanBytes;
use jiff::Timestamp;

use crate::commands::DONE;
use crate::commands::targets::vm_path;
use crate::completion;
use crate::context::Context;
use crate::failure::Failure;
use crate::render;
use crate::table::table;

/// Show a VM's jobs: the commands that `vm exec -d` has left in it
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A job goes on until it ends by itself, whoever watches or leaves. What the last 64 wrote is kept in the guest, the newest 8 MiB of
each at least, over restarts of the VM too. OUTPUT is how much it wrote, and in brackets how much of that is no longer kept.

Examples:
  banger vm jobs web                           after `banger vm exec -d web -- make world`
  banger vm jobs web --end 1                   ask its processes to end (SIGTERM)
  banger vm jobs web --end 1 --signal KILL
  banger vm jobs web --format json")]
pub(crate) struct Args {
    /// Its name or id, or the beginning of one
    #[arg(add = completion::vm_names())]
    vm: String,
    /// Send a signal to the processes of the job of this number
    #[arg(long, value_name = "NUMBER")]
    end: Option<u32>,
    /// Which one
    #[arg(long, requires = "end", default_value = "TERM", value_parser = signal)]
    signal: u8,
}

const HEADINGS: &[&str] = &["JOB", "STATE", "STARTED", "OUTPUT", "COMMAND"];

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let path = format!("{}/jobs", vm_path(&args.vm)?);
    let client = context.client().await?;
    if let Some(number) = args.end {
        let signal = JobSignal { signal: args.signal };
        let path = format!("{path}/{number}/signal");
        drop(client.json::<serde_json::Value>(Method::POST, &path, Some(&signal)).await?);
    }
    let jobs: Vec<Job> = client.get(&path).await?;
    context.print(&jobs, || {
        if context.quiet {
            return jobs.iter().map(|job| format!("{}\n", job.number)).collect();
        }
        let now = Timestamp::now();
        table(HEADINGS, jobs.iter().map(|job| row(job, now)))
    })?;
    Ok(DONE)
}

fn row(job: &Job, now: Timestamp) -> Vec<String> {
    let started =
        i64::try_from(job.started_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    let dropped = match job.dropped_bytes {
        0 => String::new(),
        bytes => format!(" [{}]", HumanBytes(bytes)),
    };
    vec![
        job.number.to_string(),
        state(&job.state),
        started.map_or_else(String::new, |at| render::age(at, now)),
        format!("{}{dropped}", HumanBytes(job.output_bytes)),
        command(&job.command),
    ]
}

fn state(state: &JobState) -> String {
    match state {
        JobState::Running => "running".to_owned(),
        JobState::Ended { exit, .. } if exit.timed_out => "timed out".to_owned(),
        JobState::Ended { exit, .. } if exit.status > 128 => {
            format!("signal {}", exit.status - 128)
        }
        JobState::Ended { exit, .. } => format!("exit {}", exit.status),
        JobState::Lost => "lost".to_owned(),
    }
}

/// On one line, without what a terminal would take for more than text.
fn command(words: &[Word]) -> String {
    if words.is_empty() {
        return "(login shell)".to_owned();
    }
    let words = words.iter().map(|word| String::from_utf8_lossy(word.as_bytes()).into_owned());
    let printable = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
    words.collect::<Vec<_>>().join(" ").chars().map(printable).collect()
}

/// By name, with or without SIG, or by number.
fn signal(text: &str) -> Result<u8, String> {
    const NAMES: [(&str, u8); 7] = [
        ("HUP", 1),
        ("INT", 2),
        ("QUIT", 3),
        ("KILL", 9),
        ("USR1", 10),
        ("USR2", 12),
        ("TERM", 15),
    ];
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let known = NAMES.iter().find(|(known, _)| *known == name).map(|(_, number)| *number);
    let number = known.or_else(|| text.parse().ok().filter(|number| (1..=64).contains(number)));
    number.ok_or_else(|| {
        "it is HUP, INT, QUIT, KILL, USR1, USR2, TERM, or a number from 1 to 64".to_owned()
    })
}
