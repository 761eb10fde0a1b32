//! IPv6 addresses and routes, as the other calls beside this file.

use std::io;
use std::net::Ipv6Addr;

use rustix::io::Errno;

use super::{
    ACK, ADDRESS_HEAD, AF_INET6, AWAY, CREATE, DELADDR, DUMP, EXCL, GETADDR, GETROUTE, IFA_ADDRESS,
    IFA_LOCAL, Message, NEWADDR, NEWROUTE, REQUEST, ROUTE_HEAD, RTA_DST, RTA_OIF, attributes, done,
    list, u32_at,
};

/// linux/if_addr.h: the address is used at once, and nobody is asked whether it is somebody else's.
const IFA_F_NODAD: u8 = 2;

/// A device's IPv6 address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::root) struct Address {
    pub(in crate::root) device: u32,
    pub(in crate::root) address: Ipv6Addr,
    /// In bits.
    pub(in crate::root) prefix: u8,
}

/// An IPv6 route of any table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::root) struct Route {
    pub(in crate::root) to: Ipv6Addr,
    pub(in crate::root) prefix: u8,
    /// Absent where it leads to several.
    pub(in crate::root) device: Option<u32>,
    /// Whether packets go anywhere by it, and not just away.
    pub(in crate::root) leads_somewhere: bool,
}

/// Every IPv6 address. None in a kernel without IPv6.
pub(in crate::root) fn addresses() -> io::Result<Vec<Address>> {
    let request = || Message::new(GETADDR, REQUEST | DUMP, &[AF_INET6, 0, 0, 0, 0, 0, 0, 0]);
    // A kernel without the family lists all others.
    let found = list(request, NEWADDR, |body| match body.first() {
        Some(&AF_INET6) => parse_address(body).map(Some),
        _ => Some(None),
    })?;
    Ok(found.into_iter().flatten().collect())
}

/// Every IPv6 route. None in a kernel without IPv6.
pub(in crate::root) fn routes() -> io::Result<Vec<Route>> {
    let mut head = [0; ROUTE_HEAD];
    head[0] = AF_INET6;
    let request = || Message::new(GETROUTE, REQUEST | DUMP, &head);
    let found = list(request, NEWROUTE, |body| match body.first() {
        Some(&AF_INET6) => parse_route(body).map(Some),
        _ => Some(None),
    })?;
    Ok(found.into_iter().flatten().collect())
}

/// Gives a device an address, which works at once, and with it the route to its subnet.
pub(in crate::root) fn add_address(index: u32, address: Ipv6Addr, prefix: u8) -> io::Result<()> {
    let flags = REQUEST | ACK | CREATE | EXCL;
    done(own_address(NEWADDR, flags, index, address, prefix))
}

/// Takes an address from a device.
pub(in crate::root) fn remove_address(index: u32, address: Ipv6Addr, prefix: u8) -> io::Result<()> {
    match done(own_address(DELADDR, REQUEST | ACK, index, address, prefix)) {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::ADDRNOTAVAIL) => Ok(()),
        done => done,
    }
}

fn own_address(kind: u16, flags: u16, index: u32, address: Ipv6Addr, prefix: u8) -> Message {
    let mut head = vec![AF_INET6, prefix, IFA_F_NODAD, 0];
    head.extend(index.to_ne_bytes());
    let mut request = Message::new(kind, flags, &head);
    request.attribute(IFA_LOCAL, &address.octets());
    request
}

fn parse_address(body: &[u8]) -> Option<Address> {
    let (mut local, mut other_end) = (None, None);
    for (kind, value) in attributes(body.get(ADDRESS_HEAD..)?) {
        match kind {
            IFA_LOCAL => local = Some(ipv6(value)?),
            IFA_ADDRESS => other_end = Some(ipv6(value)?),
            _ => {}
        }
    }
    let address = local.or(other_end)?;
    Some(Address { device: u32_at(body, 4)?, address, prefix: *body.get(1)? })
}

fn parse_route(body: &[u8]) -> Option<Route> {
    let mut route = Route {
        to: Ipv6Addr::UNSPECIFIED,
        prefix: *body.get(1)?,
        device: None,
        leads_somewhere: !AWAY.contains(body.get(7)?),
    };
    for (kind, value) in attributes(body.get(ROUTE_HEAD..)?) {
        match kind {
            RTA_DST => route.to = ipv6(value)?,
            RTA_OIF => route.device = u32_at(value, 0),
            _ => {}
        }
    }
    Some(route)
}

fn ipv6(value: &[u8]) -> Option<Ipv6Addr> {
    let bytes: [u8; 16] = value.get(..16)?.try_into().ok()?;
    Some(bytes.into())
}

#[cfg(test)]
mod tests {
    use super::super::bring_up;
    use super::*;

    #[test]
    fn an_address_comes_and_goes_and_a_route_is_listed() {
        crate::root::in_own_network(|| {
            bring_up(1).unwrap();
            let address = Ipv6Addr::new(0xfd12, 0, 0, 7, 0, 0, 0, 1);
            add_address(1, address, 64).unwrap();
            assert!(addresses().unwrap().contains(&Address { device: 1, address, prefix: 64 }));
            crate::command::run("ip", &["-6", "route", "add", "fd77::/48", "dev", "lo"]).unwrap();
            let found = routes().unwrap();
            let to = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 0);
            let expected = Route { to, prefix: 48, device: Some(1), leads_somewhere: true };
            assert!(found.contains(&expected), "{found:?}");
            remove_address(1, address, 64).unwrap();
            remove_address(1, address, 64).unwrap();
            assert!(!addresses().unwrap().iter().any(|found| found.address == address));
        });
    }

    #[test]
    fn answers_that_are_cut_short_are_none() {
        assert!(parse_address(&[0; 7]).is_none());
        assert!(parse_route(&[0; 11]).is_none());
    }
}
