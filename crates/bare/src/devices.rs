//! The kernel's devices, by their ioctls: loop(4), device-mapper (include/uapi/linux/dm-ioctl.h), taps and bridges.

#![expect(unsafe_code, reason = "ioctls and raw structures are what this file is for")]

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use super::c_path;

const LOOP_CTL_GET_FREE: u64 = 0x4c82;
const LOOP_CONFIGURE: u64 = 0x4c0a;
const LOOP_CLR_FD: u64 = 0x4c01;
const DM_DEV_CREATE: u64 = 0xc138_fd03;
const DM_DEV_REMOVE: u64 = 0xc138_fd04;
const DM_DEV_SUSPEND: u64 = 0xc138_fd06;
const DM_TABLE_LOAD: u64 = 0xc138_fd09;
const BLKGETSIZE64: u64 = 0x8008_1272;
const TUNSETIFF: u64 = 0x4004_54ca;
const TUNSETPERSIST: u64 = 0x4004_54cb;
const TUNSETOWNER: u64 = 0x4004_54cc;
const TUNSETGROUP: u64 = 0x4004_54ce;
const SIOCBRADDBR: u64 = 0x89a0;
const SIOCBRDELBR: u64 = 0x89a1;
const SIOCBRADDIF: u64 = 0x89a2;
const SIOCSIFFLAGS: u64 = 0x8914;
const SIOCSIFADDR: u64 = 0x8916;
const SIOCSIFNETMASK: u64 = 0x891c;
const SIOCSIFHWADDR: u64 = 0x8924;
const AF_INET: u16 = 2;
/// IFF_UP of netdevice(7).
const UP: u16 = 1;

fn ioctl(fd: &impl AsRawFd, request: u64, argument: *mut u8) -> io::Result<i32> {
    // SAFETY: every caller passes the structure or the number that its request takes.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), request, argument) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(done) }
}

fn number(value: u64) -> *mut u8 {
    std::ptr::without_provenance_mut(usize::try_from(value).unwrap_or(usize::MAX))
}

fn open(path: impl AsRef<Path>) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

/// `struct loop_config` (include/uapi/linux/loop.h).
pub(super) fn attach(file: &Path, read_only: bool) -> io::Result<PathBuf> {
    let backing = OpenOptions::new().read(true).write(!read_only).open(file)?;
    let free = ioctl(&open("/dev/loop-control")?, LOOP_CTL_GET_FREE, number(0))?;
    let device = PathBuf::from(format!("/dev/loop{free}"));
    let mut config = [0_u8; 304];
    config[..4].copy_from_slice(&backing.as_raw_fd().to_ne_bytes());
    // lo_flags: after fd, block_size, five u64 and three u32. LO_FLAGS_READ_ONLY is 1.
    config[60..64].copy_from_slice(&u32::from(read_only).to_ne_bytes());
    ioctl(&open(&device)?, LOOP_CONFIGURE, config.as_mut_ptr())?;
    Ok(device)
}

pub(super) fn detach(device: &Path) -> io::Result<()> {
    ioctl(&open(device)?, LOOP_CLR_FD, number(0)).map(drop)
}

/// A `struct dm_ioctl` with what follows it.
fn dm(
    control: &File,
    request: u64,
    name: &str,
    targets: &[(u64, u64, &str, String)],
) -> io::Result<u64> {
    const HEAD: usize = 312;
    let mut body = vec![0_u8; HEAD];
    for (start, length, kind, parameters) in targets {
        let mut target = vec![0_u8; 40];
        target[..8].copy_from_slice(&start.to_ne_bytes());
        target[8..16].copy_from_slice(&length.to_ne_bytes());
        target[24..24 + kind.len()].copy_from_slice(kind.as_bytes());
        target.extend(parameters.as_bytes());
        target.push(0);
        target.resize(target.len().next_multiple_of(8), 0);
        let next = u32::try_from(target.len()).map_err(io::Error::other)?;
        target[20..24].copy_from_slice(&next.to_ne_bytes());
        body.extend(target);
    }
    body.resize(body.len() + 64, 0);
    let whole = u32::try_from(body.len()).map_err(io::Error::other)?;
    let count = u32::try_from(targets.len()).map_err(io::Error::other)?;
    for (at, word) in [4_u32, 0, 0, whole, 312, count].into_iter().enumerate() {
        body[at * 4..at * 4 + 4].copy_from_slice(&word.to_ne_bytes());
    }
    body[48..48 + name.len()].copy_from_slice(name.as_bytes());
    ioctl(control, request, body.as_mut_ptr())?;
    let mut dev = [0; 8];
    dev.copy_from_slice(&body[40..48]);
    Ok(u64::from_ne_bytes(dev))
}

