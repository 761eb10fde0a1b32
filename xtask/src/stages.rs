//! The stages of a verb: which there were, how each ended, how long each took.

use std::fmt::Write;
use std::time::{Duration, Instant};

use crate::failure::Failure;
use crate::log::Log;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Done,
    Failed,
}

#[derive(Debug)]
pub(crate) struct Stages {
    begun: Instant,
    ended: Vec<(&'static str, End, Duration)>,
}

impl Stages {
    pub(crate) fn begin() -> Self {
        Self { begun: Instant::now(), ended: Vec::new() }
    }

    /// Does the work of one stage and remembers how it went.
    pub(crate) fn stage<T>(
        &mut self,
        name: &'static str,
        log: &mut Log,
        work: impl FnOnce(&mut Log) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        log.line(&format!("\n== {name}"));
        let begun = Instant::now();
        let outcome = work(log);
        let end = if outcome.is_ok() { End::Done } else { End::Failed };
        self.ended.push((name, end, begun.elapsed()));
        outcome
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// The stage that ended last, and badly.
    pub(crate) fn failed(&self) -> Option<&'static str> {
        self.ended.last().filter(|(_, end, _)| *end == End::Failed).map(|(name, _, _)| *name)
    }

    /// A line for each stage, and the sum.
    pub(crate) fn table(&self) -> String {
        let width =
            self.ended.iter().map(|(name, _, _)| name.len()).max().unwrap_or(0).max("total".len());
        let mut text = String::new();
        for (name, end, took) in &self.ended {
            let mark = if *end == End::Failed { "  FAILED" } else { "" };
            writeln!(text, "  {name:width$}  {:>8}{mark}", seconds(*took))
                .expect("a String takes every write");
        }
        writeln!(text, "  {:width$}  {:>8}", "total", seconds(self.elapsed()))
            .expect("a String takes every write");
        text
    }
}

fn seconds(took: Duration) -> String {
    format!("{:.1} s", took.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_stage_is_named_and_marked() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = Log::create(folder.path(), "test").unwrap();
        let mut stages = Stages::begin();
        stages.stage("one", &mut log, |_| Ok(())).unwrap();
        assert_eq!(stages.failed(), None);
        stages.stage("second", &mut log, |_| Err::<(), _>(Failure::new("no"))).unwrap_err();
        assert_eq!(stages.failed(), Some("second"));
        let table = stages.table();
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines[..2], ["  one        0.0 s", "  second     0.0 s  FAILED"]);
        assert!(lines[2].starts_with("  total "), "{table}");
    }
}
