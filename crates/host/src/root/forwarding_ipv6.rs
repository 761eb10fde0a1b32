//! Whether the host passes IPv6 packets on (`net.ipv6.conf.all.forwarding`), as long as a VM has a way out by IPv6.
//!
//! A host that does is a router, and the kernel has a router believe no other one: it forgets the default routes that it was
//! told at once (`rt6_purge_dflt_routers` of net/ipv6/route.c) and hears no more of them, but by devices whose `accept_ra` is 2
//! (Documentation/networking/ip-sysctl.rst). A device of its own forwards without that only from Linux 6.17 on
//! (`force_forwarding`). So those devices that listen to routers (1) are told to go on doing so (2) before the host forwards, new
//! ones too; and all of it is remembered in the table, as [`super::nat`] has it for IPv4.

use std::collections::BTreeSet;
use std::fs;
use std::io;

use super::rules::{self, INET, Rules};
use super::rules_ipv6::MEMORY;
use super::{netlink, nft};
use crate::mark::Installation;

const SETTINGS: &str = "/proc/sys/net/ipv6/conf";
/// Writing it sets the same of every device and of those that come.
const ALL: &str = "all";

/// Settings of a host that does not forward. Both name devices, and `default`, which is those that come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Before {
    /// They were set to forward by themselves.
    pub(super) forwarding: BTreeSet<String>,
    /// They listened to routers.
    pub(super) listening: BTreeSet<String>,
}

/// Remembers in the rules what the host is, if one of the ways out needs that it forwards.
pub(super) fn remember(installation: &Installation, rules: &mut Rules) -> io::Result<()> {
    if is_needed(rules) && rules.before_ipv6.is_none() {
        rules.before_ipv6 = if forwards()? { others_memory(installation)? } else { Some(look()?) };
    }
    Ok(())
}

/// Has the host forward, if that is needed. What the rules remember is there by now.
pub(super) fn turn_on(rules: &Rules) -> io::Result<()> {
    if !is_needed(rules) || forwards()? {
        return Ok(());
    }
    for device in rules.before_ipv6.iter().flat_map(|before| &before.listening) {
        replace(device, "accept_ra", "1", "2")?;
    }
    set(ALL, "forwarding", "1")
}

/// Makes the host what it was when nothing needs that it forwards. What somebody else has changed meanwhile stays.
pub(super) fn settle(installation: &Installation, left: &Rules) -> io::Result<()> {
    if left.before_ipv6.is_none() || is_needed(left) {
        return Ok(());
    }
    nft::change(installation, |rules| {
        if !is_needed(rules)
            && let Some(before) = rules.before_ipv6.take()
            && others_memory(installation)?.is_none()
        {
            restore(&before)?;
        }
        Ok(())
    })
    .map(drop)
}

fn is_needed(rules: &Rules) -> bool {
    rules.ways_out.values().any(|way| way.ipv6.is_some())
}

/// What another installation will make the host again.
fn others_memory(installation: &Installation) -> io::Result<Option<Before>> {
    for table in netlink::tables(INET)? {
        let other = rules::whose(&table).filter(|whose| whose != installation);
        if let Some(other) = other
            && netlink::has_chain(INET, &table, MEMORY)?
        {
            return Ok(nft::read(&other)?.rules.before_ipv6);
        }
    }
    Ok(None)
}

fn look() -> io::Result<Before> {
    // What nft takes for a name and nothing else; the kernel allows stranger ones.
    let is_plain =
        |name: &str| name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    let mut before = Before::default();
    for entry in fs::read_dir(SETTINGS)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name == ALL || !is_plain(&name) {
            continue;
        }
        let is =
            |setting, value| Ok::<_, io::Error>(get(&name, setting)?.as_deref() == Some(value));
        if is("forwarding", "1")? {
            before.forwarding.insert(name);
        } else if is("accept_ra", "1")? {
            before.listening.insert(name);
        }
    }
    Ok(before)
}

fn restore(before: &Before) -> io::Result<()> {
    if forwards()? {
        set(ALL, "forwarding", "0")?;
        for device in &before.forwarding {
            replace(device, "forwarding", "0", "1")?;
        }
    }
    for device in &before.listening {
        replace(device, "accept_ra", "2", "1")?;
    }
    Ok(())
}

fn forwards() -> io::Result<bool> {
    Ok(get(ALL, "forwarding")?.is_some_and(|value| value != "0"))
}

/// None of a device that is not there.
fn get(device: &str, setting: &str) -> io::Result<Option<String>> {
    match fs::read_to_string(path(device, setting)) {
        Ok(said) => Ok(Some(said.trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(of(device, setting, &error)),
    }
}

/// If it is what it was made or found, and the device is there.
fn replace(device: &str, setting: &str, from: &str, to: &str) -> io::Result<()> {
    if get(device, setting)?.as_deref() == Some(from) { set(device, setting, to) } else { Ok(()) }
}

fn set(device: &str, setting: &str, value: &str) -> io::Result<()> {
    fs::write(path(device, setting), value).map_err(|error| of(device, setting, &error))
}

fn path(device: &str, setting: &str) -> String {
    format!("{SETTINGS}/{device}/{setting}")
}

fn of(device: &str, setting: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path(device, setting)))
}
