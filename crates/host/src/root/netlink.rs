//! Network devices, addresses and routes by rtnetlink(7): looked at, made, attached, removed. Each call is a request and its
//! answer on a socket of its own; nothing here waits for anybody but the kernel.

use std::io::{self, ErrorKind};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send,
    socket_with,
};

use crate::network::Mac;

pub(super) mod ipv6;

/// A network device as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    /// The driver's name; none for hardware.
    pub(super) kind: Option<String>,
    /// The device that it is a port of.
    pub(super) master: Option<u32>,
    pub(super) up: bool,
    /// IPv4 packets that come in by it.
    pub(super) forwards: bool,
    /// What [`forward_and_answer_for_ports`] sets.
    pub(super) answers_for_ports: bool,
    pub(super) mtu: u32,
    /// Six bytes where it has an Ethernet address.
    pub(super) mac: Vec<u8>,
    /// Of a device of kind `tun`.
    pub(super) tun: Tun,
}

/// What only a device of kind `tun` has (linux/if_link.h, IFLA_TUN_*).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Tun {
    /// A tap, with whole frames, and not a tun.
    pub(super) is_tap: bool,
    pub(super) owner: Option<u32>,
    pub(super) group: Option<u32>,
    pub(super) persists: bool,
}

impl Link {
    pub(super) fn is_bridge(&self) -> bool {
        self.kind.as_deref() == Some("bridge")
    }

    pub(super) fn is_tap(&self) -> bool {
        self.kind.as_deref() == Some("tun") && self.tun.is_tap
    }
}

/// An IPv4 address of a device's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) device: u32,
    pub(super) address: Ipv4Addr,
    /// The subnet that the device leads to, in bits.
    pub(super) prefix: u8,
    /// An address in that subnet: the other end's where a device has two ends, and otherwise the same as `address`.
    pub(super) subnet: Ipv4Addr,
}

/// An IPv4 route of any table, the kernel's own for local addresses among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) to: Ipv4Addr,
    pub(super) prefix: u8,
    /// Absent where it leads to several.
    pub(super) device: Option<u32>,
    /// Whether packets go anywhere by it, and not just away.
    pub(super) leads_somewhere: bool,
}

