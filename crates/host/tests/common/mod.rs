//! What the tests of root's claims share: places of their own, a VM's claims, and a release of everything at the end.
#![allow(dead_code, reason = "each file of tests uses a part of it")]

pub(crate) mod api;
pub(crate) mod console;
pub(crate) mod toy;

use std::fs::{self, Permissions};
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};

use banger_host::root::{DeviceSource, Firecracker, JailDevice, JailFile, RootPlaces, abilities};
use banger_host::{
    Cgroup, Claim, Guard, Held, Installation, Jail, JailedVmm, Loop, LoopRole, Mac, Mark, Network,
    Root, StateFile, Tap,
};

use console::Console;

pub(crate) const SIZE: u64 = 8 << 20;

/// How many there were in this process.
static WORLDS: AtomicU8 = AtomicU8::new(0);

/// One installation on this machine.
pub(crate) struct World {
    pub(crate) root: Root,
    pub(crate) folder: tempfile::TempDir,
    /// This world's own: several are on one host at once.
    network: Network,
    addresses: AtomicU8,
}

/// Runs a test and then releases whatever it has left, also when it fails; nothing of it may stay.
pub(crate) fn in_world(test: impl FnOnce(&World)) {
    let world = World::new();
    let ended = catch_unwind(AssertUnwindSafe(|| test(&world)));
    let mut left = world.root.list().unwrap();
    left.reverse();
    for held in left {
        world.root.release(&held).unwrap();
    }
    assert_eq!(world.root.list().unwrap(), []);
    if let Err(panic) = ended {
        resume_unwind(panic);
    }
}

impl World {
    fn new() -> Self {
        // All above it is root's, and it is on a filesystem that can have devices.
        let folder =
            tempfile::Builder::new().prefix("banger-test-").tempdir_in("/var/lib").unwrap();
        let programs = folder.path().join("programs");
        fs::create_dir(&programs).unwrap();
        for name in ["firecracker", "jailer"] {
            install(&firecracker_folder().join(name), &programs.join(name));
        }
        let state = folder.path().join("state");
        fs::create_dir_all(state.join("kernels")).unwrap();
        let installation = Installation::random().unwrap();
        let root = Root::new(RootPlaces {
            installation,
            state,
            owner: 0,
            jails: folder.path().join("jails"),
            firecracker: Firecracker {
                firecracker: programs.join("firecracker"),
                jailer: programs.join("jailer"),
            },
        });
        let [.., high, low] = std::process::id().to_be_bytes();
        let third = low ^ WORLDS.fetch_add(1, Ordering::Relaxed);
        let gateway = Ipv4Addr::new(10, 128 | high, third, 1);
        let network =
            Network { number: 0, gateway, prefix: 24, mtu: 1500, peers: false, ipv6: None };
        Self { root, folder, network, addresses: AtomicU8::new(2) }
    }

    /// What another daemon or helper on this machine would be.
    pub(crate) fn another_root(&self) -> Root {
        Root::new(self.root.places().clone())
    }

    pub(crate) fn state(&self) -> &Path {
        &self.root.places().state
    }

    pub(crate) fn mark(&self) -> Mark {
        let vm = banger_api::VmId::random().unwrap();
        Mark::new(self.root.places().installation.clone(), vm)
    }

    /// One that no other VM of this world has.
    fn address(&self) -> Ipv4Addr {
        let [a, b, c, _] = self.network.gateway.octets();
        Ipv4Addr::new(a, b, c, self.addresses.fetch_add(1, Ordering::Relaxed))
    }

