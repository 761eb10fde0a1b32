//! The database: what banger knows across restarts. SQLite, one writer, one transaction per public function.
//!
//! Ledger writes are durable when the function returns (WAL with `synchronous=FULL`): a claim is recorded before it is
//! made. Nothing here touches the host or knows what a claim means.

mod artifacts;
mod error;
mod host_keys;
mod labels;
mod lifetimes;
mod migrations;
mod networks;
mod operations;
mod published;
mod vms;
mod workspaces;

use std::net::Ipv6Addr;
use std::path::Path;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use banger_host::{Installation, unique_local_prefix};
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior};

pub use artifacts::{ImageRecord, KernelRecord};
pub use error::StoreError;
pub use networks::{Deleted, NetworkRecord};
pub use operations::OperationRecord;
pub use vms::{Place, RecordedClaim, VmRecord};

/// An open database.
#[derive(Debug)]
pub struct Store {
    connection: Mutex<Connection>,
    installation: Installation,
    global_id: [u8; 5],
}

impl Store {
    /// Opens the database, makes or migrates it, and checks that it is whole. `known` is the installation's id from the
    /// file beside the database, if there is one: a database made anew keeps it, so that what the lost one had recorded
    /// on the host is still recognised as ours.
    ///
    /// # Errors
    /// When the file is damaged, newer than this program, or cannot be opened.
    pub fn open(path: &Path, known: Option<Installation>) -> Result<Self, StoreError> {
        let damaged = |cause| StoreError::Damaged { path: path.to_owned(), cause };
        let mut connection = Connection::open(path).map_err(damaged)?;
        connection.busy_timeout(Duration::from_secs(5)).map_err(damaged)?;
        connection
            .execute_batch(
                "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;",
            )
            .map_err(damaged)?;
        let verdict: String = connection
            .query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))
            .map_err(damaged)?;
        if verdict != "ok" {
            return Err(StoreError::NotWhole { path: path.to_owned(), verdict });
        }
        migrations::run(&mut connection, path)?;
        let installation = installation(&mut connection, known).map_err(damaged)?;
        let global_id = global_id(&connection).map_err(damaged)?;
        Ok(Self { connection: Mutex::new(connection), installation, global_id })
    }

    /// Brings the write-ahead log into the database, so that the one file holds all of it.
    ///
    /// # Errors
    /// When it cannot be written; nothing is lost then, the log is read at the next open.
    pub fn checkpoint(&self) -> Result<(), StoreError> {
        self.read("write the log into the database", |c| {
            c.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        })
    }

    #[must_use]
    pub fn installation(&self) -> &Installation {
        &self.installation
    }

    /// The IPv6 prefix of the network of this number, 64 bits of an address whose others are 0: always the same one.
    #[must_use]
    pub fn ipv6_prefix(&self, number: u8) -> Ipv6Addr {
        unique_local_prefix(self.global_id, number)
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().expect("nothing panics while it holds the connection")
    }

    /// Runs `work` in a transaction that begins as a writer, so that it never fails half-way for a lock.
    fn transaction<T>(
        &self,
        act: &'static str,
        work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        let mut connection = self.connection();
        let failed = |cause| StoreError::from_sqlite(act, cause);
        let transaction =
            connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
        let value = work(&transaction).map_err(failed)?;
        transaction.commit().map_err(failed)?;
        Ok(value)
    }

    fn read<T>(
        &self,
        act: &'static str,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        work(&self.connection()).map_err(|cause| StoreError::from_sqlite(act, cause))
    }
}

fn installation(
    connection: &mut Connection,
    known: Option<Installation>,
) -> rusqlite::Result<Installation> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let found: Option<String> =
        transaction.query_row("SELECT id FROM installation", [], |row| row.get(0)).optional()?;
    let installation = match found.as_deref().and_then(Installation::parse).or(known) {
        Some(installation) => installation,
        None => Installation::random().map_err(columns::into_sqlite)?,
    };
    transaction.execute(
        "INSERT OR REPLACE INTO installation VALUES (1, ?1)",
        [installation.to_string()],
    )?;
    transaction.commit()?;
    Ok(installation)
}

