//! Claims: what banger holds on the host, how it is made and how it is undone.
//!
//! This crate is the only code that changes the machine. Each kind of claim has one file, where acquire and release
//! stand one after the other; release needs nothing but the claim's [`Held`], so it works after a crash, from a half-made
//! state, and for strays that nobody recorded. Nothing here reads a database, and nothing cleans up in `Drop`.

pub mod command;
mod disk;
mod error;
mod folder;
pub mod kvm_probe;
pub mod lock;
pub mod log_writer;
pub mod mark;
mod process;
pub mod ready_fd;
pub mod socket;
pub mod space;
pub mod tsc;
mod vmm_process;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use disk::{Disk, DiskSource, reflink_works};
pub use error::HostError;
pub use mark::{Installation, Mark};
pub use process::Watched;
pub use vmm_process::{VMM_FIRST_FD, Vmm};

/// One thing held on the host for one VM: recorded first, then made, and undone by its [`Held`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Claim {
    /// The VM's folder in the state: its disk and its logs.
    VmFolder { mark: Mark },
    /// The VM's writable disk.
    Disk(Disk),
    /// The VM's folder for sockets.
    RunFolder { mark: Mark },
    /// The VMM's process, and the process that keeps its log bounded.
    Vmm(Vmm),
}

/// How long a claim is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Life {
    /// From create to delete.
    Record,
    /// From start to stop.
    Run,
}

impl Claim {
    /// What is released when this claim is; all that release needs.
    #[must_use]
    pub fn held(&self) -> Held {
        match self {
            Claim::VmFolder { mark } => Held::VmFolder { mark: mark.clone() },
            Claim::Disk(disk) => Held::Disk { mark: disk.mark.clone() },
            Claim::RunFolder { mark } => Held::RunFolder { mark: mark.clone() },
            Claim::Vmm(vmm) => Held::Vmm { mark: vmm.mark.clone() },
        }
    }

    #[must_use]
    pub fn life(&self) -> Life {
        match self {
            Claim::VmFolder { .. } | Claim::Disk(_) => Life::Record,
            Claim::RunFolder { .. } | Claim::Vmm(_) => Life::Run,
        }
    }
}

/// A thing that is there, by the name that the host knows it by. Every name holds the [`Mark`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Held {
    VmFolder { mark: Mark },
    Disk { mark: Mark },
    RunFolder { mark: Mark },
    Vmm { mark: Mark },
}

impl Held {
    #[must_use]
    pub fn mark(&self) -> &Mark {
        match self {
            Held::VmFolder { mark }
            | Held::Disk { mark }
            | Held::RunFolder { mark }
            | Held::Vmm { mark } => mark,
        }
    }
}

impl std::fmt::Display for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Held::VmFolder { mark } => write!(f, "the folder of VM {mark}"),
            Held::Disk { mark } => write!(f, "the disk of VM {mark}"),
            Held::RunFolder { mark } => write!(f, "the sockets of VM {mark}"),
            Held::Vmm { mark } => write!(f, "the VMM process of VM {mark}"),
        }
    }
}

/// Who makes and undoes claims: [`LocalHost`] on the real machine, a fake one in tests.
pub trait Host: Send + Sync {
    /// Makes it so: there and right is fine, there and wrong is an error.
    ///
    /// # Errors
    /// What could not be made, and why. It may be half made: release it.
    fn acquire(&self, claim: &Claim) -> Result<(), HostError>;

    /// Undoes it, within a deadline, from any half-made state; absent is success.
    ///
    /// # Errors
    /// What is still there, and why.
    fn release(&self, held: &Held) -> Result<(), HostError>;

    /// Everything on this machine that carries this installation's mark, recorded or not.
    ///
    /// # Errors
    /// When the machine cannot be looked at.
    fn list(&self) -> Result<Vec<Held>, HostError>;

    /// The VMM of this mark, if it lives, to wait for its end.
    ///
    /// # Errors
    /// When the processes cannot be looked at.
    fn watch(&self, mark: &Mark) -> Result<Option<Watched>, HostError>;
}

