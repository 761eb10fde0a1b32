//! Jobs: commands that go on in a guest when nobody looks at them, and what they wrote.
//!
//! A job is started as an exec is (JSON [`crate::exec::Start`]), and is attached to by the same frames: whoever attaches sends `start`,
//! of which only the terminal's size and whether there is stdin count, gets what the job wrote from the oldest kept on, then what
//! it writes, and at its end `exit`. Its going ends nothing.
//!
//! ```text
//! POST /v1/jobs                     Start -> Job
//! GET  /v1/jobs                     [Job]
//! POST /v1/jobs/N/signal            JobSignal -> {}
//! GET  /v1/jobs/N/attach?follow=B   WebSocket; with follow=false it ends with what there is
//! ```
//! The daemon has the same paths below `/v1/vms/VM`.

use serde::{Deserialize, Serialize};

use crate::exec::{Exit, Word};

/// A job as it was last heard of. Times are the guest's, in milliseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Counted from 1, in the order of their starts; not used again in the VM's life as long as one later is kept.
    pub number: u32,
    /// Empty: the user's login shell.
    pub command: Vec<Word>,
    /// It has a terminal.
    pub tty: bool,
    pub started_ms: u64,
    #[serde(flatten)]
    pub state: JobState,
    /// What it wrote so far, in bytes.
    pub output_bytes: u64,
    /// Of these the oldest, which are no longer kept.
    pub dropped_bytes: u64,
}

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum JobState {
    Running,
    Ended {
        exit: Exit,
        ended_ms: u64,
    },
    /// The guest went off, or its agent ended, while it ran.
    Lost,
}

/// What a job's process group is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobSignal {
    /// Its number (signal(7)).
    pub signal: u8,
}

/// What of an attached job is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attach {
    /// What it writes from now on, too, until its end.
    pub follow: bool,
}