fn global_id(connection: &Connection) -> rusqlite::Result<[u8; 5]> {
    let hex: String =
        connection.query_row("SELECT global_id FROM unique_local", [], |row| row.get(0))?;
    let number = u64::from_str_radix(&hex, 16).map_err(columns::into_sqlite)?;
    let [_, _, _, global_id @ ..] = number.to_be_bytes();
    Ok(global_id)
}

mod columns {
    //! Between columns and types: texts that parse, numbers that fit, JSON for what is looked at only as a whole.

    use std::error::Error;
    use std::str::FromStr;

    use rusqlite::Row;
    use rusqlite::types::Type;
    use serde::Serialize;
    use serde::de::DeserializeOwned;

    pub(crate) fn text<T: FromStr>(row: &Row<'_>, name: &str) -> rusqlite::Result<T>
    where
        T::Err: Error + Send + Sync + 'static,
    {
        row.get::<_, String>(name)?.parse().map_err(|error: T::Err| unreadable(Box::new(error)))
    }

    pub(crate) fn optional_text<T: FromStr>(
        row: &Row<'_>,
        name: &str,
    ) -> rusqlite::Result<Option<T>>
    where
        T::Err: Error + Send + Sync + 'static,
    {
        let found: Option<String> = row.get(name)?;
        found
            .map(|text| text.parse().map_err(|error: T::Err| unreadable(Box::new(error))))
            .transpose()
    }

    pub(crate) fn number<T: TryFrom<i64>>(row: &Row<'_>, name: &str) -> rusqlite::Result<T>
    where
        T::Error: Error + Send + Sync + 'static,
    {
        T::try_from(row.get::<_, i64>(name)?).map_err(|error| unreadable(Box::new(error)))
    }

    /// SQLite's integers are i64.
    pub(crate) fn integer(number: u64) -> rusqlite::Result<i64> {
        i64::try_from(number)
            .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
    }

    pub(crate) fn json<T: DeserializeOwned>(row: &Row<'_>, name: &str) -> rusqlite::Result<T> {
        serde_json::from_str(&row.get::<_, String>(name)?)
            .map_err(|error| unreadable(Box::new(error)))
    }

    pub(crate) fn optional_json<T: DeserializeOwned>(
        row: &Row<'_>,
        name: &str,
    ) -> rusqlite::Result<Option<T>> {
        let found: Option<String> = row.get(name)?;
        found
            .map(|text| serde_json::from_str(&text).map_err(|error| unreadable(Box::new(error))))
            .transpose()
    }

    pub(crate) fn to_json<T: Serialize>(value: &T) -> rusqlite::Result<String> {
        serde_json::to_string(value).map_err(into_sqlite)
    }

    /// The bare word of an enum that serialises as a string.
    pub(crate) fn to_word<T: Serialize>(value: &T) -> rusqlite::Result<String> {
        to_json(value).map(|json| json.trim_matches('"').to_owned())
    }

    pub(crate) fn from_word<T: DeserializeOwned>(row: &Row<'_>, name: &str) -> rusqlite::Result<T> {
        let word: String = row.get(name)?;
        serde_json::from_value(serde_json::Value::String(word))
            .map_err(|error| unreadable(Box::new(error)))
    }

    pub(crate) fn into_sqlite(error: impl Error + Send + Sync + 'static) -> rusqlite::Error {
        rusqlite::Error::ToSqlConversionFailure(Box::new(error))
    }

    fn unreadable(error: Box<dyn Error + Send + Sync>) -> rusqlite::Error {
        rusqlite::Error::FromSqlConversionFailure(0, Type::Text, error)
    }
}
