//! Loads the kernel modules that the kernel's own cpio brought, in the order that its list says.
//!
//! `list` has one line per module, `boot FILE` or `late FILE`: what the disks and the port need, and what can wait until
//! the guest is ready. A host that comes by vsock needs some of the late ones before (vsock.rs), and so does a guest with a
//! network (network.rs). A loaded module's file is
//! removed, since the initramfs is memory.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Mode, OFlags, openat, unlinkat};
use rustix::io::Errno;

const FOLDER: &str = "/lib/banger/modules";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    Boot,
    Late,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ModuleError {
    #[error("cannot read the list of kernel modules, {FOLDER}/list")]
    List(#[source] io::Error),
    #[error(
        "the list of kernel modules has the line {0:?}, which is neither \"boot FILE\" nor \"late FILE\""
    )]
    Line(String),
    #[error("cannot load the kernel module {file}")]
    Load {
        file: String,
        #[source]
        cause: io::Error,
    },
}

/// The folder of the modules; `None` when the kernel has everything built in.
/// It stays reachable by this file descriptor after the root has changed.
pub(crate) fn folder() -> Option<OwnedFd> {
    rustix::fs::open(FOLDER, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .ok()
}

/// Loads all modules that the boot needs.
pub(crate) fn load_boot(folder: &OwnedFd) -> Result<(), ModuleError> {
    files(folder, When::Boot)?.iter().try_for_each(|file| load_one(folder, file))
}

/// Loads what could wait, and what nobody asked for before; each failure is told to `failed`.
pub(crate) fn load_late(
    folder: &OwnedFd,
    mut failed: impl FnMut(ModuleError),
) -> Result<(), ModuleError> {
    for file in files(folder, When::Late)? {
        if let Err(error) = load_if_there(folder, &file) {
            failed(error);
        }
    }
    Ok(())
}

/// As [`load_one`]; one that is loaded already, by vsock.rs, network.rs or a server that was here before us, is gone.
pub(crate) fn load_if_there(folder: &OwnedFd, file: &str) -> Result<(), ModuleError> {
    match load_one(folder, file) {
        Err(ModuleError::Load { cause, .. }) if cause.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// The files of the modules of that time, in the order in which they load.
fn files(folder: &OwnedFd, when: When) -> Result<Vec<String>, ModuleError> {
    let mut text = String::new();
    let list = openat(folder, "list", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    list.map_err(io::Error::from)
        .and_then(|list| File::from(list).read_to_string(&mut text))
        .map_err(ModuleError::List)?;
    Ok(parse(&text, when)?.into_iter().map(str::to_owned).collect())
}

/// The late modules up to that one, which those that it depends on precede; `None` when the kernel does not have it as a
/// module. Its file's name may have either sign.
pub(crate) fn late_up_to(
    folder: &OwnedFd,
    module: &str,
) -> Result<Option<Vec<String>>, ModuleError> {
    Ok(up_to(files(folder, When::Late)?, module))
}

fn up_to(mut files: Vec<String>, module: &str) -> Option<Vec<String>> {
    let is_it = |file: &String| {
        file.strip_suffix(".ko").is_some_and(|name| name.replace('-', "_") == module)
    };
    let place = files.iter().position(is_it)?;
    files.truncate(place + 1);
    Some(files)
}

fn parse(text: &str, wanted: When) -> Result<Vec<&str>, ModuleError> {
    let mut files = Vec::new();
    for line in text.lines() {
        let (when, file) = match line.split_once(' ') {
            Some(("boot", file)) => (When::Boot, file),
            Some(("late", file)) => (When::Late, file),
            _ => return Err(ModuleError::Line(line.to_owned())),
        };
        if when == wanted {
            files.push(file);
        }
    }
    Ok(files)
}

pub(crate) fn load_one(folder: &OwnedFd, file: &str) -> Result<(), ModuleError> {
    let failed = |errno: Errno| ModuleError::Load { file: file.to_owned(), cause: errno.into() };
    let module =
        openat(folder, file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
    match rustix::system::finit_module(&module, c"", 0) {
        // EEXIST: built in, or loaded by something that was quicker.
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(failed(errno)),
    }
    // A file that stays costs its memory, nothing else.
    unlinkat(folder, file, AtFlags::empty()).ok();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_time_has_its_modules_in_the_order_of_the_list() {
        let text = "boot virtio_ring.ko\nlate nft.ko\nboot virtio.ko\n";
        assert_eq!(parse(text, When::Boot).unwrap(), ["virtio_ring.ko", "virtio.ko"]);
        assert_eq!(parse(text, When::Late).unwrap(), ["nft.ko"]);
    }

    #[test]
    fn a_late_module_comes_with_those_before_it() {
        let files = ["vsock.ko", "net_failover.ko", "virtio-net.ko", "fuse.ko"].map(String::from);
        let found = |module| up_to(files.to_vec(), module);
        assert_eq!(found("virtio_net").unwrap(), files[..3]);
        assert_eq!(found("virtio_rng"), None);
    }

    #[test]
    fn a_line_that_is_no_module_is_refused_with_its_text() {
        let error = parse("boot a.ko\nsoon b.ko\n", When::Boot).unwrap_err();
        assert!(error.to_string().contains("soon b.ko"), "{error}");
    }
}
