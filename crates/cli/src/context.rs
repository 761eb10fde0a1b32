//! What every command has at hand: how to print, how to show progress, and the way to the daemon.

use banger_api::client::Client;
use banger_api::{Code, Folders, Problem};
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::failure::Failure;
use crate::progress::Progress;
use crate::{daemon, out};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Human,
    // One document a line on stdout; errors as JSON on stderr.
    Json,
}

/// Options of every verb.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// How results and errors are written; json: one document a line
    #[arg(
        long,
        global = true,
        value_name = "FORMAT",
        default_value = "human",
        hide_default_value = true
    )]
    format: Format,
    /// No progress and no hints; lists show names only
    #[arg(short, long, global = true)]
    quiet: bool,
}

#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) format: Format,
    pub(crate) quiet: bool,
    pub(crate) progress: Progress,
}

impl Context {
    pub(crate) fn new(global: Global) -> Self {
        let Global { format, quiet } = global;
        Self { format, quiet, progress: Progress::new(quiet || format == Format::Json) }
    }

    /// A client of the daemon, which is started if it does not run.
    pub(crate) async fn client(&self) -> Result<Client, Problem> {
        daemon::connect_or_start(&folders()?).await
    }

    /// Prints a result: `human` as it is, or `value` as a line of JSON.
    pub(crate) fn print(
        &self,
        value: &impl Serialize,
        human: impl FnOnce() -> String,
    ) -> Result<(), Failure> {
        let text = match self.format {
            Format::Human => human(),
            Format::Json => {
                serde_json::to_string(value)
                    .expect("results are plain data, which always has a JSON form")
                    + "\n"
            }
        };
        self.progress.suspend(|| out::stdout(text.as_bytes()))
    }

    /// Says something on stderr that nobody needs who asked for quiet or reads by program.
    pub(crate) fn hint(&self, text: &str) {
        if !self.quiet && self.format == Format::Human {
            self.progress.suspend(|| out::stderr(&format!("{text}\n")));
        }
    }
}

/// Where this installation keeps its files.
pub(crate) fn folders() -> Result<Folders, Problem> {
    let here = Folders::here().map(|(folders, _)| folders);
    here.map_err(|error| Problem::from_error(Code::Invalid, &error))
}

/// One thread: a command waits far more than it works, and starts faster without a pool.
pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime needs an epoll and an eventfd, which every process may make")
}
