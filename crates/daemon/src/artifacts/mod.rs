//! Images, kernels and initramfs: shared, never changed once made, named by digest. A name is only a pointer to one.
//!
//! Each is made under a temporary name in its own folder and renamed when it is whole; the record comes last. So a
//! killed making leaves at most a temporary, which the next daemon removes.

mod export;
mod images;
mod initramfs;
mod kernel_catalog;
mod kernels;
mod made;
mod prune;
mod pull;
mod verify;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use banger_api::operation::Unit;
use banger_api::{Code, Problem};
use banger_image::{Progress, Trouble};

use crate::operations::Operation;
use crate::problems;

/// How a temporary of ours is named, before its operation's id.
const TEMPORARY: &str = ".making-";

/// Tells an operation what the image crate is doing. Bytes are told at most a hundred times a stage.
fn watch(operation: &Operation) -> impl Fn(Progress<'_>) + Sync + use<> {
    let operation = operation.clone();
    let told = std::sync::atomic::AtomicU64::new(u64::MAX);
    move |progress| match progress {
        Progress::Stage { name, text } => {
            told.store(u64::MAX, std::sync::atomic::Ordering::Relaxed);
            operation.stage(name, text);
        }
        Progress::Bytes { done, total } => {
            let step = done.saturating_mul(100).checked_div(total).unwrap_or(done >> 24);
            if told.swap(step, std::sync::atomic::Ordering::Relaxed) != step {
                operation.progress(done, total, Unit::Bytes);
            }
        }
        Progress::Line(line) => operation.log(line),
    }
}

/// An error of the image crate as a problem.
fn problem(
    error: &(dyn std::error::Error + 'static),
    trouble: Trouble,
    remedy: Option<String>,
) -> Problem {
    let code = match trouble {
        Trouble::Input => Code::Invalid,
        Trouble::Missing => Code::Missing,
        Trouble::NoSpace => Code::NoSpace,
        Trouble::Timeout => Code::Timeout,
        Trouble::Host => Code::Internal,
    };
    let remedy =
        remedy.or_else(|| (code == Code::NoSpace).then(|| problems::FREE_SPACE.to_owned()));
    Problem { remedy, ..Problem::from_error(code, error) }
}

/// Lets every user read an artifact, since a jailed VMM has a user of its own. Its folder is the owner's alone, so what a
/// user sees of it is what root has put into a jail.
///
/// # Errors
/// When the mode cannot be changed.
pub(crate) fn readable(path: &Path) -> Result<(), Problem> {
    const FOR_ALL: u32 = 0o444;
    let what = format!("cannot let VMMs read {}", path.display());
    let mode = fs::metadata(path).map_err(act(&what))?.permissions().mode();
    if mode & FOR_ALL == FOR_ALL {
        return Ok(());
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode | FOR_ALL)).map_err(act(&what))
}

/// Removes what makings that were killed left in this folder. Only the one daemon of this state calls it, before it makes
/// anything; names that are not ours stay.
pub(crate) fn remove_temporaries(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = entry.path();
        let removed = if name.starts_with(TEMPORARY) {
            if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }
        } else if name.starts_with('.') {
            banger_image::artifact::remove_leftover(&path).map_err(std::io::Error::other)
        } else {
            continue;
        };
        match removed {
            Ok(()) => {
                tracing::info!(path = %path.display(), "removed what an unfinished making left")
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "what an unfinished making left stays")
            }
        }
    }
}

fn act(text: &str) -> impl FnOnce(std::io::Error) -> Problem {
    let text = text.to_owned();
    move |error| {
        let full = matches!(
            error.kind(),
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
        );
        let problem =
            Problem::new(if full { Code::NoSpace } else { Code::Internal }, text).cause(&error);
        if full { problem.remedy(problems::FREE_SPACE) } else { problem }
    }
}
