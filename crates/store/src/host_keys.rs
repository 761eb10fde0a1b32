//! Host keys: what a VM shows to ssh clients. One per VM, for as long as there is the VM.

use banger_api::{VmId, VmName};
use rusqlite::{OptionalExtension, params};

use crate::Store;
use crate::columns::text;
use crate::error::StoreError;

impl Store {
    /// The VM's private key, as OpenSSH writes it; `made` becomes it where there is none.
    ///
    /// # Errors
    /// When the database cannot be written, or there is no such VM.
    pub fn host_key(&self, id: &VmId, made: &str) -> Result<String, StoreError> {
        self.transaction("record the VM's host key", |t| {
            let sql = "INSERT INTO host_keys VALUES (?1, ?2) ON CONFLICT DO NOTHING";
            t.execute(sql, params![id.as_str(), made])?;
            let sql = "SELECT private FROM host_keys WHERE vm = ?1";
            t.query_row(sql, [id.as_str()], |row| row.get(0))
        })
    }

    /// The VM's private key, if it has one.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn known_host_key(&self, id: &VmId) -> Result<Option<String>, StoreError> {
        self.read("read the VM's host key", |c| {
            let sql = "SELECT private FROM host_keys WHERE vm = ?1";
            c.query_row(sql, [id.as_str()], |row| row.get(0)).optional()
        })
    }

    /// All of them, by the VMs' names.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn host_keys(&self) -> Result<Vec<(VmName, String)>, StoreError> {
        self.read("read the host keys", |c| {
            let sql = "SELECT name, private FROM host_keys JOIN vms ON vms.id = vm ORDER BY name";
            c.prepare_cached(sql)?
                .query_map([], |row| Ok((text(row, "name")?, row.get("private")?)))?
                .collect()
        })
    }
}
