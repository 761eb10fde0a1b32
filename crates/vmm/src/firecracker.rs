//! Firecracker: the VMM for hosts whose KVM runs guests. In its jailer where there is root or root's helper, else bare, for
//! debugging and for users without either; a bare one has no network device, since a tap needs root.
//!
//! ```text
//! in the jail (the VMM's /)       what it is
//! vmlinux, initramfs              hard links
//! banger-root, banger-disk        block devices: the drives, by their serials
//! api.sock                        where the daemon tells it what to run
//! agent.sock                      its vsock device: the way to the agent
//! ```
//! The guest's agent is told by `banger.channel=vsock` how it is reached, by `banger.drives=` which drive is which (the
//! serials of Firecracker's drives come from inode numbers), and by `banger.off=restart` how this machine is turned off:
//! Firecracker has no way to power off, and ends when the guest restarts.

mod api;
mod requests;
mod version;

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use banger_host::root::{API_SOCKET, DeviceSource, JailDevice, JailFile};
use banger_host::{Cgroup, Claim, Jail, JailedVmm, Loop, LoopRole, Mark, VmSocket};
use banger_storage::{Drive, DriveSource};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

pub use version::{NEWEST, OLDEST, Support, Version};

use crate::{Machine, Vmm, VmmError};
use api::Api;

/// The socket of the vsock device.
pub(crate) const AGENT_SOCKET: &str = "agent.sock";

/// How a bare Firecracker's name ends.
pub(crate) const BARE: &str = "(no jailer)";

/// In the jail.
const KERNEL: &str = "vmlinux";
const INITRAMFS: &str = "initramfs";

/// How long Firecracker has for a request that only changes its memory of the machine.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);
/// How long it has to load kernel and initramfs, and to make the guest.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// The longest path of a unix socket, in bytes: `sun_path` with its NUL is 108 (unix(7)).
const LONGEST_SOCKET_PATH: usize = 107;

#[derive(Debug, Clone)]
pub struct Firecracker {
    version: Version,
    bare: Option<Bare>,
}

#[derive(Debug, Clone)]
struct Bare {
    program: PathBuf,
    /// The folder of the VMs' run folders.
    runs: PathBuf,
}

/// How far a Firecracker is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
pub enum InstanceState {
    /// It was not told to start the guest, whatever else it was told.
    #[serde(rename = "Not started")]
    NotStarted,
    Running,
    Paused,
}

/// How far the Firecracker behind a connection to its API is: whoever told it may have died half-way.
///
/// # Errors
/// When it does not answer.
pub async fn state(api: UnixStream) -> Result<InstanceState, VmmError> {
    #[derive(serde::Deserialize)]
    struct InstanceInfo {
        state: InstanceState,
    }
    let info: InstanceInfo = Api::connect(api).await?.get("/", ANSWER_DEADLINE).await?;
    Ok(info.state)
}

/// Stops the guest's processors, or lets them go on.
pub(crate) async fn set_paused(api: UnixStream, paused: bool) -> Result<(), VmmError> {
    let body = serde_json::json!({ "state": if paused { "Paused" } else { "Resumed" } });
    Api::connect(api).await?.patch("/vm", &body, ANSWER_DEADLINE).await
}

impl Firecracker {
    /// In its jailer. The programs are those that root knows.
    #[must_use]
    pub fn jailed(version: Version) -> Self {
        Self { version, bare: None }
    }

    /// Without the jailer. `runs` is the folder of the VMs' run folders ([`banger_host::Places::runs`]), where Firecracker
    /// makes its sockets by itself.
    ///
    /// # Errors
    /// When sockets there would have paths that are too long.
    pub fn bare(version: Version, program: PathBuf, runs: PathBuf) -> Result<Self, VmmError> {
        // All marks are equally long, and the socket of the vsock device has the longer name.
        let longest = runs.join("bg0000-00000000").join(AGENT_SOCKET);
        if longest.as_os_str().len() > LONGEST_SOCKET_PATH {
            return Err(VmmError::PathTooLong { path: longest, most: LONGEST_SOCKET_PATH });
        }
        Ok(Self { version, bare: Some(Bare { program, runs }) })
    }

    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// Everything that it is told of a machine, the start included: path and body of each PUT, in their order.
    #[must_use]
    pub fn requests(&self, machine: &Machine) -> Vec<(String, serde_json::Value)> {
        let told = requests::machine(machine, self.bare.as_ref());
        told.into_iter().chain([requests::start()]).map(|put| (put.path, put.body)).collect()
    }

