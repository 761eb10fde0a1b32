//! `reflink`: a copy of the image that shares its blocks until they are written, on xfs and btrfs. The guest sees one
//! plain disk, which it grows to its size.

use std::path::Path;

use banger_host::{Claim, Disk, DiskSource, Mark, StateFile};

use crate::{Drive, DriveSource, Driver, ROOT_SERIAL};

#[derive(Debug)]
pub struct Reflink;

impl Driver for Reflink {
    fn name(&self) -> &'static str {
        "reflink"
    }

    fn disk(&self, mark: &Mark, state: &Path, image: &StateFile, size_bytes: u64) -> Claim {
        let source = DiskSource::Reflink { base: image.below(state) };
        Claim::Disk(Disk { mark: mark.clone(), size_bytes, source, grown_from: None })
    }

    fn run_claims(&self, _mark: &Mark, _image: &StateFile, _size_bytes: u64) -> Vec<Claim> {
        Vec::new()
    }

    fn drives(&self, mark: &Mark, _image: &StateFile) -> Vec<Drive> {
        let source = DriveSource::File(StateFile::disk(mark));
        vec![Drive { serial: ROOT_SERIAL, source, read_only: false }]
    }

    fn begins_as_image(&self) -> bool {
        true
    }

    fn root(&self) -> &'static str {
        "disk"
    }
}
