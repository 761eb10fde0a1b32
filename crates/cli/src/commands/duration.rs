//! Durations as people write them: `30` (seconds), `500ms`, `1m30s`.

use jiff::SignedDuration;

/// Milliseconds; always positive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Milliseconds(pub(crate) u64);

pub(crate) fn parse(text: &str) -> Result<Milliseconds, String> {
    let written =
        || format!("write seconds, or a number with a unit such as 500ms, 30s or 5m, not {text:?}");
    let ms = if text.bytes().all(|byte| byte.is_ascii_digit()) {
        text.parse::<u64>().ok().and_then(|seconds| seconds.checked_mul(1000))
    } else {
        text.parse::<SignedDuration>()
            .ok()
            .and_then(|duration| u64::try_from(duration.as_millis()).ok())
    };
    match ms.ok_or_else(written)? {
        0 => Err("it must be at least one millisecond".to_owned()),
        ms => Ok(Milliseconds(ms)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        for (text, ms) in
            [("30", 30_000), ("500ms", 500), ("5m", 300_000), ("1m30s", 90_000), ("1h", 3_600_000)]
        {
            assert_eq!(parse(text), Ok(Milliseconds(ms)), "{text}");
        }
    }

    #[test]
    fn what_is_no_positive_duration_is_refused() {
        for text in ["", "0", "0s", "-1s", "-1", "soon", "1.5", "99999999999999999999"] {
            assert!(parse(text).is_err(), "{text:?} was taken");
        }
    }
}
