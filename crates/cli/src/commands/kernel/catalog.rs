//! `banger kernel catalog`

use banger_api::Size;
use banger_api::kernel::{Catalog, CatalogKernel};
use http::Method;
use jiff::Timestamp;

use crate::commands::DONE;
use crate::context::Context;
use crate::failure::Failure;
use crate::operation;
use crate::render::{self, Shown};

/// List what `kernel pull` can bring
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Reads the catalog that config.toml names under [catalog]. When that cannot be reached, shows what was last accepted of it, \
and says so.

Examples:
  banger kernel catalog
  banger kernel catalog -q              names only
  banger kernel catalog --format json")]
pub(crate) struct Args {}

pub(crate) async fn run(context: &Context) -> Result<u8, Failure> {
    let client = context.client().await?;
    let path = "/v1/catalog";
    let catalog: Catalog =
        operation::follow(context, &client, None, Method::POST, path, None::<&()>).await?;
    render::list(context, &catalog.kernels)?;
    Ok(DONE)
}

impl Shown for CatalogKernel {
    const HEADINGS: &'static [&'static str] = &["NAME", "RELEASE", "SIZE", "HERE AS"];

    fn name(&self) -> &str {
        &self.name
    }

    fn row(&self, _now: Timestamp) -> Vec<String> {
        let here = if self.here.is_empty() { "-".to_owned() } else { self.here.join(" ") };
        let size = Size::bytes(self.size_bytes).to_string();
        vec![self.name.clone(), self.release.clone(), size, here]
    }

    fn fields(&self, _now: Timestamp) -> Vec<(&'static str, String)> {
        vec![
            ("name", self.name.clone()),
            ("release", self.release.clone()),
            ("architecture", self.architecture.clone()),
            ("size", Size::bytes(self.size_bytes).to_string()),
            ("sha256", self.sha256.clone()),
            ("here as", self.here.join(" ")),
        ]
    }
}
