//! How far long work is, on stderr: one living line for each piece of work on a terminal, plain lines elsewhere, nothing
//! when quiet was asked for. Never writes to stdout.

use std::collections::BTreeMap;
use std::time::Duration;

use banger_api::operation::{Event, Unit};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::{out, terminal};

#[derive(Debug, Clone)]
pub(crate) enum Progress {
    Quiet,
    Plain,
    Living(MultiProgress),
}

/// The progress of one piece of work.
#[derive(Debug)]
pub(crate) enum Line {
    Quiet,
    Plain {
        prefix: String,
    },
    Living {
        all: MultiProgress,
        bar: ProgressBar,
        prefix: String,
        stage: String,
        /// One for each part of the stage that is under way.
        parts: BTreeMap<String, ProgressBar>,
    },
}

impl Progress {
    pub(crate) fn new(quiet: bool) -> Self {
        if quiet {
            Progress::Quiet
        } else if terminal::stderr_is_terminal() {
            Progress::Living(MultiProgress::with_draw_target(ProgressDrawTarget::stderr()))
        } else {
            Progress::Plain
        }
    }

    /// A line for work on `subject`, which is named when there are several.
    pub(crate) fn line(&self, subject: Option<&str>) -> Line {
        let prefix = subject.map(|subject| format!("{subject}: ")).unwrap_or_default();
        match self {
            Progress::Quiet => Line::Quiet,
            Progress::Plain => Line::Plain { prefix },
            Progress::Living(all) => {
                let bar = all.add(ProgressBar::new_spinner().with_style(spinner()));
                bar.enable_steady_tick(Duration::from_millis(120));
                let (stage, parts) = (String::new(), BTreeMap::new());
                Line::Living { all: all.clone(), bar, prefix, stage, parts }
            }
        }
    }

    /// Does `write` with the living lines out of the way.
    pub(crate) fn suspend<T>(&self, write: impl FnOnce() -> T) -> T {
        match self {
            Progress::Living(all) => all.suspend(write),
            Progress::Quiet | Progress::Plain => write(),
        }
    }
}

impl Line {
    pub(crate) fn show(&mut self, event: &Event) {
        match self {
            Line::Quiet => {}
            Line::Plain { prefix } => {
                if let Some(text) = plain(event) {
                    out::stderr(&format!("{prefix}{text}\n"));
                }
            }
            Line::Living { all, bar, prefix, stage, parts } => match event {
                Event::Stage { text, .. } => {
                    end_all(parts);
                    *stage = format!("{prefix}{text}");
                    bar.set_style(spinner());
                    bar.set_message(stage.clone());
                }
                Event::Progress { done, total: 0, unit } => {
                    bar.set_message(format!("{stage} {}", amount(*done, *unit)));
                }
                Event::Progress { done, total, unit } => {
                    if bar.length() != Some(*total) {
                        bar.set_length(*total);
                        bar.set_style(measured(*unit));
                    }
                    bar.set_message(stage.clone());
                    bar.set_position(*done);
                }
                Event::Part { part, done, total, unit } => {
                    show_part(all, bar, parts, part, (*done, *total), *unit);
                }
                Event::Log { line } => bar.set_message(format!("{stage} · {line}")),
                Event::Note { text } => bar.suspend(|| out::stderr(&format!("{prefix}{text}\n"))),
                Event::Started { .. } | Event::Done { .. } | Event::Failed { .. } => {}
            },
        }
    }

    /// Takes the living line away: the result that follows says it all.
    pub(crate) fn end(self) {
        if let Line::Living { bar, mut parts, .. } = self {
            end_all(&mut parts);
            bar.finish_and_clear();
        }
    }
}

/// A part has a line of its own, below its work's, from when it is first heard of until it is done.
fn show_part(
    all: &MultiProgress,
    above: &ProgressBar,
    parts: &mut BTreeMap<String, ProgressBar>,
    part: &str,
    (done, total): (u64, u64),
    unit: Unit,
) {
    if total > 0 && done >= total {
        if let Some(bar) = parts.remove(part) {
            bar.finish_and_clear();
        }
        return;
    }
    let bar = parts.entry(part.to_owned()).or_insert_with(|| {
        let bar = ProgressBar::new(total).with_style(measured(unit));
        let bar = all.insert_after(above, bar);
        bar.set_message(format!("  {part}"));
        bar
    });
    bar.set_length(total);
    bar.set_position(done);
}

fn end_all(parts: &mut BTreeMap<String, ProgressBar>) {
    for bar in std::mem::take(parts).into_values() {
        bar.finish_and_clear();
    }
}

/// A log keeps stages, notes and what programs say; it has no use for how many bytes are done.
fn plain(event: &Event) -> Option<String> {
    match event {
        Event::Stage { text, .. } => Some(format!("{text}…")),
        Event::Note { text } => Some(text.clone()),
        Event::Log { line } => Some(format!("  {line}")),
        Event::Started { .. }
        | Event::Progress { .. }
        | Event::Part { .. }
        | Event::Done { .. }
        | Event::Failed { .. } => None,
    }
}

fn amount(count: u64, unit: Unit) -> String {
    match unit {
        Unit::Bytes => banger_api::Size::bytes(count).to_string(),
        Unit::Items => count.to_string(),
    }
}

fn spinner() -> ProgressStyle {
    ProgressStyle::with_template("{spinner} {wide_msg} {elapsed}")
        .expect("the template is well-formed")
}

fn measured(unit: Unit) -> ProgressStyle {
    ProgressStyle::with_template(match unit {
        Unit::Bytes => "{spinner} {msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {eta}",
        Unit::Items => "{spinner} {msg} {wide_bar} {pos}/{len} {eta}",
    })
    .expect("the template is well-formed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_gets_stages_notes_and_programs_lines_but_no_counters() {
        let stage = Event::Stage { name: "kernel".into(), text: "importing the kernel".into() };
        assert_eq!(plain(&stage).unwrap(), "importing the kernel…");
        assert_eq!(plain(&Event::Log { line: "I: done".into() }).unwrap(), "  I: done");
        assert_eq!(plain(&Event::Progress { done: 1, total: 2, unit: Unit::Items }), None);
    }

    #[test]
    fn the_templates_of_the_living_lines_are_well_formed() {
        drop((spinner(), measured(Unit::Bytes), measured(Unit::Items)));
    }
}
