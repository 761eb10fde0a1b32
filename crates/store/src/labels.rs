//! Labels: what users have written on VMs.

use banger_api::VmId;
use banger_api::ids::LabelKey;
use banger_api::labels::Labels;
use rusqlite::{Transaction, params};

use crate::Store;
use crate::error::StoreError;

impl Store {
    /// Takes labels away and gives others, or neither. Both may be there already.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn label(&self, id: &VmId, unlabel: &[LabelKey], label: &Labels) -> Result<(), StoreError> {
        self.transaction("record the labels", |t| {
            for key in unlabel {
                let sql = "DELETE FROM labels WHERE vm = ?1 AND key = ?2";
                t.execute(sql, params![id.as_str(), key.as_str()])?;
            }
            insert(t, id, label)
        })
    }
}

/// For a VM that is recorded.
pub(crate) fn insert(t: &Transaction<'_>, id: &VmId, labels: &Labels) -> rusqlite::Result<()> {
    labels.iter().try_for_each(|(key, value)| {
        let values = params![id.as_str(), key.as_str(), value.as_str()];
        t.execute("INSERT OR REPLACE INTO labels VALUES (?1, ?2, ?3)", values).map(drop)
    })
}
