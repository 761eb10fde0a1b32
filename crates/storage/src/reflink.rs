//! `reflink`: a copy of the image that shares its blocks until they are written, on xfs and btrfs. The guest sees one
//! plain disk, which it grows to its size.

use std::path::Path;

use banger_host::{Claim, Disk, DiskSource, Mark};

use crate::{Drive, Driver, ROOT_SERIAL};

#[derive(Debug)]
pub struct Reflink;

impl Driver for Reflink {
    fn name(&self) -> &'static str {
        "reflink"
    }

    fn disk(&self, mark: &Mark, image: &Path, size_bytes: u64) -> Claim {
        let source = DiskSource::Reflink { base: image.to_owned() };
        Claim::Disk(Disk { mark: mark.clone(), size_bytes, source })
    }

    fn drives(&self, _image: &Path, disk: &Path) -> Vec<Drive> {
        vec![Drive { serial: ROOT_SERIAL, path: disk.to_owned(), read_only: false }]
    }

    fn root(&self) -> &'static str {
        "disk"
    }
}