fn map(control: &File, name: &str, targets: &[(u64, u64, &str, String)]) -> io::Result<u64> {
    dm(control, DM_DEV_CREATE, name, &[])?;
    dm(control, DM_TABLE_LOAD, name, targets)?;
    // Without the flag DM_SUSPEND_FLAG it resumes.
    dm(control, DM_DEV_SUSPEND, name, &[])
}

fn numbers(device: &Path) -> io::Result<String> {
    let rdev = fs::metadata(device)?.rdev();
    Ok(format!("{}:{}", libc::major(rdev), libc::minor(rdev)))
}

/// The snapshot's device number.
pub(super) fn snapshot(mark: &str, image: &Path, written: &Path, bytes: u64) -> io::Result<u64> {
    let control = open("/dev/mapper/control")?;
    let mut size = 0_u64;
    ioctl(&File::open(image)?, BLKGETSIZE64, (&raw mut size).cast())?;
    let (image_sectors, sectors) = (size / 512, bytes / 512);
    let origin = map(
        &control,
        &format!("{mark}-origin"),
        &[
            (0, image_sectors, "linear", format!("{} 0", numbers(image)?)),
            (image_sectors, sectors - image_sectors, "zero", String::new()),
        ],
    )?;
    let origin = format!("{}:{}", libc::major(origin), libc::minor(origin));
    let parameters = format!("{origin} {} P 8", numbers(written)?);
    map(&control, mark, &[(0, sectors, "snapshot", parameters)])
}

pub(super) fn unsnapshot(mark: &str) -> io::Result<()> {
    let control = open("/dev/mapper/control")?;
    for name in [mark.to_owned(), format!("{mark}-origin")] {
        // udev may look at it just now.
        let busy = |done: &io::Result<u64>| {
            done.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EBUSY))
        };
        let mut removed = dm(&control, DM_DEV_REMOVE, &name, &[]);
        for _ in 0..500 {
            if !busy(&removed) {
                break;
            }
            // SAFETY: poll(2) without descriptors only waits.
            unsafe { libc::poll(std::ptr::null_mut(), 0, 10) };
            removed = dm(&control, DM_DEV_REMOVE, &name, &[]);
        }
        removed?;
    }
    Ok(())
}

/// A `struct ifreq`.
fn interface(name: &str, flags: u16) -> [u8; 40] {
    let mut request = [0; 40];
    request[..name.len()].copy_from_slice(name.as_bytes());
    request[16..18].copy_from_slice(&flags.to_ne_bytes());
    request
}

