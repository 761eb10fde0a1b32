//! The end of a guest, as PID 1: everything is killed and unmounted, so that the disks are clean, then the machine goes off.
//!
//! An init of an image that can hand over at the end (systemd-shutdown runs `/run/initramfs/shutdown` after it has pivoted
//! there, see systemd's "Interface for the initrd") hands over to this; so does pid1.rs, which pivots by itself.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags};
use rustix::system::{RebootCommand, reboot};

use crate::cmdline::{self, Off};
use crate::mounts::{self, MountError};
use crate::{console, processes};

/// SIGRTMIN+4 and SIGRTMIN+5 as the C library counts: systemd as PID 1 starts poweroff.target and reboot.target
/// (systemd(1), signals).
pub(crate) const SYSTEMD_POWEROFF: i32 = 38;
pub(crate) const SYSTEMD_REBOOT: i32 = 39;

const NEW_ROOT: &str = "/run/banger-end";
/// Where systemd-shutdown leaves the root, and so do we.
const OLD_ROOT: &str = "/oldroot";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    PowerOff,
    Reboot,
}

impl End {
    /// From the word that systemd-shutdown gives: `poweroff`, `reboot`, `halt`, `kexec`. A halted VM is of no use.
    pub(crate) fn of(word: Option<&[u8]>) -> Self {
        if word == Some(b"reboot") { End::Reboot } else { End::PowerOff }
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum LeaveError {
    #[error("cannot make a place outside the root")]
    Place(#[from] MountError),
    #[error("cannot leave the root for {NEW_ROOT}")]
    Pivot(#[source] io::Error),
}

/// Moves to a root of its own in memory; the old one is at /oldroot then, in nobody's way.
pub(crate) fn leave_root() -> Result<(), LeaveError> {
    mounts::mount("tmpfs", NEW_ROOT, "tmpfs", MountFlags::empty(), "size=64k")?;
    pivot().map_err(LeaveError::Pivot)
}

fn pivot() -> io::Result<()> {
    rustix::process::chdir(NEW_ROOT)?;
    fs::create_dir_all("oldroot")?;
    rustix::process::pivot_root(".", "oldroot")?;
    rustix::process::chroot(".")?;
    Ok(rustix::process::chdir("/")?)
}

/// Ends what lives, unmounts what is mounted, and turns the machine off (or around).
pub(crate) fn finish(end: End) -> ! {
    if !Path::new("/proc/self/mountinfo").exists()
        && let Err(error) = mounts::mount("proc", "/proc", "proc", MountFlags::empty(), "")
    {
        console::say_error(&error);
    }
    if let Err(error) = processes::kill_all(|_| false) {
        console::say_error(&error);
    }
    if let Err(error) = unmount_all() {
        console::say_error(&error);
    }
    off(end)
}

/// What the kernel makes up, and what lives in memory, goes lazily: it holds nothing that must be written, while our own
/// console may hold it. The rest goes for good; what is busy is at least made read-only.
fn unmount_all() -> io::Result<()> {
    for target in deepest_first(mounts::list()?) {
        let Ok(below_old_root) = target.strip_prefix(OLD_ROOT) else { continue };
        let is_memory =
            ["dev", "proc", "sys", "run"].iter().any(|name| below_old_root.starts_with(name));
        let flags = if is_memory { UnmountFlags::DETACH } else { UnmountFlags::empty() };
        if let Err(error) = mounts::unmount(&target, flags) {
            console::say_error(&error);
            rustix::mount::mount_remount(&target, MountFlags::RDONLY, c"").ok();
        }
    }
    Ok(())
}

/// What is mounted below comes before what it is mounted on, and of two at one place the upper one. The kernel's own
/// order is no help: it does not change when a mount is moved.
fn deepest_first(mut targets: Vec<PathBuf>) -> Vec<PathBuf> {
    targets.reverse();
    targets.sort_by_key(|target| std::cmp::Reverse(target.components().count()));
    targets
}

/// Turns the machine off as it is, all written data on its way to the disks. Where only a restart ends the VMM, that is
/// what is done: a machine without a way to power off would halt, and stay (reboot(2) falls back to that).
pub(crate) fn off(end: End) -> ! {
    rustix::fs::sync();
    let commands = match (end, cmdline::off()) {
        (End::PowerOff, Off::Power) => [RebootCommand::PowerOff, RebootCommand::Restart],
        (End::Reboot, _) | (_, Off::Restart) => [RebootCommand::Restart, RebootCommand::PowerOff],
    };
    for command in commands {
        if let Err(errno) = reboot(command) {
            console::say(&format!("cannot end the machine by {command:?}: {errno}"));
        }
    }
    // PID 1 that returned would be a kernel panic, which tells less than the lines above.
    loop {
        std::thread::park();
    }
}

/// Puts this program where systemd-shutdown will look for it.
pub(crate) fn install() -> io::Result<()> {
    fs::create_dir_all("/run/initramfs")?;
    let (temporary, path) = ("/run/initramfs/shutdown.new", "/run/initramfs/shutdown");
    fs::copy("/proc/self/exe", temporary)?;
    fs::set_permissions(temporary, fs::Permissions::from_mode(0o755))?;
    fs::rename(temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_goes_before_the_one_it_is_on() {
        let listed =
            ["/oldroot/proc", "/oldroot", "/oldroot/mnt/a", "/oldroot/mnt", "/"].map(PathBuf::from);
        let order = deepest_first(listed.to_vec());
        assert_eq!(
            order,
            ["/oldroot/mnt/a", "/oldroot/mnt", "/oldroot/proc", "/oldroot", "/"].map(PathBuf::from)
        );
    }
}
