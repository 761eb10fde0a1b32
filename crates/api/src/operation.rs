//! Long work: an operation has an id, a log of events, and goes on when its client leaves.
//!
//! The daemon answers a request for long work with a stream of events, one JSON object a line
//! (`application/x-ndjson`), beginning with `started`. `GET /v1/operations/ID/events` gives the same stream again,
//! from its beginning, to whoever asks.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{OperationId, Problem};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    Started {
        operation: OperationId,
    },
    /// A stage of the work begins; the one before has ended. `name` is stable, `text` is for people.
    Stage {
        name: String,
        text: String,
    },
    /// How far the present stage is. `total` is 0 when nobody knows.
    Progress {
        done: u64,
        total: u64,
        unit: Unit,
    },
    /// How far a part of the present stage is that others go on beside: a layer of a pull. `total` is 0 when nobody knows.
    Part {
        /// Unique in its stage, for people too: `layer 2 of 5`.
        part: String,
        done: u64,
        total: u64,
        unit: Unit,
    },
    /// A line of a program that works for us, such as mmdebstrap.
    Log {
        line: String,
    },
    /// Something worth saying that is no failure.
    Note {
        text: String,
    },
    /// The end, well. `result` is what the request's page says; `stages` says where the time went.
    Done {
        result: serde_json::Value,
        stages: Vec<StageTime>,
    },
    /// The end, badly.
    Failed {
        problem: Problem,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    Bytes,
    Items,
}

/// How long a stage took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageTime {
    pub name: String,
    pub microseconds: u64,
}

/// GET /v1/operations and /v1/operations/ID
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    pub id: OperationId,
    /// `vm create`, `image build`, …
    pub kind: String,
    /// What it works on.
    pub subject: String,
    pub started_at: Timestamp,
    pub ended_at: Option<Timestamp>,
    pub problem: Option<Problem>,
}
