//! How far a copy is: a living line, once it takes longer than a moment.

use std::time::{Duration, Instant};

use banger_api::operation::{Event, Unit};

use crate::progress::{Line, Progress};

/// What is done sooner needs no line.
const MOMENT: Duration = Duration::from_millis(500);

/// Bytes between two looks at the clock.
const STEP: u64 = 256 << 10;

#[derive(Debug)]
pub(super) struct Meter {
    progress: Progress,
    text: String,
    total: u64,
    done: u64,
    shown: u64,
    begun: Instant,
    line: Option<Line>,
}

impl Meter {
    /// `total` is 0 when nobody knows.
    pub(super) fn new(progress: &Progress, text: String, total: u64) -> Self {
        let (progress, begun) = (progress.clone(), Instant::now());
        Self { progress, text, total, done: 0, shown: 0, begun, line: None }
    }

    pub(super) fn add(&mut self, bytes: u64) {
        self.done += bytes;
        if self.done < self.shown + STEP {
            return;
        }
        self.shown = self.done;
        if self.line.is_none() && self.begun.elapsed() > MOMENT {
            let mut line = self.progress.line(None);
            let text = self.text.clone();
            line.show(&Event::Stage { name: "copy".into(), text });
            self.line = Some(line);
        }
        if let Some(line) = &mut self.line {
            let (done, total) = (self.done, self.total);
            line.show(&Event::Progress { done, total, unit: Unit::Bytes });
        }
    }

    pub(super) fn end(self) {
        if let Some(line) = self.line {
            line.end();
        }
    }
}
