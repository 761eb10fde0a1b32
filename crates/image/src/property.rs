//! What must hold of layers that anybody sends, whatever they are: shared by the test of this crate that changes samples at
//! random, and by the fuzz target.

use std::fs::File;

use banger_ext4::{Image, Kind, Options, Spare};
use rustix::fs::{MemfdFlags, memfd_create};

use crate::layers::{Layers, Limits, Stop};
use crate::tarball::{Allowance, Refusal, Tarball};

const LIMITS: Limits = Limits {
    layer_bytes: 1 << 20,
    total_bytes: 4 << 20,
    entries: 3000,
    name_bytes: 1 << 16,
    xattr_bytes: 1 << 16,
};

/// Applies the tar in `bytes` as the lowest layer and once more as a layer upon itself, and finishes the file system.
/// False if anything of that is refused, which is as good.
///
/// # Panics
/// When more was taken than is allowed, or there is a name in the tree that must not be.
#[must_use]
pub fn holds(bytes: &[u8]) -> bool {
    let options = Options {
        uuid: [1; 16],
        hash_seed: [2; 16],
        label: String::new(),
        bytes_per_inode: 16384,
        journal_bytes: 0,
        largest_bytes: 1 << 40,
        most_inodes: 1 << 20,
    };
    let memory = memfd_create("layers", MemfdFlags::CLOEXEC).expect("there is memory");
    let image = Image::create(File::from(memory), options).expect("the file is new");
    let mut layers = Layers::new(image, LIMITS);
    for _ in 0..2 {
        let limit = LIMITS.layer_bytes;
        let allowance = Allowance { bytes: limit, refusal: Refusal::LayerBytes, limit };
        let mut tarball = Tarball::new(bytes, allowance);
        let applied = layers.apply(&mut tarball, &mut |_| Ok::<(), ()>(()));
        match applied.and_then(|()| tarball.finish().map_err(Stop::Tar)) {
            Ok(()) => {}
            Err(Stop::Tar(_)) => return false,
            Err(Stop::Caller(())) => unreachable!("nobody stops it"),
        }
    }
    let Ok(image) = layers.finish() else { return false };
    check(&image);
    image.finish(Spare { bytes: 1 << 20 }).is_ok()
}

/// The same with the right checksum in every block that looks like a header, so that a change is not noticed by that alone.
#[must_use]
pub fn sealed(bytes: &[u8]) -> Vec<u8> {
    let mut sealed = bytes.to_vec();
    for block in sealed.chunks_exact_mut(512).filter(|block| &block[257..262] == b"ustar") {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    sealed
}

fn check(image: &Image) {
    assert!(u64::from(image.inodes()) <= LIMITS.entries);
    // A piece that is on its way when the limit is reached, and its last block.
    assert!(image.data_bytes() <= LIMITS.total_bytes + LIMITS.layer_bytes + 4096);
    let mut folders = vec![image.root()];
    while let Some(folder) = folders.pop() {
        for (name, id) in image.names(folder) {
            assert!((1..=255).contains(&name.len()) && !name.contains(&b'/'), "{name:?}");
            assert!(!name.contains(&0) && name != b"." && name != b"..", "{name:?}");
            assert!(!name.starts_with(b".wh."), "{name:?}");
            if *image.kind(id) == Kind::Directory {
                folders.push(id);
            }
        }
    }
}
