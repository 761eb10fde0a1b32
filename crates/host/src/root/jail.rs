//! The folder that becomes a jailed VMM's root: `<jails>/firecracker/MARK/root`, as Firecracker's jailer wants it. Holds
//! what the VMM is to see before the jailer adds its own: hard links of files, nodes of block devices.
//!
//! The jailer gives the folder to the VMM's user. So what is in it is judged anew whenever root touches it, beneath the
//! folder's fd and through no link.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, StatVfsMountFlags, Uid, chownat, fchmod, fstat,
    fstatvfs, linkat, mkdirat, mknodat, openat, renameat, statat, unlinkat,
};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::{LoopRole, RootPlaces, beneath, dm_snapshot, loop_device, remove};
use crate::error::HostError;
use crate::mark::{Installation, Mark};
use crate::state_file::StateFile;
use crate::{Held, folder, socket};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Jail {
    pub mark: Mark,
    /// The VMM's user and group, which own the devices.
    pub uid: u32,
    /// Files to read.
    pub files: Vec<JailFile>,
    /// Block devices.
    pub devices: Vec<JailDevice>,
}

/// `source`, seen as `/name` in the jail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JailFile {
    /// Letters, digits and `-`.
    pub name: String,
    pub source: StateFile,
}

/// A block device of this mark, seen as `/name` in the jail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JailDevice {
    /// Letters, digits and `-`.
    pub name: String,
    pub source: DeviceSource,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceSource {
    Loop(LoopRole),
    DmSnapshot,
}

/// The jailer makes a folder of the name of the program that it runs.
pub(super) const PROGRAM: &str = "firecracker";

/// The name, in the folder of a mark, of what becomes the VMM's root.
const ROOT: &str = "root";

/// What the jailer and the VMM make in the jail.
const THEIRS: [&str; 6] =
    ["dev", "run", PROGRAM, "firecracker.pid", super::API_SOCKET, super::AGENT_SOCKET];

pub(super) fn acquire(jail: &Jail, places: &RootPlaces) -> Result<(), HostError> {
    let failed = |e| HostError::new(format!("make the jail of VM {}", jail.mark), e);
    let root = make_folders(&jail.mark, places).map_err(failed)?;
    for file in &jail.files {
        let source = beneath::state_file(places, &file.source, false)?;
        let put = check_name(&file.name)
            .and_then(|()| check_readable(&source, &file.source))
            .and_then(|()| put_file(&root, &file.name, &source));
        put.map_err(failed)?;
    }
    for device in &jail.devices {
        let put = check_name(&device.name)
            .and_then(|()| number(&jail.mark, device.source))
            .and_then(|number| put_device(&root, &device.name, number, jail.uid));
        put.map_err(failed)?;
    }
    Ok(())
}

