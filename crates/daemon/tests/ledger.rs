//! What the ledger promises, at every claim of a real plan: whatever fails or dies, and wherever, nothing is left. On a
//! host in memory; on this machine with its folders, disks and processes, passt among them, where QEMU is a program that waits; on this
//! machine as root with a real Firecracker in its jailer; and in the test host, which has all that a plan may hold.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Barrier, Mutex};

use banger_api::vm::State;
use banger_api::{Egress, ImageName, KernelName, Size, VmId, VmName, Zone};
use banger_host::root::{self, RootPlaces};
use banger_host::{
    Cgroup, Claim, Denied, Held, Host, HostError, LocalHost, Mac, Mark, Network, Part, Places,
    Root, StateFile, VmSocket, Watched,
};
use banger_storage::{DmSnapshot, Driver, Overlay};
use banger_store::{Store, VmRecord};
use banger_testing::{Call, Fault, Faulty, MemoryHost};
use banger_vmm::firecracker::Version;
use banger_vmm::qemu::Accelerator;
use banger_vmm::{Firecracker, Machine, NetworkDevice, Qemu, UserNetwork, Vmm};
use bangerd::config::UidRange;
use bangerd::ledger::{self, Scope};
use bangerd::vms::plan::{self, Boot};
use jiff::Timestamp;
use rustix::process::Signal;
use rustix::thread::UnshareFlags;

/// On what ground a test stands, and with which plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ground {
    /// In memory, QEMU's plan.
    Memory,
    /// In memory, jailed Firecracker's plan with every kind of claim.
    MemoryJailed,
    /// This machine: folders, a disk, a process.
    Machine,
    /// This machine as root: loop devices, tap and bridge, a cgroup without limits, a jail, Firecracker in it.
    Jailed,
    /// A machine with cgroup v2 and device-mapper: all of it.
    Host,
}

/// Where every machine can be.
const GROUNDS: [Ground; 4] =
    [Ground::Memory, Ground::MemoryJailed, Ground::Machine, Ground::Jailed];

impl Ground {
    fn is_memory(self) -> bool {
        matches!(self, Ground::Memory | Ground::MemoryJailed)
    }

    fn is_jailed(self) -> bool {
        !matches!(self, Ground::Memory | Ground::Machine)
    }