    fn jail(&self, machine: &Machine, uid: u32) -> Vec<Claim> {
        let mark = || machine.mark.clone();
        let loops = machine.drives.iter().filter_map(|drive| match &drive.source {
            DriveSource::File(file) => {
                Some(Claim::Loop(Loop { mark: mark(), role: role(drive), file: file.clone() }))
            }
            DriveSource::DmSnapshot => None,
        });
        let devices = machine.drives.iter().map(|drive| JailDevice {
            name: drive.serial.to_owned(),
            source: match drive.source {
                DriveSource::File(_) => DeviceSource::Loop(role(drive)),
                DriveSource::DmSnapshot => DeviceSource::DmSnapshot,
            },
        });
        let files = [(KERNEL, &machine.kernel), (INITRAMFS, &machine.initramfs)]
            .map(|(name, source)| JailFile { name: name.to_owned(), source: source.clone() });
        let jail = Jail { mark: mark(), uid, files: files.to_vec(), devices: devices.collect() };
        let mut claims = vec![Claim::Cgroup(limits(machine))];
        claims.extend(machine.storage.iter().cloned());
        claims.extend(loops);
        if let Some(device) = &machine.network {
            claims.extend(device.claims(&machine.mark, uid));
        }
        claims.push(Claim::Jail(jail));
        let log_limit_bytes = machine.log_limit_bytes;
        claims.push(Claim::JailedVmm(JailedVmm { mark: mark(), uid, log_limit_bytes }));
        claims
    }
}

impl Bare {
    fn claims(&self, machine: &Machine) -> Vec<Claim> {
        let mark = machine.mark.clone();
        let id = mark.to_string();
        let socket = text(&self.socket(&mark, API_SOCKET));
        let mut claims = machine.storage.clone();
        claims.push(Claim::RunFolder { mark: mark.clone() });
        claims.push(Claim::Vmm(banger_host::Vmm {
            mark,
            program: self.program.clone(),
            args: ["--id", &id, "--api-sock", &socket, "--level", "Error"]
                .map(String::from)
                .to_vec(),
            sockets: Vec::new(),
            connects: Vec::new(),
            makes: Some(API_SOCKET.to_owned()),
            log_limit_bytes: machine.log_limit_bytes,
        }));
        claims
    }

    fn socket(&self, mark: &Mark, name: &str) -> PathBuf {
        self.runs.join(mark.to_string()).join(name)
    }
}

impl Vmm for Firecracker {
    fn name(&self) -> String {
        match self.bare {
            None => format!("firecracker {}", self.version),
            Some(_) => format!("firecracker {} {BARE}", self.version),
        }
    }

    fn claims(&self, machine: &Machine) -> Vec<Claim> {
        match &self.bare {
            Some(bare) => bare.claims(machine),
            None => {
                self.jail(machine, machine.uid.expect("a machine for a jail has a user of its own"))
            }
        }
    }

    fn api(&self) -> Option<VmSocket> {
        crate::api_of(&self.name())
    }

    fn boot<'a>(
        &'a self,
        machine: &'a Machine,
        api: UnixStream,
    ) -> BoxFuture<'a, Result<(), VmmError>> {
        async move {
            let mut api = Api::connect(api).await?;
            for request in requests::machine(machine, self.bare.as_ref()) {
                api.put(&request.path, &request.body, ANSWER_DEADLINE).await?;
            }
            let start = requests::start();
            api.put(&start.path, &start.body, START_DEADLINE).await
        }
        .boxed()
    }
}

/// What the device of a drive is for. What is not written is the image.
fn role(drive: &Drive) -> LoopRole {
    if drive.read_only { LoopRole::Image } else { LoopRole::Disk }
}

