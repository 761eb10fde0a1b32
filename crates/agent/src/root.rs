//! Builds the guest's root of its disks, and makes it `/`.
//!
//! The file systems under an overlay are mounted, joined, and taken out of sight again: the overlay keeps its own hold
//! of them, so that unmounting the overlay is the one thing needed to leave the writable disk clean.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::Path;

use rustix::mount::{MountFlags, UnmountFlags};

use crate::cmdline::Cmdline;
use crate::disks::{self, Disk, DiskError};
use crate::mounts::{self, MountError, UnmountError};
use crate::uevents::Uevents;
use crate::{cmdline, console, ext4};

const NEW_ROOT: &str = "/banger/root";
const LOWER: &str = "/banger/image";
const DISK: &str = "/banger/disk";

#[derive(Debug, thiserror::Error)]
pub(crate) enum RootError {
    #[error("the root lacks a disk")]
    Disk(#[from] DiskError),
    #[error("the root cannot be mounted")]
    Mount(#[from] MountError),
    #[error("a part of the root cannot be taken out of sight")]
    Unmount(#[from] UnmountError),
    #[error("cannot prepare {what} on the writable disk")]
    Layer {
        what: &'static str,
        #[source]
        cause: io::Error,
    },
    #[error("cannot make {NEW_ROOT} the root")]
    Switch(#[source] io::Error),
}

/// Mounts the new root beside the initramfs.
pub(crate) fn assemble(cmdline: &Cmdline, uevents: &Uevents) -> Result<(), RootError> {
    let disk = |name| disks::wait_for(name, cmdline.drives.as_deref(), uevents);
    let image = disk("banger-root")?;
    match cmdline.root {
        cmdline::Root::Disk => mount_writable(&image, NEW_ROOT),
        cmdline::Root::Overlay => overlay(&image, &disk("banger-disk")?),
    }
}

fn overlay(image: &Disk, disk: &Disk) -> Result<(), RootError> {
    mounts::mount(&image.device, LOWER, "ext4", MountFlags::RDONLY, "")?;
    mount_writable(disk, DISK)?;
    let (upper, work) = (format!("{DISK}/upper"), format!("{DISK}/work"));
    make_upper(Path::new(&upper))
        .map_err(|cause| RootError::Layer { what: "the upper folder", cause })?;
    fs::create_dir_all(&work)
        .map_err(|cause| RootError::Layer { what: "the work folder", cause })?;
    // redirect_dir: a folder of the image can be renamed, where programs do not expect EXDEV. index: hard links of the
    // image stay hard links. xino: one st_dev for all, so that `du -x` and `find -xdev` see one file system. metacopy:
    // chown and chmod do not copy the file's data. All four hold as long as image and disk stay together, which they do.
    let options = format!(
        "lowerdir={LOWER},upperdir={upper},workdir={work},redirect_dir=on,index=on,xino=on,metacopy=on"
    );
    mounts::mount("overlay", NEW_ROOT, "overlay", MountFlags::empty(), &options)?;
    mounts::unmount(Path::new(LOWER), UnmountFlags::empty())?;
    Ok(mounts::unmount(Path::new(DISK), UnmountFlags::empty())?)
}

/// Mounts the disk writable, in its whole size. One that cannot be grown still boots.
fn mount_writable(disk: &Disk, target: &str) -> Result<(), RootError> {
    mounts::mount(&disk.device, target, "ext4", MountFlags::NOATIME, "")?;
    let folder = fs::File::open(target)
        .map_err(|cause| RootError::Layer { what: "the file system", cause })?;
    if let Err(error) = ext4::grow(&folder, &disk.device, disk.size_bytes) {
        console::say_error(&error);
    }
    Ok(())
}

/// The upper folder is what the guest sees as `/`: owner and mode must be those of the image's root.
fn make_upper(upper: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o755).create(upper) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        made => made?,
    }
    let image = fs::metadata(LOWER)?;
    chown(upper, Some(image.uid()), Some(image.gid()))?;
    fs::set_permissions(upper, fs::Permissions::from_mode(image.mode() & 0o7777))
}

/// Takes /dev, /proc and /sys along and makes the new root `/`, for this process and those it starts.
pub(crate) fn enter() -> Result<(), RootError> {
    let new = Path::new(NEW_ROOT);
    for name in ["dev", "proc", "sys"] {
        mounts::move_mount(&Path::new("/").join(name), &new.join(name))?;
    }
    mounts::run_file_systems(new)?;
    let switched = rustix::process::chdir(new)
        .and_then(|()| rustix::mount::mount_move(".", "/"))
        .and_then(|()| rustix::process::chroot("."))
        .and_then(|()| rustix::process::chdir("/"));
    switched.map_err(|errno| RootError::Switch(errno.into()))
}
