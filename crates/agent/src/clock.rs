//! The guest's clock, which may have stood still while the guest was paused.

use std::io;

use jiff::{SignedDuration, Timestamp};
use rustix::time::{ClockId, Timespec, clock_settime};

/// What the way of the time to us may take: a clock that is off by less is right.
const TOLERANCE: SignedDuration = SignedDuration::from_millis(500);

#[derive(Debug, thiserror::Error)]
#[error("cannot set the guest's clock to {now}")]
pub(crate) struct ClockError {
    now: Timestamp,
    #[source]
    cause: io::Error,
}

/// Sets the clock to `now`, if it is not that.
pub(crate) fn step(now: Timestamp) -> Result<(), ClockError> {
    if !is_off(Timestamp::now(), now) {
        return Ok(());
    }
    let time = Timespec { tv_sec: now.as_second(), tv_nsec: now.subsec_nanosecond().into() };
    clock_settime(ClockId::Realtime, time).map_err(|errno| ClockError { now, cause: errno.into() })
}

fn is_off(shows: Timestamp, now: Timestamp) -> bool {
    now.duration_since(shows).abs() > TOLERANCE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_stepped_when_it_is_off_by_more_than_the_way_takes() {
        let at = |ms: i64| Timestamp::from_millisecond(1_800_000_000_000 + ms).unwrap();
        for (ms, off) in [(0, false), (400, false), (-400, false), (600, true), (-600, true)] {
            assert_eq!(is_off(at(ms), at(0)), off, "{ms}");
        }
    }
}
