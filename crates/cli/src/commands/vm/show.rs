//! `banger vm show`

use banger_api::vm::Vm;

use crate::commands::DONE;
use crate::commands::targets::vm_path;
use crate::context::Context;
use crate::failure::Failure;
use crate::{completion, render};

/// Show everything there is to know of a VM, and what went wrong with it last
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  banger vm show web
  banger vm show web --format json")]
pub(crate) struct Args {
    /// Its name or id, or the beginning of one
    #[arg(add = completion::vm_names())]
    vm: String,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let path = vm_path(&args.vm)?;
    let vm: Vm = context.client().await?.get(&path).await?;
    render::show(context, &vm)?;
    Ok(DONE)
}
