//! `overlay`: the image read-only, an empty disk of the VM's own over it, joined by overlayfs in the guest. Needs no
//! privilege and no special filesystem: works everywhere.

use std::path::Path;

use banger_host::{Claim, Disk, DiskSource, Mark, StateFile};

use crate::{DISK_SERIAL, Drive, DriveSource, Driver, ROOT_SERIAL};

#[derive(Debug)]
pub struct Overlay;

impl Driver for Overlay {
    fn name(&self) -> &'static str {
        "overlay"
    }

    fn disk(&self, mark: &Mark, _state: &Path, _image: &StateFile, size_bytes: u64) -> Claim {
        Claim::Disk(Disk {
            mark: mark.clone(),
            size_bytes,
            source: DiskSource::Empty,
            grown_from: None,
        })
    }

    fn run_claims(&self, _mark: &Mark, _image: &StateFile, _size_bytes: u64) -> Vec<Claim> {
        Vec::new()
    }

    fn drives(&self, mark: &Mark, image: &StateFile) -> Vec<Drive> {
        let disk = DriveSource::File(StateFile::disk(mark));
        vec![
            Drive {
                serial: ROOT_SERIAL,
                source: DriveSource::File(image.clone()),
                read_only: true,
            },
            Drive { serial: DISK_SERIAL, source: disk, read_only: false },
        ]
    }

    fn begins_as_image(&self) -> bool {
        false
    }

    fn root(&self) -> &'static str {
        "overlay"
    }
}
