//! What the database promises: durable, whole, never half-written, never of another version.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::net::Ipv4Addr;
use std::path::Path;

use banger_api::ids::LabelKey;
use banger_api::labels::{Label, Labels};
use banger_api::ports::PublishedPort;
use banger_api::until::Until;
use banger_api::vm::State;
use banger_api::workspace::{Work, Workspace};
use banger_api::{Code, Egress, ImageName, KernelName, NetworkName, Problem, Size, VmId, VmName};
use banger_host::{Claim, Disk, DiskSource, Guard, Installation, Mac, Mark, Nat, Network};
use banger_store::{Deleted, Store, StoreError, VmRecord};
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
        place: None,
        ipv6: None,
        network: None,
        egress: Egress::None,
        published: Vec::new(),
        exposed: [].into(),
        labels: [].into(),
        expires_at: None,
        auto_stop: Default::default(),
        workspace: None,
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
        store.insert_vm(&vm, None, &claims[..1]).unwrap();
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
    store.insert_vm(&first, None, &claims(&store, &first)).unwrap();
    let second = vm("one");
    let refused = store.insert_vm(&second, None, &claims(&store, &second)).unwrap_err();
    assert!(matches!(refused, StoreError::Taken { .. }), "{refused}");
    assert_eq!(store.all_claims().unwrap().len(), 2);
}

#[test]
fn a_vm_that_holds_claims_cannot_be_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let vm = vm("one");
    store.insert_vm(&vm, None, &claims(&store, &vm)).unwrap();
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
    store.insert_vm(&vm, None, &claims(&store, &vm)).unwrap();
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
        store.insert_vm(vm, None, &[]).unwrap();
    }
    let slots = || -> Vec<u32> { store.vms().unwrap().iter().map(|vm| vm.slot).collect() };
    assert_eq!(slots(), [0, 1, 2]);
    store.delete_vm(&vms[1].id).unwrap();
    store.insert_vm(&vm("d"), None, &[]).unwrap();
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

fn name(text: &str) -> NetworkName {
    NetworkName::parse(text).unwrap()
}

/// With room for five VMs.
fn small() -> Network {
    Network {
        number: 0,
        gateway: Ipv4Addr::new(10, 0, 0, 1),
        prefix: 29,
        mtu: 1500,
        peers: false,
        ipv6: None,
    }
}

#[test]
fn a_vm_has_the_least_address_that_is_free_for_as_long_as_it_is_recorded() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let network = small();
    store.set_network(&name("default"), &network).unwrap();
    let vms: Vec<VmRecord> = ["a", "b", "c", "d", "e"].map(vm).into();
    for vm in &vms {
        store.insert_vm(vm, Some(&network), &[]).unwrap();
    }
    let address = |vm: &VmRecord| store.vm(&vm.id).unwrap().unwrap().place.unwrap().address;
    let last = |vm: &VmRecord| address(vm).octets()[3];
    assert_eq!(vms.iter().map(last).collect::<Vec<_>>(), [2, 3, 4, 5, 6]);
    let more = store.insert_vm(&vm("f"), Some(&network), &[]).unwrap_err();
    assert!(matches!(more, StoreError::NoAddress), "{more}");
    store.delete_vm(&vms[1].id).unwrap();
    let new = vm("g");
    store.insert_vm(&new, Some(&network), &[]).unwrap();
    assert_eq!((last(&new), last(&vms[4])), (3, 6));
}

#[test]
fn a_vm_is_found_by_its_address_with_what_is_exposed_to_it() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    store.set_network(&name("default"), &small()).unwrap();
    let one = VmRecord { exposed: [11434, 5432].into(), ..vm("one") };
    let two = vm("two");
    store.insert_vm(&one, Some(&small()), &[]).unwrap();
    store.insert_vm(&two, Some(&small()), &[]).unwrap();
    drop(store);
    let store = open(folder.path());
    let at = |last| store.vm_at(Ipv4Addr::new(10, 0, 0, last)).unwrap();
    let found = [2, 3].map(|last| at(last).map(|vm| (vm.name, vm.exposed)).unwrap());
    assert_eq!(found, [(one.name, one.exposed), (two.name, [].into())]);
    assert_eq!(at(4), None);
}

