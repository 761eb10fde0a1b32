//! Operations that were begun, and how they ended.

use banger_api::{OperationId, Problem};
use jiff::Timestamp;
use rusqlite::{OptionalExtension, Row, params};

use crate::Store;
use crate::columns::{optional_json, optional_text, text, to_json};
use crate::error::StoreError;

/// How many ended operations are kept.
const KEPT: u32 = 1000;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperationRecord {
    pub id: OperationId,
    pub kind: String,
    pub subject: String,
    pub started_at: Timestamp,
    pub ended_at: Option<Timestamp>,
    pub problem: Option<Problem>,
}

impl Store {
    /// Records that an operation begins; the oldest of the ended ones are forgotten.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn begin_operation(&self, operation: &OperationRecord) -> Result<(), StoreError> {
        self.transaction("record the operation", |t| {
            t.execute(
                "DELETE FROM operations WHERE ended_at IS NOT NULL AND id NOT IN
                 (SELECT id FROM operations ORDER BY started_at DESC LIMIT ?1)",
                [KEPT],
            )?;
            t.execute(
                "INSERT INTO operations VALUES (?1, ?2, ?3, ?4, NULL, NULL)",
                params![
                    operation.id.as_str(),
                    operation.kind,
                    operation.subject,
                    operation.started_at.to_string(),
                ],
            )
            .map(drop)
        })
    }

    /// # Errors
    /// When the database cannot be written.
    pub fn end_operation(
        &self,
        id: &OperationId,
        at: Timestamp,
        problem: Option<&Problem>,
    ) -> Result<(), StoreError> {
        self.transaction("record the operation's end", |t| {
            t.execute(
                "UPDATE operations SET ended_at = ?2, problem = ?3 WHERE id = ?1",
                params![id.as_str(), at.to_string(), problem.map(to_json).transpose()?],
            )
            .map(drop)
        })
    }

    /// A daemon starts: what its predecessor left unfinished has ended with `problem`.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn end_unfinished_operations(
        &self,
        at: Timestamp,
        problem: &Problem,
    ) -> Result<(), StoreError> {
        self.transaction("end the operations of the last daemon", |t| {
            t.execute(
                "UPDATE operations SET ended_at = ?1, problem = ?2 WHERE ended_at IS NULL",
                params![at.to_string(), to_json(problem)?],
            )
            .map(drop)
        })
    }

    /// The newest first.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn operations(&self) -> Result<Vec<OperationRecord>, StoreError> {
        self.read("list the operations", |c| {
            c.prepare_cached("SELECT * FROM operations ORDER BY started_at DESC")?
                .query_map([], operation)?
                .collect()
        })
    }

    /// # Errors
    /// When the database cannot be read.
    pub fn operation(&self, id: &OperationId) -> Result<Option<OperationRecord>, StoreError> {
        self.read("read the operation", |c| {
            c.prepare_cached("SELECT * FROM operations WHERE id = ?1")?
                .query_row([id.as_str()], operation)
                .optional()
        })
    }
}

fn operation(row: &Row<'_>) -> rusqlite::Result<OperationRecord> {
    Ok(OperationRecord {
        id: text(row, "id")?,
        kind: row.get("kind")?,
        subject: row.get("subject")?,
        started_at: text(row, "started_at")?,
        ended_at: optional_text(row, "ended_at")?,
        problem: optional_json(row, "problem")?,
    })
}
