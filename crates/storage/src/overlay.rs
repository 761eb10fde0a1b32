//! `overlay`: the image read-only, an empty disk of the VM's own over it, joined by overlayfs in the guest. Needs no
//! privilege and no special filesystem: works everywhere.

use std::path::Path;

use banger_host::{Claim, Disk, DiskSource, Mark};

use crate::{DISK_SERIAL, Drive, Driver, ROOT_SERIAL};

#[derive(Debug)]
pub struct Overlay;

impl Driver for Overlay {
    fn name(&self) -> &'static str {
        "overlay"
    }

    fn disk(&self, mark: &Mark, _image: &Path, size_bytes: u64) -> Claim {
        Claim::Disk(Disk { mark: mark.clone(), size_bytes, source: DiskSource::Empty })
    }

    fn drives(&self, image: &Path, disk: &Path) -> Vec<Drive> {
        vec![
            Drive { serial: ROOT_SERIAL, path: image.to_owned(), read_only: true },
            Drive { serial: DISK_SERIAL, path: disk.to_owned(), read_only: false },
        ]
    }

    fn root(&self) -> &'static str {
        "overlay"
    }
}
