//! Samples and what is said of them: median, 99th percentile, range.

use std::time::Duration;

use serde::Serialize;

/// A set of times.
#[derive(Debug, Clone, Default)]
pub(crate) struct Samples(Vec<Duration>);

/// What is shown of a set of times, in milliseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Figures {
    pub(crate) n: usize,
    pub(crate) min_ms: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) max_ms: f64,
}

impl Samples {
    pub(crate) fn push(&mut self, time: Duration) {
        self.0.push(time);
    }

    /// `None` without samples.
    pub(crate) fn figures(&self) -> Option<Figures> {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let milliseconds = |time: &Duration| time.as_secs_f64() * 1000.0;
        Some(Figures {
            n: sorted.len(),
            min_ms: milliseconds(sorted.first()?),
            p50_ms: milliseconds(at(&sorted, 50)?),
            p99_ms: milliseconds(at(&sorted, 99)?),
            max_ms: milliseconds(sorted.last()?),
        })
    }
}

/// The nearest-rank percentile.
fn at(sorted: &[Duration], percent: usize) -> Option<&Duration> {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1)
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "p50 {:8.1} ms   p99 {:8.1} ms   min {:8.1} ms   max {:8.1} ms   n {}",
            self.p50_ms, self.p99_ms, self.min_ms, self.max_ms, self.n
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples_that_were_taken() {
        let mut samples = Samples::default();
        assert!(samples.figures().is_none());
        for time in [30, 10, 20] {
            samples.push(Duration::from_millis(time));
        }
        let figures = samples.figures().unwrap();
        assert_eq!(
            (figures.n, figures.min_ms, figures.p50_ms, figures.p99_ms),
            (3, 10.0, 20.0, 30.0)
        );
    }
}
