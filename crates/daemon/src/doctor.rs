//! Doctor: what this host has, what it lacks, and what to do about it.

use std::net::Ipv4Addr;
use std::sync::Arc;

use banger_api::daemon::{Finding, Report, Verdict};
use banger_api::{Code, Problem, Size, Zone};
use banger_host::root::Routed;
use banger_host::{Network, command, root, space};
use banger_storage::Driver;
use banger_vmm::firecracker::Support;
use banger_vmm::qemu;

use crate::config::VmmChoice;
use crate::daemon::Daemon;
use crate::doctor_system;
use crate::operations::Operation;
use crate::problems;
use crate::user_network::NoUserNetwork;

/// Below this doctor warns.
const LITTLE_SPACE: Size = Size::gib(5);

impl Daemon {
    /// # Errors
    /// When the host cannot be looked at at all.
    pub async fn doctor(self: &Arc<Self>) -> Result<Report, Problem> {
        let facts = self.facts().await.clone();
        let vmm = self.vmm().await;
        let name = vmm.as_ref().map_or_else(ToString::to_string, |vmm| vmm.name());
        let firecracker = vmm.is_ok_and(|vmm| vmm.api().is_some());
        let images = self.store.images().map_err(problems::store)?;
        let image = images.first().map_or_else(
            // Any file of the state tells whether its filesystem shares blocks.
            || self.folders.state.join("banger.db"),
            |image| self.image_path(&image.digest),
        );
        let driver = self.driver_for_new(&self.state_file(&image)?).await;
        let networks = self.networks_work().await;
        let user_networks = self.user_networks_work().await;
        self.blocking(move |daemon| {
            let mut findings = vec![daemon.architecture(), kvm(&facts.kvm, &name)];
            findings.push(daemon.firecracker_there());
            findings.push(daemon.jailer_there(firecracker));
            if firecracker && daemon.jails() {
                findings.extend(abilities());
            }
            if let Some(install) = &daemon.installed {
                findings.extend(doctor_system::findings(install, daemon.host.as_ref()));
            }
            findings.push(qemu_there(daemon.config.vmm == VmmChoice::Firecracker || firecracker));
            findings.extend(PROGRAMS.iter().map(program_there));
            findings.push(daemon.agent_there());
            findings.push(daemon.network(&networks, &user_networks));
            if networks.is_ok() {
                findings.push(daemon.firewalls());
            }
            findings.push(daemon.names());
            if networks.is_ok() {
                findings.push(daemon.names_routed());
            }
            findings.push(daemon.storage(&driver));
            findings.push(daemon.space());
            findings.push(daemon.artifacts_there());
            findings.push(daemon.default_image());
            findings.push(daemon.default_kernel());
            findings.push(daemon.defaults());
            findings.extend(daemon.file_sync_there());
            findings.push(daemon.vms_in_error());
            findings.push(daemon.strays_found());
            Report { findings }
        })
        .await
    }

    /// Releases strays, then reports.
    ///
    /// # Errors
    /// When the host cannot be looked at.
    pub async fn doctor_fix(self: &Arc<Self>, operation: &Operation) -> Result<Report, Problem> {
        operation.stage("strays", "releasing what carries our mark and is in no ledger");
        for (held, released) in self.blocking(Daemon::release_strays).await?? {
            match released {
                Ok(()) => operation.note(format!("released {held}")),
                Err(problem) => operation.note(format!("{held} is still there: {problem}")),
            }
        }
        operation.stage("report", "looking again");
        self.doctor().await
    }

    fn architecture(&self) -> Finding {
        match std::env::consts::ARCH {
            "x86_64" => pass("architecture", "x86_64"),
            other => {
                fail("architecture", format!("{other} is not supported"), "use an x86-64 machine")
            }
        }
    }

    fn firecracker_there(&self) -> Finding {
        let path = self.programs.firecracker.display();
        match &self.firecracker {
            Ok(version) => {
                let format = match version.snapshot_format() {
                    Some(format) => format!("snapshots of format {format}"),
                    None => "snapshots of a format unknown here".to_owned(),
                };
                let text = format!("{version} at {path}, {format}");
                match version.support() {
                    Support::Supported | Support::TooOld => pass("firecracker", text),
                    Support::Untested => warn(
                        "firecracker",
                        format!("{text}: newer than what this banger is tested with"),
                        FIRECRACKER_REMEDY,
                    ),
                }
            }
            Err(why) if self.config.vmm == VmmChoice::Firecracker => {
                fail("firecracker", why.clone(), FIRECRACKER_REMEDY)
            }
            Err(why) => warn("firecracker", format!("{why}; VMs run on QEMU"), FIRECRACKER_REMEDY),
        }
    }

