//! `banger kernel delete`

use banger_api::KernelName;
use banger_api::{Code, Problem};
use http::Method;
use serde_json::{Value, json};

use crate::commands::targets::{self, artifact_path};
use crate::completion;
use crate::context::Context;
use crate::failure::Failure;

/// Delete kernels; refused while a VM uses one
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  banger kernel delete 6.1.0-56-cloud-amd64")]
pub(crate) struct Args {
    #[arg(value_name = "NAME", required = true, add = completion::kernel_names())]
    targets: Vec<String>,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let client = context.client().await?;
    targets::each(context, &args.targets, async |target, _| {
        let name = KernelName::parse(target)
            .map_err(|error| Problem::from_error(Code::Invalid, &error))?;
        let path = artifact_path("kernels", name.as_str());
        client.json::<Value>(Method::DELETE, &path, None::<&()>).await?;
        context.print(&json!({ "deleted": target }), || format!("{target}: deleted\n"))
    })
    .await
}
