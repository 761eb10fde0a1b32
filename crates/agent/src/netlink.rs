//! rtnetlink(7), as far as a guest needs it: a device up with its MTU, an address, a default route. Each call is one request
//! and the kernel's answer to it, on a socket of its own.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with,
};

/// Of `lo`, in every network namespace.
pub(crate) const LOOPBACK: u32 = 1;

/// Lets the device work. An MTU is in bytes; `None` leaves the device its own.
pub(crate) fn bring_up(index: u32, mtu: Option<u16>) -> io::Result<()> {
    // struct ifinfomsg: family, type, index, flags, mask of the flags to change.
    let head = [[0; 4], index.to_ne_bytes(), IFF_UP.to_ne_bytes(), IFF_UP.to_ne_bytes()];
    let mut request = Request::new(RTM_NEWLINK, 0, &head.concat());
    if let Some(mtu) = mtu {
        request.attribute(IFLA_MTU, u32::from(mtu).to_ne_bytes());
    }
    request.send()
}

/// Gives the device the address, which it may have already.
pub(crate) fn add_address(
    index: u32,
    address: Ipv4Addr,
    prefix: u8,
    broadcast: Ipv4Addr,
) -> io::Result<()> {
    // struct ifaddrmsg: family, length of the prefix, flags, scope, index.
    let head = [[AF_INET, prefix, 0, RT_SCOPE_UNIVERSE], index.to_ne_bytes()];
    let mut request = Request::new(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, &head.concat());
    request.attribute(IFA_LOCAL, address.octets());
    request.attribute(IFA_ADDRESS, address.octets());
    request.attribute(IFA_BROADCAST, broadcast.octets());
    request.send()
}

/// Sends what is for nowhere else to the gateway, by the device. Such a route that is there is replaced.
pub(crate) fn add_default_route(index: u32, gateway: Ipv4Addr) -> io::Result<()> {
    // struct rtmsg: family, lengths of both prefixes, TOS; table, origin, scope, type; flags.
    let head = [
        [AF_INET, 0, 0, 0],
        [RT_TABLE_MAIN, RTPROT_STATIC, RT_SCOPE_UNIVERSE, RTN_UNICAST],
        [0; 4],
    ];
    let mut request = Request::new(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, &head.concat());
    request.attribute(RTA_GATEWAY, gateway.octets());
    request.attribute(RTA_OIF, index.to_ne_bytes());
    request.send()
}

/// Gives the device the IPv6 address, which it may have already: at once, without asking whether it is somebody else's.
pub(crate) fn add_ipv6_address(index: u32, address: Ipv6Addr, prefix: u8) -> io::Result<()> {
    let head = [[AF_INET6, prefix, IFA_F_NODAD, RT_SCOPE_UNIVERSE], index.to_ne_bytes()];
    let mut request = Request::new(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, &head.concat());
    request.attribute(IFA_LOCAL, address.octets());
    request.send()
}

/// Has the device lead to this one address, which is on the same link.
pub(crate) fn add_ipv6_neighbour(index: u32, address: Ipv6Addr) -> io::Result<()> {
    let mut request = ipv6_route(128);
    request.attribute(RTA_DST, address.octets());
    request.attribute(RTA_OIF, index.to_ne_bytes());
    request.send()
}

/// As [`add_default_route`], for IPv6.
pub(crate) fn add_ipv6_default_route(index: u32, gateway: Ipv6Addr) -> io::Result<()> {
    let mut request = ipv6_route(0);
    request.attribute(RTA_GATEWAY, gateway.octets());
    request.attribute(RTA_OIF, index.to_ne_bytes());
    request.send()
}

fn ipv6_route(prefix: u8) -> Request {
    let head = [
        [AF_INET6, prefix, 0, 0],
        [RT_TABLE_MAIN, RTPROT_STATIC, RT_SCOPE_UNIVERSE, RTN_UNICAST],
        [0; 4],
    ];
    Request::new(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, &head.concat())
}

// linux/netlink.h, linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h.
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_CREATE: u16 = 0x400;

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;

const IFF_UP: u32 = 1;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IFA_F_NODAD: u8 = 2;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RT_TABLE_MAIN: u8 = 254;
/// Somebody's decision, as opposed to what a daemon or the kernel found out.
const RTPROT_STATIC: u8 = 4;
const RTN_UNICAST: u8 = 1;