#[test]
fn a_run_has_the_ipv6_prefix_that_its_guard_says_and_that_of_a_network_stays() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    store.set_network(&name("default"), &small()).unwrap();
    let prefix = store.ipv6_prefix(0);
    assert!(prefix.octets()[0] == 0xfd && prefix.octets()[6..] == [0; 10], "{prefix}");
    let vms = ["with", "without"].map(vm);
    for (vm, ipv6) in vms.iter().zip([Some(prefix), None]) {
        store.insert_vm(vm, Some(&small()), &[]).unwrap();
        let place = store.vm(&vm.id).unwrap().unwrap().place.unwrap();
        let mark = Mark::new(store.installation().clone(), vm.id.clone());
        let guard = Claim::Guard(Guard {
            network: Network { ipv6, ..small() },
            address: place.address,
            mac: Mac::of(&mark),
            exposed: [].into(),
            mark,
        });
        store.begin_start(&vm.id, "qemu", &[guard]).unwrap();
        store.set_running(&vm.id, "boot", Timestamp::now()).unwrap();
    }
    drop(store);
    let store = open(folder.path());
    assert_eq!(store.ipv6_prefix(0), prefix);
    let found = vms.each_ref().map(|vm| store.vm(&vm.id).unwrap().unwrap().ipv6);
    assert_eq!(found, [Some(prefix), None]);
    let mut running = store.running_addresses().unwrap();
    running.sort();
    let ipv6 = banger_host::ipv6_below(prefix, Ipv4Addr::new(10, 0, 0, 2));
    assert_eq!(running.iter().map(|(_, _, ipv6)| *ipv6).collect::<Vec<_>>(), [Some(ipv6), None]);
}

#[test]
fn a_network_is_changed_only_when_no_vm_is_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    store.set_network(&name("default"), &small()).unwrap();
    let other = Network { gateway: Ipv4Addr::new(10, 9, 0, 1), ..small() };
    store.set_network(&name("default"), &other).unwrap();
    assert_eq!(store.network(0).unwrap().unwrap().network, other);
    store.insert_vm(&vm("a"), Some(&other), &[]).unwrap();
    assert!(store.set_network(&name("default"), &small()).is_err());
    let found = store.networks().unwrap();
    assert_eq!((found[0].network, found[0].vms), (other, 1));
}

#[test]
fn a_network_is_deleted_only_when_no_vm_is_in_it_and_then_takes_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let team = Network { number: 3, peers: true, ..small() };
    store.insert_network(&name("team"), &team).unwrap();
    for (name, network) in [("team", small()), ("other", team)] {
        let error = store.insert_network(&self::name(name), &network).unwrap_err();
        assert!(matches!(error, StoreError::Taken { .. }), "{error}");
    }
    let vms: Vec<VmRecord> = ["b", "a"].map(vm).into();
    for vm in &vms {
        store.insert_vm(vm, Some(&team), &[]).unwrap();
    }
    let found = store.vm(&vms[0].id).unwrap().unwrap();
    assert_eq!((found.network, found.place.unwrap().network), (Some(name("team")), 3));
    assert_eq!(store.vms().unwrap()[0].network, Some(name("team")));
    let in_use = Deleted::InUse(vec![VmName::parse("a").unwrap(), VmName::parse("b").unwrap()]);
    assert_eq!(store.delete_network(&name("team")).unwrap(), in_use);
    for vm in &vms {
        store.delete_vm(&vm.id).unwrap();
    }
    assert_eq!(store.delete_network(&name("team")).unwrap(), Deleted::Yes(team));
    assert_eq!(store.delete_network(&name("team")).unwrap(), Deleted::Unknown);
    // Whoever read the network before: its number is nobody's, then another one's.
    for recorded in [None, Some(Network { peers: false, ..team })] {
        if let Some(network) = recorded {
            store.insert_network(&name("other"), &network).unwrap();
        }
        let late = store.insert_vm(&vm("late"), Some(&team), &[]).unwrap_err();
        assert!(matches!(late, StoreError::NoNetwork), "{late}");
    }
    assert_eq!(store.vms().unwrap(), []);
}