/// The device of that name, if there is one.
pub(super) fn link(name: &str) -> io::Result<Option<Link>> {
    let mut request = Message::of_link(GETLINK, REQUEST | ACK, &LinkHead::default());
    request.attribute(IFLA_IFNAME, &text(name));
    match answers(request, NEWLINK, parse_link) {
        Ok(links) => Ok(links.into_iter().next()),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Every device.
pub(super) fn links() -> io::Result<Vec<Link>> {
    list(|| Message::of_link(GETLINK, REQUEST | DUMP, &LinkHead::default()), NEWLINK, parse_link)
}

/// Every IPv4 address.
pub(super) fn addresses() -> io::Result<Vec<Address>> {
    let request = || Message::new(GETADDR, REQUEST | DUMP, &[AF_INET, 0, 0, 0, 0, 0, 0, 0]);
    let found = list(request, NEWADDR, |body| match body.first() {
        Some(&AF_INET) => parse_address(body).map(Some),
        _ => Some(None),
    })?;
    Ok(found.into_iter().flatten().collect())
}

/// Every IPv4 route.
pub(super) fn routes() -> io::Result<Vec<Route>> {
    let mut head = [0; ROUTE_HEAD];
    head[0] = AF_INET;
    let request = || Message::new(GETROUTE, REQUEST | DUMP, &head);
    let found = list(request, NEWROUTE, |body| match body.first() {
        Some(&AF_INET) => parse_route(body).map(Some),
        _ => Some(None),
    })?;
    Ok(found.into_iter().flatten().collect())
}

/// As [`answers`], again when what is listed changed meanwhile.
fn list<T>(
    request: impl Fn() -> Message,
    wanted: u16,
    parse: impl Fn(&[u8]) -> Option<T>,
) -> io::Result<Vec<T>> {
    let mut tries = 5;
    loop {
        match answers(request(), wanted, &parse) {
            Err(error) if error.kind() == ErrorKind::Interrupted && tries > 0 => tries -= 1,
            done => return done,
        }
    }
}

/// Makes a bridge, which is not up yet. It keeps this hardware address whatever ports it has.
pub(super) fn add_bridge(name: &str, mac: Mac) -> io::Result<()> {
    let flags = REQUEST | ACK | CREATE | EXCL;
    let mut request = Message::of_link(NEWLINK, flags, &LinkHead::default());
    request.attribute(IFLA_IFNAME, &text(name));
    request.attribute(IFLA_ADDRESS, &mac.bytes());
    request.nested(IFLA_LINKINFO, |info| info.attribute(IFLA_INFO_KIND, b"bridge"));
    done(request)
}

pub(super) fn set_mac(index: u32, mac: Mac) -> io::Result<()> {
    let mut request = Message::of_link(NEWLINK, REQUEST | ACK, &LinkHead::of(index));
    request.attribute(IFLA_ADDRESS, &mac.bytes());
    done(request)
}

pub(super) fn set_mtu(index: u32, mtu: u16) -> io::Result<()> {
    let mut request = Message::of_link(NEWLINK, REQUEST | ACK, &LinkHead::of(index));
    request.attribute(IFLA_MTU, &u32::from(mtu).to_ne_bytes());
    done(request)
}

/// Lets the host pass on what comes in by this device.
pub(super) fn forward_from(index: u32) -> io::Result<()> {
    set_inet(index, &[(IPV4_DEVCONF_FORWARDING, true)])
}

/// As [`forward_from`], and whether the host answers for addresses of the device's subnet that one port of a bridge has and
/// another asks for (proxy_arp_pvlan in Documentation/networking/ip-sysctl.rst): what ports send each other comes to the host's
/// rules, which tell the sender no at once.
pub(super) fn forward_and_answer_for_ports(index: u32, answer: bool) -> io::Result<()> {
    set_inet(index, &[(IPV4_DEVCONF_FORWARDING, true), (IPV4_DEVCONF_PROXY_ARP_PVLAN, answer)])
}

fn set_inet(index: u32, settings: &[(u16, bool)]) -> io::Result<()> {
    let mut request = Message::of_link(NEWLINK, REQUEST | ACK, &LinkHead::of(index));
    request.nested(IFLA_AF_SPEC, |families| {
        families.nested(u16::from(AF_INET), |inet| {
            inet.nested(IFLA_INET_CONF, |all| {
                for (setting, on) in settings {
                    all.attribute(*setting, &u32::from(*on).to_ne_bytes());
                }
            });
        });
    });
    done(request)
}

/// Gives a device an address and with it the route to its subnet.
pub(super) fn add_address(index: u32, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
    done(own_address(NEWADDR, REQUEST | ACK | CREATE | EXCL, index, address, prefix))
}

/// Takes an address from a device.
pub(super) fn remove_address(index: u32, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
    match done(own_address(DELADDR, REQUEST | ACK, index, address, prefix)) {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::ADDRNOTAVAIL) => Ok(()),
        done => done,
    }
}

fn own_address(kind: u16, flags: u16, index: u32, address: Ipv4Addr, prefix: u8) -> Message {
    let mut head = vec![AF_INET, prefix, 0, 0];
    head.extend(index.to_ne_bytes());
    let mut request = Message::new(kind, flags, &head);
    request.attribute(IFA_LOCAL, &address.octets());
    request.attribute(IFA_ADDRESS, &address.octets());
    request
}

/// Whether nf_tables has a table of that name in this family (linux/netfilter/nf_tables.h).
pub(super) fn has_table(family: u8, name: &str) -> io::Result<bool> {
    let mut request = Message::new(NFT_GETTABLE, REQUEST | ACK, &[family, 0, 0, 0]);
    request.attribute(NFTA_TABLE_NAME, &text(name));
    Ok(of_nf_tables(|| request, NFT_NEWTABLE, |_| Some(()))?.is_some())
}

/// The names of the tables of this family.
pub(super) fn tables(family: u8) -> io::Result<Vec<String>> {
    let request = || Message::new(NFT_GETTABLE, REQUEST | DUMP, &[family, 0, 0, 0]);
    let name = |body: &[u8]| {
        let mut all = attributes(body.get(NFT_HEAD..)?);
        all.find(|(kind, _)| *kind == NFTA_TABLE_NAME).map(|(_, value)| string(value))
    };
    Ok(of_nf_tables(request, NFT_NEWTABLE, name)?.unwrap_or_default())
}

/// Whether a table of nf_tables has a chain of that name.
pub(super) fn has_chain(family: u8, table: &str, name: &str) -> io::Result<bool> {
    let mut request = Message::new(NFT_GETCHAIN, REQUEST | ACK, &[family, 0, 0, 0]);
    request.attribute(NFTA_CHAIN_TABLE, &text(table));
    request.attribute(NFTA_CHAIN_NAME, &text(name));
    Ok(of_nf_tables(|| request, NFT_NEWCHAIN, |_| Some(()))?.is_some())
}

/// As [`answers`], of nf_tables: `None` for what is not there, as in a kernel without it.
fn of_nf_tables<T>(
    request: impl FnOnce() -> Message,
    wanted: u16,
    parse: impl Fn(&[u8]) -> Option<T>,
) -> io::Result<Option<Vec<T>>> {
    let absent = [Errno::NOENT, Errno::PROTONOSUPPORT, Errno::AFNOSUPPORT, Errno::OPNOTSUPP];
    match answers_of(Some(netlink::NETFILTER), request(), wanted, parse) {
        Ok(found) => Ok(Some(found)),
        Err(error) if Errno::from_io_error(&error).is_some_and(|e| absent.contains(&e)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Lets the device work, without an IPv6 address of its own making: nothing of the host is to answer guests by itself.
pub(super) fn bring_up(index: u32) -> io::Result<()> {
    let mut request = Message::of_link(NEWLINK, REQUEST | ACK, &LinkHead::of(index));
    request.nested(IFLA_AF_SPEC, |families| {
        families
            .nested(u16::from(AF_INET6), |inet6| inet6.attribute(IFLA_INET6_ADDR_GEN_MODE, &[1]));
    });
    match done(request) {
        // A kernel without IPv6, or with it turned off for this device.
        Err(error) if Errno::from_io_error(&error) == Some(Errno::AFNOSUPPORT) => {}
        done => done?,
    }
    let head = LinkHead { flags: IFF_UP, change: IFF_UP, ..LinkHead::of(index) };
    done(Message::of_link(NEWLINK, REQUEST | ACK, &head))
}

/// Makes the device a port of a bridge. What passes between it and other ports is [`isolate`]'s.
pub(super) fn attach(index: u32, bridge: u32) -> io::Result<()> {
    let mut request = Message::of_link(NEWLINK, REQUEST | ACK, &LinkHead::of(index));
    request.attribute(IFLA_MASTER, &bridge.to_ne_bytes());
    done(request)
}

/// Whether the bridge passes nothing from this port to others that are isolated too: their guests do not see each other.
pub(super) fn isolate(index: u32, isolated: bool) -> io::Result<()> {
    let mut request = Message::of_link(NEWLINK, REQUEST | ACK, &LinkHead::of(index));
    request.nested(IFLA_LINKINFO, |info| {
        info.attribute(IFLA_INFO_SLAVE_KIND, b"bridge");
        let value = [u8::from(isolated)];
        info.nested(IFLA_INFO_SLAVE_DATA, |port| port.attribute(IFLA_BRPORT_ISOLATED, &value));
    });
    done(request)
}

/// Removes the device; one that is not there is no error.
pub(super) fn delete(index: u32) -> io::Result<()> {
    match done(Message::of_link(DELLINK, REQUEST | ACK, &LinkHead::of(index))) {
        Err(error) if !is_absent(&error) => Err(error),
        _ => Ok(()),
    }
}

fn is_absent(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::NODEV)
}

/// A name as the kernel wants it, with its NUL.
fn text(name: &str) -> Vec<u8> {
    [name.as_bytes(), b"\0"].concat()
}

// linux/netlink.h, linux/rtnetlink.h, linux/if_link.h.
const ERROR: u16 = 2;
const DONE: u16 = 3;
const NEWLINK: u16 = 16;
const DELLINK: u16 = 17;
const GETLINK: u16 = 18;
const NEWADDR: u16 = 20;
const DELADDR: u16 = 21;
const GETADDR: u16 = 22;
const NEWROUTE: u16 = 24;
const GETROUTE: u16 = 26;
/// NFNL_SUBSYS_NFTABLES, then NFT_MSG_*; and the length of `struct nfgenmsg`.
const NFT_NEWTABLE: u16 = 10 << 8;
const NFT_GETTABLE: u16 = 10 << 8 | 1;
const NFT_NEWCHAIN: u16 = 10 << 8 | 3;
const NFT_GETCHAIN: u16 = 10 << 8 | 4;
const NFTA_TABLE_NAME: u16 = 1;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFT_HEAD: usize = 4;

const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP_INTERRUPTED: u16 = 0x10;
const EXCL: u16 = 0x200;
const DUMP: u16 = 0x300;
const CREATE: u16 = 0x400;

const IFF_UP: u32 = 1;
const IFF_TAP: u8 = 2;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const IFLA_BRPORT_ISOLATED: u16 = 33;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IFLA_INET_CONF: u16 = 1;
const IPV4_DEVCONF_FORWARDING: u16 = 1;
const IPV4_DEVCONF_PROXY_ARP_PVLAN: u16 = 25;
const IFLA_TUN_OWNER: u16 = 1;
const IFLA_TUN_GROUP: u16 = 2;
const IFLA_TUN_TYPE: u16 = 3;
const IFLA_TUN_PERSIST: u16 = 6;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
/// RTN_BLACKHOLE to RTN_THROW.
const AWAY: std::ops::RangeInclusive<u8> = 6..=9;

/// The length of `struct nlmsghdr`, of `struct ifinfomsg`, of `struct ifaddrmsg`, and of `struct rtmsg`.
const HEAD: usize = 16;
const LINK_HEAD: usize = 16;
const ADDRESS_HEAD: usize = 8;
const ROUTE_HEAD: usize = 12;

/// `struct ifinfomsg`, as far as it is ours to choose.
#[derive(Debug, Default)]
struct LinkHead {
    index: u32,
    flags: u32,
    change: u32,
}

impl LinkHead {
    fn of(index: u32) -> Self {
        Self { index, ..Self::default() }
    }
}

#[derive(Debug)]
struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: u16, head: &[u8]) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        // Its sequence number and sender: there is one request for each socket.
        bytes.extend([0; 8]);
        bytes.extend(head);
        Self(bytes)
    }

    fn of_link(kind: u16, flags: u16, link: &LinkHead) -> Self {
        let numbers = [0, link.index, link.flags, link.change];
        Self::new(kind, flags, &numbers.map(u32::to_ne_bytes).concat())
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.nested(kind, |message| message.0.extend(value));
    }

    fn nested(&mut self, kind: u16, inner: impl FnOnce(&mut Self)) {
        let begin = self.0.len();
        self.0.extend([0; 2]);
        self.0.extend(kind.to_ne_bytes());
        inner(self);
        let length = u16::try_from(self.0.len() - begin).expect("requests of ours are short");
        self.0[begin..begin + 2].copy_from_slice(&length.to_ne_bytes());
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).expect("requests of ours are short");
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }
}

