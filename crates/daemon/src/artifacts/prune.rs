//! What of the artifacts may go: images that no VM uses; and, of what is only kept to be quicker or was left over by a
//! replacement, everything. Removing goes on when one thing cannot be removed; that one is noted.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use banger_api::Problem;
use banger_api::image::{Pruned, PrunedThing};
use banger_host::space;

use crate::daemon::Daemon;
use crate::operations::Operation;
use crate::problems;

/// Something that may go, and where it is.
struct Candidate {
    kind: &'static str,
    name: String,
    path: PathBuf,
}

impl Daemon {
    /// Deletes every image that no VM uses, but for the default one.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub(crate) async fn prune_images(
        self: &Arc<Self>,
        dry_run: bool,
        operation: &Operation,
    ) -> Result<Pruned, Problem> {
        let operation = operation.clone();
        self.blocking(move |daemon| {
            let mut pruned = Pruned { dry_run, ..Pruned::default() };
            for image in daemon.shown_images()? {
                if image.name == daemon.config.image || !image.used_by.is_empty() {
                    continue;
                }
                let size_bytes = space::allocated_bytes(&daemon.image_path(&image.digest));
                match if dry_run { Ok(()) } else { daemon.delete_image(&image.name) } {
                    Ok(()) => add(&mut pruned, "image", image.name.to_string(), size_bytes),
                    Err(problem) => operation.note(format!("{} stays: {problem}", image.name)),
                }
            }
            Ok(pruned)
        })
        .await?
    }

    /// Removes what can be fetched or made again, and files that nothing names any more.
    ///
    /// # Errors
    /// When the database or a folder cannot be read.
    pub(crate) async fn prune_cache(
        self: &Arc<Self>,
        dry_run: bool,
        operation: &Operation,
    ) -> Result<Pruned, Problem> {
        let operation = operation.clone();
        self.blocking(move |daemon| {
            let mut pruned = Pruned { dry_run, ..Pruned::default() };
            daemon.prune_blobs(&mut pruned)?;
            let _artifacts = daemon.artifacts();
            for Candidate { kind, name, path } in daemon.unnamed_files()? {
                let size_bytes = size_of(&path);
                match if dry_run { Ok(()) } else { remove(&path) } {
                    Ok(()) => add(&mut pruned, kind, name, size_bytes),
                    Err(error) => operation.note(format!("{} stays: {error}", path.display())),
                }
            }
            Ok(pruned)
        })
        .await?
    }

    /// Files of images and kernels that neither a name nor a VM points at, and what an older agent left.
    fn unnamed_files(&self) -> Result<Vec<Candidate>, Problem> {
        let vms = self.store.vms().map_err(problems::store)?;
        let images = self.store.images().map_err(problems::store)?;
        let kernels = self.store.kernels().map_err(problems::store)?;
        let images: HashSet<String> = images
            .into_iter()
            .map(|image| image.digest)
            .chain(vms.iter().map(|vm| vm.image_digest.clone()))
            .map(|digest| format!("{digest}.ext4"))
            .collect();
        let kernels: HashSet<String> = kernels
            .into_iter()
            .map(|kernel| kernel.digest)
            .chain(vms.into_iter().map(|vm| vm.kernel_digest))
            .collect();
        let mut found = Vec::new();
        found.extend(others("image file", &self.images_folder(), |name| images.contains(name))?);
        found.extend(others("kernel folder", &self.kernels_folder(), |name| {
            kernels.contains(name)
        })?);
        if let Ok(version) = self.agent_version() {
            let mine = format!("-{version}.cpio");
            let is_mine = |name: &str| name.ends_with(&mine);
            found.extend(others("initramfs", &self.initramfs_folder(), is_mine)?);
        }
        Ok(found)
    }
}

fn add(pruned: &mut Pruned, kind: &str, name: String, size_bytes: u64) {
    pruned.freed_bytes += size_bytes;
    pruned.removed.push(PrunedThing { kind: kind.to_owned(), name, size_bytes });
}

/// What is in `folder` but for what is being made there and what `keep` names.
fn others(
    kind: &'static str,
    folder: &Path,
    keep: impl Fn(&str) -> bool,
) -> Result<Vec<Candidate>, Problem> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(super::act(&format!("cannot read {}", folder.display())))?,
    };
    let candidate = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        let goes = !name.starts_with('.') && !keep(&name);
        goes.then(|| Candidate { kind, name, path: entry.path() })
    };
    Ok(entries.flatten().filter_map(candidate).collect())
}

fn size_of(path: &Path) -> u64 {
    match fs::read_dir(path) {
        Ok(entries) => entries.flatten().map(|entry| size_of(&entry.path())).sum(),
        Err(_) => space::allocated_bytes(path),
    }
}

fn remove(path: &Path) -> std::io::Result<()> {
    if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}