    /// Whether VMMs are jailed. `firecracker`: whether VMs run on it.
    fn jailer_there(&self, firecracker: bool) -> Finding {
        let path = &self.programs.jailer;
        if !firecracker {
            return pass("jailer", "not needed: QEMU runs with the rights of its user");
        }
        if !self.config.jailer {
            let text =
                "jailer = false: Firecracker runs with the rights of its user, for debugging";
            return warn("jailer", text.into(), "remove `jailer = false` from config.toml");
        }
        if !self.privileged {
            let text = "Firecracker runs with the rights of its user: only root can make jails";
            return warn("jailer", text.into(), "`sudo banger system install --owner USER`");
        }
        let trusted = [path, &self.programs.firecracker]
            .into_iter()
            .try_for_each(|program| root::trusted_program(program));
        match trusted {
            Ok(()) => pass("jailer", path.display().to_string()),
            Err(error) => fail(
                "jailer",
                Problem::from_error(Code::Missing, &error).to_string(),
                "make it root's, and writable by nobody else, as all folders on the way to it",
            ),
        }
    }

    /// Which network VMs get, and what is missing of it.
    fn network(
        &self,
        networks: &Result<(), String>,
        user_networks: &Result<(), NoUserNetwork>,
    ) -> Finding {
        let all = "`sudo banger system install --owner USER`; packages: nftables; modules: tun, bridge, nf_tables";
        match (networks, user_networks) {
            (Ok(()), _) => pass("network", "VMs have a device on a bridge"),
            (Err(why), Ok(())) => pass(
                "network",
                format!(
                    "VMs with --nat reach beyond this host by passt, and `-p` leads to all; they have no address, no names of each other and no lists: {why}"
                ),
            ),
            (Err(_), Err(NoUserNetwork { why, remedy })) if !self.privileged => {
                warn("network", format!("VMs have no network: {why}"), remedy)
            }
            (Err(why), Err(_)) => warn("network", format!("VMs have no network: {why}"), all),
        }
    }

    /// Whether programs on this host can ask for VMs by name.
    fn names(&self) -> Finding {
        let at = format!("127.0.0.1:{}", root::DNS_PORT);
        let zone = &self.config.network.zone;
        match self.dns.server(Ipv4Addr::LOCALHOST) {
            Some(Ok(())) => pass("dns", format!("NAME.{zone} is answered at {at}")),
            Some(Err(why)) => warn(
                "dns",
                format!("NAME.{zone} is not answered on this host: {why}"),
                "another banger may have the port: VMs are reached by their addresses, which `banger vm list` shows",
            ),
            None => warn("dns", format!("nothing answers for NAME.{zone}"), "`banger daemon stop`"),
        }
    }

    /// Whether they do so without being told.
    fn names_routed(&self) -> Finding {
        let zone = &self.config.network.zone;
        let recorded = self.store.networks().map_err(problems::store);
        let looked = recorded.and_then(|all| {
            let installation = self.store.installation();
            let look = |network: Network| {
                let routed = root::names_are_routed(installation, network.number, zone)
                    .map_err(|e| problems::host(&e))?;
                Ok((network.bridge(installation), routed))
            };
            all.into_iter().map(|record| look(record.network)).collect::<Result<Vec<_>, Problem>>()
        });
        let found = match looked {
            Ok(found) => found,
            Err(problem) => return warn("resolver", problem.to_string(), "`resolvectl status`"),
        };
        let is = |wanted| found.iter().find(|(_, routed)| *routed == wanted);
        if let Some((bridge, _)) = is(Routed::No) {
            // Who is asked for other zones is root's to say.
            let by_hand = format!(
                "`sudo resolvectl dns {bridge} 127.0.0.1:42069`; `sudo resolvectl domain {bridge} '~{zone}'`"
            );
            let is_told = *zone == Zone::default();
            return warn(
                "resolver",
                format!("systemd-resolved is not told to ask for NAME.{zone} by {bridge}"),
                if is_told { "the next start of a VM tells it" } else { &by_hand },
            );
        }
        if let Some((bridge, _)) = is(Routed::Yes) {
            let text = format!("systemd-resolved asks for NAME.{zone} by {bridge}");
            return pass("resolver", text);
        }
        if is(Routed::NoBridge).is_some() || found.is_empty() {
            let text =
                format!("where systemd-resolved runs, it asks for NAME.{zone} while a VM runs");
            return pass("resolver", text);
        }
        pass(
            "resolver",
            format!(
                "no systemd-resolved here: programs resolve NAME.{zone} where their resolver is told to ask; dnsmasq: `server=/{zone}/127.0.0.1#42069` (docs/network.md, \"Names\")"
            ),
        )
    }

