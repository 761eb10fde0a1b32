//! `banger doctor`

use std::fmt::Write;

use banger_api::Problem;
use banger_api::daemon::{Finding, Report, Verdict};
use http::Method;

use crate::commands::{DONE, FAILED};
use crate::context::Context;
use crate::failure::Failure;
use crate::operation;

/// Look whether this host is fit for VMs, and say what to do where it is not
#[derive(Debug, clap::Args)]
#[command(after_help = "Exits with 1 if anything fails. A warning is no failure.

Examples:
  banger doctor
  banger doctor --deep     read every image, kernel and layer again, too
  banger doctor --fix      release what crashed VMs left on the host, then look again")]
pub(crate) struct Args {
    /// Release what banger left on the host and nothing needs any more
    #[arg(long)]
    fix: bool,
    /// Read all images, kernels and layers again, and compare them with their digests
    #[arg(long, conflicts_with = "fix")]
    deep: bool,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let report = match context.client().await {
        Ok(client) if args.fix || args.deep => {
            let path = if args.fix { "/v1/doctor/fix" } else { "/v1/doctor/deep" };
            let fixing = async {
                let report: Report =
                    operation::follow(context, &client, None, Method::POST, path, None::<&()>)
                        .await?;
                Ok(report)
            };
            operation::unless_interrupted(context, fixing).await?
        }
        Ok(client) => client.get("/v1/doctor").await?,
        Err(problem) => Report { findings: vec![no_daemon(&problem)] },
    };
    context.print(&report, || human(&report))?;
    let fit = report.findings.iter().all(|finding| finding.verdict != Verdict::Fail);
    Ok(if fit { DONE } else { FAILED })
}

/// A host where the daemon does not start is what a doctor is asked about.
fn no_daemon(problem: &Problem) -> Finding {
    Finding {
        check: "daemon".to_owned(),
        verdict: Verdict::Fail,
        text: problem.to_string(),
        remedy: problem.remedy.clone(),
    }
}

fn human(report: &Report) -> String {
    let width = report.findings.iter().map(|finding| finding.check.len()).max().unwrap_or(0) + 2;
    let mut text = String::new();
    for Finding { check, verdict, text: found, remedy } in &report.findings {
        let verdict = match verdict {
            Verdict::Pass => "PASS",
            Verdict::Warn => "WARN",
            Verdict::Fail => "FAIL",
        };
        writeln!(text, "{verdict}  {check:width$}{found}")
            .expect("writing to a String does not fail");
        if let Some(remedy) = remedy {
            writeln!(text, "      {:width$}try: {remedy}", "")
                .expect("writing to a String does not fail");
        }
    }
    text
}
