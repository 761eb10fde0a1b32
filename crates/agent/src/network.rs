//! The guest's network: its one device with the address that the host gave the VM, and what the image's programs need to
//! know of it. It is done before the image's init starts, so that nothing in the guest waits for it.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};
use std::{fs, io};

use banger_api::{GuestIpv6, GuestNet};

use crate::disks::virtio_number;
use crate::modules::{self, ModuleError};
use crate::uevents::Uevents;
use crate::{console, netlink, network_daemons, resolver};

/// The device is there once its driver is loaded; a busy emulated machine may need seconds.
const DEADLINE: Duration = Duration::from_secs(10);

const DEVICES: &str = "/sys/class/net";

#[derive(Debug, thiserror::Error)]
pub(crate) enum NetworkError {
    #[error("cannot load the driver of the network device")]
    Module(#[from] ModuleError),
    #[error("cannot look for the network device")]
    Look(#[source] io::Error),
    #[error(
        "there is no virtio network device after {} s (devices that are there: {present}); the kernel needs virtio_net, \
         built in or as a module in the archive that was made at its import",
        DEADLINE.as_secs()
    )]
    Absent { present: String },
    #[error("cannot set up IPv6 by {path}")]
    Ipv6 {
        path: String,
        #[source]
        cause: io::Error,
    },
    #[error("cannot bring the network device up with an MTU of {mtu}")]
    Up {
        mtu: u16,
        #[source]
        cause: io::Error,
    },
    #[error("cannot give the network device the address {address}/{prefix}")]
    Address {
        address: Ipv4Addr,
        prefix: u8,
        #[source]
        cause: io::Error,
    },
    #[error("cannot give the network device the address {address} and the gateway {gateway}")]
    Ipv6Address {
        address: Ipv6Addr,
        gateway: Ipv6Addr,
        #[source]
        cause: io::Error,
    },
    #[error("cannot make {gateway} the gateway")]
    Route {
        gateway: Ipv4Addr,
        #[source]
        cause: io::Error,
    },
}

#[derive(Debug, PartialEq, Eq)]
struct Device {
    name: String,
    index: u32,
    mac: String,
}

/// Gives the guest its network, and says whether it has the address. What fails is said on the console, and the guest boots:
/// the host reaches its agent by another way.
pub(crate) fn set_up(net: &GuestNet, modules: Option<&OwnedFd>, uevents: &Uevents) -> bool {
    let root = Path::new("/");
    if let Err(error) = resolver::set(root, net.gateway) {
        console::say_error(&error);
    }
    let device = load_driver(modules).and_then(|()| wait_for_device(uevents)).and_then(|device| {
        prepare_ipv6(&device.name, net.ipv6.is_some())?;
        configure(device.index, net).map(|()| device)
    });
    if let (Ok(device), Some(ipv6)) = (&device, net.ipv6)
        && knows_ipv6(&device.name)
        && let Err(error) = configure_ipv6(device.index, ipv6)
    {
        console::say_error(&error);
    }
    match &device {
        Ok(Device { name, mac, .. }) => {
            let told = network_daemons::tell(root, net, name, mac);
            told.into_iter().filter_map(Result::err).for_each(|error| console::say_error(&error));
        }
        Err(error) => console::say_error(error),
    }
    device.is_ok()
}

fn load_driver(modules: Option<&OwnedFd>) -> Result<(), NetworkError> {
    let Some(folder) = modules else { return Ok(()) };
    for file in modules::late_up_to(folder, "virtio_net")?.unwrap_or_default() {
        modules::load_if_there(folder, &file)?;
    }
    Ok(())
}

fn wait_for_device(uevents: &Uevents) -> Result<Device, NetworkError> {
    let devices = Path::new(DEVICES);
    let found = uevents.wait_for(Some(Instant::now() + DEADLINE), || find(devices));
    found
        .map_err(NetworkError::Look)?
        .ok_or_else(|| NetworkError::Absent { present: present(devices).unwrap_or_default() })
}

/// The first virtio device. What the kernel itself makes (`lo`, `sit0`, …) is no device of the machine.
fn find(devices: &Path) -> io::Result<Option<Device>> {
    let mut first = None;
    for device in fs::read_dir(devices)? {
        let device = device?.path();
        let Some(number) = virtio_number(&device) else { continue };
        if first.as_ref().is_none_or(|&(least, _)| number < least) {
            first = Some((number, device));
        }
    }
    first.map(|(_, device)| read(&device)).transpose()
}

