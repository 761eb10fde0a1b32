//! Durations as people write them: `30` (seconds), `500ms`, `1m30s`, `2h`.

use std::time::Duration;

use jiff::SignedDuration;

/// # Errors
/// When it is none, or none at all: with an example.
pub fn parse(text: &str) -> Result<Duration, String> {
    let written =
        || format!("write seconds, or a number with a unit such as 500ms, 30s or 5m, not {text:?}");
    let duration = if text.bytes().all(|byte| byte.is_ascii_digit()) {
        text.parse().ok().map(Duration::from_secs)
    } else {
        text.parse::<SignedDuration>().ok().and_then(|duration| duration.try_into().ok())
    };
    match duration.ok_or_else(written)? {
        duration if duration.as_millis() == 0 => {
            Err("it must be at least one millisecond".to_owned())
        }
        duration => Ok(duration),
    }
}
