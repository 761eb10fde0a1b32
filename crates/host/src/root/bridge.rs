//! The bridge that the taps of an installation are ports of: `bgXXXX-net0`. VMs share it: whoever needs it makes it, and
//! the last one's release removes it.

use std::io;
use std::sync::{Mutex, MutexGuard};

use super::netlink::{self, Link};
use crate::Held;
use crate::error::HostError;
use crate::mark::Installation;

pub(super) fn acquire(installation: &Installation) -> Result<(), HostError> {
    let _one_at_a_time = lock();
    ensure(installation)
        .map(drop)
        .map_err(|e| HostError::new(format!("make {}", held(installation)), e))
}

pub(super) fn release(installation: &Installation) -> Result<(), HostError> {
    let _one_at_a_time = lock();
    let remove = || {
        let Some(bridge) = netlink::link(&name(installation))?.filter(Link::is_bridge) else {
            return Ok(());
        };
        let has_ports = netlink::links()?.iter().any(|link| link.master == Some(bridge.index));
        if has_ports { Ok(()) } else { netlink::delete(bridge.index) }
    };
    remove().map_err(|e: io::Error| HostError::new(format!("remove {}", held(installation)), e))
}

pub(super) fn list(installation: &Installation) -> Result<Vec<Held>, HostError> {
    let found = netlink::link(&name(installation))
        .map_err(|e| HostError::new(format!("look for {}", held(installation)), e))?;
    Ok(found.filter(Link::is_bridge).map(|_| held(installation)).into_iter().collect())
}

/// Makes it if need be, and gives its index. The caller holds [`lock`].
pub(super) fn ensure(installation: &Installation) -> io::Result<u32> {
    let name = name(installation);
    if netlink::link(&name)?.is_none() {
        netlink::add_bridge(&name)?;
    }
    let bridge = netlink::link(&name)?.ok_or(io::ErrorKind::NotFound)?;
    if !bridge.is_bridge() {
        return Err(io::Error::other(format!("{name} is there and is no bridge")));
    }
    if !bridge.up {
        netlink::bring_up(bridge.index)?;
    }
    Ok(bridge.index)
}

/// Held by whoever changes bridges or what is attached to them: a bridge without ports may be about to get one.
pub(super) fn lock() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().expect("nothing that holds this lock can panic")
}

fn held(installation: &Installation) -> Held {
    Held::Bridge { installation: installation.clone() }
}

fn name(installation: &Installation) -> String {
    format!("bg{installation}-net0")
}
