//! Moments as tar and the kernel have them.

use rustix::fs::{Timespec, Timestamps, UTIME_OMIT};

/// Seconds since 1970, and what is over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Time {
    pub(crate) seconds: i64,
    /// Below 1,000,000,000.
    pub(crate) nanoseconds: u32,
}

impl Time {
    /// The value of a pax record: `1234567890.25`, `-3.5`.
    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let (negative, text) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || !digits(whole) || !digits(fraction) {
            return None;
        }
        let seconds: i64 = whole.parse().ok()?;
        let nine: String = fraction.chars().chain("000000000".chars()).take(9).collect();
        let nanoseconds: u32 = nine.parse().ok()?;
        Some(match (negative, nanoseconds) {
            (false, _) => Self { seconds, nanoseconds },
            (true, 0) => Self { seconds: -seconds, nanoseconds },
            (true, _) => Self { seconds: -seconds - 1, nanoseconds: 1_000_000_000 - nanoseconds },
        })
    }

    pub(crate) fn text(self) -> String {
        let Self { seconds, nanoseconds } = self;
        let (sign, seconds, nanoseconds) = match (seconds < 0, nanoseconds) {
            (true, 0) => ("-", seconds.unsigned_abs(), 0),
            (true, n) => ("-", (seconds + 1).unsigned_abs(), 1_000_000_000 - n),
            (false, n) => ("", seconds.unsigned_abs(), n),
        };
        format!("{sign}{seconds}.{nanoseconds:09}")
    }

    /// For utimensat(2): the time of the last access stays as it is.
    pub(crate) fn stamps(self) -> Timestamps {
        Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            last_modification: Timespec { tv_sec: self.seconds, tv_nsec: self.nanoseconds.into() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_comes_back_as_it_went_on_either_side_of_1970() {
        for (seconds, nanoseconds) in [(0, 0), (1_700_000_000, 1), (-1, 0), (-2, 750_000_000)] {
            let time = Time { seconds, nanoseconds };
            assert_eq!(Time::parse(time.text().as_bytes()), Some(time));
        }
        assert_eq!(Time::parse(b"-1.25"), Some(Time { seconds: -2, nanoseconds: 750_000_000 }));
        for wrong in [&b""[..], b".5", b"+1", b"1.5.5", b"99999999999999999999", b"1e3"] {
            assert_eq!(Time::parse(wrong), None);
        }
    }
}
