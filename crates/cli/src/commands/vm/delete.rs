//! `banger vm delete`

use banger_api::Code;
use http::Method;
use serde_json::{Value, json};

use super::chosen::Chosen;
use crate::commands::ask;
use crate::commands::targets::{self, vm_path};
use crate::context::Context;
use crate::failure::Failure;
use crate::operation;

/// Delete VMs with their disks, running or not
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A VM in whose repository there is work that nobody has exported is deleted after a question, and without a terminal only with \
--force. A guest that cannot be asked counts as one with work.

Examples:
  banger vm delete web
  banger vm delete --force web               also with work that nobody has exported
  banger vm delete --label ci=1              all that have this label
  banger vm delete $(banger vm list -q)      all of them")]
pub(crate) struct Args {
    #[command(flatten)]
    chosen: Chosen,
    /// Drop work that nobody has exported, without a question
    #[arg(short, long)]
    force: bool,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let client = context.client().await?;
    let chosen = args.chosen.names(context, &client).await?;
    // One question at a time.
    let asking = tokio::sync::Mutex::new(());
    targets::each(context, &chosen, async |target, subject| {
        let path = vm_path(target)?;
        let delete = async |force: bool| {
            let path = if force { format!("{path}?force=true") } else { path.clone() };
            let method = Method::DELETE;
            operation::follow::<Value>(context, &client, subject, method, &path, None::<&()>).await
        };
        match delete(args.force).await {
            Err(found) if found.code == Code::Unexported && ask::can_be_asked() => {
                let _turn = asking.lock().await;
                if !ask::agreed_meanwhile(context, &format!("{}; this drops it", found.message))
                    .await?
                {
                    context.hint(&format!("{target} is kept"));
                    return Err(found.into());
                }
                delete(true).await?
            }
            deleted => deleted?,
        };
        context.print(&json!({ "deleted": target }), || match context.quiet {
            true => format!("{target}\n"),
            false => format!("{target}: deleted\n"),
        })
    })
    .await
}
