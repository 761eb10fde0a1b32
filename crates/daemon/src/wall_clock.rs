//! Waiting for a time of the wall clock: over a suspended host, and over a clock that is set meanwhile.

use std::io;
use std::os::fd::OwnedFd;

use jiff::Timestamp;
use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::unix::AsyncFd;

use crate::readiness::readable;

/// A timer (timerfd(2)). One waits with it at a time.
#[derive(Debug)]
pub(crate) struct WallClock(AsyncFd<OwnedFd>);

impl WallClock {
    /// # Errors
    /// When there are no descriptors left.
    pub(crate) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        readable(timerfd_create(TimerfdClockId::Realtime, flags)?).map(Self)
    }

    /// Returns at that time, at once if it has passed. Returns too when somebody sets the clock: look what time it is then.
    ///
    /// # Errors
    /// When the runtime is going away.
    pub(crate) async fn until(&mut self, at: Timestamp) -> io::Result<()> {
        // All zeroes would disarm it; a time before there was a clock has passed.
        let at = at.max(Timestamp::from_second(1).expect("it is within the range"));
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let it_value = Timespec { tv_sec: at.as_second(), tv_nsec: at.subsec_nanosecond().into() };
        let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
        let timer = Itimerspec { it_interval: zero, it_value };
        match timerfd_settime(self.0.get_ref(), flags, &timer) {
            Ok(_) => {}
            // The clock is being set.
            Err(Errno::CANCELED) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
        loop {
            let mut ready = self.0.readable().await?;
            match rustix::io::read(self.0.get_ref(), &mut [0_u8; 8]) {
                // It was still ready for the time before.
                Err(Errno::AGAIN) => ready.clear_ready(),
                // The clock was set (timerfd_create(2), TFD_TIMER_CANCEL_ON_SET).
                Ok(_) | Err(Errno::CANCELED) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use jiff::SignedDuration;
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn a_time_comes_once_and_one_that_has_passed_at_once() {
        let mut clock = WallClock::new().unwrap();
        for at in [Timestamp::UNIX_EPOCH, Timestamp::now() - SignedDuration::from_hours(1)] {
            timeout(Duration::from_secs(30), clock.until(at)).await.unwrap().unwrap();
        }
        let soon = Timestamp::now() + SignedDuration::from_millis(50);
        timeout(Duration::from_secs(30), clock.until(soon)).await.unwrap().unwrap();
        assert!(Timestamp::now() >= soon);
        let later = Timestamp::now() + SignedDuration::from_hours(1);
        timeout(Duration::from_millis(50), clock.until(later)).await.unwrap_err();
    }
}
