//! `dm-snapshot`: a device-mapper snapshot of the image; the VM's disk is the file of what was written. Works on every
//! filesystem, and needs root, or root's helper. The guest sees one plain disk, which it grows to its size.

use std::path::Path;

use banger_host::{Claim, Disk, DiskSource, Loop, LoopRole, Mark, StateFile};

use crate::{Drive, DriveSource, Driver, ROOT_SERIAL};

#[derive(Debug)]
pub struct DmSnapshot;

impl Driver for DmSnapshot {
    fn name(&self) -> &'static str {
        "dm-snapshot"
    }

    fn disk(&self, mark: &Mark, _state: &Path, _image: &StateFile, size_bytes: u64) -> Claim {
        let size_bytes = banger_host::DmSnapshot::cow_bytes(size_bytes);
        Claim::Disk(Disk {
            mark: mark.clone(),
            size_bytes,
            source: DiskSource::Hole,
            grown_from: None,
        })
    }

    fn run_claims(&self, mark: &Mark, image: &StateFile, size_bytes: u64) -> Vec<Claim> {
        let under = |role, file| Claim::Loop(Loop { mark: mark.clone(), role, file });
        vec![
            under(LoopRole::Image, image.clone()),
            under(LoopRole::Disk, StateFile::disk(mark)),
            Claim::DmSnapshot(banger_host::DmSnapshot { mark: mark.clone(), size_bytes }),
        ]
    }

    fn drives(&self, _mark: &Mark, _image: &StateFile) -> Vec<Drive> {
        vec![Drive { serial: ROOT_SERIAL, source: DriveSource::DmSnapshot, read_only: false }]
    }

    fn begins_as_image(&self) -> bool {
        true
    }

    fn root(&self) -> &'static str {
        "disk"
    }
}
