//! `banger vm create`

use banger_api::vm::Vm;
use http::Method;

use crate::commands::DONE;
use crate::commands::vm::spec::Spec;
use crate::context::Context;
use crate::failure::Failure;
use crate::{operation, render};

/// Make a VM without starting it
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  banger vm create --name web --cpus 2 --memory 2G --disk 8G
  banger vm create --name dns -p 5353:53/udp -p 0.0.0.0:8080:80
  banger vm start web")]
pub(crate) struct Args {
    #[command(flatten)]
    spec: Spec,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let request = args.spec.request(false, false, true);
    let client = context.client().await?;
    let creating = async {
        let vm: Vm =
            operation::follow(context, &client, None, Method::POST, "/v1/vms", Some(&request))
                .await?;
        Ok(vm)
    };
    let vm = operation::unless_interrupted(context, creating).await?;
    render::outcome(context, &vm, "created")?;
    Ok(DONE)
}