    pub(crate) fn put(&self, name: &str, bytes: &[u8]) -> StateFile {
        let file = StateFile::parse(name).unwrap();
        let path = file.below(self.state());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o444)).unwrap();
        file
    }

    /// A VM of the toy guest with an image, a disk and a network device, not started.
    pub(crate) fn toy_vm(&self, uid: u32) -> ToyVm {
        let mark = self.mark();
        let kernel = self.put("kernels/toy", &toy::elf());
        let image = self.put("images/toy.ext4", &vec![b'i'; 1 << 20]);
        let disk = StateFile::disk(&mark);
        fs::create_dir_all(disk.below(self.state()).parent().unwrap()).unwrap();
        let file = fs::File::create(disk.below(self.state())).unwrap();
        file.set_len(SIZE).unwrap();
        let device =
            |name: &str, role| JailDevice { name: name.into(), source: DeviceSource::Loop(role) };
        let jail = Jail {
            mark: mark.clone(),
            uid,
            files: vec![JailFile { name: "kernel".into(), source: kernel }],
            devices: vec![device("image", LoopRole::Image), device("disk", LoopRole::Disk)],
        };
        let (network, address) = (self.network, self.address());
        let claims = vec![
            Claim::Cgroup(cgroup(&mark)),
            Claim::Loop(Loop { mark: mark.clone(), role: LoopRole::Image, file: image }),
            Claim::Loop(Loop { mark: mark.clone(), role: LoopRole::Disk, file: disk }),
            Claim::Bridge { installation: mark.installation().clone(), network },
            Claim::Guard(Guard {
                mark: mark.clone(),
                network,
                address,
                mac: Mac::of(&mark),
                exposed: [].into(),
            }),
            Claim::Tap(Tap { mark: mark.clone(), uid, network }),
            Claim::Jail(jail),
        ];
        ToyVm { vmm: JailedVmm { mark: mark.clone(), uid, log_limit_bytes: 1 << 20 }, mark, claims }
    }

    pub(crate) fn jail_path(&self, mark: &Mark) -> PathBuf {
        self.root.places().jails.join(format!("firecracker/{mark}/root"))
    }

    pub(crate) fn release_all(&self, vm: &ToyVm) {
        self.root.release(&Claim::JailedVmm(vm.vmm.clone()).held()).unwrap();
        for claim in vm.claims.iter().rev() {
            self.root.release(&claim.held()).unwrap();
        }
    }
}

pub(crate) struct ToyVm {
    pub(crate) mark: Mark,
    pub(crate) claims: Vec<Claim>,
    pub(crate) vmm: JailedVmm,
}

impl ToyVm {
    /// Makes everything, up to Firecracker's API.
    pub(crate) fn make(&self, root: &Root) -> Console {
        for claim in &self.claims {
            root.acquire(claim, None).unwrap();
        }
        self.start(root)
    }

    pub(crate) fn start(&self, root: &Root) -> Console {
        let (console, end) = Console::new();
        root.acquire(&Claim::JailedVmm(self.vmm.clone()), Some(end)).unwrap();
        console
    }

    pub(crate) fn held(&self) -> Held {
        Held::JailedVmm { mark: self.mark.clone() }
    }
}

/// Limits where the kernel has them, which a machine with cgroups of version 1 has not.
pub(crate) fn cgroup(mark: &Mark) -> Cgroup {
    let limits = abilities().cgroup.is_ok();
    Cgroup {
        mark: mark.clone(),
        memory_max_bytes: limits.then_some(256 << 20),
        cpu_percent: limits.then_some(100),
        pids_max: limits.then_some(64),
    }
}

/// Where Firecracker's programs are. They are part of what is tested: without them the tests fail.
fn firecracker_folder() -> PathBuf {
    let own = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/firecracker");
    let folder = std::env::var_os("BANGER_FIRECRACKER_DIR").map_or_else(own, PathBuf::from);
    for needed in [folder.join("firecracker"), folder.join("jailer"), "/dev/kvm".into()] {
        assert!(
            needed.exists(),
            "{} is missing: `cargo xtask test` provides Firecracker",
            needed.display()
        );
    }
    folder
}

pub(crate) fn install(from: &Path, to: &Path) {
    fs::copy(from, to).unwrap();
    fs::set_permissions(to, Permissions::from_mode(0o755)).unwrap();
}
