//! `banger man`

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use banger_api::{Code, Problem};
use clap::CommandFactory;
use clap_mangen::Man;

use crate::commands::DONE;
use crate::failure::Failure;
use crate::out;

/// Print banger's manual page, or write one of every verb into a folder
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  banger man | man -l -                                        read it
  banger man --to ~/.local/share/man/man1; man banger-vm-run   a page of every verb, where man(1) looks")]
pub(crate) struct Args {
    /// Write banger.1, banger-vm.1, banger-vm-run.1 and so on into this folder, which is made if need be
    #[arg(long, value_name = "FOLDER")]
    to: Option<PathBuf>,
}

pub(crate) fn run<C: CommandFactory>(args: &Args) -> Result<u8, Failure> {
    let mut command = C::command();
    command.build();
    let Some(folder) = &args.to else {
        let mut page = Vec::new();
        Man::new(command).render(&mut page).expect("writing to memory does not fail");
        return out::stdout(&page).map(|()| DONE);
    };
    write_all(&command, folder).map(|()| DONE).map_err(|error| {
        let said = format!("cannot write manual pages into {}", folder.display());
        Problem::new(Code::Internal, said).cause(&error).into()
    })
}

fn write_all(command: &clap::Command, folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let man = Man::new(command.clone());
    let path = folder.join(man.get_filename());
    let mut page = Vec::new();
    man.render(&mut page)?;
    fs::File::create(path)?.write_all(&page)?;
    let verbs = command.get_subcommands().filter(|verb| !verb.is_hide_set());
    verbs.filter(|verb| verb.get_name() != "help").try_for_each(|verb| write_all(verb, folder))
}
