//! Which VMM a VM starts under: Firecracker in its jailer where KVM runs guests and there is root or root's helper to
//! make a jail, else QEMU.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use banger_api::{Code, Problem};
use banger_host::command;
use banger_host::root::Firecracker as Programs;
use banger_vmm::firecracker::{Support, Version};
use banger_vmm::{Firecracker, Qemu, Vmm};

use crate::config::{Config, VmmChoice};
use crate::daemon::Daemon;

/// Where Firecracker's programs are: as configured, or in the system's folders.
#[must_use]
pub fn programs(config: &Config) -> Programs {
    let program = |given: &Option<PathBuf>, name: &str| match given {
        Some(path) => path.clone(),
        None => command::find(name).unwrap_or_else(|| Path::new("/usr/local/bin").join(name)),
    };
    Programs {
        firecracker: program(&config.firecracker_path, "firecracker"),
        jailer: program(&config.jailer_path, "jailer"),
    }
}

/// What `firecracker --version` says.
///
/// # Errors
/// In a sentence: why this Firecracker cannot be used.
pub fn version(programs: &Programs) -> Result<Version, String> {
    let path = programs.firecracker.display();
    if !programs.firecracker.is_file() {
        return Err(format!("{path} is not there"));
    }
    let text = command::run(&path.to_string(), &["--version"])
        .map_err(|error| Problem::from_error(Code::Missing, &error).to_string())?;
    let version = Version::parse(&text)
        .ok_or_else(|| format!("{path} says {:?} of its version", text.lines().next()))?;
    match version.support() {
        Support::TooOld => Err(format!("{path} is {version}, which is too old")),
        Support::Supported | Support::Untested => Ok(version),
    }
}

impl Daemon {
    /// The VMM for VMs that start now.
    ///
    /// # Errors
    /// When the configuration asks for one that this host cannot have.
    pub async fn vmm(&self) -> Result<Arc<dyn Vmm>, Problem> {
        let facts = self.facts().await;
        let qemu = || Arc::new(Qemu { accelerator: facts.accelerator() });
        let kvm = facts.kvm.clone().map_err(|why| format!("KVM runs no guest here: {why}"));
        let firecracker = kvm.and_then(|()| {
            let version = self.firecracker.clone()?;
            if self.jails() {
                return Ok(Arc::new(Firecracker::jailed(version)));
            }
            let (program, runs) = (self.programs.firecracker.clone(), self.places.runs.clone());
            Firecracker::bare(version, program, runs)
                .map(Arc::new)
                .map_err(|error| Problem::from_error(Code::Invalid, &error).to_string())
        });
        match (self.config.vmm, firecracker) {
            (VmmChoice::Auto | VmmChoice::Firecracker, Ok(firecracker)) => Ok(firecracker),
            (VmmChoice::Auto, Err(_)) | (VmmChoice::Qemu, _) => Ok(qemu()),
            (VmmChoice::Firecracker, Err(why)) => {
                Err(Problem::new(Code::Missing, "Firecracker cannot be used, and the configuration asks for it")
                    .because(why)
                    .remedy("`banger doctor` shows what is missing; `vmm = \"auto\"` in config.toml takes QEMU instead"))
            }
        }
    }

    /// Whether Firecracker runs in its jailer.
    #[must_use]
    pub fn jails(&self) -> bool {
        self.privileged && self.config.jailer
    }
}
