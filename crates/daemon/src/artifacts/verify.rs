//! Whether the artifacts are what the records say: at a glance that they are there, and if asked every byte of them.

use std::path::PathBuf;
use std::sync::Arc;

use banger_api::Problem;
use banger_api::daemon::{Finding, Report};
use banger_api::operation::Unit;
use banger_registry::blobs::DamageCause;

use crate::daemon::Daemon;
use crate::doctor::{fail, pass, warn};
use crate::operations::Operation;
use crate::problems;

/// An artifact that somebody may boot.
struct Artifact {
    /// For people: `image debian:bookworm`.
    what: String,
    path: PathBuf,
    digest: String,
}

impl Daemon {
    /// Reads every image, kernel and cached blob again, then reports.
    ///
    /// # Errors
    /// When the database cannot be read, or the host cannot be looked at.
    pub(crate) async fn doctor_deep(
        self: &Arc<Self>,
        operation: &Operation,
    ) -> Result<Report, Problem> {
        operation.stage("artifacts", "reading images, kernels and layers again");
        let told = operation.clone();
        let mut found = self.blocking(move |daemon| daemon.read_again(&told)).await??;
        operation.stage("report", "looking at the host");
        let mut report = self.doctor().await?;
        report.findings.append(&mut found);
        Ok(report)
    }

    /// Whether the file of every image and kernel that has a name or a VM is there.
    pub(crate) fn artifacts_there(&self) -> Finding {
        const CHECK: &str = "artifacts";
        match self.named_artifacts() {
            Ok(all) => {
                let missing: Vec<String> = all
                    .iter()
                    .filter(|artifact| !artifact.path.exists())
                    .map(|artifact| artifact.what.clone())
                    .collect();
                if missing.is_empty() {
                    return pass(CHECK, format!("{}: nothing is missing", counted(all.len())));
                }
                fail(CHECK, format!("missing: {}", missing.join(", ")), REMEDY)
            }
            Err(problem) => fail(CHECK, problem.to_string(), "see `banger daemon status`"),
        }
    }

    fn named_artifacts(&self) -> Result<Vec<Artifact>, Problem> {
        let images = self.store.images().map_err(problems::store)?;
        let kernels = self.store.kernels().map_err(problems::store)?;
        let vms = self.store.vms().map_err(problems::store)?;
        let mut all: Vec<Artifact> = images
            .into_iter()
            .map(|image| (format!("image {}", image.name), image.digest))
            .chain(
                vms.iter().map(|vm| (format!("image of VM {}", vm.name), vm.image_digest.clone())),
            )
            .map(|(what, digest)| Artifact { what, path: self.image_path(&digest), digest })
            .collect();
        all.extend(
            kernels
                .into_iter()
                .map(|kernel| (format!("kernel {}", kernel.name), kernel.digest))
                .chain(
                    vms.into_iter()
                        .map(|vm| (format!("kernel of VM {}", vm.name), vm.kernel_digest)),
                )
                .map(|(what, digest)| Artifact { what, path: self.kernel_path(&digest), digest }),
        );
        // Most VMs boot what has a name too.
        let mut seen = std::collections::HashSet::new();
        all.retain(|artifact| seen.insert(artifact.path.clone()));
        Ok(all)
    }

    fn read_again(&self, operation: &Operation) -> Result<Vec<Finding>, Problem> {
        let all = self.named_artifacts()?;
        let total = all.len() as u64;
        let mut damaged = Vec::new();
        for (done, artifact) in (0..).zip(&all) {
            operation.progress(done, total, Unit::Items);
            match banger_image::artifact::digest(&artifact.path) {
                Ok(digest) if digest == artifact.digest => {}
                Ok(digest) => damaged.push(format!(
                    "{} is not what was made: it is {digest}, not {}",
                    artifact.what, artifact.digest
                )),
                Err(error) => damaged.push(format!(
                    "{} cannot be read: {}",
                    artifact.what,
                    banger_api::problem::chain(Some(&error)).join(": ")
                )),
            }
        }
        let mut findings = vec![if damaged.is_empty() {
            pass("content", format!("{}, all as they were made", counted(all.len())))
        } else {
            fail("content", damaged.join("; "), REMEDY)
        }];
        let blobs = self.blobs()?;
        findings.push(match blobs.verify(|_| {}) {
            Ok(damages) if damages.is_empty() => {
                pass("layers", "all as their registries sent them")
            }
            Ok(damages) => {
                let shown: Vec<String> = damages
                    .iter()
                    .map(|damage| match &damage.why {
                        DamageCause::Content(found) => {
                            format!("{} holds {found}", damage.digest)
                        }
                        DamageCause::Unreadable(error) => format!("{}: {error}", damage.digest),
                    })
                    .collect();
                fail("layers", shown.join("; "), "`banger cache prune` removes them")
            }
            Err(error) => {
                let text = banger_api::problem::chain(Some(&error)).join(": ");
                warn("layers", text, "`banger cache prune` removes them")
            }
        });
        Ok(findings)
    }
}

const REMEDY: &str = "make it anew with --replace, or delete it and what uses it: see `banger image list` and `banger kernel list`";

fn counted(number: usize) -> String {
    match number {
        0 => "no image and no kernel yet".to_owned(),
        1 => "1 image or kernel".to_owned(),
        _ => format!("{number} images and kernels"),
    }
}
