//! Durations as people write them: `30` (seconds), `500ms`, `1m30s`.

/// Milliseconds; always positive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Milliseconds(pub(crate) u64);

pub(crate) fn parse(text: &str) -> Result<Milliseconds, String> {
    let ms = u64::try_from(banger_api::duration::parse(text)?.as_millis());
    ms.map(Milliseconds).map_err(|_| format!("{text} is too long"))
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
