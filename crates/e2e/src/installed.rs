//! An installation on the test host: `banger system install` for an ordinary user, and what that user and others see.
//!
//! The host has room for one: tests that install take turns.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::process::Pid;

use crate::backend::{Backend, cgroups, firecracker_folder};
use crate::network;
use crate::outcome::Outcome;
use crate::processes::{processes_marked, wait_until};
use crate::programs::{built, new, run};
use crate::template;

const OWNER: &str = "dev";
const STRANGER: &str = "stranger";
const STATE: &str = "/var/lib/banger/state";
/// What an installation may touch.
const TOUCHED: [&str; 8] = [
    "/etc",
    "/usr/local",
    "/usr/lib/systemd",
    "/var/lib",
    "/run/systemd/system",
    "/run/banger",
    "/run/banger-helper.sock",
    "/sys/fs/cgroup/banger",
];

/// The one installation of this host.
#[derive(Debug)]
pub struct Installed {
    installation: String,
}

/// Installs, runs a test's body, deletes every VM, uninstalls, and asserts that the host is as it was.
pub fn installed(body: impl FnOnce(&Installed)) {
    let _turn = turn();
    let before = Host::look();
    let installed = Installed::install();
    body(&installed);
    installed.uninstall();
    let after = Host::look();
    assert_eq!(before.files, after.files, "files are as before");
    assert_eq!(before.devices, after.devices, "devices are as before");
    assert_eq!(before.network, after.network, "the network is as before");
}

/// As [`installed`], up to the body: the installation is there after the test, for one that goes on after a reboot.
pub fn installed_for_later(body: impl FnOnce(&Installed)) {
    let _turn = turn();
    body(&Installed::install());
}

/// As [`installed`], with what [`installed_for_later`] has left.
pub fn installed_before(body: impl FnOnce(&Installed)) {
    let _turn = turn();
    let installed = Installed::found();
    body(&installed);
    installed.uninstall();
}

fn turn() -> File {
    let turn = File::create("/run/lock/banger-e2e").unwrap();
    flock(&turn, FlockOperation::LockExclusive).unwrap();
    for user in [OWNER, STRANGER] {
        if !fs::read_to_string("/etc/passwd").unwrap().contains(&format!("{user}:")) {
            run("useradd", &["--create-home", user]);
        }
    }
    turn
}

/// What an installation could leave behind.
struct Host {
    files: String,
    devices: String,
    network: String,
}

impl Host {
    fn look() -> Self {
        // systemd's own bookkeeping changes by itself.
        let files = shell(&format!(
            "find {} -path /var/lib/systemd -prune -o -printf '%p %y %m %u %l\\n' 2>/dev/null | sort",
            TOUCHED.join(" ")
        ));
        let devices = shell("losetup --list --noheadings; dmsetup ls; ip tuntap show");
        // How long an address that the host was lent is still its own.
        let lasting = |line: &&str| !line.contains("valid_lft");
        let network = network::state().lines().filter(lasting).collect::<Vec<_>>().join("\n");
        Self { files, devices, network }
    }
}