/// Sends a request that is answered by its end alone.
fn done(request: Message) -> io::Result<()> {
    answers(request, NEWLINK, parse_link).map(drop)
}

/// Sends the request and gives what the kernel answers in messages of this kind.
fn answers<T>(
    request: Message,
    wanted: u16,
    parse: impl Fn(&[u8]) -> Option<T>,
) -> io::Result<Vec<T>> {
    // No protocol means the first: NETLINK_ROUTE is 0.
    answers_of(None, request, wanted, parse)
}

fn answers_of<T>(
    protocol: Option<Protocol>,
    request: Message,
    wanted: u16,
    parse: impl Fn(&[u8]) -> Option<T>,
) -> io::Result<Vec<T>> {
    let (family, kind) = (AddressFamily::NETLINK, SocketType::RAW);
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, protocol)?;
    bind(&socket, &SocketAddrNetlink::new(0, 0))?;
    send(&socket, &request.finish(), SendFlags::empty())?;
    let mut found = Vec::new();
    while !read(&socket, &mut found, wanted, &parse)? {}
    Ok(found)
}

/// Reads one datagram of an answer; `true` when it was the last.
fn read<T>(
    socket: &OwnedFd,
    found: &mut Vec<T>,
    wanted: u16,
    parse: impl Fn(&[u8]) -> Option<T>,
) -> io::Result<bool> {
    // Larger than any that the kernel sends: a description with 64 virtual functions has some 20 KiB.
    let mut buffer = vec![0_u8; 64 * 1024];
    let (length, _) = recv(socket, &mut buffer[..], RecvFlags::empty())?;
    let mut rest = &buffer[..length];
    while let Some((kind, flags, body, after)) = message(rest) {
        rest = after;
        if flags & DUMP_INTERRUPTED != 0 {
            return Err(ErrorKind::Interrupted.into());
        }
        match kind {
            DONE => return Ok(true),
            ERROR => {
                let code = body.get(..4).and_then(|code| code.try_into().ok());
                let code = code.map(i32::from_ne_bytes).ok_or(ErrorKind::InvalidData)?;
                return if code == 0 { Ok(true) } else { Err(io::Error::from_raw_os_error(-code)) };
            }
            kind if kind == wanted => found.push(parse(body).ok_or(ErrorKind::InvalidData)?),
            _ => {}
        }
    }
    Ok(false)
}