/// Where this installation keeps what its VMs hold.
#[derive(Debug, Clone)]
pub struct Places {
    pub installation: Installation,
    /// One folder per VM; on the filesystem of the images, so that disks can share blocks with them.
    pub vms: PathBuf,
    /// One folder per running VM, for sockets.
    pub runs: PathBuf,
    /// Formatted empty disks, one per size, copied for each new VM.
    pub templates: PathBuf,
}

impl Places {
    #[must_use]
    pub fn vm_folder(&self, mark: &Mark) -> PathBuf {
        self.vms.join(mark.to_string())
    }

    #[must_use]
    pub fn run_folder(&self, mark: &Mark) -> PathBuf {
        self.runs.join(mark.to_string())
    }

    #[must_use]
    pub fn disk(&self, mark: &Mark) -> PathBuf {
        self.vm_folder(mark).join("disk.ext4")
    }

    /// What the VMM and the guest's console said; the older half is beside it with `.1` appended.
    #[must_use]
    pub fn log(&self, mark: &Mark) -> PathBuf {
        self.vm_folder(mark).join("console.log")
    }
}

/// Ends what carries this in its environment: programs that worked for a daemon which was killed.
///
/// # Errors
/// When one of them cannot be ended.
pub fn end_orphans(variable: &str, value: &str) -> Result<(), HostError> {
    process::end_by_environment(variable, value, std::time::Duration::from_secs(10))
        .map_err(|e| HostError::new("end the programs of the last daemon", e))
}

/// This machine, changed by this process.
#[derive(Debug)]
pub struct LocalHost {
    places: Places,
    /// The program that runs [`log_writer::run`], and its arguments before the log's own.
    log_writer: (PathBuf, Vec<String>),
    children: process::Children,
}

impl LocalHost {
    /// `log_writer` is a program that calls [`log_writer::run`] with the two arguments that follow those given.
    #[must_use]
    pub fn new(places: Places, log_writer: (PathBuf, Vec<String>)) -> Self {
        Self { places, log_writer, children: process::Children::default() }
    }

    #[must_use]
    pub fn places(&self) -> &Places {
        &self.places
    }
}

impl Host for LocalHost {
    fn acquire(&self, claim: &Claim) -> Result<(), HostError> {
        match claim {
            Claim::VmFolder { mark } => folder::acquire(&self.places.vm_folder(mark)),
            Claim::Disk(disk) => disk::acquire(disk, &self.places),
            Claim::RunFolder { mark } => folder::acquire(&self.places.run_folder(mark)),
            Claim::Vmm(vmm) => {
                vmm_process::acquire(vmm, &self.places, &self.log_writer, &self.children)
            }
        }
    }

    fn release(&self, held: &Held) -> Result<(), HostError> {
        match held {
            Held::VmFolder { mark } => folder::release(&self.places.vm_folder(mark)),
            Held::Disk { mark } => disk::release(&self.places.disk(mark)),
            Held::RunFolder { mark } => folder::release(&self.places.run_folder(mark)),
            Held::Vmm { mark } => vmm_process::release(mark, &self.children),
        }
    }

    fn list(&self) -> Result<Vec<Held>, HostError> {
        let ours = |mark: &Mark| mark.installation() == &self.places.installation;
        let mut held = Vec::new();
        for mark in folder::marked(&self.places.vms)?.into_iter().filter(ours) {
            if disk::is_there(&self.places.disk(&mark)) {
                held.push(Held::Disk { mark: mark.clone() });
            }
            held.push(Held::VmFolder { mark });
        }
        held.extend(
            folder::marked(&self.places.runs)?
                .into_iter()
                .filter(ours)
                .map(|mark| Held::RunFolder { mark }),
        );
        held.extend(vmm_process::marked()?.into_iter().filter(ours).map(|mark| Held::Vmm { mark }));
        self.children.reap();
        held.sort();
        held.dedup();
        Ok(held)
    }

    fn watch(&self, mark: &Mark) -> Result<Option<Watched>, HostError> {
        vmm_process::watch(mark)
    }
}

/// The path as text for a message.
fn show(path: &Path) -> String {
    path.display().to_string()
}
