//! The database's versions: numbered SQL files, forward only, all in one exclusive transaction.

use std::path::Path;

use rusqlite::{Connection, TransactionBehavior};

use crate::error::StoreError;

const MIGRATIONS: &[&str] = &[
    include_str!("migrations/0001.sql"),
    include_str!("migrations/0002.sql"),
    include_str!("migrations/0003.sql"),
    include_str!("migrations/0004.sql"),
    include_str!("migrations/0005.sql"),
    include_str!("migrations/0006.sql"),
    include_str!("migrations/0007.sql"),
    include_str!("migrations/0008.sql"),
    include_str!("migrations/0009.sql"),
    include_str!("migrations/0010.sql"),
    include_str!("migrations/0011.sql"),
    include_str!("migrations/0012.sql"),
];

/// The version that this program writes.
fn known() -> u32 {
    u32::try_from(MIGRATIONS.len()).expect("there are few migrations")
}

pub(crate) fn run(connection: &mut Connection, path: &Path) -> Result<(), StoreError> {
    let damaged = |cause| StoreError::Damaged { path: path.to_owned(), cause };
    let transaction =
        connection.transaction_with_behavior(TransactionBehavior::Exclusive).map_err(damaged)?;
    let found: u32 =
        transaction.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(damaged)?;
    if found > known() {
        return Err(StoreError::Newer { path: path.to_owned(), found, known: known() });
    }
    for migration in MIGRATIONS.iter().skip(found as usize) {
        transaction.execute_batch(migration).map_err(damaged)?;
    }
    transaction.pragma_update(None, "user_version", known()).map_err(damaged)?;
    transaction.commit().map_err(damaged)
}
