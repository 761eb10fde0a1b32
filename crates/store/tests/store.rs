//! What the database promises: durable, whole, never half-written, never of another version.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;

use banger_api::vm::State;
use banger_api::{Code, ImageName, KernelName, Problem, Size, VmId, VmName};
use banger_host::{Claim, Installation, Mark};
use banger_store::{Store, StoreError, VmRecord};
use jiff::Timestamp;

fn open(folder: &Path) -> Store {
    Store::open(&folder.join("banger.db"), None).unwrap()
}

fn vm(name: &str) -> VmRecord {
    VmRecord {
        id: VmId::random().unwrap(),
        name: VmName::parse(name).unwrap(),
        state: State::Stopped,
        image: ImageName::parse("debian:bookworm").unwrap(),
        image_digest: "d".into(),
        init: Some("/sbin/init".into()),
        kernel: KernelName::parse("6.1").unwrap(),
        kernel_digest: "k".into(),
        cpus: 2,
        memory: Size::gib(1),
        disk: Size::gib(8),
        disk_driver: "overlay".into(),
        ephemeral: false,
        created_at: Timestamp::now(),
        started_at: None,
        boot_id: None,
        vmm: None,
        problem: None,
        slot: 0,
        config: Default::default(),
        entrypoint: false,
    }
}

fn claims(store: &Store, vm: &VmRecord) -> [Claim; 2] {
    let mark = Mark::new(store.installation().clone(), vm.id.clone());
    [Claim::VmFolder { mark: mark.clone() }, Claim::RunFolder { mark }]
}

#[test]
fn a_vm_and_its_claims_are_there_after_the_database_is_opened_again() {
    let folder = tempfile::tempdir().unwrap();
    let vm = vm("one");
    let recorded = {
        let store = open(folder.path());
        let claims = claims(&store, &vm);
        store.insert_vm(&vm, &claims[..1]).unwrap();
        store.begin_start(&vm.id, "qemu (tcg)", &claims[1..]).unwrap();
        claims
    };
    let store = open(folder.path());
    let found = store.vm(&vm.id).unwrap().unwrap();
    assert_eq!(found.state, State::Starting);
    assert_eq!(found.vmm.as_deref(), Some("qemu (tcg)"));
    let ledger: Vec<Claim> =
        store.claims(&vm.id).unwrap().into_iter().map(|row| row.claim).collect();
    assert_eq!(ledger, recorded);
}

#[test]
fn two_vms_cannot_have_one_name_and_the_second_leaves_no_claims() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let first = vm("one");
    store.insert_vm(&first, &claims(&store, &first)).unwrap();
    let second = vm("one");
    let refused = store.insert_vm(&second, &claims(&store, &second)).unwrap_err();
    assert!(matches!(refused, StoreError::Taken { .. }), "{refused}");
    assert_eq!(store.all_claims().unwrap().len(), 2);
}

#[test]
fn a_vm_that_holds_claims_cannot_be_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let vm = vm("one");
    store.insert_vm(&vm, &claims(&store, &vm)).unwrap();
    assert!(store.delete_vm(&vm.id).is_err());
    store.end_release(&vm.id, &[1, 2], &[], State::Stopped, None).unwrap();
    store.delete_vm(&vm.id).unwrap();
    assert_eq!(store.vms().unwrap(), []);
}

#[test]
fn a_claim_that_could_not_be_released_stays_with_its_cause() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let vm = vm("one");
    store.insert_vm(&vm, &claims(&store, &vm)).unwrap();
    let problem = Problem::new(Code::Leftover, "busy");
    store.end_release(&vm.id, &[2], &[(1, "busy".into())], State::Error, Some(&problem)).unwrap();
    let left = store.claims(&vm.id).unwrap();
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].problem.as_deref(), Some("busy"));
    assert_eq!(store.vm(&vm.id).unwrap().unwrap().problem, Some(problem));
}

#[test]
fn a_newer_database_is_refused_and_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    drop(open(folder.path()));
    let path = folder.path().join("banger.db");
    rusqlite::Connection::open(&path).unwrap().pragma_update(None, "user_version", 999).unwrap();
    let refused = Store::open(&path, None).unwrap_err();
    assert!(matches!(refused, StoreError::Newer { found: 999, .. }), "{refused}");
}

#[test]
fn a_damaged_database_is_refused_and_not_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("banger.db");
    std::fs::write(
        &path,
        b"this is no database, and it is long enough to be looked at".repeat(100),
    )
    .unwrap();
    let before = std::fs::read(&path).unwrap();
    assert!(Store::open(&path, None).is_err());
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[test]
fn a_database_made_anew_keeps_the_known_installation() {
    let folder = tempfile::tempdir().unwrap();
    let first = open(folder.path()).installation().clone();
    std::fs::remove_file(folder.path().join("banger.db")).unwrap();
    let again = Store::open(&folder.path().join("banger.db"), Some(first.clone())).unwrap();
    assert_eq!(again.installation(), &first);
    let other: Installation = open(tempfile::tempdir().unwrap().path()).installation().clone();
    assert_ne!(other, first);
}

#[test]
fn every_vm_has_a_slot_of_its_own_and_a_free_one_is_used_again() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("banger.db"), None).unwrap();
    let vms = ["a", "b", "c"].map(vm);
    for vm in &vms {
        store.insert_vm(vm, &[]).unwrap();
    }
    let slots = || -> Vec<u32> { store.vms().unwrap().iter().map(|vm| vm.slot).collect() };
    assert_eq!(slots(), [0, 1, 2]);
    store.delete_vm(&vms[1].id).unwrap();
    store.insert_vm(&vm("d"), &[]).unwrap();
    assert_eq!(slots(), [0, 2, 1]);
}

#[test]
fn a_database_of_the_first_version_gets_its_slots() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("banger.db");
    let first = rusqlite::Connection::open(&path).unwrap();
    first.execute_batch(include_str!("../src/migrations/0001.sql")).unwrap();
    for (id, name) in [("11111111", "a"), ("00000000", "b")] {
        first
            .execute(
                "INSERT INTO vms VALUES (?1, ?2, 'stopped', 'i', 'd', NULL, 'k', 'd', 1, 1, 1, 'overlay', 0,
                 '2026-01-01T00:00:00Z', NULL, NULL, NULL, NULL)",
                [id, name],
            )
            .unwrap();
    }
    first.execute("INSERT INTO installation VALUES (1, '0000')", []).unwrap();
    first.pragma_update(None, "user_version", 1).unwrap();
    drop(first);
    let store = Store::open(&path, None).unwrap();
    assert_eq!(store.vms().unwrap().iter().map(|vm| vm.slot).collect::<Vec<_>>(), [1, 0]);
}