/// The limits of a VMM's cgroup: a guest that fills what it was given must not meet them.
fn limits(machine: &Machine) -> Cgroup {
    /// Firecracker's own memory, and what the kernel keeps for it: pipes, sockets, page cache of what it reads (which goes
    /// when it must).
    const VMM_MIB: u64 = 64;
    /// Page tables of the guest's memory, on the host and of the second level (1/512 each), and KVM's reverse map.
    const TABLES: u64 = 64;
    /// Its threads beside one per processor are the VMM's and the API's; later kernels count one of KVM's own too.
    const THREADS: u32 = 8;
    Cgroup {
        mark: machine.mark.clone(),
        memory_max_bytes: Some((machine.memory_mib + machine.memory_mib / TABLES + VMM_MIB) << 20),
        // One more than the guest's: the one VMM thread does all disk and network work, and a limit that it shared with
        // the guest's processors would stop them all for the rest of a period whenever both are busy.
        cpu_percent: Some(100 * (machine.cpus + 1)),
        pids_max: Some(machine.cpus + THREADS),
    }
}

/// The paths are the daemon's own, or made of marks.
fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use banger_host::{Held, Life};
    use banger_storage::{DmSnapshot, Driver, Overlay, Reflink};

    use super::*;
    use crate::NetworkDevice;
    use crate::machines::machine;

    fn firecracker() -> Firecracker {
        Firecracker::jailed(Version::parse("1.12.1").unwrap())
    }

    #[test]
    fn what_a_jailed_vm_holds_is_this() {
        let shown: Vec<String> = firecracker()
            .claims(&machine(&Overlay))
            .iter()
            .map(|claim| serde_json::to_string_pretty(claim).unwrap() + "\n")
            .collect();
        snapbox::assert_data_eq!(shown.concat(), snapbox::file!["snapshots/jailed_claims.txt"]);
    }

    #[test]
    fn what_a_bare_vm_holds_is_this() {
        let bare = Firecracker::bare(
            Version::parse("1.12.1").unwrap(),
            "/opt/firecracker".into(),
            "/run/user/1000/banger/vms".into(),
        );
        let shown: Vec<String> = bare
            .unwrap()
            .claims(&machine(&Reflink))
            .iter()
            .map(|claim| serde_json::to_string_pretty(claim).unwrap() + "\n")
            .collect();
        snapbox::assert_data_eq!(shown.concat(), snapbox::file!["snapshots/bare_claims.txt"]);
    }

    #[test]
    fn every_drive_of_a_jail_has_a_device_that_is_made_before_it_and_once() {
        for driver in [&Overlay as &dyn Driver, &Reflink, &DmSnapshot] {
            let machine = machine(driver);
            let claims = firecracker().claims(&machine);
            let jail = claims.iter().position(|claim| matches!(claim, Claim::Jail(_))).unwrap();
            let Claim::Jail(found) = &claims[jail] else { unreachable!() };
            assert_eq!(found.devices.len(), machine.drives.len());
            let held: Vec<_> = claims[..jail].iter().map(Claim::held).collect();
            for device in &found.devices {
                let mark = machine.mark.clone();
                let source = match device.source {
                    DeviceSource::Loop(role) => Held::Loop { mark, role },
                    DeviceSource::DmSnapshot => Held::DmSnapshot { mark },
                };
                assert_eq!(held.iter().filter(|&held| *held == source).count(), 1, "{device:?}");
            }
        }
    }

    #[test]
    fn no_jail_has_a_device_to_write_an_image_by() {
        for driver in [&Overlay as &dyn Driver, &Reflink, &DmSnapshot] {
            for claim in firecracker().claims(&machine(driver)) {
                if let Claim::Loop(found) = claim {
                    assert_eq!(found.role == LoopRole::Image, found.file.folder() == "images");
                }
            }
        }
    }

    #[test]
    fn what_a_run_holds_is_released_by_stop() {
        for claim in firecracker().claims(&machine(&DmSnapshot)) {
            assert_eq!(claim.life(), Life::Run);
        }
    }

    #[test]
    fn only_a_vm_with_a_way_out_holds_one_and_one_without_a_network_holds_nothing_of_it() {
        let of_network = |network| {
            let claims = firecracker().claims(&Machine { network, ..machine(&Overlay) });
            let held = claims.iter().map(Claim::held);
            held.filter(|held| {
                matches!(
                    held,
                    Held::Bridge { .. } | Held::Guard { .. } | Held::Tap { .. } | Held::Nat { .. }
                )
            })
            .collect::<Vec<_>>()
        };
        let device = machine(&Overlay).network.unwrap();
        let all = of_network(Some(device.clone()));
        assert!(
            matches!(
                all[..],
                [Held::Bridge { .. }, Held::Guard { .. }, Held::Tap { .. }, Held::Nat { .. }]
            ),
            "{all:?}"
        );
        assert_eq!(
            of_network(Some(NetworkDevice { egress: banger_api::Egress::None, ..device })),
            all[..3]
        );
        assert_eq!(of_network(None), []);
    }

    #[test]
    fn claims_are_in_the_order_in_which_all_that_is_held_is_released_backwards() {
        for driver in [&Overlay as &dyn Driver, &Reflink, &DmSnapshot] {
            let held: Vec<_> =
                firecracker().claims(&machine(driver)).iter().map(Claim::held).collect();
            assert!(held.is_sorted(), "{held:?}");
        }
    }

    #[test]
    fn a_bare_one_whose_sockets_cannot_be_named_is_refused() {
        let bare = |length: usize| {
            Firecracker::bare(
                Version::parse("1.12.1").unwrap(),
                "/opt/firecracker".into(),
                format!("/{}", "r".repeat(length - 1)).into(),
            )
        };
        assert!(bare(80).is_ok());
        let error = bare(81).unwrap_err().to_string();
        assert!(error.contains("/bg0000-00000000/agent.sock") && error.contains("107"), "{error}");
    }

    #[test]
    fn a_guest_that_fills_its_memory_meets_no_limit() {
        for memory_mib in [128, 1024, 65536] {
            let limits = limits(&Machine { memory_mib, ..machine(&Overlay) });
            let tables = 3 * (memory_mib << 20) / 512;
            assert!(limits.memory_max_bytes.unwrap() > (memory_mib << 20) + tables + (32 << 20));
        }
    }

    #[tokio::test]
    async fn a_machine_of_which_a_part_is_refused_is_not_started() {
        use std::io::{Read, Write};
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let asked = std::thread::spawn(move || {
            let mut asked = String::new();
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = theirs.read(&mut bytes) {
                let text = String::from_utf8_lossy(&bytes[..count]).into_owned();
                let answer = if text.starts_with("PUT /drives/banger_disk") {
                    "HTTP/1.1 400 x\r\nContent-Length: 24\r\n\r\n{\"fault_message\": \"no.\"}"
                } else {
                    "HTTP/1.1 204 x\r\n\r\n"
                };
                asked.push_str(&text);
                theirs.write_all(answer.as_bytes()).unwrap();
            }
            asked
        });
        let machine = machine(&Overlay);
        let error = firecracker().boot(&machine, ours).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "Firecracker refuses PUT /drives/banger_disk with status 400: no."
        );
        let asked = tokio::task::spawn_blocking(|| asked.join().unwrap()).await.unwrap();
        assert!(asked.contains("/drives/banger_root") && !asked.contains("/actions"), "{asked}");
    }

    #[tokio::test]
    async fn how_far_a_firecracker_is_is_read_as_it_says_it() {
        use std::io::{Read, Write};
        for (said, expected) in [
            ("Not started", InstanceState::NotStarted),
            ("Running", InstanceState::Running),
            ("Paused", InstanceState::Paused),
        ] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let body = format!(
                r#"{{"id":"bg0000-11111111","state":"{said}","vmm_version":"1.12.1","app_name":"Firecracker"}}"#
            );
            std::thread::spawn(move || {
                assert!(theirs.read(&mut [0; 4096]).unwrap() > 0);
                let head = format!("HTTP/1.1 200 \r\nContent-Length: {}\r\n\r\n", body.len());
                theirs.write_all((head + &body).as_bytes()).unwrap();
            });
            assert_eq!(state(ours).await.unwrap(), expected);
        }
    }
}
