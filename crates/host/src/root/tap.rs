//! A VM's network device: a persistent tap (Documentation/networking/tuntap.rst) named MARK, which only the VM's uid may
//! open, and which is a port of the installation's bridge.
//!
//! It becomes persistent last: before, it goes with the fd of whoever makes it, so none is half made.

use std::fs::OpenOptions;
use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::netlink::{self, Link};
use super::{bridge, nft, pause};
use crate::Held;
use crate::error::HostError;
use crate::mark::{Installation, Mark};
use crate::network::Network;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tap {
    pub mark: Mark,
    /// Who may open it, beside root.
    pub uid: u32,
    /// Whose bridge it is a port of.
    pub network: Network,
}

/// How long a killed VMM has to let go of it: freeing the memory of a large guest takes the kernel seconds.
const DEADLINE: Duration = Duration::from_secs(20);

const TUN: &str = "/dev/net/tun";

pub(super) fn acquire(claim: &Tap) -> Result<(), HostError> {
    let _one_at_a_time = bridge::lock();
    make(claim).map_err(|e| HostError::new(format!("make the tap of VM {}", claim.mark), e))
}

pub(super) fn release(mark: &Mark) -> Result<(), HostError> {
    let removed = || {
        remove(mark)?;
        // As below: the tables are kept for a tap that is there without its guard.
        nft::remove_unused(mark.installation())
    };
    removed().map_err(|e| HostError::new(format!("remove the tap of VM {mark}"), e))?;
    // The last port takes the bridge with it: its own release may have come before, when this one had failed.
    bridge::release_unused(mark.installation())
}

pub(super) fn list(installation: &Installation) -> Result<Vec<Held>, HostError> {
    let links = netlink::links().map_err(|e| HostError::new("look for taps", e))?;
    let marks =
        links.iter().filter(|link| link.is_tap()).filter_map(|link| Mark::parse(&link.name));
    let ours = marks.filter(|mark| mark.installation() == installation);
    Ok(ours.map(|mark| Held::Tap { mark }).collect())
}

/// Whether taps can be made here.
pub(super) fn ability() -> Result<(), String> {
    // Opening the device makes nothing, and loads the module if need be.
    match OpenOptions::new().read(true).write(true).open(TUN) {
        Ok(_) => Ok(()),
        // It is there, and for root, as whoever makes taps is.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(()),
        Err(error) => Err(no_module(&error).to_string()),
    }
}

fn make(claim: &Tap) -> io::Result<()> {
    let bridge = bridge::ensure(claim.mark.installation(), &claim.network)?;
    let name = claim.mark.to_string();
    if netlink::link(&name)?.is_none() {
        create(&name, claim.uid)?;
    }
    let tap = netlink::link(&name)?.ok_or(ErrorKind::NotFound)?;
    check(&tap, claim.uid)?;
    if tap.mtu != u32::from(claim.network.mtu) {
        netlink::set_mtu(tap.index, claim.network.mtu)?;
    }
    match tap.master {
        None => netlink::attach(tap.index, bridge)?,
        Some(there) if there == bridge => {}
        Some(other) => {
            let said = format!("{name} is attached to another device, of index {other}");
            return Err(io::Error::other(said));
        }
    }
    netlink::isolate(tap.index, !claim.network.peers)?;
    if tap.up { Ok(()) } else { netlink::bring_up(tap.index) }
}

/// That a device of this name is the one that was wanted.
fn check(tap: &Link, uid: u32) -> io::Result<()> {
    let name = &tap.name;
    if !tap.is_tap() {
        return Err(io::Error::other(format!("{name} is there and is no tap")));
    }
    if (tap.tun.owner, tap.tun.group) != (Some(uid), Some(uid)) {
        return Err(io::Error::other(format!("{name} is there and is not for user {uid} alone")));
    }
    if !tap.tun.persists {
        return Err(io::Error::other(format!("{name} is there and goes with whoever has it open")));
    }
    Ok(())
}

fn create(name: &str, uid: u32) -> io::Result<()> {
    let tun = OpenOptions::new().read(true).write(true).open(TUN).map_err(|e| no_module(&e))?;
    kernel::create(&tun, name)?;
    kernel::give(&tun, uid)?;
    kernel::keep(&tun)
}

fn remove(mark: &Mark) -> io::Result<()> {
    let end = Instant::now() + DEADLINE;
    loop {
        let Some(tap) = netlink::link(&mark.to_string())?.filter(Link::is_tap) else {
            return Ok(());
        };
        match netlink::delete(tap.index) {
            Err(error) if error.kind() != ErrorKind::ResourceBusy || Instant::now() >= end => {
                return Err(error);
            }
            Ok(()) => {}
            Err(_) => pause(),
        }
    }
}

