//! What the tests run on. They are the same everywhere; what differs between backends is here.

use std::path::PathBuf;

use rustix::process::Pid;

/// Which VMM runs the guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// QEMU, which translates its guests: any machine.
    Qemu,
    /// Firecracker in its jailer: the test host, whose KVM is emulated.
    Firecracker,
}

impl Backend {
    /// `BANGER_E2E_BACKEND=qemu|firecracker`; without it `qemu`.
    #[must_use]
    pub fn here() -> Self {
        match std::env::var("BANGER_E2E_BACKEND").as_deref() {
            Ok("firecracker") => Backend::Firecracker,
            Ok("qemu") | Err(_) => Backend::Qemu,
            Ok(other) => panic!("BANGER_E2E_BACKEND={other}: it is qemu or firecracker"),
        }
    }

    /// How many VMs "many at once" are. Guests on an emulated processor are emulated twice.
    #[must_use]
    pub fn many(self) -> usize {
        match self {
            Backend::Qemu => 20,
            Backend::Firecracker => 4,
        }
    }

    /// How much "much data" is, in bytes. The emulation of a processor's virtualisation loses an interrupted guest's state now
    /// and then (it faults three times, and its VMM ends): the more interrupts, the more often.
    #[must_use]
    pub fn much(self) -> usize {
        match self {
            Backend::Qemu => 200 << 20,
            Backend::Firecracker => 4 << 20,
        }
    }

    /// Which driver makes the disks on an ordinary filesystem.
    #[must_use]
    pub fn disk_driver(self) -> &'static str {
        match self {
            Backend::Qemu => "overlay",
            Backend::Firecracker => "dm-snapshot",
        }
    }

    /// The folder that a VM's start needs space in, below a home.
    #[must_use]
    pub fn fills(self) -> &'static str {
        match self {
            // The filesystem on the VM's disk.
            Backend::Qemu => "state/vms",
            // A copy of Firecracker, and of what cannot be linked.
            Backend::Firecracker => "state/jails",
        }
    }

    /// The VMM's program, and what `doctor` says to do where it is missing.
    #[must_use]
    pub fn program(self) -> (PathBuf, &'static str) {
        match self {
            Backend::Qemu => {
                ("/usr/bin/qemu-system-x86_64".into(), "apt-get install qemu-system-x86")
            }
            Backend::Firecracker => (firecracker_folder().join("firecracker"), "firecracker_path"),
        }
    }

    /// The configuration of a test's daemon.
    pub(crate) fn config(self) -> String {
        match self {
            Backend::Qemu => "vmm = \"qemu\"\n".to_owned(),
            Backend::Firecracker => format!(
                "firecracker_path = {firecracker:?}\njailer_path = {jailer:?}\n{settings}",
                firecracker = firecracker_folder().join("firecracker"),
                jailer = firecracker_folder().join("jailer"),
                settings = Self::settings(),
            ),
        }
    }

    /// What the test host's daemons need to be told: an emulated KVM is some ten times slower than a real one, and two
    /// guests fill it.
    pub(crate) fn settings() -> &'static str {
        "vmm = \"firecracker\"\nboots_at_once = 2\nready_deadline_ms = 120000\nstop_deadline_ms = 60000\n"
    }

    /// Pids of the VMMs of this installation.
    pub(crate) fn vmm_pids(self, installation: &str) -> Vec<Pid> {
        let numbers: Vec<String> = match self {
            Backend::Qemu => {
                let mark = format!("banger-vmm:bg{installation}-");
                let processes = std::fs::read_dir("/proc").unwrap().flatten();
                let ours = processes.filter(|entry| {
                    let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
                    line.starts_with(mark.as_bytes())
                });
                ours.filter_map(|entry| entry.file_name().into_string().ok()).collect()
            }
            Backend::Firecracker => cgroups(installation)
                .iter()
                .flat_map(|cgroup| {
                    let pids = std::fs::read_to_string(cgroup.join("cgroup.procs"));
                    // KVM's threads in the kernel are in the group too, and have no command line.
                    let is_process = |pid: &&str| {
                        let line = std::fs::read(format!("/proc/{pid}/cmdline"));
                        line.is_ok_and(|line| !line.is_empty())
                    };
                    let pids = pids.unwrap_or_default();
                    pids.lines().filter(is_process).map(str::to_owned).collect::<Vec<_>>()
                })
                .collect(),
        };
        numbers.iter().filter_map(|number| number.parse().ok()).filter_map(Pid::from_raw).collect()
    }
}

/// The folder with `firecracker` and `jailer`.
#[must_use]
pub fn firecracker_folder() -> PathBuf {
    match std::env::var_os("BANGER_FIRECRACKER_DIR") {
        Some(folder) => folder.into(),
        None => crate::programs::target().join("firecracker"),
    }
}

/// The cgroups of this installation's VMs.
pub(crate) fn cgroups(installation: &str) -> Vec<PathBuf> {
    let mark = format!("bg{installation}-");
    let groups = std::fs::read_dir("/sys/fs/cgroup/banger").into_iter().flatten().flatten();
    let ours = groups.filter(|entry| entry.file_name().to_string_lossy().starts_with(&mark));
    ours.map(|entry| entry.path()).collect()
}
