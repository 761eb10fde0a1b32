//! What the ledger promises, at every claim of a real plan: whatever fails or dies, and wherever, nothing is left. On a
//! host in memory, and on this machine with its folders, disks and processes; the VMM is a program that waits.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;
use std::sync::Arc;

use banger_api::vm::State;
use banger_api::{ImageName, KernelName, Size, VmId, VmName};
use banger_host::{Claim, Held, Host, HostError, LocalHost, Mark, Places, Watched};
use banger_storage::Overlay;
use banger_store::{Store, VmRecord};
use banger_testing::{Call, Fault, Faulty, MemoryHost};
use banger_vmm::Qemu;
use banger_vmm::qemu::Accelerator;
use bangerd::ledger::{self, Scope};
use bangerd::vms::plan::{self, Boot};
use jiff::Timestamp;

/// On what ground a test stands.
#[derive(Debug, Clone, Copy)]
enum Ground {
    Memory,
    Machine,
}

const GROUNDS: [Ground; 2] = [Ground::Memory, Ground::Machine];

/// A host of either ground.
struct Either(Box<dyn Host>);

impl Host for Either {
    fn acquire(&self, claim: &Claim) -> Result<(), HostError> {
        self.0.acquire(claim)
    }

    fn release(&self, held: &Held) -> Result<(), HostError> {
        self.0.release(held)
    }

    fn list(&self) -> Result<Vec<Held>, HostError> {
        self.0.list()
    }

    fn watch(&self, mark: &Mark) -> Result<Option<Watched>, HostError> {
        self.0.watch(mark)
    }
}

/// A VM that is recorded, with its plan, on a host; and the folder of its database.
struct World {
    folder: tempfile::TempDir,
    store: Arc<Store>,
    host: Faulty<Either>,
    vm: VmRecord,
    run: Vec<Claim>,
    record: Vec<Claim>,
}

impl World {
    fn new(ground: Ground) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(&folder.path().join("banger.db"), None).unwrap());
        let vm = vm();
        let mark = Mark::new(store.installation().clone(), vm.id.clone());
        let places = Places {
            installation: store.installation().clone(),
            vms: folder.path().join("vms"),
            runs: folder.path().join("runs"),
            templates: folder.path().join("templates"),
        };
        for made in [&places.vms, &places.runs, &places.templates] {
            std::fs::create_dir(made).unwrap();
        }
        let boot = Boot {
            image: "/i.ext4".into(),
            kernel: "/vmlinux".into(),
            initramfs: "/i.cpio".into(),
        };
        let vmm = Qemu { accelerator: Accelerator::Tcg { tsc_khz: 2_000_000 } };
        let record = plan::record_claims(&vm, &mark, &Overlay, Path::new("/i.ext4"));
        let run = plan::run_claims(&vm, &mark, &Overlay, &boot, &places, &vmm);
        let run = run.into_iter().map(with_a_program_that_waits).collect();
        store.insert_vm(&vm, &record).unwrap();
        let log_writer = (env!("CARGO_BIN_EXE_bangerd").into(), vec!["write-log".to_owned()]);
        let host: Box<dyn Host> = match ground {
            Ground::Memory => Box::new(MemoryHost::default()),
            Ground::Machine => Box::new(LocalHost::new(places, log_writer)),
        };
        Self { folder, store, host: Faulty::new(Either(host)), vm, run, record }
    }

    fn claims(&self) -> Vec<Claim> {
        [self.record.clone(), self.run.clone()].concat()
    }

    fn held(&self) -> Vec<Held> {
        self.host.list().unwrap()
    }

    /// Records the whole plan, then acquires it, as start does.
    fn start(&self) -> bool {
        self.store.begin_start(&self.vm.id, "qemu (tcg)", &self.run).unwrap();
        ledger::acquire(&self.host, &self.claims()).is_ok()
    }

    fn release(&self, scope: Scope, state: State) -> bool {
        ledger::release(&self.host, &self.store, &self.vm.id, scope, state, None).unwrap().is_none()
    }

    /// The daemon was killed; another one opens the same database on the same host.
    fn daemon_restarts(&mut self) {
        self.host.revive();
        self.store = Arc::new(Store::open(&self.folder.path().join("banger.db"), None).unwrap());
    }

    fn ledger_is(&self, claims: &[Claim]) -> bool {
        let found: Vec<Claim> =
            self.store.claims(&self.vm.id).unwrap().into_iter().map(|row| row.claim).collect();
        found == claims
    }

    fn state(&self) -> State {
        self.store.vm(&self.vm.id).unwrap().unwrap().state
    }

    fn nothing_is_left(&self) {
        assert_eq!(self.held(), [], "{:#?}", self.host.log());
        assert!(self.ledger_is(&[]));
        self.store.delete_vm(&self.vm.id).unwrap();
    }
}

fn with_a_program_that_waits(claim: Claim) -> Claim {
    match claim {
        Claim::Vmm(vmm) => Claim::Vmm(banger_host::Vmm {
            program: "sleep".into(),
            args: vec!["1000".into()],
            ..vmm
        }),
        other => other,
    }
}

fn vm() -> VmRecord {
    VmRecord {
        id: VmId::random().unwrap(),
        name: VmName::parse("one").unwrap(),
        state: State::Stopped,
        image: ImageName::parse("debian:bookworm").unwrap(),
        image_digest: "d".into(),
        init: Some("/sbin/init".into()),
        kernel: KernelName::parse("6.1").unwrap(),
        kernel_digest: "k".into(),
        cpus: 1,
        memory: Size::gib(1),
        disk: Size::gib(8),
        disk_driver: "overlay".into(),
        ephemeral: false,
        created_at: Timestamp::now(),
        started_at: None,
        boot_id: None,
        vmm: None,
        problem: None,
    }
}

