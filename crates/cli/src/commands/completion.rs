//! `banger completion`

use clap::builder::PossibleValuesParser;

use crate::commands::{DONE, FAILED};
use crate::failure::Failure;
use crate::{completion, out};

/// Print a script that makes a shell complete banger's words, and live names of VMs
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  source <(banger completion bash)                                       in ~/.bashrc
  source <(banger completion zsh)                                        in ~/.zshrc
  banger completion fish > ~/.config/fish/completions/banger.fish")]
pub(crate) struct Args {
    #[arg(value_parser = PossibleValuesParser::new(completion::shells()))]
    shell: String,
}

pub(crate) fn run(args: Args) -> Result<u8, Failure> {
    match completion::script(&args.shell) {
        Some(script) => out::stdout(&script).map(|()| DONE),
        None => Ok(FAILED),
    }
}
