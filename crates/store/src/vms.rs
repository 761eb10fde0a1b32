//! VMs and their ledger.

use std::collections::{BTreeSet, HashSet};
use std::net::{Ipv4Addr, Ipv6Addr};

use banger_api::image::Config;
use banger_api::labels::Labels;
use banger_api::ports::PublishedPort;
use banger_api::until::Until;
use banger_api::vm::State;
use banger_api::workspace::Workspace;
use banger_api::{Egress, ImageName, KernelName, NetworkName, Problem, Size, VmId, VmName};
use banger_host::{Claim, Life, Network, ipv6_below};
use jiff::Timestamp;
use rusqlite::{OptionalExtension, Row, Transaction, named_params, params};

use crate::Store;
use crate::columns::{
    from_word, integer, into_sqlite, json, number, optional_json, optional_text, text, to_json,
    to_word,
};
use crate::error::StoreError;
use crate::networks::by_number;
use crate::{labels, published, workspaces};

/// A VM as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmRecord {
    pub id: VmId,
    pub name: VmName,
    pub state: State,
    pub image: ImageName,
    /// What it boots, whatever the name means today.
    pub image_digest: String,
    pub init: Option<String>,
    pub kernel: KernelName,
    pub kernel_digest: String,
    pub cpus: u32,
    pub memory: Size,
    pub disk: Size,
    /// `overlay`, `reflink` or `dm-snapshot`: how its disk was made.
    pub disk_driver: String,
    pub ephemeral: bool,
    pub created_at: Timestamp,
    pub started_at: Option<Timestamp>,
    pub boot_id: Option<String>,
    pub vmm: Option<String>,
    pub problem: Option<Problem>,
    /// Its place in the range of users that jailed VMMs run as, no other VM's. Chosen by [`Store::insert_vm`].
    pub slot: u32,
    /// What its image said about its programs when the VM was made.
    pub config: Config,
    /// The image's program runs from each start on.
    pub entrypoint: bool,
    /// Its place in a network, no other VM's. Chosen by [`Store::insert_vm`].
    pub place: Option<Place>,
    /// The name of that network, as it is read; what [`Store::insert_vm`] records is the place.
    pub network: Option<NetworkName>,
    /// The IPv6 prefix that its network has in its run, as it is read from the ledger; absent where its run has no IPv6.
    pub ipv6: Option<Ipv6Addr>,
    /// What it may reach beyond the host.
    pub egress: Egress,
    /// Ports of the host's that lead to its own while it runs.
    pub published: Vec<PublishedPort>,
    /// TCP ports of the host's loopback that it reaches while it runs.
    pub exposed: BTreeSet<u16>,
    /// What its user has written on it.
    pub labels: Labels,
    /// When it is deleted by itself.
    pub expires_at: Option<Timestamp>,
    /// How long it runs without activity before it is stopped.
    pub auto_stop: Until,
    /// The repository that is in it, as it is read; recorded by [`Store::set_workspace`].
    pub workspace: Option<Workspace>,
}

/// Where a VM is in a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The number of the network.
    pub network: u8,
    pub address: Ipv4Addr,
}

/// A row of the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordedClaim {
    pub sequence: i64,
    pub claim: Claim,
    /// Why it could not be released, if that was tried.
    pub problem: Option<String>,
}

const SELECT: &str =
    "SELECT *, (SELECT name FROM networks WHERE number = vms.network) AS network_name,
     (SELECT json_group_array(port) FROM published WHERE vm = vms.id) AS published,
     (SELECT json_group_object(key, value) FROM labels WHERE vm = vms.id) AS labels,
     (SELECT workspace FROM workspaces WHERE vm = vms.id) AS workspace, (SELECT work FROM workspaces WHERE vm = vms.id) AS work,
     (SELECT max(json_extract(claim, '$.network.ipv6')) FROM claims
      WHERE vm = vms.id AND json_extract(claim, '$.kind') = 'guard') AS ipv6 FROM vms";

/// Why a VM cannot be recorded in its network.
enum Misplaced {
    NoNetwork,
    NoAddress,
}

