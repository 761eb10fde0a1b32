//! `banger`: reads a command line, asks the daemon, shows the answer. Decides nothing about VMs itself.
//!
//! ```text
//! exit status   run and exec                        every other verb
//! the command's its own, 128+n for signal n         -
//! 124           --timeout ended the command         -
//! 125           banger failed, or was misused       1 failed, 2 misused
//! 126, 127      not executable, not found           -
//! 128+n         a signal ended banger; 141: nobody reads our stdout any more
//! ```

mod commands;
mod completion;
mod context;
mod copy;
mod daemon;
mod exec;
mod failure;
mod operation;
mod out;
mod printable;
mod problem;
mod programs;
mod progress;
mod render;
mod signals;
mod ssh_files;
mod system;
mod table;
mod terminal;
mod workspace;

use std::process::ExitCode;

use clap::Parser;

use crate::commands::Noun;
use crate::context::{Context, Global};

/// Development sandboxes on microVMs: disposable Linux machines with their own kernel
#[derive(Debug, Parser)]
#[command(
    name = "banger",
    version,
    after_help = "Results go to stdout, everything else to stderr. The first command that needs the daemon starts it.

Examples:
  banger vm run                      a new VM and a shell in it
  banger vm run --rm -- uname -a     one command in a VM that is gone afterwards
  banger vm list                     what there is
  banger doctor                      whether this host is fit, and what to do if not"
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    noun: Noun,
}

fn main() -> ExitCode {
    completion::answer_the_shell::<Cli>();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return commands::misused(&error),
    };
    let context = Context::new(cli.global);
    let failed = cli.noun.status_of_a_failure();
    let outcome = context::runtime().block_on(cli.noun.run(&context));
    terminal::restore();
    match outcome {
        Ok(status) => ExitCode::from(status),
        Err(failure) => failure.show(&context, failed),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_verb_has_help_and_an_example_that_is_a_command_line() {
        fn check(command: &clap::Command) {
            for inner in command.get_subcommands() {
                check(inner);
            }
            let name = command.get_name();
            assert!(command.get_about().is_some(), "{name} has no help");
            if command.has_subcommands() {
                return;
            }
            let after = command
                .get_after_help()
                .unwrap_or_else(|| panic!("{name} has no examples"))
                .to_string();
            let example = after.lines().find_map(|line| line.strip_prefix("  ")).unwrap();
            assert!(example.contains("banger ") && example.contains(name), "{name}: {example}");
        }
        for noun in Cli::command().get_subcommands() {
            check(noun);
        }
    }
}
