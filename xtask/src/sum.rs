//! How many tests ended how, over all test programs.

use std::time::Duration;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sum {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) ignored: u64,
    measured: u64,
    filtered_out: u64,
}

impl Sum {
    /// Adds what a test program's closing line says: `test result: ok. 5 passed; 0 failed; 0 ignored; …`. Whether it was
    /// one.
    pub(crate) fn add(&mut self, line: &str) -> bool {
        let Some(counts) = line.strip_prefix("test result: ") else { return false };
        for part in counts.split(['.', ';']) {
            let Some((number, what)) = part.trim().split_once(' ') else { continue };
            let Ok(number) = number.parse::<u64>() else { continue };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                "measured" => self.measured += number,
                "filtered out" => self.filtered_out += number,
                _ => {}
            }
        }
        true
    }

    pub(crate) fn as_cargo_says_it(self, all_well: bool, took: Duration) -> String {
        format!(
            "test result: {}. {} passed; {} failed; {} ignored; {} measured; {} filtered out; finished in {:.2}s",
            if all_well { "ok" } else { "FAILED" },
            self.passed,
            self.failed,
            self.ignored,
            self.measured,
            self.filtered_out,
            took.as_secs_f64()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_is_over_all_closing_lines_and_nothing_else() {
        let mut sum = Sum::default();
        let closing = [
            "running 3 tests",
            "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 1 filtered out; finished in 0.01s",
            "test a_result ... ok",
            "we said: test result: ok. 9 passed; 9 failed",
            "test result: FAILED. 2 passed; 4 failed; 1 ignored; 0 measured; 0 filtered out; finished in 12.50s",
        ]
        .map(|line| sum.add(line));
        assert_eq!(closing, [false, true, false, false, true]);
        assert_eq!(sum, Sum { passed: 5, failed: 4, ignored: 1, measured: 0, filtered_out: 1 });
    }

    #[test]
    fn the_sum_reads_as_a_closing_line_that_can_be_added_again() {
        let sum = Sum { passed: 5, failed: 4, ignored: 1, measured: 0, filtered_out: 1 };
        let mut again = Sum::default();
        again.add(&sum.as_cargo_says_it(false, Duration::from_millis(1500)));
        assert_eq!(again, sum);
    }
}
