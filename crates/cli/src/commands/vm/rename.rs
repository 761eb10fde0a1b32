//! `banger vm rename`

use banger_api::VmName;
use banger_api::vm::{RenameVm, Vm};
use http::Method;

use crate::commands::DONE;
use crate::commands::targets::vm_path;
use crate::context::Context;
use crate::failure::Failure;
use crate::{completion, operation, render};

/// Give a VM another name, running or not
#[derive(Debug, clap::Args)]
#[command(after_help = "\
NEW.vm leads to it at once, and OLD.vm no longer. The hostname of a guest that runs changes too; programs that have asked \
for it already may keep the old one.

Examples:
  banger vm rename brave-otter web")]
pub(crate) struct Args {
    /// Its name or id, or the beginning of one
    #[arg(value_name = "OLD", add = completion::vm_names())]
    vm: String,
    /// Its name from now on
    #[arg(value_name = "NEW", value_parser = VmName::parse)]
    name: VmName,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let path = format!("{}/rename", vm_path(&args.vm)?);
    let request = RenameVm { name: args.name };
    let client = context.client().await?;
    let renaming = async {
        let vm: Vm =
            operation::follow(context, &client, None, Method::POST, &path, Some(&request)).await?;
        Ok(vm)
    };
    let vm = operation::unless_interrupted(context, renaming).await?;
    render::outcome(context, &vm, format!("renamed from {}", args.vm))?;
    Ok(DONE)
}
