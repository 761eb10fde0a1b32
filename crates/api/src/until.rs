//! How long something may last, or for ever.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::duration;

/// Ten years: whoever means longer means for ever.
const LONGEST: Duration = Duration::from_secs(10 * 366 * 24 * 60 * 60);

/// A time from one millisecond to ten years, or for ever. On the wire milliseconds, where 0 is for ever.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct Until(Option<Duration>);

/// Why it is no such time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UntilError {
    #[error("{0}; or `never`")]
    NoDuration(String),
    #[error("it is longer than ten years: say `never`")]
    TooLong,
}

impl Until {
    pub const NEVER: Self = Self(None);

    /// # Errors
    /// When it is longer than ten years.
    pub fn of(duration: Duration) -> Result<Self, UntilError> {
        if duration > LONGEST { Err(UntilError::TooLong) } else { Ok(Self(Some(duration))) }
    }

    /// `30s`, `2h`, or `never`.
    ///
    /// # Errors
    /// When it is neither.
    pub fn parse(text: &str) -> Result<Self, UntilError> {
        match text {
            "never" => Ok(Self::NEVER),
            text => Self::of(duration::parse(text).map_err(UntilError::NoDuration)?),
        }
    }

    /// How long; `None` is for ever.
    #[must_use]
    pub fn duration(self) -> Option<Duration> {
        self.0
    }

    /// In milliseconds.
    #[must_use]
    pub fn as_ms(self) -> u64 {
        self.0.map_or(0, |duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
    }
}

impl FromStr for Until {
    type Err = UntilError;

    fn from_str(text: &str) -> Result<Self, UntilError> {
        Self::parse(text)
    }
}

impl TryFrom<u64> for Until {
    type Error = UntilError;

    fn try_from(ms: u64) -> Result<Self, UntilError> {
        if ms == 0 { Ok(Self::NEVER) } else { Self::of(Duration::from_millis(ms)) }
    }
}

impl From<Until> for u64 {
    fn from(until: Until) -> u64 {
        until.as_ms()
    }
}

/// The whole units of the time, the largest first, to the second: `2h`, `1d 30m`. Less than a second in milliseconds.
pub fn spell(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if seconds == 0 {
        return format!("{}ms", duration.as_millis());
    }
    let units = [(86400, "d"), (3600, "h"), (60, "m"), (1, "s")];
    let (mut left, mut words) = (seconds, Vec::new());
    for (size, name) in units {
        if left >= size {
            words.push(format!("{}{name}", left / size));
            left %= size;
        }
    }
    words.join(" ")
}

impl fmt::Display for Until {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("never"),
            Some(duration) => f.write_str(&spell(duration)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them_and_shown_in_whole_units() {
        for (text, shown) in [
            ("30", "30s"),
            ("90m", "1h 30m"),
            ("48h", "2d"),
            ("1h 1s", "1h 1s"),
            ("500ms", "500ms"),
            ("never", "never"),
        ] {
            assert_eq!(Until::parse(text).unwrap().to_string(), shown, "{text}");
        }
    }

    #[test]
    fn what_is_no_time_or_too_long_is_refused() {
        for text in ["", "0", "0s", "-1s", "soon", "1.5.1", "999999999999", "4000000h", "Never"] {
            assert!(Until::parse(text).is_err(), "{text:?} was taken");
        }
        assert!(serde_json::from_str::<Until>(&u64::MAX.to_string()).is_err());
        assert_eq!(serde_json::from_str::<Until>("0").unwrap(), Until::NEVER);
    }
}
