//! Networks: what their bridges are to be.

use banger_api::{NetworkName, VmName};
use banger_host::Network;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};

use crate::Store;
use crate::columns::text;
use crate::error::StoreError;

/// A network as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkRecord {
    pub name: NetworkName,
    pub network: Network,
    /// How many VMs have an address in it.
    pub vms: u32,
}

/// What became of a network that was to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deleted {
    /// It is gone.
    Yes(Network),
    /// There is none of that name.
    Unknown,
    /// These VMs are in it, whether they run or not.
    InUse(Vec<VmName>),
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
        self.read("read the network", |c| by_number(c, number))
    }

    /// The network of that name.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn network_named(&self, name: &NetworkName) -> Result<Option<NetworkRecord>, StoreError> {
        self.read("read the network", |c| by_name(c, name))
    }

    /// Records a new network.
    ///
    /// # Errors
    /// `Taken` when there is one of its number or its name.
    pub fn insert_network(&self, name: &NetworkName, network: &Network) -> Result<(), StoreError> {
        self.transaction("record the network", |t| insert(t, name, network))
    }

    /// The record of a network goes if no VM is in it: a VM that is recorded in between keeps it.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn delete_network(&self, name: &NetworkName) -> Result<Deleted, StoreError> {
        self.transaction("delete the network", |t| {
            let Some(record) = by_name(t, name)? else { return Ok(Deleted::Unknown) };
            let number = record.network.number;
            let vms = t
                .prepare_cached("SELECT name FROM vms WHERE network = ?1 ORDER BY name")?
                .query_map([number], |row| text(row, "name"))?
                .collect::<rusqlite::Result<Vec<VmName>>>()?;
            if !vms.is_empty() {
                return Ok(Deleted::InUse(vms));
            }
            t.execute("DELETE FROM networks WHERE number = ?1", [number])?;
            Ok(Deleted::Yes(record.network))
        })
    }

    /// Records a network, or changes one that no VM is in.
    ///
    /// # Errors
    /// `Taken` when VMs are in it, or the name is another's.
    pub fn set_network(&self, name: &NetworkName, network: &Network) -> Result<(), StoreError> {
        self.transaction("record the network", |t| {
            t.execute(
                "DELETE FROM networks WHERE number = ?1 AND NOT EXISTS (SELECT 1 FROM vms WHERE network = ?1)",
                [network.number],
            )?;
            insert(t, name, network)
        })
    }
}

fn insert(t: &Transaction<'_>, name: &NetworkName, network: &Network) -> rusqlite::Result<()> {
    // Its IPv6 prefix is its number's ([`Store::ipv6_prefix`]).
    let Network { number, gateway, prefix, mtu, peers, ipv6: _ } = network;
    t.execute(
        "INSERT INTO networks VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        params![number, name.as_str(), gateway.to_string(), prefix, mtu, peers],
    )
    .map(drop)
}

pub(crate) fn by_number(c: &Connection, number: u8) -> rusqlite::Result<Option<NetworkRecord>> {
    let mut select = c.prepare_cached(&format!("{SELECT} WHERE number = ?1"))?;
    select.query_row([number], network).optional()
}

fn by_name(c: &Connection, name: &NetworkName) -> rusqlite::Result<Option<NetworkRecord>> {
    let mut select = c.prepare_cached(&format!("{SELECT} WHERE name = ?1"))?;
    select.query_row([name.as_str()], network).optional()
}

fn network(row: &Row<'_>) -> rusqlite::Result<NetworkRecord> {
    Ok(NetworkRecord {
        name: text(row, "name")?,
        network: Network {
            number: row.get("number")?,
            gateway: text(row, "gateway")?,
            prefix: row.get("prefix")?,
            mtu: row.get("mtu")?,
            peers: row.get("peers")?,
            ipv6: None,
        },
        vms: row.get("vms")?,
    })
}