#[test]
fn what_lets_a_running_vm_out_is_recorded_before_it_is_made_and_forgotten_when_it_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    store.set_network(&name("default"), &small()).unwrap();
    let vm = vm("a");
    store.insert_vm(&vm, Some(&small()), &[]).unwrap();
    let claim = Claim::Nat(Nat {
        mark: Mark::new(store.installation().clone(), vm.id.clone()),
        network: small(),
        address: Ipv4Addr::new(10, 0, 0, 2),
        only: None,
    });
    store.set_egress(&vm.id, &Egress::All, Some(&claim)).unwrap();
    let rows = store.claims(&vm.id).unwrap();
    assert_eq!(rows.iter().map(|row| &row.claim).collect::<Vec<_>>(), [&claim]);
    assert_eq!(store.vm(&vm.id).unwrap().unwrap().egress, Egress::All);
    let failed = [(rows[0].sequence, "busy".to_owned())];
    store.end_partial_release(&vm.id, &[], &failed).unwrap();
    assert_eq!(store.claims(&vm.id).unwrap()[0].problem.as_deref(), Some("busy"));
    store.end_partial_release(&vm.id, &[rows[0].sequence], &[]).unwrap();
    assert_eq!(store.claims(&vm.id).unwrap(), []);
}

#[test]
fn a_database_of_before_networks_keeps_its_claims() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("banger.db");
    let id = VmId::random().unwrap();
    {
        let old = rusqlite::Connection::open(&path).unwrap();
        for version in 1..=3 {
            let file = format!("{}/src/migrations/000{version}.sql", env!("CARGO_MANIFEST_DIR"));
            old.execute_batch(&std::fs::read_to_string(file).unwrap()).unwrap();
        }
        old.pragma_update(None, "user_version", 3).unwrap();
        let id = id.as_str();
        old.execute_batch(&format!(
            r#"INSERT INTO installation VALUES (1, '0a1b');
               INSERT INTO vms (id, name, state, image, image_digest, kernel, kernel_digest, cpus, memory_bytes, disk_bytes,
                                disk_driver, ephemeral, created_at, slot)
               VALUES ('{id}', 'old', 'running', 'i', 'd', 'k', 'd', 1, 1, 1, 'overlay', 0, '2026-01-01T00:00:00Z', 0);
               INSERT INTO claims VALUES ('{id}', 1, 'run', '{{"kind":"bridge","installation":"0a1b"}}', NULL);
               INSERT INTO claims VALUES ('{id}', 2, 'run', '{{"kind":"tap","mark":"bg0a1b-{id}","uid":5000}}', NULL);"#
        ))
        .unwrap();
    }
    let store = open(folder.path());
    let held: Vec<String> =
        store.claims(&id).unwrap().iter().map(|row| row.claim.held().to_string()).collect();
    assert_eq!(held.len(), 2);
    assert!(held[0].contains("bridge") && held[1].contains("tap"), "{held:?}");
    assert_eq!(store.vm(&id).unwrap().unwrap().place, None);
}

#[test]
fn published_ports_are_the_vms_until_it_is_deleted_and_change_together_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let port = |text: &str| PublishedPort::parse(text).unwrap();
    let with = VmRecord { published: vec![port("8080:80"), port("[::1]:53:53/udp")], ..vm("one") };
    store.insert_vm(&with, None, &[]).unwrap();
    store.insert_vm(&vm("two"), None, &[]).unwrap();
    let of = |id: &VmId| store.vm(id).unwrap().unwrap().published;
    assert_eq!(of(&with.id), [port("[::1]:53:53/udp"), port("8080:80")]);
    assert_eq!(store.vms().unwrap()[1].published, []);

    store.publish(&with.id, &[port("8080:80")], &[port("8081:80")]).unwrap();
    assert_eq!(of(&with.id), [port("[::1]:53:53/udp"), port("8081:80")]);
    let twice = [port("9000:90"), port("8081:80")];
    store.publish(&with.id, &[port("[::1]:53:53/udp")], &twice).unwrap_err();
    assert_eq!(of(&with.id), [port("[::1]:53:53/udp"), port("8081:80")]);
    store.delete_vm(&with.id).unwrap();
    assert_eq!(store.vms().unwrap().len(), 1);
}

