//! Networks: what their bridges are to be.

use banger_host::Network;
use rusqlite::{OptionalExtension, Row, params};

use crate::Store;
use crate::columns::text;
use crate::error::StoreError;

/// A network as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkRecord {
    pub name: String,
    pub network: Network,
    /// How many VMs have an address in it.
    pub vms: u32,
}

const SELECT: &str =
    "SELECT *, (SELECT count(*) FROM vms WHERE network = number) AS vms FROM networks";

impl Store {
    /// All networks, by number.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn networks(&self) -> Result<Vec<NetworkRecord>, StoreError> {
        self.read("list the networks", |c| {
            c.prepare_cached(&format!("{SELECT} ORDER BY number"))?
                .query_map([], network)?
                .collect()
        })
    }

    /// The network of that number.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn network(&self, number: u8) -> Result<Option<NetworkRecord>, StoreError> {
        self.read("read the network", |c| {
            c.prepare_cached(&format!("{SELECT} WHERE number = ?1"))?
                .query_row([number], network)
                .optional()
        })
    }

    /// Records a network, or changes one that no VM is in.
    ///
    /// # Errors
    /// `Taken` when VMs are in it, or the name is another's.
    pub fn set_network(&self, name: &str, network: &Network) -> Result<(), StoreError> {
        self.transaction("record the network", |t| {
            t.execute(
                "DELETE FROM networks WHERE number = ?1 AND NOT EXISTS (SELECT 1 FROM vms WHERE network = ?1)",
                [network.number],
            )?;
            t.execute(
                "INSERT INTO networks VALUES (?1, ?2, ?3, ?4, ?5)",
                params![
                    network.number,
                    name,
                    network.gateway.to_string(),
                    network.prefix,
                    network.mtu
                ],
            )
            .map(drop)
        })
    }
}

fn network(row: &Row<'_>) -> rusqlite::Result<NetworkRecord> {
    Ok(NetworkRecord {
        name: row.get("name")?,
        network: Network {
            number: row.get("number")?,
            gateway: text(row, "gateway")?,
            prefix: row.get("prefix")?,
            mtu: row.get("mtu")?,
        },
        vms: row.get("vms")?,
    })
}