    fn driver(self) -> &'static dyn Driver {
        match self {
            Ground::MemoryJailed | Ground::Host => &DmSnapshot,
            _ => &Overlay,
        }
    }
}

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

    fn signal(&self, mark: &Mark, signal: Signal) -> Result<(), HostError> {
        self.0.signal(mark, signal)
    }

    fn connect(&self, mark: &Mark, socket: &VmSocket) -> Result<UnixStream, HostError> {
        self.0.connect(mark, socket)
    }

    fn open(
        &self,
        mark: &Mark,
        addresses: &BTreeSet<Ipv4Addr>,
        seconds: u32,
    ) -> Result<(), HostError> {
        self.0.open(mark, addresses, seconds)
    }

    fn denied(&self, mark: &Mark) -> Result<Vec<Denied>, HostError> {
        self.0.denied(mark)
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
        let folder = tempfile::tempdir_in(scratch()).unwrap();
        let store = Arc::new(Store::open(&folder.path().join("banger.db"), None).unwrap());
        let vm = vm();
        let mark = Mark::new(store.installation().clone(), vm.id.clone());
        let state = folder.path().join("state");
        let places = Places::new(store.installation().clone(), &state, &state, folder.path());
        for made in [&places.vms, &places.runs, &places.templates] {
            std::fs::create_dir_all(made).unwrap();
        }
        let file = |name: &str| StateFile::parse(name).unwrap();
        let boot = Boot {
            image: file("images/i.ext4"),
            kernel: file("kernels/k/vmlinux"),
            initramfs: file("initramfs/i.cpio"),
        };
        for made in [&boot.image, &boot.kernel, &boot.initramfs] {
            let path = made.below(&state);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, vec![0; 1 << 20]).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o444)).unwrap();
        }
        let (driver, uids) = (ground.driver(), UidRange::default());
        let record = plan::record_claims(&vm, &mark, driver, &boot.image, &places);
        let uids = ground.is_jailed().then_some(uids);
        // With a way out and peers, so that all there is of a network is in the plan.
        let network = ground.is_jailed().then(|| NetworkDevice {
            network: Network {
                number: 0,
                gateway: Ipv4Addr::new(10, 213, 0, 1),
                prefix: 22,
                mtu: 1500,
                peers: true,
                ipv6: None,
            },
            address: Ipv4Addr::new(10, 213, 0, 2),
            mac: Mac::of(&mark),
            egress: Egress::All,
            exposed: [5432].into(),
            zone: Zone::default(),
        });
        // And where there is none, that of ordinary users.
        let user_network = (!ground.is_jailed()).then(|| UserNetwork { zone: Zone::default() });
        let machine = plan::machine(&vm, &mark, driver, &boot, &places, uids, network);
        let machine = Machine { user_network, ..machine };
        let vmm: Box<dyn Vmm> = if ground.is_jailed() {
            Box::new(Firecracker::jailed(Version::parse("Firecracker v1.12.1").unwrap()))
        } else {
            Box::new(Qemu { accelerator: Accelerator::Tcg { tsc_khz: 2_000_000 } })
        };
        let run = vmm.claims(&machine).into_iter().map(|claim| as_can_be(claim, ground)).collect();
        store.insert_vm(&vm, None, &record).unwrap();
        let log_writer = (env!("CARGO_BIN_EXE_bangerd").into(), vec!["write-log".to_owned()]);
        let root = ground.is_jailed().then(|| {
            Root::new(RootPlaces {
                installation: places.installation.clone(),
                owner: 0,
                state: places.state.clone(),
                jails: places.jails.clone(),
                firecracker: programs(folder.path()),
            })
        });
        let host: Box<dyn Host> = match ground {
            Ground::Memory | Ground::MemoryJailed => Box::new(MemoryHost::default()),
            _ => Box::new(LocalHost::new(places, log_writer, root)),
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

/// Where nobody but root can write: in no other folder are programs trusted to be root's.
fn scratch() -> &'static Path {
    Path::new("/var/lib")
}

/// Firecracker's programs, where only root can write. Links, since a program that is being copied cannot be executed
/// (ETXTBSY), nor while a child of another test has the copy's descriptor.
fn programs(folder: &Path) -> root::Firecracker {
    let fetched = std::env::var("BANGER_FIRECRACKER_DIR").map_or_else(
        |_| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/firecracker"),
        PathBuf::from,
    );
    let [firecracker, jailer] = ["firecracker", "jailer"].map(|name| {
        let (from, to) = (fetched.join(name), folder.join(name));
        std::fs::hard_link(&from, &to)
            .or_else(|_| std::fs::copy(&from, &to).map(drop))
            .expect("`cargo xtask test` fetches Firecracker");
        to
    });
    root::Firecracker { firecracker, jailer }
}

/// QEMU is a program that waits. Limits need controllers, which not every machine's cgroup v2 has.
fn as_can_be(claim: Claim, ground: Ground) -> Claim {
    match (claim, ground) {
        (Claim::Vmm(vmm), _) => Claim::Vmm(banger_host::Vmm {
            program: "sleep".into(),
            args: vec!["1000".into()],
            ..vmm
        }),
        (Claim::Cgroup(cgroup), Ground::Jailed) => Claim::Cgroup(Cgroup {
            memory_max_bytes: None,
            cpu_percent: None,
            pids_max: None,
            ..cgroup
        }),
        (claim, _) => claim,
    }
}