impl Store {
    /// Records a new VM with all the claims it holds from create to delete. Its slot is the least that is free, and so is
    /// its address in `network`.
    ///
    /// # Errors
    /// `Taken` when the name or the id is; `NoNetwork` when the network is not recorded as it is given; `NoAddress` when it has
    /// none left.
    pub fn insert_vm(
        &self,
        vm: &VmRecord,
        network: Option<&Network>,
        claims: &[Claim],
    ) -> Result<(), StoreError> {
        let recorded = self.transaction("record the VM", |t| {
            let address = match network.map(|network| free_address(t, network)).transpose()? {
                None => None,
                Some(Ok(address)) => Some(address.to_string()),
                Some(Err(misplaced)) => return Ok(Err(misplaced)),
            };
            t.execute(
                "INSERT INTO vms VALUES (:id, :name, :state, :image, :image_digest, :init, :kernel, :kernel_digest,
                 :cpus, :memory, :disk, :disk_driver, :ephemeral, :created_at, NULL, NULL, NULL, NULL,
                 (SELECT min(free.slot) FROM (SELECT 0 AS slot UNION ALL SELECT slot + 1 FROM vms) AS free
                  WHERE free.slot NOT IN (SELECT slot FROM vms)), :config, :entrypoint, :network, :address, :egress, :exposed,
                 :expires_at, :auto_stop_ms)",
                named_params! {
                    ":id": vm.id.as_str(),
                    ":name": vm.name.as_str(),
                    ":state": to_word(&vm.state)?,
                    ":image": vm.image.as_str(),
                    ":image_digest": vm.image_digest,
                    ":init": vm.init,
                    ":kernel": vm.kernel.as_str(),
                    ":kernel_digest": vm.kernel_digest,
                    ":cpus": vm.cpus,
                    ":memory": integer(vm.memory.as_bytes())?,
                    ":disk": integer(vm.disk.as_bytes())?,
                    ":disk_driver": vm.disk_driver,
                    ":ephemeral": vm.ephemeral,
                    ":created_at": vm.created_at.to_string(),
                    ":config": to_json(&vm.config)?,
                    ":entrypoint": vm.entrypoint,
                    ":network": network.map(|network| network.number),
                    ":address": address,
                    ":egress": vm.egress.to_string(),
                    ":exposed": to_json(&vm.exposed)?,
                    ":expires_at": vm.expires_at.map(|at| at.to_string()),
                    ":auto_stop_ms": integer(vm.auto_stop.as_ms())?,
                },
            )?;
            published::insert(t, &vm.id, &vm.published)?;
            labels::insert(t, &vm.id, &vm.labels)?;
            insert_claims(t, &vm.id, claims)?;
            Ok(Ok(()))
        })?;
        recorded.map_err(|misplaced| match misplaced {
            Misplaced::NoNetwork => StoreError::NoNetwork,
            Misplaced::NoAddress => StoreError::NoAddress,
        })
    }

    /// All VMs, by name.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn vms(&self) -> Result<Vec<VmRecord>, StoreError> {
        self.read("list the VMs", |c| {
            c.prepare_cached(&format!("{SELECT} ORDER BY name"))?.query_map([], vm)?.collect()
        })
    }

    /// # Errors
    /// When the database cannot be read.
    pub fn vm(&self, id: &VmId) -> Result<Option<VmRecord>, StoreError> {
        self.read("read the VM", |c| {
            c.prepare_cached(&format!("{SELECT} WHERE id = ?1"))?
                .query_row([id.as_str()], vm)
                .optional()
        })
    }

    /// The VM that has this address.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn vm_at(&self, address: Ipv4Addr) -> Result<Option<VmRecord>, StoreError> {
        self.read("read the VM", |c| {
            c.prepare_cached(&format!("{SELECT} WHERE address = ?1"))?
                .query_row([address.to_string()], vm)
                .optional()
        })
    }

    /// Name and address of every VM that runs with a network device, one whose start has claimed the rules for one; and the IPv6
    /// address of those whose run has one.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn running_addresses(
        &self,
    ) -> Result<Vec<(VmName, Ipv4Addr, Option<Ipv6Addr>)>, StoreError> {
        self.read("list the addresses of the VMs", |c| {
            c.prepare_cached(
                "SELECT name, address, json_extract(claim, '$.network.ipv6') AS ipv6 FROM vms JOIN claims ON vm = vms.id
                 WHERE state IN (?1, ?2) AND address IS NOT NULL AND json_extract(claim, '$.kind') = 'guard'",
            )?
            .query_map([to_word(&State::Running)?, to_word(&State::Paused)?], |row| {
                let address = text(row, "address")?;
                let prefix: Option<Ipv6Addr> = optional_text(row, "ipv6")?;
                Ok((text(row, "name")?, address, prefix.map(|prefix| ipv6_below(prefix, address))))
            })?
            .collect()
        })
    }

    /// A start begins: the state and every claim of the run, before the first is made.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn begin_start(&self, id: &VmId, vmm: &str, claims: &[Claim]) -> Result<(), StoreError> {
        self.transaction("record the start", |t| {
            t.execute(
                "UPDATE vms SET state = ?2, vmm = ?3, boot_id = NULL, problem = NULL WHERE id = ?1",
                params![id.as_str(), to_word(&State::Starting)?, vmm],
            )?;
            workspaces::forget_work(t, id)?;
            insert_claims(t, id, claims)
        })
    }

    /// The guest is ready.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn set_running(&self, id: &VmId, boot_id: &str, at: Timestamp) -> Result<(), StoreError> {
        self.transaction("record that the VM runs", |t| {
            t.execute(
                "UPDATE vms SET state = ?2, boot_id = ?3, started_at = ?4, problem = NULL WHERE id = ?1",
                params![id.as_str(), to_word(&State::Running)?, boot_id, at.to_string()],
            )
            .map(drop)
        })
    }

    /// A state on the way, with nothing else changed.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn set_state(&self, id: &VmId, state: State) -> Result<(), StoreError> {
        self.transaction("record the VM's state", |t| {
            t.execute(
                "UPDATE vms SET state = ?2 WHERE id = ?1",
                params![id.as_str(), to_word(&state)?],
            )
            .map(drop)
        })
    }

    /// What it may reach beyond the host, and the claim of that when the VM runs: recorded before it is made.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn set_egress(
        &self,
        id: &VmId,
        egress: &Egress,
        claim: Option<&Claim>,
    ) -> Result<(), StoreError> {
        self.transaction("record where the VM's network leads", |t| {
            t.execute(
                "UPDATE vms SET egress = ?2 WHERE id = ?1",
                params![id.as_str(), egress.to_string()],
            )?;
            insert_claims(t, id, claim.map(std::slice::from_ref).unwrap_or_default())
        })
    }

    /// A VM that goes on holds less: released claims leave the ledger, the others keep their cause.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn end_partial_release(
        &self,
        id: &VmId,
        released: &[i64],
        failed: &[(i64, String)],
    ) -> Result<(), StoreError> {
        self.transaction("record what was released", |t| end_claims(t, id, released, failed))
    }

    /// Its sizes, and what its disk's row of the ledger, by its sequence, says from now on.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn set_sizes(
        &self,
        id: &VmId,
        cpus: u32,
        memory: Size,
        disk: Size,
        claim: Option<(i64, &Claim)>,
    ) -> Result<(), StoreError> {
        self.transaction("record the VM's sizes", |t| {
            let (memory, disk) = (integer(memory.as_bytes())?, integer(disk.as_bytes())?);
            t.execute(
                "UPDATE vms SET cpus = ?2, memory_bytes = ?3, disk_bytes = ?4 WHERE id = ?1",
                params![id.as_str(), cpus, memory, disk],
            )?;
            let Some((sequence, claim)) = claim else { return Ok(()) };
            let sql = "UPDATE claims SET claim = ?3 WHERE vm = ?1 AND sequence = ?2";
            t.execute(sql, params![id.as_str(), sequence, to_json(claim)?]).map(drop)
        })
    }

    /// It is called otherwise from now on.
    ///
    /// # Errors
    /// `Taken` when another VM has that name.
    pub fn rename(&self, id: &VmId, name: &VmName) -> Result<(), StoreError> {
        self.transaction("rename the VM", |t| {
            let values = params![id.as_str(), name.as_str()];
            t.execute("UPDATE vms SET name = ?2 WHERE id = ?1", values).map(drop)
        })
    }

    /// It is no longer tied to the session that made it.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn keep(&self, id: &VmId) -> Result<(), StoreError> {
        self.transaction("record that the VM is kept", |t| {
            t.execute("UPDATE vms SET ephemeral = 0 WHERE id = ?1", [id.as_str()]).map(drop)
        })
    }

    /// The ledger of a VM, in the order in which its claims are made.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn claims(&self, id: &VmId) -> Result<Vec<RecordedClaim>, StoreError> {
        self.read("read the ledger", |c| {
            c.prepare_cached(
                "SELECT sequence, claim, problem FROM claims WHERE vm = ?1 ORDER BY sequence",
            )?
            .query_map([id.as_str()], |row| {
                Ok(RecordedClaim {
                    sequence: row.get("sequence")?,
                    claim: json(row, "claim")?,
                    problem: row.get("problem")?,
                })
            })?
            .collect()
        })
    }

    /// All claims of all VMs.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn all_claims(&self) -> Result<Vec<Claim>, StoreError> {
        self.read("read the ledger", |c| {
            c.prepare_cached("SELECT claim FROM claims ORDER BY vm, sequence")?
                .query_map([], |row| json(row, "claim"))?
                .collect()
        })
    }

    /// The end of a teardown: released claims leave the ledger, the others keep their cause, and the VM is in `state`.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn end_release(
        &self,
        id: &VmId,
        released: &[i64],
        failed: &[(i64, String)],
        state: State,
        problem: Option<&Problem>,
    ) -> Result<(), StoreError> {
        self.transaction("record what was released", |t| {
            end_claims(t, id, released, failed)?;
            t.execute(
                "UPDATE vms SET state = ?2, problem = ?3, boot_id = NULL, vmm = NULL WHERE id = ?1",
                params![id.as_str(), to_word(&state)?, problem.map(to_json).transpose()?],
            )
            .map(drop)
        })
    }

    /// The VM's record goes, when its ledger is empty.
    ///
    /// # Errors
    /// `Taken` when claims are left.
    pub fn delete_vm(&self, id: &VmId) -> Result<(), StoreError> {
        self.transaction("delete the VM's record", |t| {
            t.execute("DELETE FROM vms WHERE id = ?1", [id.as_str()]).map(drop)
        })
    }
}