fn no_module(error: &io::Error) -> io::Error {
    let said = format!("{TUN} cannot be used ({error}): is the kernel module tun there?");
    io::Error::new(error.kind(), said)
}

#[cfg(test)]
pub(super) use kernel::open_there;

/// The calls of linux/if_tun.h.
mod kernel {
    #![expect(unsafe_code, reason = "ioctl(2) reads what its argument points to")]

    use std::fs::File;
    use std::io;
    use std::ptr::without_provenance_mut;

    use rustix::ioctl::{Opcode, opcode};

    use crate::root::ioctl::ioctl;

    const SETIFF: Opcode = opcode::write::<i32>(b'T', 202);
    const SETPERSIST: Opcode = opcode::write::<i32>(b'T', 203);
    const SETOWNER: Opcode = opcode::write::<i32>(b'T', 204);
    const SETGROUP: Opcode = opcode::write::<i32>(b'T', 206);

    const TAP: u16 = 0x0002;
    const NO_PI: u16 = 0x1000;
    /// Frames begin with virtio's header, as VMMs want them.
    const VNET_HDR: u16 = 0x4000;
    /// Fails when the device is there.
    const EXCL: u16 = 0x8000;

    /// `struct ifreq` (netdevice(7)), as far as it is used.
    #[repr(C)]
    struct Request {
        name: [u8; 16],
        flags: u16,
        rest: [u8; 22],
    }

    const _: () = assert!(size_of::<Request>() == 40);

    pub(super) fn create(tun: &File, name: &str) -> io::Result<()> {
        open(tun, name, TAP | NO_PI | VNET_HDR | EXCL)
    }

    /// Opens one that is there, as a VMM does.
    #[cfg(test)]
    pub(in crate::root) fn open_there(tun: &File, name: &str) -> io::Result<()> {
        open(tun, name, TAP | NO_PI | VNET_HDR)
    }

    fn open(tun: &File, name: &str, flags: u16) -> io::Result<()> {
        let mut request = Request { name: [0; 16], flags, rest: [0; 22] };
        request.name[..name.len()].copy_from_slice(name.as_bytes());
        // SAFETY: reads and writes a `struct ifreq`, which `Request` is.
        unsafe { ioctl(tun, SETIFF, &raw mut request) }.map(drop)
    }

    /// To the user, and to the group of the same number.
    pub(super) fn give(tun: &File, uid: u32) -> io::Result<()> {
        for call in [SETOWNER, SETGROUP] {
            number(tun, call, uid)?;
        }
        Ok(())
    }

    /// It stays when it is closed.
    pub(super) fn keep(tun: &File) -> io::Result<()> {
        number(tun, SETPERSIST, 1)
    }