    fn agent_there(&self) -> Finding {
        if self.agent.is_file() {
            return pass("agent", self.agent.display().to_string());
        }
        fail(
            "agent",
            format!("{} is missing", self.agent.display()),
            "build it with `cargo xtask build`",
        )
    }

    fn storage(&self, driver: &Result<&'static dyn Driver, Problem>) -> Finding {
        let state = self.folders.state.display();
        match driver {
            Ok(driver) if driver.name() == "reflink" => {
                pass("storage", format!("reflink: {state} shares blocks between files"))
            }
            Ok(driver) if driver.name() == "dm-snapshot" => pass(
                "storage",
                "dm-snapshot: what a VM writes is kept beside its image by the kernel",
            ),
            Ok(driver) => {
                let why = "cannot share blocks between files (xfs and btrfs can)";
                pass("storage", format!("{}: the filesystem of {state} {why}", driver.name()))
            }
            Err(problem) => fail("storage", problem.to_string(), "see the other findings"),
        }
    }

    fn space(&self) -> Finding {
        match space::free_bytes(&self.folders.state) {
            Ok(free) if free >= LITTLE_SPACE.as_bytes() => pass(
                "space",
                format!("{} free in {}", Size::bytes(free), self.folders.state.display()),
            ),
            Ok(free) => Finding {
                check: "space".into(),
                verdict: Verdict::Warn,
                text: format!(
                    "only {} free in {}",
                    Size::bytes(free),
                    self.folders.state.display()
                ),
                remedy: Some(problems::FREE_SPACE.into()),
            },
            Err(error) => fail(
                "space",
                Problem::from_error(Code::Internal, &error).to_string(),
                "make the folder readable",
            ),
        }
    }

    fn default_image(&self) -> Finding {
        let name = &self.config.image;
        match self.store.image(name) {
            Ok(Some(image)) => pass("image", format!("{name}, {}", Size::bytes(image.size_bytes))),
            Ok(None) => warn(
                "image",
                format!("the default image {name} is not there yet"),
                "the first `banger vm run` builds it",
            ),
            Err(error) => fail(
                "image",
                problems::store(error).to_string(),
                "see `banger doctor` after the cause is gone",
            ),
        }
    }

    fn default_kernel(&self) -> Finding {
        match self.store.kernels() {
            Ok(kernels) => match kernels.first() {
                Some(kernel) => {
                    pass("kernel", format!("{} with {} modules", kernel.name, kernel.modules))
                }
                None => warn(
                    "kernel",
                    "there is no kernel yet".into(),
                    "the first `banger vm run` imports one from apt",
                ),
            },
            Err(error) => fail(
                "kernel",
                problems::store(error).to_string(),
                "see `banger doctor` after the cause is gone",
            ),
        }
    }

    fn defaults(&self) -> Finding {
        let shown: Vec<String> = self
            .config
            .provenance
            .iter()
            .map(|(name, origin)| format!("{name} {origin}"))
            .collect();
        pass("defaults", shown.join("; "))
    }

    fn vms_in_error(&self) -> Finding {
        let in_error = self.store.vms().map(|vms| {
            vms.into_iter()
                .filter(|vm| vm.state == banger_api::vm::State::Error)
                .map(|vm| vm.name.to_string())
                .collect()
        });
        match in_error {
            Ok(names) if Vec::is_empty(&names) => pass("vms", "none has leftovers"),
            Ok(names) => fail(
                "vms",
                format!("could not be released: {}", names.join(", ")),
                &format!(
                    "`banger vm show {}` says what and why; `banger vm delete` tries again",
                    names[0]
                ),
            ),
            Err(error) => fail(
                "vms",
                problems::store(error).to_string(),
                "see `banger doctor` after the cause is gone",
            ),
        }
    }

