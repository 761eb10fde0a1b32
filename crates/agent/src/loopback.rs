//! Brings `lo` up: the kernel then gives it 127.0.0.1 and ::1 itself.

use std::io;

use crate::netlink;

#[derive(Debug, thiserror::Error)]
#[error("cannot bring the loopback interface up")]
pub(crate) struct LoopbackError(#[source] io::Error);

pub(crate) fn up() -> Result<(), LoopbackError> {
    netlink::bring_up(netlink::LOOPBACK, None).map_err(LoopbackError)
}
