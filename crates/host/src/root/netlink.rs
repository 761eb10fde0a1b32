//! Network devices by rtnetlink(7): looked at, made, attached, removed. Each call is a request and its answer on a socket
//! of its own; nothing here waits for anybody but the kernel.

use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with,
};

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

/// The device of that name, if there is one.
pub(super) fn link(name: &str) -> io::Result<Option<Link>> {
    let mut request = Message::new(GETLINK, REQUEST, &LinkHead::default());
    request.attribute(IFLA_IFNAME, &text(name));
    match answers(request) {
        Ok(links) => Ok(links.into_iter().next()),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Every device.
pub(super) fn links() -> io::Result<Vec<Link>> {
    let mut tries = 5;
    loop {
        let request = Message::new(GETLINK, REQUEST | DUMP, &LinkHead::default());
        match answers(request) {
            // Devices came or went while they were listed.
            Err(error) if error.kind() == ErrorKind::Interrupted && tries > 0 => tries -= 1,
            done => return done,
        }
    }
}

/// Makes a bridge, which is not up yet.
pub(super) fn add_bridge(name: &str) -> io::Result<()> {
    let mut request = Message::new(NEWLINK, REQUEST | ACK | CREATE | EXCL, &LinkHead::default());
    request.attribute(IFLA_IFNAME, &text(name));
    request.nested(IFLA_LINKINFO, |info| info.attribute(IFLA_INFO_KIND, b"bridge"));
    answers(request).map(drop)
}

/// Lets the device work, without an IPv6 address of its own making: nothing of the host is to answer guests by itself.
pub(super) fn bring_up(index: u32) -> io::Result<()> {
    let mut request = Message::new(NEWLINK, REQUEST | ACK, &LinkHead::of(index));
    request.nested(IFLA_AF_SPEC, |families| {
        families.nested(AF_INET6, |inet6| inet6.attribute(IFLA_INET6_ADDR_GEN_MODE, &[1]));
    });
    match answers(request) {
        // A kernel without IPv6, or with it turned off for this device.
        Err(error) if Errno::from_io_error(&error) == Some(Errno::AFNOSUPPORT) => {}
        done => drop(done?),
    }
    let head = LinkHead { flags: IFF_UP, change: IFF_UP, ..LinkHead::of(index) };
    answers(Message::new(NEWLINK, REQUEST | ACK, &head)).map(drop)
}

/// Makes the device a port of a bridge, which passes nothing from it to other such ports: guests do not see each other.
pub(super) fn attach(index: u32, bridge: u32) -> io::Result<()> {
    let mut request = Message::new(NEWLINK, REQUEST | ACK, &LinkHead::of(index));
    request.attribute(IFLA_MASTER, &bridge.to_ne_bytes());
    answers(request)?;
    let mut request = Message::new(NEWLINK, REQUEST | ACK, &LinkHead::of(index));
    request.nested(IFLA_LINKINFO, |info| {
        info.attribute(IFLA_INFO_SLAVE_KIND, b"bridge");
        info.nested(IFLA_INFO_SLAVE_DATA, |port| port.attribute(IFLA_BRPORT_ISOLATED, &[1]));
    });
    answers(request).map(drop)
}

/// Removes the device; one that is not there is no error.
pub(super) fn delete(index: u32) -> io::Result<()> {
    match answers(Message::new(DELLINK, REQUEST | ACK, &LinkHead::of(index))) {
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

const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP_INTERRUPTED: u16 = 0x10;
const EXCL: u16 = 0x200;
const DUMP: u16 = 0x300;
const CREATE: u16 = 0x400;

const IFF_UP: u32 = 1;
const IFF_TAP: u8 = 2;
const AF_INET6: u16 = 10;

const IFLA_IFNAME: u16 = 3;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const IFLA_BRPORT_ISOLATED: u16 = 33;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IFLA_TUN_OWNER: u16 = 1;
const IFLA_TUN_GROUP: u16 = 2;
const IFLA_TUN_TYPE: u16 = 3;
const IFLA_TUN_PERSIST: u16 = 6;

/// The length of `struct nlmsghdr` and of `struct ifinfomsg`.
const HEAD: usize = 16;
const LINK_HEAD: usize = 16;

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
    fn new(kind: u16, flags: u16, link: &LinkHead) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        // Its sequence number and sender: there is one request for each socket.
        bytes.extend([0; 8]);
        bytes.extend([0; 4]);
        bytes.extend(link.index.to_ne_bytes());
        bytes.extend(link.flags.to_ne_bytes());
        bytes.extend(link.change.to_ne_bytes());
        Self(bytes)
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

/// Sends the request and gives the devices that the kernel answers with.
fn answers(request: Message) -> io::Result<Vec<Link>> {
    // No protocol means the first: NETLINK_ROUTE is 0.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    bind(&socket, &SocketAddrNetlink::new(0, 0))?;
    let asked_for_all = request.0[6..8] == (REQUEST | DUMP).to_ne_bytes();
    send(&socket, &request.finish(), SendFlags::empty())?;
    let mut links = Vec::new();
    while !read(&socket, &mut links, asked_for_all)? {}
    Ok(links)
}

/// Reads one datagram of an answer; `true` when it was the last.
fn read(socket: &OwnedFd, links: &mut Vec<Link>, more_follow: bool) -> io::Result<bool> {
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
            NEWLINK => {
                links.push(parse(body).ok_or(ErrorKind::InvalidData)?);
                if !more_follow {
                    return Ok(true);
                }
            }
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

fn parse(body: &[u8]) -> Option<Link> {
    let up = u32_at(body, 8)? & IFF_UP != 0;
    let mut link = Link {
        index: u32_at(body, 4)?,
        name: String::new(),
        kind: None,
        master: None,
        up,
        tun: Tun::default(),
    };
    for (kind, value) in attributes(body.get(LINK_HEAD..)?) {
        match kind {
            IFLA_IFNAME => link.name = string(value),
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
    fn answers_that_are_cut_short_end_the_list_and_nothing_else() {
        assert!(message(&[]).is_none());
        assert!(message(&[255, 0, 0, 0, 16, 0]).is_none());
        assert_eq!(attributes(&[2, 0, 3, 0]).count(), 0);
        assert_eq!(attributes(&[0, 0, 3, 0, 0, 0]).count(), 0);
        assert_eq!(attributes(&[5, 0, 3, 0, 7]).collect::<Vec<_>>(), [(3, &[7_u8][..])]);
        assert!(parse(&[0; 8]).is_none());
    }
}