/// The first message: its kind, its flags, its body, and what comes after it.
fn message(bytes: &[u8]) -> Option<(u16, u16, &[u8], &[u8])> {
    let length = usize::try_from(u32_at(bytes, 0)?).ok()?;
    let body = bytes.get(HEAD..length)?;
    let after = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((u16_at(bytes, 4)?, u16_at(bytes, 6)?, body, after))
}

fn parse_link(body: &[u8]) -> Option<Link> {
    let up = u32_at(body, 8)? & IFF_UP != 0;
    let mut link = Link {
        index: u32_at(body, 4)?,
        name: String::new(),
        kind: None,
        master: None,
        up,
        forwards: false,
        answers_for_ports: false,
        mtu: 0,
        mac: Vec::new(),
        tun: Tun::default(),
    };
    for (kind, value) in attributes(body.get(LINK_HEAD..)?) {
        match kind {
            IFLA_IFNAME => link.name = string(value),
            IFLA_AF_SPEC => {
                let is_set = |setting| inet_setting(value, setting).unwrap_or(false);
                link.forwards = is_set(IPV4_DEVCONF_FORWARDING);
                link.answers_for_ports = is_set(IPV4_DEVCONF_PROXY_ARP_PVLAN);
            }
            IFLA_MTU => link.mtu = u32_at(value, 0)?,
            IFLA_ADDRESS => link.mac = value.to_owned(),
            IFLA_MASTER => link.master = u32_at(value, 0),
            IFLA_LINKINFO => {
                for (kind, value) in attributes(value) {
                    match kind {
                        IFLA_INFO_KIND => link.kind = Some(string(value)),
                        IFLA_INFO_DATA => link.tun = tun(value),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    // What other kinds say of themselves has the same numbers and means something else.
    if link.kind.as_deref() != Some("tun") {
        link.tun = Tun::default();
    }
    Some(link)
}

/// From what each address family says of a device: the settings are numbers, the first of them is numbered 1.
fn inet_setting(families: &[u8], setting: u16) -> Option<bool> {
    let find =
        |bytes, wanted| attributes(bytes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    let settings = find(find(families, AF_INET.into())?, IFLA_INET_CONF)?;
    Some(u32_at(settings, 4 * usize::from(setting - 1))? != 0)
}

fn parse_address(body: &[u8]) -> Option<Address> {
    let prefix = *body.get(1)?;
    let (mut local, mut subnet) = (None, None);
    for (kind, value) in attributes(body.get(ADDRESS_HEAD..)?) {
        match kind {
            IFA_LOCAL => local = Some(ipv4(value)?),
            IFA_ADDRESS => subnet = Some(ipv4(value)?),
            _ => {}
        }
    }
    let address = local.or(subnet)?;
    Some(Address { device: u32_at(body, 4)?, address, prefix, subnet: subnet.unwrap_or(address) })
}

fn parse_route(body: &[u8]) -> Option<Route> {
    let mut route = Route {
        to: Ipv4Addr::UNSPECIFIED,
        prefix: *body.get(1)?,
        device: None,
        leads_somewhere: !AWAY.contains(body.get(7)?),
    };
    for (kind, value) in attributes(body.get(ROUTE_HEAD..)?) {
        match kind {
            RTA_DST => route.to = ipv4(value)?,
            RTA_OIF => route.device = u32_at(value, 0),
            _ => {}
        }
    }
    Some(route)
}

fn ipv4(value: &[u8]) -> Option<Ipv4Addr> {
    let bytes: [u8; 4] = value.get(..4)?.try_into().ok()?;
    Some(bytes.into())
}

fn tun(data: &[u8]) -> Tun {
    let mut tun = Tun::default();
    for (kind, value) in attributes(data) {
        match kind {
            IFLA_TUN_OWNER => tun.owner = u32_at(value, 0),
            IFLA_TUN_GROUP => tun.group = u32_at(value, 0),
            IFLA_TUN_TYPE => tun.is_tap = value.first() == Some(&IFF_TAP),
            IFLA_TUN_PERSIST => tun.persists = value.first() == Some(&1),
            _ => {}
        }
    }
    tun
}

/// Kind and value of each attribute (netlink(7), NLA_*).
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    /// The upper two bits of the kind are flags.
    const KIND: u16 = 0x3fff;
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let (kind, value) = (u16_at(bytes, 2)? & KIND, bytes.get(4..length)?);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

/// Up to its NUL.
fn string(value: &[u8]) -> String {
    let end = value.iter().position(|&byte| byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_device_is_found_by_name_and_in_the_list() {
        let lo = link("lo").unwrap().unwrap();
        assert_eq!((lo.index, lo.kind.as_deref()), (1, None));
        assert!(links().unwrap().iter().any(|found| found.name == "lo"));
        assert_eq!(link("no-such-device").unwrap(), None);
    }

    #[test]
    fn addresses_and_routes_are_listed_and_an_address_comes_and_goes() {
        crate::root::in_own_network(|| {
            assert_eq!((addresses().unwrap(), routes().unwrap()), (vec![], vec![]));
            let address = Ipv4Addr::new(10, 9, 0, 1);
            bring_up(1).unwrap();
            add_address(1, address, 16).unwrap();
            let found = Address { device: 1, address, prefix: 16, subnet: address };
            assert!(addresses().unwrap().contains(&found));
            let to = |to, prefix| {
                let found = routes().unwrap();
                found
                    .iter()
                    .any(|route| (route.to, route.prefix, route.device) == (to, prefix, Some(1)))
            };
            // On the loopback device, addresses of a subnet are all local.
            assert!(to(Ipv4Addr::new(10, 9, 0, 0), 16) && to(address, 32));
            remove_address(1, address, 16).unwrap();
            remove_address(1, address, 16).unwrap();
            assert!(!addresses().unwrap().contains(&found));
        });
    }

    #[test]
    fn a_table_that_is_not_there_is_not_found() {
        crate::root::in_own_network(|| {
            assert!(!has_table(1, "no-such-table").unwrap());
            assert!(!has_chain(1, "no-such-table", "no-such-chain").unwrap());
            assert_eq!(tables(1).unwrap(), [""; 0]);
        });
    }

    #[test]
    fn answers_that_are_cut_short_end_the_list_and_nothing_else() {
        assert!(message(&[]).is_none());
        assert!(message(&[255, 0, 0, 0, 16, 0]).is_none());
        assert_eq!(attributes(&[2, 0, 3, 0]).count(), 0);
        assert_eq!(attributes(&[0, 0, 3, 0, 0, 0]).count(), 0);
        assert_eq!(attributes(&[5, 0, 3, 0, 7]).collect::<Vec<_>>(), [(3, &[7_u8][..])]);
        assert!(parse_link(&[0; 8]).is_none());
        assert!(parse_address(&[0; 7]).is_none());
        assert!(parse_route(&[0; 11]).is_none());
    }
}