fn insert_claims(t: &Transaction<'_>, id: &VmId, claims: &[Claim]) -> rusqlite::Result<()> {
    let next: i64 = t.query_row(
        "SELECT coalesce(max(sequence), 0) + 1 FROM claims WHERE vm = ?1",
        [id.as_str()],
        |row| row.get(0),
    )?;
    for (sequence, claim) in (next..).zip(claims) {
        let life: Life = claim.life();
        t.execute(
            "INSERT INTO claims VALUES (?1, ?2, ?3, ?4, NULL)",
            params![id.as_str(), sequence, to_word(&life)?, to_json(claim)?],
        )?;
    }
    Ok(())
}

fn end_claims(
    t: &Transaction<'_>,
    id: &VmId,
    released: &[i64],
    failed: &[(i64, String)],
) -> rusqlite::Result<()> {
    for sequence in released {
        t.execute(
            "DELETE FROM claims WHERE vm = ?1 AND sequence = ?2",
            params![id.as_str(), sequence],
        )?;
    }
    for (sequence, cause) in failed {
        t.execute(
            "UPDATE claims SET problem = ?3 WHERE vm = ?1 AND sequence = ?2",
            params![id.as_str(), sequence, cause],
        )?;
    }
    Ok(())
}

/// The least address of the network that no VM has.
fn free_address(
    t: &Transaction<'_>,
    network: &Network,
) -> rusqlite::Result<Result<Ipv4Addr, Misplaced>> {
    if by_number(t, network.number)?.is_none_or(|record| record.network != *network) {
        return Ok(Err(Misplaced::NoNetwork));
    }
    let taken = t
        .prepare_cached("SELECT address FROM vms WHERE network = ?1")?
        .query_map([network.number], |row| text(row, "address"))?
        .collect::<rusqlite::Result<HashSet<Ipv4Addr>>>()?;
    let all = (network.first().to_bits()..=network.last().to_bits()).map(Ipv4Addr::from_bits);
    let mut all = all.filter(|address| network.is_for_a_vm(*address));
    Ok(all.find(|address| !taken.contains(address)).ok_or(Misplaced::NoAddress))
}