#[test]
fn a_database_of_before_lists_keeps_who_was_let_out_and_a_list_stays_as_it_was_written() {
    let folder = tempfile::tempdir().unwrap();
    {
        let old = rusqlite::Connection::open(folder.path().join("banger.db")).unwrap();
        for version in 1..=4 {
            let file = format!("{}/src/migrations/000{version}.sql", env!("CARGO_MANIFEST_DIR"));
            old.execute_batch(&std::fs::read_to_string(file).unwrap()).unwrap();
        }
        old.pragma_update(None, "user_version", 4).unwrap();
        for (number, nat) in [(0, 0), (1, 1)] {
            old.execute_batch(&format!(
                r#"INSERT INTO vms (id, name, state, image, image_digest, kernel, kernel_digest, cpus, memory_bytes,
                                    disk_bytes, disk_driver, ephemeral, created_at, slot, nat)
                   VALUES ('0000000{number}', 'vm{number}', 'stopped', 'i', 'd', 'k', 'd', 1, 1, 1, 'overlay', 0,
                           '2026-01-01T00:00:00Z', {number}, {nat});"#
            ))
            .unwrap();
        }
    }
    let store = open(folder.path());
    let found = || store.vms().unwrap().into_iter().map(|vm| vm.egress).collect::<Vec<_>>();
    assert_eq!(found(), [Egress::None, Egress::All]);
    let list = Egress::parse("allow:*.debian.org,203.0.113.0/24,github.com").unwrap();
    let id = store.vms().unwrap()[0].id.clone();
    store.set_egress(&id, &list, None).unwrap();
    assert_eq!(found(), [list, Egress::All]);
}

fn labels(texts: &[&str]) -> Labels {
    let all = texts.iter().map(|text| Label::parse(text).unwrap());
    all.map(|Label { key, value }| (key, value)).collect()
}

#[test]
fn labels_are_the_vms_until_it_is_deleted_and_a_key_has_one_value() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (VmRecord { labels: labels(&["ci=1", "team=web"]), ..vm("one") }, vm("two"));
    let store = open(folder.path());
    store.insert_vm(&one, None, &[]).unwrap();
    store.insert_vm(&two, None, &[]).unwrap();
    let gone = [LabelKey::parse("team").unwrap(), LabelKey::parse("never-there").unwrap()];
    store.label(&one.id, &gone, &labels(&["ci=2", "quoted=\"a\", 'b' \\ ä"])).unwrap();
    let store = open(folder.path());
    let of = |vm: &VmRecord| store.vm(&vm.id).unwrap().unwrap().labels;
    assert_eq!(of(&one), labels(&["ci=2", "quoted=\"a\", 'b' \\ ä"]));
    assert_eq!(of(&two), labels(&[]));
    store.delete_vm(&one.id).unwrap();
    assert!(store.label(&one.id, &[], &labels(&["ci=1"])).is_err(), "there is no such VM");
}

#[test]
fn a_vm_has_its_new_name_unless_another_has_it() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let (one, two) = (vm("one"), vm("two"));
    store.insert_vm(&one, None, &claims(&store, &one)).unwrap();
    store.insert_vm(&two, None, &[]).unwrap();
    let refused = store.rename(&one.id, &two.name).unwrap_err();
    assert!(matches!(refused, StoreError::Taken { .. }), "{refused}");
    store.rename(&one.id, &VmName::parse("three").unwrap()).unwrap();
    assert_eq!(store.vm(&one.id).unwrap().unwrap().name.as_str(), "three");
    assert_eq!(store.claims(&one.id).unwrap().len(), 2);
}

#[test]
fn a_database_of_before_labels_keeps_its_vms() {
    let folder = tempfile::tempdir().unwrap();
    {
        let old = rusqlite::Connection::open(folder.path().join("banger.db")).unwrap();
        for version in 1..=8 {
            let file = format!("{}/src/migrations/000{version}.sql", env!("CARGO_MANIFEST_DIR"));
            old.execute_batch(&std::fs::read_to_string(file).unwrap()).unwrap();
        }
        old.pragma_update(None, "user_version", 8).unwrap();
        old.execute_batch(
            "INSERT INTO vms (id, name, state, image, image_digest, kernel, kernel_digest, cpus, memory_bytes,
             disk_bytes, disk_driver, ephemeral, created_at, slot)
             VALUES ('aaaaaaaa', 'old', 'running', 'i', 'd', 'k', 'd', 1, 1073741824, 1073741824, 'overlay', 0,
             '2026-01-01T00:00:00Z', 0);",
        )
        .unwrap();
    }
    let vms = open(folder.path()).vms().unwrap();
    assert_eq!(vms[0].name.as_str(), "old");
    assert_eq!(vms[0].state, State::Running);
    assert_eq!(vms[0].labels, labels(&[]));
    assert_eq!((vms[0].expires_at, vms[0].auto_stop), (None, Until::NEVER));
}