const IFLA_MTU: u16 = 4;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;

/// The length of `struct nlmsghdr`.
const HEAD: usize = 16;

/// A message to the kernel: `struct nlmsghdr`, the kind's own head, attributes.
struct Request(Vec<u8>);

impl Request {
    /// All heads here are whole numbers of 4 bytes, which attributes must begin at.
    fn new(kind: u16, flags: u16, head: &[u8]) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((NLM_F_REQUEST | NLM_F_ACK | flags).to_ne_bytes());
        // Sequence number and sender: there is one request for each socket.
        bytes.extend([0; 8]);
        bytes.extend(head);
        Self(bytes)
    }

    /// Every value here has a whole number of 4 bytes.
    fn attribute<const LENGTH: usize>(&mut self, kind: u16, value: [u8; LENGTH]) {
        let length = u16::try_from(4 + LENGTH).expect("values of ours are short");
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
    }

    fn send(mut self) -> io::Result<()> {
        let length = u32::try_from(self.0.len()).expect("requests of ours are short");
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        /// The number 0, which the library has no name for.
        const NETLINK_ROUTE: Option<rustix::net::Protocol> = None;
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            NETLINK_ROUTE,
        )?;
        sendto(&socket, &self.0, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
        let mut reply = [0_u8; 1024];
        let (_, length) = recv(&socket, &mut reply[..], RecvFlags::empty())?;
        // struct nlmsghdr, then struct nlmsgerr, whose first field is 0 or a negative errno (netlink(7)).
        match reply[..length].get(HEAD..HEAD + 4) {
            Some([0, 0, 0, 0]) => Ok(()),
            Some(&[a, b, c, d]) => {
                Err(io::Error::from_raw_os_error(-i32::from_ne_bytes([a, b, c, d])))
            }
            _ => {
                Err(io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer is too short"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
    use rustix::thread::{UnshareFlags, unshare_unsafe};

    use super::*;

    const NAME: &str = "eth0";

    /// In a network namespace with nothing but `lo`, and a /sys that shows it. Needs root.
    fn in_own_network(test: impl FnOnce() + Send) {
        let run = || {
            #[expect(unsafe_code, reason = "unshare(2) can take files away from a thread")]
            // SAFETY: open files stay shared (CLONE_FILES is not given).
            unsafe { unshare_unsafe(UnshareFlags::NEWNET | UnshareFlags::NEWNS) }.unwrap();
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
            mount("sysfs", "/sys", "sysfs", MountFlags::empty(), None).unwrap();
            test();
        };
        if let Err(panic) = std::thread::scope(|scope| scope.spawn(run).join()) {
            std::panic::resume_unwind(panic);
        }
    }

    /// A device of that name, and its index.
    fn device() -> u32 {
        const IFLA_IFNAME: u16 = 3;
        /// A bridge: every kernel that runs these tests has those.
        const IFLA_LINKINFO_BRIDGE: &[u8] = b"\x10\0\x12\0\x0a\0\x01\0bridge\0\0";
        let mut request = Request::new(RTM_NEWLINK, NLM_F_CREATE, &[0; 16]);
        request.attribute(IFLA_IFNAME, *b"eth0");
        request.0.extend(IFLA_LINKINFO_BRIDGE);
        request.send().unwrap();
        of_device("ifindex").parse().unwrap()
    }

    fn of_device(file: &str) -> String {
        fs::read_to_string(format!("/sys/class/net/{NAME}/{file}")).unwrap().trim().to_owned()
    }

    fn is_up(name: &str) -> bool {
        let flags = fs::read_to_string(format!("/sys/class/net/{name}/flags")).unwrap();
        u32::from_str_radix(&flags.trim()[2..], 16).unwrap() & IFF_UP != 0
    }

    /// Device, destination and gateway of each route.
    fn routes() -> Vec<(String, Ipv4Addr, Ipv4Addr)> {
        let text = fs::read_to_string("/proc/thread-self/net/route").unwrap();
        let address =
            |word: &str| Ipv4Addr::from(u32::from_str_radix(word, 16).unwrap().to_ne_bytes());
        let lines = text.lines().skip(1).map(|line| {
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            (words[0].to_owned(), address(words[1]), address(words[2]))
        });
        lines.collect()
    }

    const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 213, 1, 2);
    const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 213, 0, 1);
    const BROADCAST: Ipv4Addr = Ipv4Addr::new(10, 213, 3, 255);

    #[test]
    fn a_device_gets_its_mtu_its_address_and_the_default_route_and_twice_is_once() {
        in_own_network(|| {
            let index = device();
            for _time in 0..2 {
                bring_up(index, Some(1400)).unwrap();
                add_address(index, ADDRESS, 22, BROADCAST).unwrap();
                add_default_route(index, GATEWAY).unwrap();
            }
            assert_eq!(of_device("mtu"), "1400");
            assert!(is_up(NAME));
            let none = Ipv4Addr::UNSPECIFIED;
            let subnet = Ipv4Addr::new(10, 213, 0, 0);
            assert_eq!(
                routes(),
                [(NAME.to_owned(), none, GATEWAY), (NAME.to_owned(), subnet, none)]
            );
            // The kernel's own table says which addresses are local, and which are broadcasts.
            let local = fs::read_to_string("/proc/thread-self/net/fib_trie").unwrap();
            let says = |address, what: &str| {
                local.split_once(&format!("|-- {address}\n")).is_some_and(|(_, rest)| {
                    rest.lines().next().is_some_and(|line| line.trim() == format!("/32 {what}"))
                })
            };
            assert!(says(ADDRESS, "host LOCAL") && says(BROADCAST, "link BROADCAST"), "{local}");
        });
    }

    #[test]
    fn a_device_gets_an_ipv6_address_and_the_default_route_by_a_gateway_that_is_beside_it() {
        in_own_network(|| {
            let index = device();
            bring_up(index, None).unwrap();
            let [address, gateway, other] =
                ["fd12::ad5:2", "fd12::1", "fd12::9"].map(|it| it.parse::<Ipv6Addr>().unwrap());
            for gateway in [gateway, gateway, other] {
                add_ipv6_address(index, address, 128).unwrap();
                add_ipv6_neighbour(index, gateway).unwrap();
                add_ipv6_default_route(index, gateway).unwrap();
            }
            let hex = |it: Ipv6Addr| format!("{:032x}", it.to_bits());
            let addresses = fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap();
            // Permanent (0x80), not asked about (0x02), and not tentative (0x40).
            let own = addresses.lines().find(|line| line.starts_with(&hex(address))).unwrap();
            assert!(own.contains(" 80 00 82 "), "{addresses}");
            let routes = fs::read_to_string("/proc/thread-self/net/ipv6_route").unwrap();
            let none = hex(Ipv6Addr::UNSPECIFIED);
            let default = |to| format!("{none} 00 {none} 00 {} ", hex(to));
            assert!(
                routes.contains(&default(other)) && !routes.contains(&default(gateway)),
                "{routes}"
            );
            assert!(routes.contains(&format!("{} 80 {none} 00 {none} ", hex(other))), "{routes}");
        });
    }

    #[test]
    fn another_gateway_replaces_the_first() {
        in_own_network(|| {
            let index = device();
            bring_up(index, None).unwrap();
            add_address(index, ADDRESS, 22, BROADCAST).unwrap();
            let other = Ipv4Addr::new(10, 213, 0, 9);
            add_default_route(index, GATEWAY).unwrap();
            add_default_route(index, other).unwrap();
            let gateways: Vec<_> = routes().into_iter().map(|(_, _, gateway)| gateway).collect();
            assert_eq!(gateways, [other, Ipv4Addr::UNSPECIFIED]);
        });
    }

    #[test]
    fn the_loopback_device_comes_up() {
        in_own_network(|| {
            assert!(!is_up("lo"));
            bring_up(LOOPBACK, None).unwrap();
            assert!(is_up("lo"));
        });
    }

    #[test]
    fn what_the_kernel_refuses_is_an_error_with_its_reason() {
        in_own_network(|| {
            let index = device();
            let absent = bring_up(index + 1000, None).unwrap_err();
            assert_eq!(absent.raw_os_error(), Some(rustix::io::Errno::NODEV.raw_os_error()));
            bring_up(index, None).unwrap();
            let unreachable = add_default_route(index, GATEWAY).unwrap_err();
            assert_eq!(
                unreachable.raw_os_error(),
                Some(rustix::io::Errno::NETUNREACH.raw_os_error())
            );
        });
    }
}
