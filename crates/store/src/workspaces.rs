//! Workspaces: which repository is in which VM, and whether work there would go with it.

use banger_api::VmId;
use banger_api::workspace::{Work, Workspace};
use rusqlite::{Row, Transaction, params};

use crate::Store;
use crate::columns::{optional_json, to_json};
use crate::error::StoreError;

impl Store {
    /// Records what is in a VM's workspace from now on; whether there is work in it is no longer known.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn set_workspace(&self, id: &VmId, workspace: &Workspace) -> Result<(), StoreError> {
        let known = Workspace { work: Work::Unknown, ..workspace.clone() };
        self.transaction("record the workspace", |t| {
            let values = params![id.as_str(), to_json(&known)?];
            t.execute("INSERT OR REPLACE INTO workspaces VALUES (?1, ?2, NULL)", values).map(drop)
        })
    }

    /// What the guest said of the work in it before it went.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn set_work(&self, id: &VmId, work: Work) -> Result<(), StoreError> {
        self.transaction("record what is in the workspace", |t| {
            let sql = "UPDATE workspaces SET work = ?2 WHERE vm = ?1";
            t.execute(sql, params![id.as_str(), to_json(&work)?]).map(drop)
        })
    }
}

/// From now on only the guest knows what is in it.
pub(crate) fn forget_work(t: &Transaction<'_>, id: &VmId) -> rusqlite::Result<()> {
    t.execute("UPDATE workspaces SET work = NULL WHERE vm = ?1", [id.as_str()]).map(drop)
}

/// That of a row with its two columns.
pub(crate) fn of_row(row: &Row<'_>) -> rusqlite::Result<Option<Workspace>> {
    let found: Option<Workspace> = optional_json(row, "workspace")?;
    let work: Option<Work> = optional_json(row, "work")?;
    Ok(found.map(|workspace| Workspace { work: work.unwrap_or_default(), ..workspace }))
}