    fn number(tun: &File, call: Opcode, number: u32) -> io::Result<()> {
        let number = usize::try_from(number).map_err(io::Error::other)?;
        // SAFETY: these calls take a number instead of an address.
        unsafe { ioctl(tun, call, without_provenance_mut::<u8>(number)) }.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::Mac;
    use crate::root::{in_own_network, test_mark};

    const UID: u32 = 1_900_000_000;

    fn network() -> Network {
        Network {
            number: 0,
            gateway: [10, 213, 4, 1].into(),
            prefix: 22,
            mtu: 1400,
            peers: false,
            ipv6: None,
        }
    }

    fn tap(mark: &Mark) -> Tap {
        Tap { mark: mark.clone(), uid: UID, network: network() }
    }

    fn bridge_name(mark: &Mark) -> String {
        network().bridge(mark.installation())
    }

    #[test]
    fn a_tap_is_for_its_user_up_and_in_the_bridge_until_both_are_released() {
        in_own_network(|| {
            let mark = test_mark();
            let installation = mark.installation().clone();
            let claim = tap(&mark);
            bridge::acquire(&installation, &network()).unwrap();
            bridge::acquire(&installation, &network()).unwrap();
            acquire(&claim).unwrap();
            acquire(&claim).unwrap();
            let bridge = netlink::link(&bridge_name(&mark)).unwrap().unwrap();
            let tap = netlink::link(&mark.to_string()).unwrap().unwrap();
            assert!(bridge.is_bridge() && bridge.up);
            assert!(tap.is_tap() && tap.up && tap.tun.persists, "{tap:?}");
            assert_eq!((tap.tun.owner, tap.tun.group), (Some(UID), Some(UID)));
            assert_eq!(tap.master, Some(bridge.index));
            assert_eq!(list(&installation).unwrap(), [Held::Tap { mark: mark.clone() }]);
            assert_eq!(bridge::list(&installation).unwrap().len(), 1);

            bridge::release(&installation, 0).unwrap();
            assert_eq!(bridge::list(&installation).unwrap().len(), 1, "a tap is in it");
            release(&mark).unwrap();
            release(&mark).unwrap();
            assert!(list(&installation).unwrap().is_empty());
            bridge::release(&installation, 0).unwrap();
            bridge::release(&installation, 0).unwrap();
            assert!(bridge::list(&installation).unwrap().is_empty());
            assert_eq!(netlink::links().unwrap().len(), 1, "only the loopback device is left");
        });
    }

    #[test]
    fn guests_do_not_see_each_other_and_the_host_has_no_address_of_its_own_making() {
        in_own_network(|| {
            let mark = test_mark();
            acquire(&tap(&mark)).unwrap();
            let isolated = format!("/sys/class/net/{mark}/brport/isolated");
            assert_eq!(std::fs::read_to_string(&isolated).unwrap(), "1\n");
            // As after a crash between one and the other.
            std::fs::write(&isolated, "0").unwrap();
            acquire(&tap(&mark)).unwrap();
            assert_eq!(std::fs::read_to_string(&isolated).unwrap(), "1\n");
            let addresses =
                std::fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap_or_default();
            let ours = addresses.lines().filter(|line| !line.ends_with(" lo"));
            assert_eq!(ours.count(), 0, "{addresses}");
        });
    }

    #[test]
    fn a_tap_makes_the_bridge_that_another_vms_release_has_removed() {
        in_own_network(|| {
            let mark = test_mark();
            bridge::acquire(mark.installation(), &network()).unwrap();
            bridge::release(mark.installation(), 0).unwrap();
            acquire(&tap(&mark)).unwrap();
            assert_eq!(bridge::list(mark.installation()).unwrap().len(), 1);
        });
    }

    #[test]
    fn a_tap_that_a_program_holds_open_is_removed() {
        in_own_network(|| {
            let mark = test_mark();
            acquire(&tap(&mark)).unwrap();
            let held = OpenOptions::new().read(true).write(true).open(TUN).unwrap();
            kernel::open_there(&held, &mark.to_string()).unwrap();
            release(&mark).unwrap();
            assert_eq!(netlink::link(&mark.to_string()).unwrap(), None);
        });
    }

    #[test]
    fn foreign_devices_of_our_names_are_errors_and_are_not_removed() {
        in_own_network(|| {
            let mark = test_mark();
            let name = mark.to_string();
            netlink::add_bridge(&name, Mac::of(&mark)).unwrap();
            let claim = tap(&mark);
            assert!(acquire(&claim).is_err(), "a bridge is no tap");
            release(&mark).unwrap();
            assert!(netlink::link(&name).unwrap().is_some(), "it is not ours");
            assert!(list(mark.installation()).unwrap().is_empty());

            let other = test_mark();
            create(&other.to_string(), UID + 1).unwrap();
            assert!(acquire(&tap(&other)).is_err(), "another user's");

            let third = test_mark();
            create(&third.to_string(), UID).unwrap();
            let index = |name: &str| netlink::link(name).unwrap().unwrap().index;
            netlink::attach(index(&third.to_string()), index(&name)).unwrap();
            assert!(acquire(&tap(&third)).is_err(), "in another bridge");
        });
    }

    #[test]
    fn a_bridge_that_is_no_bridge_is_an_error_and_is_not_removed() {
        in_own_network(|| {
            let mark = test_mark();
            create(&bridge_name(&mark), UID).unwrap();
            assert!(bridge::acquire(mark.installation(), &network()).is_err());
            assert!(acquire(&tap(&mark)).is_err());
            bridge::release(mark.installation(), 0).unwrap();
            assert!(bridge::list(mark.installation()).unwrap().is_empty());
            assert!(netlink::link(&bridge_name(&mark)).unwrap().is_some());
        });
    }

    #[test]
    fn what_was_left_without_a_bridge_or_down_is_completed() {
        in_own_network(|| {
            let mark = test_mark();
            netlink::add_bridge(&bridge_name(&mark), Mac::of(&mark)).unwrap();
            create(&mark.to_string(), UID).unwrap();
            acquire(&tap(&mark)).unwrap();
            let tap = netlink::link(&mark.to_string()).unwrap().unwrap();
            let bridge = netlink::link(&bridge_name(&mark)).unwrap().unwrap();
            assert!(tap.up && bridge.up && tap.master == Some(bridge.index));
        });
    }
}
