//! Long work: begun by a request, carried on by the daemon, watched by whoever asks.
//!
//! An operation keeps all its events, so a client that comes late or again sees the same stream from its beginning.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use banger_api::operation::{Event, StageTime, Unit};
use banger_api::{Code, OperationId, Problem};
use banger_store::{OperationRecord, Store};
use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::watch;

/// How many ended operations can still be watched; older ones are only in the database.
const KEPT: usize = 200;
/// How many lines of programs' output one operation keeps.
const LOG_LINES: usize = 2000;

/// All operations of this daemon.
#[derive(Debug)]
pub struct Operations {
    store: Arc<Store>,
    all: Mutex<HashMap<OperationId, Operation>>,
}

/// A handle on one operation. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Operation(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    id: OperationId,
    kind: &'static str,
    subject: String,
    progress: Mutex<Progress>,
    /// How many events there are; changes wake the watchers.
    length: watch::Sender<usize>,
}

#[derive(Debug)]
struct Progress {
    events: Vec<Event>,
    log_lines: usize,
    stages: Vec<StageTime>,
    stage: Option<(String, Instant)>,
    ended: Option<Instant>,
}

impl Operations {
    #[must_use]
    pub fn new(store: Arc<Store>) -> Self {
        Self { store, all: Mutex::default() }
    }

    /// Begins an operation and records it.
    ///
    /// # Errors
    /// When it cannot be recorded: then nothing has begun.
    pub fn begin(&self, kind: &'static str, subject: &str) -> Result<Operation, Problem> {
        let id = OperationId::random()
            .map_err(|e| Problem::new(Code::Internal, "no randomness").cause(&e))?;
        self.store
            .begin_operation(&OperationRecord {
                id: id.clone(),
                kind: kind.to_owned(),
                subject: subject.to_owned(),
                started_at: Timestamp::now(),
                ended_at: None,
                problem: None,
            })
            .map_err(crate::problems::store)?;
        let (length, _) = watch::channel(0);
        let operation = Operation(Arc::new(Inner {
            id: id.clone(),
            kind,
            subject: subject.to_owned(),
            progress: Mutex::new(Progress {
                events: Vec::new(),
                log_lines: 0,
                stages: Vec::new(),
                stage: None,
                ended: None,
            }),
            length,
        }));
        operation.push(Event::Started { operation: id.clone() });
        tracing::info!(operation = %id, kind, subject, "begins");
        let mut all = self.locked();
        forget_oldest(&mut all);
        all.insert(id, operation.clone());
        Ok(operation)
    }

    /// Ends an operation, well or badly; the operation's id is added to the problem.
    pub fn end<T: Serialize>(&self, operation: &Operation, outcome: Result<&T, &Problem>) {
        let inner = &operation.0;
        let (event, problem) = match outcome {
            Ok(result) => {
                let result = serde_json::to_value(result).expect("results are plain data");
                (Event::Done { result, stages: operation.stop_clock() }, None)
            }
            Err(problem) => {
                operation.stop_clock();
                let problem = problem.clone().operation(inner.id.clone());
                (Event::Failed { problem: problem.clone() }, Some(problem))
            }
        };
        match &problem {
            None => {
                tracing::info!(operation = %inner.id, kind = inner.kind, subject = inner.subject, "done")
            }
            Some(problem) => {
                tracing::warn!(operation = %inner.id, kind = inner.kind, subject = inner.subject, %problem, "failed");
            }
        }
        if let Err(error) = self.store.end_operation(&inner.id, Timestamp::now(), problem.as_ref())
        {
            tracing::error!(operation = %inner.id, error = %crate::problems::store(error), "its end is not recorded");
        }
        operation.push(event);
    }

    /// An operation of this daemon's life.
    #[must_use]
    pub fn get(&self, id: &OperationId) -> Option<Operation> {
        self.locked().get(id).cloned()
    }

    fn locked(&self) -> MutexGuard<'_, HashMap<OperationId, Operation>> {
        self.all.lock().expect("nothing panics while it holds the operations")
    }
}

fn forget_oldest(all: &mut HashMap<OperationId, Operation>) {
    while all.len() >= KEPT {
        let oldest = all
            .iter()
            .filter_map(|(id, operation)| operation.locked().ended.map(|ended| (ended, id.clone())))
            .min_by_key(|(ended, _)| *ended);
        // All still run: they are all kept.
        let Some((_, id)) = oldest else { return };
        all.remove(&id);
    }
}

impl Operation {
    #[must_use]
    pub fn id(&self) -> &OperationId {
        &self.0.id
    }

    /// A stage begins; the one before ends.
    pub fn stage(&self, name: &str, text: impl Into<String>) {
        self.stop_clock();
        self.locked().stage = Some((name.to_owned(), Instant::now()));
        self.push(Event::Stage { name: name.to_owned(), text: text.into() });
    }

    pub fn note(&self, text: impl Into<String>) {
        self.push(Event::Note { text: text.into() });
    }

    pub fn log(&self, line: &str) {
        self.push(Event::Log { line: line.to_owned() });
    }

    pub fn progress(&self, done: u64, total: u64, unit: Unit) {
        self.push(Event::Progress { done, total, unit });
    }

    pub fn part(&self, part: &str, done: u64, total: u64, unit: Unit) {
        self.push(Event::Part { part: part.to_owned(), done, total, unit });
    }

    /// The events from the `from`th on, and whether the last of them is the end. Waits until there is one.
    pub async fn events_from(&self, from: usize) -> (Vec<Event>, bool) {
        let mut length = self.0.length.subscribe();
        // The sender lives in this very operation, so it cannot be gone.
        drop(length.wait_for(|length| *length > from).await);
        let progress = self.locked();
        (progress.events[from..].to_vec(), progress.ended.is_some())
    }

    fn push(&self, event: Event) {
        let mut progress = self.locked();
        let ends = matches!(event, Event::Done { .. } | Event::Failed { .. });
        if matches!(event, Event::Log { .. }) {
            progress.log_lines += 1;
            if progress.log_lines > LOG_LINES {
                return;
            }
        }
        progress.events.push(event);
        if ends {
            progress.ended = Some(Instant::now());
        }
        self.0.length.send_replace(progress.events.len());
    }

    fn stop_clock(&self) -> Vec<StageTime> {
        let mut progress = self.locked();
        if let Some((name, begun)) = progress.stage.take() {
            let microseconds = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
            progress.stages.push(StageTime { name, microseconds });
        }
        progress.stages.clone()
    }

    fn locked(&self) -> MutexGuard<'_, Progress> {
        self.0.progress.lock().expect("nothing panics while it holds an operation")
    }
}
