//! What a verb that runs tests has to tell at its end: its stages, what failed, the sum of all tests.

use crate::failure::Failure;
use crate::log::Log;
use crate::stages::Stages;
use crate::sum::Sum;

#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) stages: Stages,
    pub(crate) sum: Sum,
    failures: Vec<Failure>,
}

impl Report {
    pub(crate) fn begin() -> Self {
        Self { stages: Stages::begin(), sum: Sum::default(), failures: Vec::new() }
    }

    /// Does a stage's work. What fails is told at the end; what others need is theirs to ask for.
    pub(crate) fn stage<T>(
        &mut self,
        name: &'static str,
        log: &mut Log,
        work: impl FnOnce(&mut Log, &mut Sum) -> Result<T, Failure>,
    ) -> Option<T> {
        let sum = &mut self.sum;
        match self.stages.stage(name, log, |log| work(log, sum)) {
            Ok(done) => Some(done),
            Err(failure) => {
                self.failures.push(failure);
                None
            }
        }
    }

    pub(crate) fn fail(&mut self, failure: Failure) {
        self.failures.push(failure);
    }

    /// Tells it all and gives whether all is well. The sum comes last, once as cargo's test runner would say it and once
    /// in short.
    pub(crate) fn close(mut self, log: &mut Log) -> bool {
        if self.sum.passed + self.sum.failed == 0 {
            self.failures.push(Failure::new("no test ran"));
        }
        log.line(&format!("\n{}", self.stages.table()));
        for failure in &self.failures {
            log.line(&format!("error: {failure}"));
            failure.causes().iter().for_each(|cause| log.line(&format!("  {cause}")));
            failure.remedies().iter().for_each(|remedy| log.line(&format!("try: {remedy}")));
        }
        let all_well = self.failures.is_empty();
        if !all_well {
            log.line(&format!("the whole output is in {}\n", log.path().display()));
        }
        log.line(&self.sum.as_cargo_says_it(all_well, self.stages.elapsed()));
        log.line(&format!("{} passed, {} failed", self.sum.passed, self.sum.failed));
        all_well
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_is_last_and_a_failure_before_it_with_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = Log::create(folder.path(), "test").unwrap();
        let mut report = Report::begin();
        let line = "test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out";
        report.stage("one", &mut log, |_, sum| Ok(sum.add(line))).unwrap();
        let failed = report.stage("two", &mut log, |_, _| {
            Err::<(), _>(Failure::new("no such thing").remedy("look again"))
        });
        assert_eq!(failed, None);
        assert!(!report.close(&mut log));
        let text = std::fs::read_to_string(log.path()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.last(), Some(&"2 passed, 0 failed"));
        assert!(text.contains("error: no such thing\ntry: look again\n"), "{text}");
    }

    #[test]
    fn no_test_at_all_is_a_failure() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = Log::create(folder.path(), "test").unwrap();
        assert!(!Report::begin().close(&mut log));
    }
}