fn vm(row: &Row<'_>) -> rusqlite::Result<VmRecord> {
    let place = match (row.get("network")?, optional_text(row, "address")?) {
        (Some(network), Some(address)) => Some(Place { network, address }),
        _ => None,
    };
    Ok(VmRecord {
        place,
        network: optional_text(row, "network_name")?,
        ipv6: optional_text(row, "ipv6")?,
        egress: text(row, "egress")?,
        published: published::of_row(row)?,
        exposed: json(row, "exposed")?,
        labels: json(row, "labels")?,
        expires_at: optional_text(row, "expires_at")?,
        auto_stop: Until::try_from(number::<u64>(row, "auto_stop_ms")?).map_err(into_sqlite)?,
        workspace: workspaces::of_row(row)?,
        id: text(row, "id")?,
        name: text(row, "name")?,
        state: from_word(row, "state")?,
        image: text(row, "image")?,
        image_digest: row.get("image_digest")?,
        init: row.get("init")?,
        kernel: text(row, "kernel")?,
        kernel_digest: row.get("kernel_digest")?,
        cpus: number(row, "cpus")?,
        memory: Size::bytes(number(row, "memory_bytes")?),
        disk: Size::bytes(number(row, "disk_bytes")?),
        disk_driver: row.get("disk_driver")?,
        ephemeral: row.get("ephemeral")?,
        created_at: text(row, "created_at")?,
        started_at: optional_text(row, "started_at")?,
        boot_id: row.get("boot_id")?,
        vmm: row.get("vmm")?,
        problem: optional_json(row, "problem")?,
        slot: number(row, "slot")?,
        config: json(row, "config")?,
        entrypoint: row.get("entrypoint")?,
    })
}