    fn strays_found(&self) -> Finding {
        match self.strays() {
            Ok(strays) if strays.is_empty() => {
                pass("strays", "nothing on this host carries our mark without a record")
            }
            Ok(strays) => {
                let shown: Vec<String> = strays.iter().map(ToString::to_string).collect();
                fail("strays", shown.join("; "), "`banger doctor --fix` releases them")
            }
            Err(problem) => {
                fail("strays", problem.to_string(), "see `banger doctor` after the cause is gone")
            }
        }
    }
}

/// A program that some verb needs, the package it is in, and what goes without it.
struct Program {
    name: &'static str,
    package: &'static str,
    purpose: &'static str,
    needed: bool,
}

const PROGRAMS: [Program; 4] = [
    Program { name: "mke2fs", package: "e2fsprogs", purpose: "makes disks", needed: true },
    Program {
        name: "mmdebstrap",
        package: "mmdebstrap",
        purpose: "`banger image build`",
        needed: false,
    },
    Program {
        name: "fakeroot",
        package: "fakeroot",
        purpose: "`banger image build` without root",
        needed: false,
    },
    Program {
        name: "apt-get",
        package: "apt",
        purpose: "`banger kernel import --from-apt`",
        needed: false,
    },
];

fn program_there(program: &Program) -> Finding {
    match command::find(program.name) {
        Some(path) => pass(program.name, path.display().to_string()),
        None => Finding {
            check: program.name.into(),
            verdict: if program.needed { Verdict::Fail } else { Verdict::Warn },
            text: format!("not found; {} needs it", program.purpose),
            remedy: Some(format!("apt-get install {}", program.package)),
        },
    }
}

const FIRECRACKER_REMEDY: &str = "install Firecracker 1.12 to 1.16 and its jailer in /usr/local/bin, or name them by \
                                  firecracker_path and jailer_path in config.toml";

/// What the kernel must have for jailed VMs.
fn abilities() -> Vec<Finding> {
    let abilities = root::abilities();
    let checks = [
        ("loop", abilities.loop_devices, "modprobe loop"),
        ("taps", abilities.taps, "modprobe tun"),
        ("cgroup", abilities.cgroup, "boot with systemd.unified_cgroup_hierarchy=1"),
    ];
    let needed = checks.into_iter().map(|(check, able, remedy)| match able {
        Ok(()) => pass(check, "there"),
        Err(why) => fail(check, why, remedy),
    });
    let dm = match abilities.dm_snapshot {
        Ok(()) => pass("dm-snapshot", "there"),
        Err(why) => warn(
            "dm-snapshot",
            format!("{why}; disks are laid over images in the guest instead"),
            "modprobe dm-snapshot",
        ),
    };
    needed.chain([dm]).collect()
}

/// `spare`: whether VMs run without it.
fn qemu_there(spare: bool) -> Finding {
    match command::run(qemu::PROGRAM, &["--version"]) {
        Ok(said) => pass("qemu", said.lines().next().unwrap_or_default()),
        Err(_) if spare => pass("qemu", "not there, and not needed: VMs run on Firecracker"),
        Err(error) => fail(
            "qemu",
            Problem::from_error(Code::Missing, &error).to_string(),
            "apt-get install qemu-system-x86",
        ),
    }
}

fn kvm(probed: &Result<(), String>, vmm: &str) -> Finding {
    match probed {
        Ok(()) => pass("kvm", format!("runs guests; VMs start on {vmm}")),
        Err(why) => Finding {
            check: "kvm".into(),
            verdict: Verdict::Warn,
            text: format!(
                "{why}; VMs start on {vmm}, which translates and is some ten times slower"
            ),
            remedy: Some(
                "use a machine with hardware virtualisation, or enable nesting, for speed".into(),
            ),
        },
    }
}

pub(crate) fn pass(check: &str, text: impl Into<String>) -> Finding {
    Finding { check: check.into(), verdict: Verdict::Pass, text: text.into(), remedy: None }
}

pub(crate) fn warn(check: &str, text: String, remedy: &str) -> Finding {
    Finding { check: check.into(), verdict: Verdict::Warn, text, remedy: Some(remedy.into()) }
}

pub(crate) fn fail(check: &str, text: impl Into<String>, remedy: &str) -> Finding {
    Finding {
        check: check.into(),
        verdict: Verdict::Fail,
        text: text.into(),
        remedy: Some(remedy.into()),
    }
}
