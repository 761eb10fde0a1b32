//! Published ports: which of the host's lead to which VM's.

use banger_api::VmId;
use banger_api::ports::PublishedPort;
use rusqlite::{Row, Transaction, params};

use crate::Store;
use crate::columns::{into_sqlite, json};
use crate::error::StoreError;

impl Store {
    /// Takes the one back and publishes the other, or neither.
    ///
    /// # Errors
    /// When the database cannot be written, or a port is published already.
    pub fn publish(
        &self,
        id: &VmId,
        unpublish: &[PublishedPort],
        publish: &[PublishedPort],
    ) -> Result<(), StoreError> {
        self.transaction("record the published ports", |t| {
            for port in unpublish {
                let sql = "DELETE FROM published WHERE vm = ?1 AND port = ?2";
                t.execute(sql, params![id.as_str(), port.to_string()])?;
            }
            insert(t, id, publish)
        })
    }
}

/// For a VM that is recorded.
pub(crate) fn insert(
    t: &Transaction<'_>,
    id: &VmId,
    ports: &[PublishedPort],
) -> rusqlite::Result<()> {
    ports.iter().try_for_each(|port| {
        let values = params![id.as_str(), port.to_string()];
        t.execute("INSERT INTO published VALUES (?1, ?2)", values).map(drop)
    })
}

/// Those of a VM's row.
pub(crate) fn of_row(row: &Row<'_>) -> rusqlite::Result<Vec<PublishedPort>> {
    let texts: Vec<String> = json(row, "published")?;
    let ports = texts.iter().map(|text| PublishedPort::parse(text)).collect::<Result<Vec<_>, _>>();
    let mut ports = ports.map_err(into_sqlite)?;
    ports.sort_by_key(|port| (port.host, port.protocol, port.address));
    Ok(ports)
}
