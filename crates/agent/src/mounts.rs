//! Mounting and unmounting, with errors that name both ends, and the list of what is mounted.

use std::ffi::CString;
use std::io;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags};

#[derive(Debug, thiserror::Error)]
#[error("cannot mount {source_name} on {target} ({options})")]
pub(crate) struct MountError {
    source_name: String,
    target: PathBuf,
    options: String,
    #[source]
    cause: io::Error,
}

#[derive(Debug, thiserror::Error)]
#[error("cannot unmount {target}")]
pub(crate) struct UnmountError {
    target: PathBuf,
    #[source]
    cause: io::Error,
}

/// Mounts, making the mount point if it is not there; that there is a mount of it already (EBUSY) is fine.
pub(crate) fn mount(
    source: impl AsRef<Path>,
    target: impl AsRef<Path>,
    kind: &str,
    flags: MountFlags,
    options: &str,
) -> Result<(), MountError> {
    let (source, target) = (source.as_ref(), target.as_ref());
    let data = CString::new(options).expect("the options are our own text");
    let made = std::fs::create_dir_all(target)
        .and_then(|()| Ok(rustix::mount::mount(source, target, kind, flags, data.as_c_str())?));
    match made {
        Err(cause) if cause.raw_os_error() != Some(rustix::io::Errno::BUSY.raw_os_error()) => {
            Err(MountError {
                source_name: format!("{} ({kind})", source.display()),
                target: target.to_owned(),
                options: options.to_owned(),
                cause,
            })
        }
        _ => Ok(()),
    }
}

pub(crate) fn unmount(target: &Path, flags: UnmountFlags) -> Result<(), UnmountError> {
    rustix::mount::unmount(target, flags)
        .map_err(|errno| UnmountError { target: target.to_owned(), cause: errno.into() })
}

/// Moves a mount; the new place is made if it is not there.
pub(crate) fn move_mount(from: &Path, to: &Path) -> Result<(), MountError> {
    let moved = std::fs::create_dir_all(to).and_then(|()| Ok(rustix::mount::mount_move(from, to)?));
    moved.map_err(|cause| MountError {
        source_name: from.display().to_string(),
        target: to.to_owned(),
        options: "move".to_owned(),
        cause,
    })
}

/// The three that everything else here reads.
pub(crate) fn kernel_file_systems() -> Result<(), MountError> {
    let quiet = MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NODEV;
    mount("proc", "/proc", "proc", quiet, "")?;
    mount("sysfs", "/sys", "sysfs", quiet, "")?;
    mount("devtmpfs", "/dev", "devtmpfs", MountFlags::NOSUID, "mode=0755")
}

/// What programs expect below a root's /dev and /run before its init has run.
pub(crate) fn run_file_systems(root: &Path) -> Result<(), MountError> {
    let private = MountFlags::NOSUID | MountFlags::NODEV;
    mount("tmpfs", root.join("run"), "tmpfs", private, "mode=0755,size=20%")?;
    mount("tmpfs", root.join("dev/shm"), "tmpfs", private, "mode=1777")?;
    // 5 is the group tty wherever there is one; grantpt(3) of old programs wants it.
    let terminals = MountFlags::NOSUID | MountFlags::NOEXEC;
    mount("devpts", root.join("dev/pts"), "devpts", terminals, "gid=5,mode=0620,ptmxmode=0666")
}

/// The mount points, in the order in which they were mounted.
pub(crate) fn list() -> io::Result<Vec<PathBuf>> {
    let text = std::fs::read("/proc/self/mountinfo")?;
    Ok(parse(&text))
}

fn parse(mountinfo: &[u8]) -> Vec<PathBuf> {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;
    let lines = mountinfo.split(|&byte| byte == b'\n');
    lines
        .filter_map(|line| line.split(|&byte| byte == b' ').nth(4))
        .map(|field| PathBuf::from(OsString::from_vec(unescape(field))))
        .collect()
}

/// The kernel writes space, tab, newline and backslash as three octal digits (seq_path).
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        match (first, after) {
            (b'\\', &[a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ref behind @ ..]) => {
                bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = behind;
            }
            _ => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read_with_their_spaces() {
        let text = b"21 1 0:20 / / rw - overlay overlay rw\n22 21 0:21 / /mnt/a\\040b\\134c rw - tmpfs x rw\n";
        assert_eq!(parse(text), [PathBuf::from("/"), PathBuf::from("/mnt/a b\\c")]);
    }

    #[test]
    fn this_machines_mounts_include_its_root() {
        assert!(list().unwrap().contains(&PathBuf::from("/")));
    }
}