fn socket() -> io::Result<OwnedFd> {
    // SAFETY: a new descriptor, which nobody else has.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as above.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A `struct ifreq` with an IPv4 address.
fn addressed(name: &str, address: Ipv4Addr) -> [u8; 40] {
    let mut request = interface(name, AF_INET);
    request[20..24].copy_from_slice(&address.octets());
    request
}

/// A bridge that the host has this address on and forwards from, up.
pub(super) fn bridge(name: &str, mac: [u8; 6], gateway: Ipv4Addr, prefix: u8) -> io::Result<()> {
    let socket = socket()?;
    let c_name = CString::new(name).map_err(io::Error::other)?;
    ioctl(&socket, SIOCBRADDBR, c_name.as_ptr().cast_mut().cast())?;
    let mut hardware = interface(name, libc::ARPHRD_ETHER);
    hardware[18..24].copy_from_slice(&mac);
    ioctl(&socket, SIOCSIFHWADDR, hardware.as_mut_ptr())?;
    for setting in ["forwarding", "proxy_arp_pvlan"] {
        fs::write(format!("/proc/sys/net/ipv4/conf/{name}/{setting}"), "1")?;
    }
    let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
    ioctl(&socket, SIOCSIFADDR, addressed(name, gateway).as_mut_ptr())?;
    ioctl(&socket, SIOCSIFNETMASK, addressed(name, Ipv4Addr::from_bits(mask)).as_mut_ptr())?;
    no_ipv6(name)?;
    ioctl(&socket, SIOCSIFFLAGS, interface(name, UP).as_mut_ptr()).map(drop)
}

/// No address of the kernel's own making, where there is IPv6 (ip-sysctl.rst, `addr_gen_mode`).
fn no_ipv6(name: &str) -> io::Result<()> {
    match fs::write(format!("/proc/sys/net/ipv6/conf/{name}/addr_gen_mode"), "1") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// A port of the bridge which passes nothing to other such ports.
pub(super) fn tap(mark: &str, bridge: &str, uid: u32) -> io::Result<()> {
    // IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
    const TAP: u16 = 0x0002 | 0x1000 | 0x4000;
    let socket = socket()?;
    let tun = open("/dev/net/tun")?;
    ioctl(&tun, TUNSETIFF, interface(mark, TAP).as_mut_ptr())?;
    for (request, value) in [(TUNSETOWNER, uid), (TUNSETGROUP, uid), (TUNSETPERSIST, 1)] {
        ioctl(&tun, request, number(u64::from(value)))?;
    }
    let mut port = interface(bridge, 0);
    port[16..20].copy_from_slice(&index(mark)?.to_ne_bytes());
    ioctl(&socket, SIOCBRADDIF, port.as_mut_ptr())?;
    fs::write(format!("/sys/class/net/{mark}/brport/isolated"), "1")?;
    no_ipv6(mark)?;
    ioctl(&socket, SIOCSIFFLAGS, interface(mark, UP).as_mut_ptr()).map(drop)
}

fn index(name: &str) -> io::Result<u32> {
    let name = CString::new(name).map_err(io::Error::other)?;
    // SAFETY: a string with its NUL.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index),
    }
}

pub(super) fn untap(mark: &str, bridge: &str) -> io::Result<()> {
    const DOWN: u16 = 0;
    let tun = open("/dev/net/tun")?;
    ioctl(&tun, TUNSETIFF, interface(mark, 0x0002 | 0x1000 | 0x4000).as_mut_ptr())?;
    ioctl(&tun, TUNSETPERSIST, number(0))?;
    drop(tun);
    let (socket, name) = (socket()?, CString::new(bridge).map_err(io::Error::other)?);
    ioctl(&socket, SIOCSIFFLAGS, interface(bridge, DOWN).as_mut_ptr())?;
    ioctl(&socket, SIOCBRDELBR, name.as_ptr().cast_mut().cast()).map(drop)
}

pub(super) fn node(path: &Path, device: u64) -> io::Result<()> {
    let path = c_path(path)?;
    // SAFETY: a string with its NUL.
    match unsafe { libc::mknod(path.as_ptr(), libc::S_IFBLK | 0o600, device) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A path to the same file that fits `sun_path` (unix(7)).
pub(super) fn short(path: &Path) -> io::Result<PathBuf> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let folder = File::open(folder)?;
    let link = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd())).join(name);
    // Open for as long as this program runs, which is short.
    std::mem::forget(folder);
    Ok(link)
}

/// Files that appear in a folder.
pub(super) struct Births {
    inotify: File,
    folder: PathBuf,
}

impl Births {
    pub(super) fn watch(folder: &Path) -> io::Result<Self> {
        // SAFETY: a new descriptor, which nobody else has.
        let fd = unsafe { libc::inotify_init1(libc::IN_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: as above.
        let inotify = unsafe { File::from_raw_fd(fd) };
        let path = c_path(folder)?;
        // SAFETY: a string with its NUL.
        if unsafe { libc::inotify_add_watch(fd, path.as_ptr(), libc::IN_CREATE) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { inotify, folder: folder.to_owned() })
    }

    /// Waits for the socket of this name, and connects to it.
    pub(super) fn connect(mut self, name: &str) -> io::Result<UnixStream> {
        let path = self.folder.join(name);
        let mut events = [0; 4096];
        loop {
            match UnixStream::connect(short(&path)?) {
                Ok(stream) => return Ok(stream),
                // It is bound, and is about to listen.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    self.inotify.read(&mut events).map(drop)?;
                }
                Err(error) => return Err(error),
            }
        }
    }
}
