//! The verbs: one file each, which holds its help, its arguments and what it does.

mod ask;
mod bench;
mod cache;
mod completion;
mod daemon;
mod doctor;
mod duration;
mod image;
mod kernel;
mod man;
mod network;
mod pruning;
mod ssh_config;
mod system;
mod targets;
mod vm;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use banger_api::{Code, Problem};

use clap::Subcommand;

use crate::context::Context;
use crate::failure::Failure;

/// The exit status of a command that did what it was asked.
pub(crate) const DONE: u8 = 0;
/// Of one that failed.
pub(crate) const FAILED: u8 = 1;
/// Of a verb that passes on a guest command's status, when banger itself failed or was misused.
const BANGER_FAILED: u8 = 125;

#[derive(Debug, Subcommand)]
pub(crate) enum Noun {
    /// Make VMs, run commands in them, look at them, delete them
    #[command(subcommand)]
    Vm(vm::Verb),
    /// Root filesystems that VMs boot from
    #[command(subcommand)]
    Image(image::Verb),
    /// Kernels that VMs boot
    #[command(subcommand)]
    Kernel(kernel::Verb),
    /// What connects VMs with the host
    #[command(subcommand)]
    Network(network::Verb),
    /// What is kept only to be quicker
    #[command(subcommand)]
    Cache(cache::Verb),
    /// The daemon that works for you in the background
    #[command(subcommand)]
    Daemon(daemon::Verb),
    /// The daemon as a service of this host, with root's helper and jailed VMs
    #[command(subcommand)]
    System(system::Verb),
    SshConfig(ssh_config::Args),
    Doctor(doctor::Args),
    /// Measure this host, against the VMM alone
    #[command(subcommand)]
    Bench(bench::Verb),
    Completion(completion::Args),
    Man(man::Args),
}

impl Noun {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, Failure> {
        match self {
            Noun::Vm(verb) => verb.run(context).await,
            Noun::Image(verb) => verb.run(context).await,
            Noun::Kernel(verb) => verb.run(context).await,
            Noun::Network(verb) => verb.run(context).await,
            Noun::Cache(verb) => verb.run(context).await,
            Noun::Daemon(verb) => verb.run(context).await,
            Noun::System(verb) => verb.run(context).await,
            Noun::Bench(verb) => verb.run(context).await,
            Noun::SshConfig(args) => ssh_config::run(args, context).await,
            Noun::Doctor(args) => doctor::run(args, context).await,
            Noun::Completion(args) => completion::run(args),
            Noun::Man(args) => man::run::<crate::Cli>(&args),
        }
    }

    /// What a problem exits with: distinct from what a guest's command is likely to.
    pub(crate) fn status_of_a_failure(&self) -> u8 {
        match self {
            Noun::Vm(
                vm::Verb::Run(_) | vm::Verb::Exec(_) | vm::Verb::Attach(_) | vm::Verb::Ssh(_),
            ) => BANGER_FAILED,
            _ => FAILED,
        }
    }
}

/// Shows clap's message. Help is no misuse; a misused `vm run` or `vm exec` must not look like the command's status 2.
pub(crate) fn misused(error: &clap::Error) -> ExitCode {
    if error.print().is_err() {
        return ExitCode::from(crate::failure::STDOUT_CLOSED);
    }
    if !error.use_stderr() {
        return ExitCode::SUCCESS;
    }
    ExitCode::from(if passes_on_a_status(std::env::args_os().skip(1)) { BANGER_FAILED } else { 2 })
}

fn passes_on_a_status(arguments: impl Iterator<Item = OsString>) -> bool {
    let words: Vec<OsString> = arguments.take_while(|argument| argument != "--").collect();
    let passing = ["run", "exec", "attach", "ssh"];
    words.windows(2).any(|pair| pair[0] == "vm" && passing.iter().any(|verb| pair[1] == *verb))
}

/// A file that the user named, as the daemon, which has another working directory, can find it.
fn absolute(path: &Path) -> Result<PathBuf, Problem> {
    let refuse = |error: &std::io::Error| {
        Problem::new(Code::NotFound, format!("cannot read {}", path.display())).cause(error)
    };
    std::fs::metadata(path).map_err(|error| refuse(&error))?;
    std::path::absolute(path).map_err(|error| refuse(&error))
}
