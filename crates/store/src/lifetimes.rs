//! When VMs end by themselves.

use banger_api::VmId;
use banger_api::until::Until;
use jiff::Timestamp;
use rusqlite::params;

use crate::Store;
use crate::columns::{integer, text};
use crate::error::StoreError;

impl Store {
    /// When each VM that is deleted by itself is, the earliest first.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn expiries(&self) -> Result<Vec<(VmId, Timestamp)>, StoreError> {
        let mut all: Vec<(VmId, Timestamp)> = self.read("list when VMs end", |c| {
            c.prepare_cached("SELECT id, expires_at FROM vms WHERE expires_at IS NOT NULL")?
                .query_map([], |row| Ok((text(row, "id")?, text(row, "expires_at")?)))?
                .collect()
        })?;
        all.sort_by_key(|(_, at)| *at);
        Ok(all)
    }

    /// # Errors
    /// When the database cannot be written.
    pub fn set_expiry(&self, id: &VmId, at: Option<Timestamp>) -> Result<(), StoreError> {
        self.transaction("record when the VM ends", |t| {
            let values = params![id.as_str(), at.map(|at| at.to_string())];
            t.execute("UPDATE vms SET expires_at = ?2 WHERE id = ?1", values).map(drop)
        })
    }

    /// # Errors
    /// When the database cannot be written.
    pub fn set_auto_stop(&self, id: &VmId, after: Until) -> Result<(), StoreError> {
        self.transaction("record when the VM is stopped", |t| {
            let values = params![id.as_str(), integer(after.as_ms())?];
            t.execute("UPDATE vms SET auto_stop_ms = ?2 WHERE id = ?1", values).map(drop)
        })
    }
}