fn read(device: &Path) -> io::Result<Device> {
    let text = |name| Ok::<_, io::Error>(fs::read_to_string(device.join(name))?.trim().to_owned());
    Ok(Device {
        name: device.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        index: text("ifindex")?.parse().map_err(io::Error::other)?,
        mac: text("address")?,
    })
}

fn present(devices: &Path) -> io::Result<String> {
    let names = fs::read_dir(devices)?.filter_map(Result::ok);
    Ok(names
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(", "))
}

/// Before the device is up. A router that answers is somebody else, and nobody hears an address of the device's own making: the
/// guest has the one that the host gives it, or none. A kernel without IPv6 has none of these files.
fn prepare_ipv6(name: &str, on: bool) -> Result<(), NetworkError> {
    /// IN6_ADDR_GEN_MODE_NONE of linux/if_link.h.
    const NONE: &str = "1";
    let on = if on { "0" } else { "1" };
    for (file, value) in [
        ("accept_ra", "0"),
        ("accept_redirects", "0"),
        ("addr_gen_mode", NONE),
        ("disable_ipv6", on),
    ] {
        let path = format!("/proc/sys/net/ipv6/conf/{name}/{file}");
        match fs::write(&path, value) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
                return Err(NetworkError::Ipv6 { path, cause });
            }
            _ => {}
        }
    }
    Ok(())
}

fn knows_ipv6(name: &str) -> bool {
    Path::new(&format!("/proc/sys/net/ipv6/conf/{name}")).exists()
}

fn configure_ipv6(index: u32, ipv6: GuestIpv6) -> Result<(), NetworkError> {
    let GuestIpv6 { address, prefix, gateway } = ipv6;
    netlink::add_ipv6_address(index, address, prefix)
        .and_then(|()| netlink::add_ipv6_neighbour(index, gateway))
        .and_then(|()| netlink::add_ipv6_default_route(index, gateway))
        .map_err(|cause| NetworkError::Ipv6Address { address, gateway, cause })
}

fn configure(index: u32, net: &GuestNet) -> Result<(), NetworkError> {
    let GuestNet { address, prefix, gateway, mtu, zone: _, ipv6: _ } = *net;
    netlink::bring_up(index, Some(mtu)).map_err(|cause| NetworkError::Up { mtu, cause })?;
    netlink::add_address(index, address, prefix, net.broadcast())
        .map_err(|cause| NetworkError::Address { address, prefix, cause })?;
    netlink::add_default_route(index, gateway)
        .map_err(|cause| NetworkError::Route { gateway, cause })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn device(sys: &Path, name: &str, behind: Option<&str>, index: u32) {
        let device = sys.join(name);
        fs::create_dir(&device).unwrap();
        fs::write(device.join("ifindex"), format!("{index}\n")).unwrap();
        fs::write(device.join("address"), format!("02:00:00:00:00:0{index}\n")).unwrap();
        if let Some(behind) = behind {
            symlink(format!("../../../{behind}"), device.join("device")).unwrap();
        }
    }

    #[test]
    fn the_device_is_the_machines_and_none_of_the_kernels_own() {
        let sys = tempfile::tempdir().unwrap();
        device(sys.path(), "lo", None, 1);
        device(sys.path(), "sit0", None, 2);
        assert_eq!(find(sys.path()).unwrap(), None);
        assert_eq!(present(sys.path()).unwrap().split(", ").count(), 2);
        device(sys.path(), "eth1", Some("virtio10"), 4);
        device(sys.path(), "eth0", Some("virtio9"), 3);
        let expected = Device { name: "eth0".into(), index: 3, mac: "02:00:00:00:00:03".into() };
        assert_eq!(find(sys.path()).unwrap(), Some(expected));
    }

    #[test]
    fn a_device_that_goes_while_it_is_read_is_an_error_and_no_device() {
        let sys = tempfile::tempdir().unwrap();
        device(sys.path(), "eth0", Some("virtio0"), 2);
        fs::remove_file(sys.path().join("eth0/address")).unwrap();
        assert!(find(sys.path()).is_err());
    }
}