/// Taps and bridges of this test are in a network namespace of its own thread.
fn in_own_network(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(|| {
        #[expect(
            unsafe_code,
            reason = "unsharing what threads share is unsafe: this thread's network namespace only"
        )]
        // SAFETY: NEWNET concerns no memory and no file descriptors (unshare(2)).
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
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

/// Every claim of the ground's plan, by its place in it.
fn every_claim(grounds: &[Ground]) -> impl Iterator<Item = (usize, Ground)> {
    grounds.iter().flat_map(|ground| {
        let claims = World::new(*ground).claims().len();
        (0..claims).map(move |k| (k, *ground))
    })
}

/// Both, or where every claim takes emulated programs: the one at this claim and the other at the next.
fn faults(ground: Ground, k: usize, both: [Fault; 2]) -> Vec<Fault> {
    match ground {
        Ground::Host => vec![both[k % 2]],
        _ => both.into(),
    }
}

fn a_start_that_fails_at_any_claim_leaves_nothing_that_runs(grounds: &[Ground]) {
    for (k, ground) in every_claim(grounds) {
        for fault in faults(ground, k, [Fault::Refuse, Fault::HalfDone]) {
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

fn a_crash_at_any_claim_of_a_start_is_cleaned_by_stop_and_delete(grounds: &[Ground]) {
    for (k, ground) in every_claim(grounds) {
        for fault in faults(ground, k, [Fault::DieBefore, Fault::DieAfter]) {
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

fn a_crash_at_any_release_is_finished_by_the_next_one(grounds: &[Ground]) {
    for (k, ground) in every_claim(grounds) {
        for fault in faults(ground, k, [Fault::DieBefore, Fault::DieAfter]) {
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

fn one_failing_release_does_not_stop_the_rest_and_is_kept_with_its_cause(grounds: &[Ground]) {
    for (k, ground) in every_claim(grounds) {
        let world = World::new(ground);
        assert!(world.start());
        world.host.fail_at(Call::Release, k, Fault::Refuse);
        assert!(!world.release(Scope::All, State::Deleting));
        let backwards: Vec<Claim> = world.claims().into_iter().rev().collect();
        let kept = backwards[k].held();
        match &kept {
            // Gone with what held it: the disk with its folder, the process with its cgroup, the bridge with its last port.
            // The ledger does not know that.
            Held::Disk { .. } | Held::JailedVmm { .. } | Held::Bridge { .. }
                if !ground.is_memory() =>
            {
                assert_eq!(world.held(), []);
            }
            // Ends when its VMM has, soon.
            Held::UserNetwork { .. } if !ground.is_memory() => {}
            _ => assert!(world.held().contains(&kept), "release {k}, {ground:?}"),
        }
        // What a device stands on cannot go before it.
        let under = match &backwards[k] {
            Claim::DmSnapshot(_) if !ground.is_memory() => 2,
            _ => 0,
        };
        let place = backwards.len() - 1 - k;
        assert!(world.ledger_is(&world.claims()[place - under..=place]), "release {k}, {ground:?}");
        assert_eq!(world.state(), State::Error);
        let kept = world.store.claims(&world.vm.id).unwrap();
        let cause = kept[under].problem.as_deref().unwrap();
        assert!(cause.contains("refused on purpose"), "{kept:?}");
        assert!(world.release(Scope::All, State::Deleting), "the next one tries again");
        world.nothing_is_left();
    }
}

fn acquire_and_release_can_be_repeated(grounds: &[Ground]) {
    for &ground in grounds {
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

fn what_was_recorded_last_is_released_first(grounds: &[Ground]) {
    for &ground in grounds {
        let world = World::new(ground);
        assert!(world.start());
        assert!(world.release(Scope::All, State::Deleting));
        let recorded = world.claims().into_iter().rev().map(|claim| claim.held().to_string());
        let log = world.host.log();
        let released = log.iter().filter_map(|line| line.strip_prefix("release "));
        assert_eq!(released.collect::<Vec<_>>(), recorded.collect::<Vec<_>>());
    }
}

fn stop_keeps_the_disk(grounds: &[Ground]) {
    for &ground in grounds {
        let world = World::new(ground);
        assert!(world.start());
        assert!(world.release(Scope::Run, State::Stopped));
        let mut kept: Vec<Held> = world.record.iter().map(Claim::held).collect();
        kept.sort();
        assert_eq!(world.held(), kept);
    }
}

/// A host on which either of two claims is made only when the other one is being made, too.
struct Together {
    host: MemoryHost,
    claims: [Held; 2],
    met: Barrier,
    log: Mutex<Vec<Held>>,
}

impl Host for Together {
    fn acquire(&self, claim: &Claim) -> Result<(), HostError> {
        if self.claims.contains(&claim.held()) {
            self.met.wait();
        }
        self.log.lock().unwrap().push(claim.held());
        self.host.acquire(claim)
    }

    fn release(&self, held: &Held) -> Result<(), HostError> {
        self.host.release(held)
    }

    fn list(&self) -> Result<Vec<Held>, HostError> {
        self.host.list()
    }

    fn watch(&self, mark: &Mark) -> Result<Option<Watched>, HostError> {
        self.host.watch(mark)
    }

    fn signal(&self, mark: &Mark, signal: Signal) -> Result<(), HostError> {
        self.host.signal(mark, signal)
    }

    fn connect(&self, mark: &Mark, socket: &VmSocket) -> Result<UnixStream, HostError> {
        self.host.connect(mark, socket)
    }

    fn open(
        &self,
        mark: &Mark,
        addresses: &BTreeSet<Ipv4Addr>,
        seconds: u32,
    ) -> Result<(), HostError> {
        self.host.open(mark, addresses, seconds)
    }

    fn denied(&self, mark: &Mark) -> Result<Vec<Denied>, HostError> {
        self.host.denied(mark)
    }
}

#[test]
fn a_network_is_made_beside_the_rest_each_in_its_order() {
    let world = World::new(Ground::MemoryJailed);
    let first = |part| {
        let all = world.run.iter().map(Claim::held);
        all.clone().find(|held| held.part() == part).unwrap()
    };
    let host = Together {
        host: MemoryHost::default(),
        claims: [first(Part::Network), first(Part::Machine)],
        met: Barrier::new(2),
        log: Mutex::default(),
    };
    ledger::acquire(&host, &world.run).unwrap();
    for part in [Part::Network, Part::Machine] {
        let of_part = |held: &&Held| held.part() == part;
        let recorded: Vec<_> = world.run.iter().map(Claim::held).collect();
        let log = host.log.lock().unwrap();
        let (made, recorded) = (log.iter().filter(of_part), recorded.iter().filter(of_part));
        assert_eq!(made.collect::<Vec<_>>(), recorded.collect::<Vec<_>>());
    }
}

#[test]
fn a_vmm_that_is_given_its_device_at_its_start_is_made_after_all_else() {
    let jailed = World::new(Ground::MemoryJailed);
    let mut claims: Vec<Claim> =
        jailed.run.iter().filter(|claim| !matches!(claim, Claim::JailedVmm(_))).cloned().collect();
    claims.extend(World::new(Ground::Memory).run);
    assert!(matches!(claims.last(), Some(Claim::Vmm(_))));
    ledger::acquire(&jailed.host, &claims).unwrap();
    let log = jailed.host.log();
    assert_eq!(log.len(), claims.len());
    assert_eq!(log.last().unwrap(), &format!("acquire {}", claims.last().unwrap().held()));
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

/// Each as a test where every machine can be, and as one that needs the test host.
macro_rules! on_every_ground {
    ($($test:ident)*) => {
        mod everywhere {
            $(#[test]
            fn $test() {
                super::in_own_network(|| super::$test(&super::GROUNDS));
            })*
        }

        mod in_the_test_host {
            $(#[test]
            #[ignore = "needs the test host"]
            fn $test() {
                super::in_own_network(|| super::$test(&[super::Ground::Host]));
            })*
        }
    };
}

on_every_ground! {
    a_start_that_fails_at_any_claim_leaves_nothing_that_runs
    a_crash_at_any_claim_of_a_start_is_cleaned_by_stop_and_delete
    a_crash_at_any_release_is_finished_by_the_next_one
    one_failing_release_does_not_stop_the_rest_and_is_kept_with_its_cause
    acquire_and_release_can_be_repeated
    what_was_recorded_last_is_released_first
    stop_keeps_the_disk
}