#[test]
fn the_ledger_says_from_which_size_a_disk_is_grown_together_with_the_vms_sizes() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let one = vm("one");
    let disk = |size_bytes, grown_from| {
        let mark = Mark::new(store.installation().clone(), one.id.clone());
        Claim::Disk(Disk { mark, size_bytes, source: DiskSource::Empty, grown_from })
    };
    let [folder_claim, _] = claims(&store, &one);
    store.insert_vm(&one, None, &[folder_claim.clone(), disk(8, None)]).unwrap();
    let grown = disk(16, Some(8));
    store.set_sizes(&one.id, 4, Size::gib(2), Size::gib(16), Some((2, &grown))).unwrap();
    let found = store.vm(&one.id).unwrap().unwrap();
    assert_eq!((found.cpus, found.memory, found.disk), (4, Size::gib(2), Size::gib(16)));
    assert_eq!(store.all_claims().unwrap(), [folder_claim, grown]);
}

#[test]
fn what_ends_by_itself_is_listed_the_earliest_first_and_remembered() {
    let folder = tempfile::tempdir().unwrap();
    let at = |seconds: i64| Some(Timestamp::from_second(2_000_000_000 + seconds).unwrap());
    let (late, never, early) = (
        VmRecord { expires_at: at(2), auto_stop: Until::parse("30m").unwrap(), ..vm("late") },
        vm("never"),
        VmRecord { expires_at: at(3), ..vm("early") },
    );
    let store = open(folder.path());
    for vm in [&late, &never, &early] {
        store.insert_vm(vm, None, &[]).unwrap();
    }
    store.set_expiry(&early.id, at(1)).unwrap();
    store.set_auto_stop(&never.id, Until::parse("1s").unwrap()).unwrap();
    let store = open(folder.path());
    let all = store.expiries().unwrap();
    assert_eq!(all, [(early.id.clone(), at(1).unwrap()), (late.id.clone(), at(2).unwrap())]);
    let auto_stop = |vm: &VmRecord| store.vm(&vm.id).unwrap().unwrap().auto_stop.to_string();
    assert_eq!([auto_stop(&late), auto_stop(&never)], ["30m", "1s"]);
    store.set_expiry(&early.id, None).unwrap();
    assert_eq!(store.expiries().unwrap().len(), 1);
}

#[test]
fn a_vm_remembers_its_workspace_and_a_start_forgets_what_was_known_of_the_work_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let one = vm("one");
    store.insert_vm(&one, None, &[]).unwrap();
    let of = || store.vm(&one.id).unwrap().unwrap().workspace;
    assert_eq!(of(), None);
    store.set_work(&one.id, Work::None).unwrap();
    assert_eq!(of(), None);
    let workspace = Workspace {
        host_path: "/srv/one".into(),
        host_head: "a".repeat(40),
        guest_path: "/root/repo".into(),
        prepared_at: Timestamp::now(),
        repos: Vec::new(),
        work: Work::Unknown,
    };
    store.set_workspace(&one.id, &workspace).unwrap();
    assert_eq!(of().unwrap(), workspace);
    let some = Work::Some { commits: 2, changed: true };
    store.set_work(&one.id, some).unwrap();
    assert_eq!(of().unwrap().work, some);
    assert_eq!(store.vms().unwrap()[0].workspace, of());
    store.begin_start(&one.id, "qemu (tcg)", &[]).unwrap();
    assert_eq!(of().unwrap().work, Work::Unknown);
    store.delete_vm(&one.id).unwrap();
    assert!(store.vms().unwrap().is_empty());
}

#[test]
fn a_host_key_is_made_once_and_goes_with_its_vm() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let one = vm("one");
    assert!(store.host_key(&one.id, "none").is_err(), "there is no such VM");
    store.insert_vm(&one, None, &[]).unwrap();
    assert_eq!(store.known_host_key(&one.id).unwrap(), None);
    assert_eq!(store.host_key(&one.id, "first").unwrap(), "first");
    assert_eq!(store.host_key(&one.id, "second").unwrap(), "first");
    assert_eq!(store.known_host_key(&one.id).unwrap().as_deref(), Some("first"));
    assert_eq!(store.host_keys().unwrap(), [(one.name.clone(), "first".to_owned())]);
    store.delete_vm(&one.id).unwrap();
    assert_eq!(store.host_keys().unwrap(), []);
}
