//! Trees through tar streams on a real file system, honest and hostile.
#![expect(clippy::unwrap_used, reason = "a test's helpers fail as the test does")]

mod broken;
mod hostile;
mod trees;

use std::os::fd::OwnedFd;
use std::path::Path;

use banger_api::files::Copied;
use banger_files::{Pack, Target, Unpack, UnpackError};

/// What is at `source` as a tar.
fn packed(source: &Path, top: Option<&str>) -> Vec<u8> {
    let how = Pack { top: top.map(|top| top.as_bytes().to_vec()), from: 0 };
    let mut tar = Vec::new();
    banger_files::pack(opened(source), &how, &mut tar, &mut |_| ()).unwrap();
    tar
}

fn opened(path: &Path) -> OwnedFd {
    banger_files::open(path).unwrap()
}

fn unpacked(tar: &[u8], into: &Path, how: &Unpack) -> Result<Copied, UnpackError> {
    banger_files::unpack(tar, &Target::open(into).unwrap(), how, &mut |_| ())
}

/// The error with its causes, as people see it.
fn text(error: &UnpackError) -> String {
    banger_files::problem(error).to_string()
}