pub(super) fn release(mark: &Mark, places: &RootPlaces) -> Result<(), HostError> {
    let remove = || match beneath::folder(&places.jails.join(PROGRAM)) {
        Ok(jails) => remove::tree(jails, &mark.to_string()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    };
    remove().map_err(|e| HostError::new(format!("remove the jail of VM {mark}"), e))
}

pub(super) fn list(
    installation: &Installation,
    places: &RootPlaces,
) -> Result<Vec<Held>, HostError> {
    let mut marks = folder::marked(&places.jails.join(PROGRAM))?;
    marks.retain(|mark| mark.installation() == installation);
    Ok(marks.into_iter().map(|mark| Held::Jail { mark }).collect())
}

pub(super) fn connect(
    mark: &Mark,
    name: &str,
    places: &RootPlaces,
) -> Result<UnixStream, HostError> {
    let act = || format!("connect to {name} in the jail of VM {mark}");
    let connect = || socket::connect_in(root(mark, places)?, name);
    connect().map_err(|e| HostError::new(act(), e))
}

/// The folder that a VMM is to be started in, without what another has left there: the jailer would write through it as
/// root. To be called while no process of the VM's user lives.
pub(super) fn clear(mark: &Mark, places: &RootPlaces) -> io::Result<OwnedFd> {
    let root = root(mark, places)?;
    for name in THEIRS {
        remove::tree(&root, name)?;
    }
    Ok(root)
}

/// The folder that is the VMM's root.
pub(super) fn root(mark: &Mark, places: &RootPlaces) -> io::Result<OwnedFd> {
    let jails = beneath::folder(&places.jails)?;
    beneath::subfolder(jails, format!("{PROGRAM}/{mark}/{ROOT}"))
}

/// Makes what is missing of the folders and gives the last one. They are closed to everybody but root, until the jailer
/// gives the last one to the VMM's user.
fn make_folders(mark: &Mark, places: &RootPlaces) -> io::Result<OwnedFd> {
    match mkdirat(CWD, &places.jails, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let jails = beneath::folder(&places.jails)?;
    let data = fstat(&jails)?;
    if data.st_uid != 0 || data.st_mode & 0o022 != 0 {
        let said = format!("others than root can write to {}", places.jails.display());
        return Err(io::Error::other(said));
    }
    if fstatvfs(&jails)?.f_flag.contains(StatVfsMountFlags::NODEV) {
        let said = format!("{} is on a filesystem without devices (nodev)", places.jails.display());
        return Err(io::Error::other(said));
    }
    let mut at = jails;
    for name in [PROGRAM, &mark.to_string(), ROOT] {
        match mkdirat(&at, name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        at = beneath::subfolder(&at, name)?;
    }
    Ok(at)
}

/// Letters, digits and `-`, and none of the names that the jailer or the VMM use.
fn check_name(name: &str) -> io::Result<()> {
    let fits = (1..=32).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        && !THEIRS.contains(&name)
        && name != "old_root";
    if fits { Ok(()) } else { Err(io::Error::other(format!("{name:?} is no name in a jail"))) }
}

/// That the VM's user can read it, and neither write to it nor become its owner by it.
fn check_readable(file: &File, source: &StateFile) -> io::Result<()> {
    let mode = fstat(file)?.st_mode & 0o7777;
    if mode & 0o004 == 0 {
        return Err(io::Error::other(format!(
            "{source} has mode {mode:04o}: the VM's user could not read it"
        )));
    }
    if mode & 0o6002 != 0 {
        return Err(io::Error::other(format!(
            "{source} has mode {mode:04o}: the VM's user could do more than read it"
        )));
    }
    Ok(())
}

fn put_file(root: &OwnedFd, name: &str, source: &File) -> io::Result<()> {
    // By its fd: its path may lead elsewhere by now.
    match linkat(CWD, beneath::by_fd(source), root, name, AtFlags::SYMLINK_FOLLOW) {
        Ok(()) => Ok(()),
        Err(Errno::EXIST) => check_file(root, name, source),
        Err(Errno::XDEV) => copy_file(root, name, source),
        Err(error) => Err(error.into()),
    }
}

/// That a file of this name is the one that was wanted.
fn check_file(root: &OwnedFd, name: &str, source: &File) -> io::Result<()> {
    let there = statat(root, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let wanted = fstat(source)?;
    let is_link = (there.st_dev, there.st_ino) == (wanted.st_dev, wanted.st_ino);
    // On another filesystem it is a copy, which has its name only when it is complete.
    let is_copy = there.st_dev != wanted.st_dev
        && FileType::from_raw_mode(there.st_mode) == FileType::RegularFile
        && (there.st_uid, there.st_size) == (0, wanted.st_size);
    if is_link || is_copy {
        return Ok(());
    }
    Err(io::Error::other(format!("{name} is there and is another file")))
}

fn copy_file(root: &OwnedFd, name: &str, source: &File) -> io::Result<()> {
    // No name of ours in a jail has a dot.
    let half = format!("{name}.half");
    match unlinkat(root, &half, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut copy = File::from(openat(root, &half, flags, Mode::RUSR | Mode::WUSR)?);
    io::copy(&mut &*source, &mut copy)?;
    fchmod(&copy, Mode::RUSR | Mode::RGRP | Mode::ROTH)?;
    Ok(renameat(root, &half, root, name)?)
}

/// The number of the device of this mark.
fn number(mark: &Mark, source: DeviceSource) -> io::Result<u64> {
    match source {
        DeviceSource::Loop(role) => Ok(loop_device::device(mark, role)?.number),
        DeviceSource::DmSnapshot => dm_snapshot::device(mark),
    }
}

fn put_device(root: &OwnedFd, name: &str, number: u64, uid: u32) -> io::Result<()> {
    let mode = Mode::RUSR | Mode::WUSR;
    match mknodat(root, name, FileType::BlockDevice, mode, number) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    // The VMM's user may rename what is in its own folder: what is looked at is what is given away.
    let node = beneath::path(root, name)?;
    let there = fstat(&node)?;
    if FileType::from_raw_mode(there.st_mode) != FileType::BlockDevice || there.st_rdev != number {
        return Err(io::Error::other(format!("{name} is there and is another device")));
    }
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(uid));
    Ok(chownat(&node, "", Some(user), Some(group), AtFlags::EMPTY_PATH)?)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
    use std::os::unix::net::UnixListener;
    use std::path::PathBuf;

    use super::*;
    use crate::root::{Loop, test_mark, test_places};

    const UID: u32 = 1_900_000_001;

    /// A kernel in the state, and the claim of a jail that holds it.
    fn claim(places: &RootPlaces) -> Jail {
        let source = StateFile::parse("kernels/k/vmlinux").unwrap();
        let path = source.below(&places.state);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, b"kernel").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o444)).unwrap();
        let file = JailFile { name: "kernel".into(), source };
        Jail { mark: test_mark(), uid: UID, files: vec![file], devices: Vec::new() }
    }

    fn root_of(jail: &Jail, places: &RootPlaces) -> PathBuf {
        places.jails.join(format!("firecracker/{}/root", jail.mark))
    }

    #[test]
    fn a_jail_holds_links_and_devices_for_its_user_and_is_gone_after_release() {
        let root = tempfile::tempdir().unwrap();
        let places = test_places(root.path());
        let mut jail = claim(&places);
        let disk = StateFile::disk(&jail.mark);
        fs::create_dir_all(disk.below(&places.state).parent().unwrap()).unwrap();
        fs::write(disk.below(&places.state), vec![0; 4096]).unwrap();
        let (mark, role) = (jail.mark.clone(), LoopRole::Disk);
        loop_device::acquire(&Loop { mark, role, file: disk }, &places).unwrap();
        let source = DeviceSource::Loop(role);
        jail.devices.push(JailDevice { name: "disk".into(), source });

        acquire(&jail, &places).unwrap();
        acquire(&jail, &places).unwrap();
        assert_eq!(
            list(jail.mark.installation(), &places).unwrap(),
            [Held::Jail { mark: jail.mark.clone() }]
        );
        let folder = root_of(&jail, &places);
        let kernel = fs::metadata(folder.join("kernel")).unwrap();
        assert_eq!(
            kernel.ino(),
            fs::metadata(places.state.join("kernels/k/vmlinux")).unwrap().ino()
        );
        let device = fs::metadata(folder.join("disk")).unwrap();
        assert!(device.file_type().is_block_device());
        assert_eq!((device.uid(), device.gid(), device.mode() & 0o777), (UID, UID, 0o600));
        assert_eq!(device.rdev(), loop_device::device(&jail.mark, role).unwrap().number);
        for private in [&places.jails, &places.jails.join("firecracker"), folder.parent().unwrap()]
        {
            assert_eq!(fs::metadata(private).unwrap().mode() & 0o777, 0o700, "{private:?}");
        }

        release(&jail.mark, &places).unwrap();
        release(&jail.mark, &places).unwrap();
        assert!(list(jail.mark.installation(), &places).unwrap().is_empty());
        assert_eq!(fs::read(places.state.join("kernels/k/vmlinux")).unwrap(), b"kernel");
        loop_device::release(&jail.mark, role).unwrap();
    }

    #[test]
    fn a_file_on_another_filesystem_is_copied() {
        let root = tempfile::tempdir_in("/dev/shm").unwrap();
        let elsewhere = tempfile::tempdir_in("/var/lib").unwrap();
        let mut places = test_places(root.path());
        places.jails = elsewhere.path().join("jails");
        let jail = claim(&places);
        acquire(&jail, &places).unwrap();
        acquire(&jail, &places).unwrap();
        let copy = root_of(&jail, &places).join("kernel");
        assert_eq!(fs::read(&copy).unwrap(), b"kernel");
        assert_eq!(fs::metadata(&copy).unwrap().mode() & 0o777, 0o444);
        release(&jail.mark, &places).unwrap();
    }

    #[test]
    fn a_file_that_the_vms_user_could_not_read_or_could_write_is_refused_with_its_mode() {
        let root = tempfile::tempdir().unwrap();
        let places = test_places(root.path());
        let jail = claim(&places);
        let kernel = places.state.join("kernels/k/vmlinux");
        for mode in [0o400, 0o440, 0o646, 0o4755, 0o2755] {
            fs::set_permissions(&kernel, Permissions::from_mode(mode)).unwrap();
            let error = acquire(&jail, &places).unwrap_err();
            let cause = std::error::Error::source(&error).unwrap().to_string();
            assert!(cause.contains(&format!("{mode:04o}")), "{cause}");
        }
    }

    #[test]
    fn another_file_or_device_in_its_place_is_an_error() {
        let root = tempfile::tempdir().unwrap();
        let places = test_places(root.path());
        let mut jail = claim(&places);
        acquire(&jail, &places).unwrap();
        let there = root_of(&jail, &places).join("kernel");
        fs::remove_file(&there).unwrap();
        fs::write(&there, b"kernel").unwrap();
        assert!(acquire(&jail, &places).is_err());
        fs::remove_file(&there).unwrap();
        symlink(places.state.join("kernels/k/vmlinux"), &there).unwrap();
        assert!(acquire(&jail, &places).is_err());
        jail.files.clear();
        let device = JailDevice { name: "disk".into(), source: DeviceSource::Loop(LoopRole::Disk) };
        jail.devices.push(device);
        assert!(acquire(&jail, &places).is_err(), "there is no such loop device");
    }

    #[test]
    fn names_of_the_jailers_and_of_other_places_are_refused() {
        let root = tempfile::tempdir().unwrap();
        let places = test_places(root.path());
        for name in [
            "",
            ".",
            "..",
            "a/b",
            "../x",
            "dev",
            "run",
            "firecracker",
            "api.sock",
            "a.b",
            "old_root",
        ] {
            let mut jail = claim(&places);
            jail.files[0].name = name.into();
            assert!(acquire(&jail, &places).is_err(), "{name}");
        }
    }

    #[test]
    fn jails_that_others_could_write_to_or_rename_are_refused() {
        let root = tempfile::tempdir().unwrap();
        let places = test_places(root.path());
        fs::create_dir(&places.jails).unwrap();
        fs::set_permissions(&places.jails, Permissions::from_mode(0o770)).unwrap();
        assert!(acquire(&claim(&places), &places).is_err());
        fs::set_permissions(&places.jails, Permissions::from_mode(0o700)).unwrap();
        std::os::unix::fs::chown(&places.jails, Some(1000), None).unwrap();
        assert!(acquire(&claim(&places), &places).is_err());
    }

    #[test]
    fn a_socket_in_the_jail_can_be_connected_to_and_a_link_out_of_it_not() {
        let root = tempfile::tempdir().unwrap();
        let places = test_places(root.path());
        let jail = claim(&places);
        assert!(connect(&jail.mark, "api.sock", &places).is_err());
        acquire(&jail, &places).unwrap();
        let folder = root_of(&jail, &places);
        let _listener = UnixListener::bind(folder.join("api.sock")).unwrap();
        connect(&jail.mark, "api.sock", &places).unwrap();
        let _outside = UnixListener::bind(root.path().join("outside.sock")).unwrap();
        symlink(root.path().join("outside.sock"), folder.join("agent.sock")).unwrap();
        assert!(connect(&jail.mark, "agent.sock", &places).is_err());
        assert!(connect(&jail.mark, "../../../../outside.sock", &places).is_err());
    }

    #[test]
    fn what_a_vmm_has_left_is_cleared_through_no_link_and_what_is_ours_stays() {
        let root = tempfile::tempdir().unwrap();
        let places = test_places(root.path());
        let jail = claim(&places);
        acquire(&jail, &places).unwrap();
        let folder = root_of(&jail, &places);
        let precious = root.path().join("precious");
        fs::write(&precious, b"precious").unwrap();
        symlink(&precious, folder.join("firecracker")).unwrap();
        symlink(root.path(), folder.join("dev")).unwrap();
        fs::create_dir_all(folder.join("run/x/y")).unwrap();
        fs::write(folder.join("firecracker.pid"), b"1").unwrap();
        clear(&jail.mark, &places).unwrap();
        let left: Vec<_> = fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["kernel"]);
        assert_eq!(fs::read(&precious).unwrap(), b"precious");
    }

    #[test]
    fn a_half_made_jail_is_listed_and_released() {
        let root = tempfile::tempdir().unwrap();
        let places = test_places(root.path());
        let mark = test_mark();
        let folder = places.jails.join(format!("firecracker/{mark}"));
        fs::create_dir_all(&folder).unwrap();
        assert_eq!(list(mark.installation(), &places).unwrap().len(), 1);
        release(&mark, &places).unwrap();
        assert!(!folder.exists());
    }
}