/// Every claim of the plan, by its place in it, on every ground.
fn every_claim() -> impl Iterator<Item = (usize, Ground)> {
    let claims = World::new(Ground::Memory).claims().len();
    GROUNDS.into_iter().flat_map(move |ground| (0..claims).map(move |k| (k, ground)))
}

#[test]
fn a_start_that_fails_at_any_claim_leaves_nothing_that_runs() {
    for (k, ground) in every_claim() {
        for fault in [Fault::Refuse, Fault::HalfDone] {
            let world = World::new(ground);
            world.host.fail_at(Call::Acquire, k, fault);
            assert!(!world.start());
            assert!(world.release(Scope::Run, State::Stopped), "claim {k}, {fault:?}");
            let runs: Vec<Held> = world.run.iter().map(Claim::held).collect();
            assert!(world.held().iter().all(|held| !runs.contains(held)), "claim {k}, {fault:?}");
            assert!(world.ledger_is(&world.record));
            assert_eq!(world.state(), State::Stopped);
            assert!(world.release(Scope::All, State::Deleting));
            world.nothing_is_left();
        }
    }
}

#[test]
fn a_crash_at_any_claim_of_a_start_is_cleaned_by_stop_and_delete() {
    for (k, ground) in every_claim() {
        for fault in [Fault::DieBefore, Fault::DieAfter] {
            let mut world = World::new(ground);
            world.host.fail_at(Call::Acquire, k, fault);
            assert!(!world.start());
            world.daemon_restarts();
            assert!(world.ledger_is(&world.claims()), "the plan was recorded before its first act");
            assert!(world.release(Scope::Run, State::Stopped), "claim {k}, {fault:?}");
            assert!(world.release(Scope::All, State::Deleting), "claim {k}, {fault:?}");
            world.nothing_is_left();
        }
    }
}

#[test]
fn a_crash_at_any_release_is_finished_by_the_next_one() {
    for (k, ground) in every_claim() {
        for fault in [Fault::DieBefore, Fault::DieAfter] {
            let mut world = World::new(ground);
            assert!(world.start());
            world.host.fail_at(Call::Release, k, fault);
            assert!(!world.release(Scope::All, State::Deleting));
            world.daemon_restarts();
            assert!(world.release(Scope::All, State::Deleting), "release {k}, {fault:?}");
            world.nothing_is_left();
        }
    }
}

#[test]
fn one_failing_release_does_not_stop_the_rest_and_is_kept_with_its_cause() {
    for (k, ground) in every_claim() {
        let world = World::new(ground);
        assert!(world.start());
        world.host.fail_at(Call::Release, k, Fault::Refuse);
        assert!(!world.release(Scope::All, State::Deleting));
        let backwards: Vec<Claim> = world.claims().into_iter().rev().collect();
        let kept = backwards[k].held();
        match (ground, &kept) {
            // The folder that holds it could be removed, and the disk with it; the ledger does not know that.
            (Ground::Machine, Held::Disk { .. }) => assert_eq!(world.held(), []),
            _ => assert_eq!(world.held(), [kept], "release {k}, {ground:?}"),
        }
        assert!(world.ledger_is(&backwards[k..=k]));
        assert_eq!(world.state(), State::Error);
        let kept = world.store.claims(&world.vm.id).unwrap();
        assert!(kept[0].problem.as_deref().unwrap().contains("refused on purpose"), "{kept:?}");
        assert!(world.release(Scope::All, State::Deleting), "the next one tries again");
        world.nothing_is_left();
    }
}

#[test]
fn acquire_and_release_can_be_repeated() {
    for ground in GROUNDS {
        let world = World::new(ground);
        assert!(world.start());
        ledger::acquire(&world.host, &world.claims()).unwrap();
        assert!(world.release(Scope::Run, State::Stopped));
        assert!(world.release(Scope::Run, State::Stopped));
        assert!(world.start());
        assert!(world.release(Scope::All, State::Deleting));
        assert!(world.release(Scope::All, State::Deleting));
        world.nothing_is_left();
    }
}

#[test]
fn what_was_made_last_is_released_first() {
    for ground in GROUNDS {
        let world = World::new(ground);
        assert!(world.start());
        assert!(world.release(Scope::All, State::Deleting));
        let verbs = |verb: &str| -> Vec<String> {
            world
                .host
                .log()
                .iter()
                .filter_map(|line| line.strip_prefix(verb).map(str::to_owned))
                .collect()
        };
        let mut acquired = verbs("acquire");
        acquired.reverse();
        assert_eq!(verbs("release"), acquired);
    }
}

#[test]
fn stop_keeps_the_disk() {
    for ground in GROUNDS {
        let world = World::new(ground);
        assert!(world.start());
        assert!(world.release(Scope::Run, State::Stopped));
        let mut kept: Vec<Held> = world.record.iter().map(Claim::held).collect();
        kept.sort();
        assert_eq!(world.held(), kept);
    }
}

#[test]
fn what_nobody_recorded_is_seen_and_is_not_released_by_the_way() {
    let world = World::new(Ground::Memory);
    assert!(world.start());
    let other = Mark::new(world.store.installation().clone(), VmId::random().unwrap());
    let stray = Claim::RunFolder { mark: other };
    world.host.acquire(&stray).unwrap();
    assert!(world.release(Scope::All, State::Deleting));
    assert_eq!(world.host.list().unwrap(), [stray.held()]);
}