fn shell(script: &str) -> String {
    let output = new("sh").args(["-c", script]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// `banger ARGS…` of the tree under test, as root.
pub fn as_root(args: &[&str]) -> Outcome {
    let output = new(built().join("banger")).args(args).output().unwrap();
    Outcome::new(format!("banger {}", args.join(" ")), output)
}

/// Any program as this user, with nothing of this test's environment.
#[must_use]
pub fn as_user(user: &str, words: &[&str]) -> Outcome {
    let home = format!("HOME=/home/{user}");
    let fixed = [
        "--reuid",
        user,
        "--regid",
        user,
        "--init-groups",
        "--",
        "env",
        "-i",
        &home,
        "PATH=/usr/local/bin:/usr/bin:/bin",
    ];
    let output = new("setpriv").args(fixed).args(words).output().unwrap();
    Outcome::new(format!("{user}: {}", words.join(" ")), output)
}

impl Installed {
    fn install() -> Self {
        let folder = firecracker_folder();
        let (firecracker, jailer) = (folder.join("firecracker"), folder.join("jailer"));
        fs::create_dir_all("/etc/banger").unwrap();
        fs::write("/etc/banger/config.toml", Backend::settings()).unwrap();
        as_root(&[
            "system",
            "install",
            "--owner",
            OWNER,
            "--firecracker",
            firecracker.to_str().unwrap(),
            "--jailer",
            jailer.to_str().unwrap(),
        ])
        .succeeds();
        let installed = Self::found();
        installed.take_artifacts();
        installed
    }

    fn found() -> Self {
        let installation = fs::read_to_string(Path::new(STATE).join("installation")).unwrap();
        Self { installation: installation.trim().to_owned() }
    }

    fn uninstall(&self) {
        self.delete_all();
        self.no_strays();
        assert_eq!(self.processes(), Vec::<String>::new());
        assert_eq!(cgroups(&self.installation), Vec::<PathBuf>::new());
        as_root(&["system", "uninstall", "--purge", "--yes"]).succeeds();
    }

    /// Images and kernels that were made once, as if this installation had made them.
    fn take_artifacts(&self) {
        run("systemctl", &["stop", "bangerd.service"]);
        let from = template::home().join("state");
        for part in ["images", "kernels"] {
            let (from, to) = (from.join(part), Path::new(STATE).join(part));
            let script = "mkdir -p \"$2\" && cp --archive --sparse=always \"$1/.\" \"$2\"";
            run("sh", &["-c", script, "-", from.to_str().unwrap(), to.to_str().unwrap()]);
        }
        let database = Path::new(STATE).join("banger.db");
        for end in ["-wal", "-shm"] {
            drop(fs::remove_file(format!("{}{end}", database.display())));
        }
        fs::copy(from.join("banger.db"), &database).unwrap();
        let opened = rusqlite::Connection::open(&database).unwrap();
        opened.execute("UPDATE installation SET id = ?1", [&self.installation]).unwrap();
        drop(opened);
        run("chown", &["--recursive", &format!("{OWNER}:{OWNER}"), STATE]);
        // banger itself syncs what it makes; the copies here must survive a power cut, too.
        run("sync", &[]);
        run("systemctl", &["start", "bangerd.service"]);
    }

    /// `banger ARGS…` as its owner types it.
    #[must_use]
    pub fn banger<const N: usize>(&self, args: [&str; N]) -> Outcome {
        self.owner(&[&["banger"], &args[..]].concat())
    }

    #[must_use]
    pub fn owner(&self, words: &[&str]) -> Outcome {
        as_user(OWNER, words)
    }

    #[must_use]
    pub fn stranger(&self, words: &[&str]) -> Outcome {
        as_user(STRANGER, words)
    }

    /// A running VM of this name.
    #[track_caller]
    pub fn start(&self, image: &str, name: &str) {
        self.banger(["vm", "run", "-d", "--image", image, "--memory", "256M", "--name", name])
            .succeeds();
    }

    #[must_use]
    #[track_caller]
    pub fn vms(&self) -> Vec<serde_json::Value> {
        let listed = self.banger(["vm", "list", "--format", "json"]).succeeds().json();
        listed.as_array().unwrap().clone()
    }

    #[must_use]
    #[track_caller]
    pub fn vm(&self, name: &str) -> serde_json::Value {
        self.banger(["vm", "show", name, "--format", "json"]).succeeds().json()
    }

    /// Waits until the VM is in this state.
    #[track_caller]
    pub fn wait_for_state(&self, name: &str, state: &str, most: Duration) {
        wait_until(&format!("{name} is {state}"), most, || self.vm(name)["state"] == state);
    }

    /// What the guest's kernel calls this boot, asked in the guest.
    #[must_use]
    #[track_caller]
    pub fn boot_id(&self, name: &str) -> String {
        let boot_id = "/proc/sys/kernel/random/boot_id";
        self.banger(["vm", "exec", name, "--", "cat", boot_id]).succeeds().text()
    }

    #[must_use]
    pub fn vmm_pids(&self) -> Vec<Pid> {
        Backend::Firecracker.vmm_pids(&self.installation)
    }

    /// The main process of a unit.
    #[must_use]
    pub fn unit_pid(&self, unit: &str) -> Option<Pid> {
        let shown = shell(&format!("systemctl show --property MainPID --value {unit}"));
        shown.trim().parse().ok().and_then(Pid::from_raw)
    }

    #[must_use]
    pub fn processes(&self) -> Vec<String> {
        processes_marked(&self.installation)
    }

    #[track_caller]
    pub fn delete_all(&self) {
        for vm in self.vms() {
            self.banger(["vm", "delete", vm["name"].as_str().unwrap()]).succeeds();
        }
    }

    /// Whatever is on the host is in the ledger.
    #[track_caller]
    pub fn no_strays(&self) {
        let report = self.banger(["doctor", "--format", "json"]).json();
        let findings = report["findings"].as_array().unwrap();
        let strays = findings.iter().find(|finding| finding["check"] == "strays").unwrap();
        assert_eq!(strays["verdict"], "PASS", "{strays}");
    }
}
