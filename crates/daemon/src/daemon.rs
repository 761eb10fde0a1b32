//! The daemon's state: what every request works with.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use banger_api::daemon::DaemonInfo;
use banger_api::folders::Folders;
use banger_api::install::Install;
use banger_api::{Code, Problem, VmId};
use banger_host::root::Firecracker as Programs;
use banger_host::{Host, Mark, Places, StateFile};
use banger_store::Store;
use banger_vmm::firecracker::Version;
use jiff::Timestamp;
use tokio::sync::{OnceCell, Semaphore, watch};

use crate::config::{Config, UidRange};
use crate::dns::Dns;
use crate::egress::Gates;
use crate::exposed::Exposures;
use crate::host_facts::{self, HostFacts};
use crate::making::Making;
use crate::operations::Operations;
use crate::ssh::Files;
use crate::vms::slot::Slots;
use crate::{problems, vmms};

/// Who changes the host, and what that can do.
pub struct Hands {
    pub host: Arc<dyn Host>,
    /// Whether it can make claims that need root.
    pub privileged: bool,
    /// Firecracker's programs as it takes them.
    pub programs: Programs,
    /// The users that its jailed VMMs may run as.
    pub uids: UidRange,
    /// The installation whose daemon this is.
    pub installed: Option<Install>,
}

impl fmt::Debug for Hands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hands").field("privileged", &self.privileged).finish_non_exhaustive()
    }
}

/// Everything that a request may need. One per process.
pub struct Daemon {
    pub folders: Folders,
    pub config: Config,
    pub store: Arc<Store>,
    pub host: Arc<dyn Host>,
    pub places: Places,
    pub operations: Operations,
    pub slots: Slots,
    /// VMs boot a few at a time: more at once only make each other late.
    pub boots: Semaphore,
    /// One making of an image, a kernel or an initramfs at a time, by name.
    pub making: Making,
    /// See [`Daemon::artifacts`].
    artifacts: Mutex<()>,
    /// Whether claims that need root can be made: by this process, or through root's helper.
    pub privileged: bool,
    /// The users that jailed VMMs run as.
    pub uids: UidRange,
    /// The installation whose daemon this is.
    pub installed: Option<Install>,
    /// Where Firecracker's programs are, if they are.
    pub programs: Programs,
    /// Which Firecracker that is, or why it cannot be used.
    pub firecracker: Result<Version, String>,
    /// The static program that becomes the guest's `/init`.
    pub agent: PathBuf,
    pub started_at: Timestamp,
    /// Becomes true when the daemon is to end.
    pub ending: watch::Sender<bool>,
    pub dns: Dns,
    /// Which names guests may ask for.
    pub gates: Arc<Gates>,
    /// Where guests come to services of the host.
    pub exposures: Exposures,
    /// Changes when a VM is to end by itself at another time than before.
    pub(crate) expiries: watch::Sender<()>,
    /// The files of ssh clients.
    pub ssh: Files,
    facts: OnceCell<HostFacts>,
    /// Set when this host was found to be able to give VMs network devices.
    pub(crate) network_abilities: OnceCell<()>,
}

impl fmt::Debug for Daemon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Daemon").field("folders", &self.folders).finish_non_exhaustive()
    }
}

impl Daemon {
    #[must_use]
    pub fn new(
        folders: Folders,
        config: Config,
        store: Arc<Store>,
        hands: Hands,
        places: Places,
        agent: PathBuf,
    ) -> Self {
        let Hands { host, privileged, programs, uids, installed } = hands;
        Self {
            firecracker: vmms::version(&programs),
            privileged,
            uids,
            installed,
            programs,
            operations: Operations::new(Arc::clone(&store)),
            boots: Semaphore::new(config.boots_at_once),
            dns: Dns::new(&config.network.zone),
            gates: Arc::new(Gates::new(Arc::clone(&host))),
            exposures: Exposures::default(),
            ssh: Files::new(folders.ssh()),
            folders,
            config,
            store,
            host,
            places,
            slots: Slots::default(),
            making: Making::default(),
            artifacts: Mutex::default(),
            agent,
            started_at: Timestamp::now(),
            ending: watch::channel(false).0,
            expiries: watch::channel(()).0,
            facts: OnceCell::new(),
            network_abilities: OnceCell::new(),
        }
    }

    /// Held while a VM takes an image, a kernel and a network, and while the file and the record of one come or go: so nobody
    /// takes what another removes. Never across an await.
    pub fn artifacts(&self) -> MutexGuard<'_, ()> {
        self.artifacts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[must_use]
    pub fn mark(&self, vm: &VmId) -> Mark {
        Mark::new(self.store.installation().clone(), vm.clone())
    }

    /// What this host is, looked at once.
    pub async fn facts(&self) -> &HostFacts {
        self.facts.get_or_init(|| host_facts::look(&self.folders.cache)).await
    }

    /// A file of the state by its place in it.
    ///
    /// # Errors
    /// When it is somewhere else, which is a defect.
    pub fn state_file(&self, path: &Path) -> Result<StateFile, Problem> {
        StateFile::of(&self.places.state, path).ok_or_else(|| {
            Problem::new(Code::Internal, format!("{} is no file of the state", path.display()))
        })
    }

    /// Whether guests are translated, and slow.
    pub async fn translated(&self) -> bool {
        self.facts().await.kvm.is_err()
    }

    /// # Errors
    /// When the database cannot be read.
    pub fn info(&self) -> Result<DaemonInfo, Problem> {
        let vms = self.store.vms().map_err(problems::store)?;
        let running = vms.iter().filter(|vm| vm.state.is_up()).count();
        Ok(DaemonInfo {
            version: banger_api::VERSION.to_owned(),
            api: banger_api::API_VERSION,
            pid: std::process::id(),
            started_at: self.started_at,
            installation: self.store.installation().to_string(),
            state_folder: self.folders.state.clone(),
            cache_folder: self.folders.cache.clone(),
            run_folder: self.folders.run.clone(),
            vms: u32::try_from(vms.len()).unwrap_or(u32::MAX),
            running: u32::try_from(running).unwrap_or(u32::MAX),
        })
    }

    /// Runs blocking work of the host's or the database's without holding up other requests.
    ///
    /// # Errors
    /// When the work panicked, which is a defect.
    pub async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Daemon) -> T + Send + 'static,
    ) -> Result<T, Problem> {
        let daemon = Arc::clone(self);
        tokio::task::spawn_blocking(move || work(&daemon)).await.map_err(|e| problems::task(&e))
    }
}
