//! The helper's program in an installation of its own: its configuration in /etc, its folders in /var/lib, both in a mount
//! namespace; network devices in a network namespace. Cgroups and block devices are this machine's. Needs root.

#![allow(dead_code, reason = "each test program uses its part")]
#![allow(clippy::disallowed_methods, reason = "starts the program under test")]

use std::fs;
use std::io::Read;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use banger_host::{HelperHost, Installation, LocalHost, Mark, Network, Places};
use command_fds::{CommandFdExt, FdMapping};

use super::listener;

/// Whom the helper works for.
pub(crate) const OWNER: u32 = 12_345;
/// The first user of VMs.
pub(crate) const UID: u32 = 1_900_000_000;

/// The network of the tests, in a namespace of theirs, and the address of its first VM.
pub(crate) fn network() -> (Network, Ipv4Addr) {
    let gateway = Ipv4Addr::new(10, 213, 0, 1);
    (
        Network { number: 0, gateway, prefix: 22, mtu: 1500, peers: false, ipv6: None },
        Ipv4Addr::new(10, 213, 0, 2),
    )
}

/// The program under test: the one that cargo has built, unless it is run on another machine.
pub(crate) fn program() -> PathBuf {
    let built = || PathBuf::from(env!("CARGO_BIN_EXE_banger-helper"));
    std::env::var_os("BANGER_BIN_DIR")
        .map_or_else(built, |folder| Path::new(&folder).join("banger-helper"))
}

/// An installation of its own.
pub(crate) struct World {
    pub(crate) root: tempfile::TempDir,
    pub(crate) installation: Installation,
    listener: OwnedFd,
    /// Keeps the network namespace.
    network: Child,
}

impl World {
    pub(crate) fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let installation = Installation::random().unwrap();
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let folders = ["etc/banger", "lib/banger/jails", "lib/programs"];
        let owners =
            ["lib/banger/state", "lib/banger/state/vms", "lib/banger/state/images", "run/vms"];
        for folder in folders.iter().chain(&owners) {
            fs::create_dir_all(root.path().join(folder)).unwrap();
        }
        for folder in owners {
            chown(root.path().join(folder), Some(OWNER), None).unwrap();
        }
        let socket = root.path().join("helper.sock");
        let listener = listener(&socket);
        chown(&socket, Some(OWNER), None).unwrap();
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o600)).unwrap();
        let network = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo there; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut world = Self { root, installation, listener, network };
        let mut said = [0; 6];
        world.network.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
        assert_eq!(&said, b"there\n");
        world.install(OWNER);
        world
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    pub(crate) fn install(&self, owner: u32) {
        let text = format!(
            "version = \"0.1.0\"\nowner_name = \"tester\"\nowner_uid = {owner}\ninstallation = \"{}\"\n\
             uid_base = {UID}\nuid_count = 10\nprograms = \"/usr/local/lib/banger\"\n\
             firecracker = \"/var/lib/programs/firecracker\"\njailer = \"/var/lib/programs/jailer\"\n",
            self.installation
        );
        fs::write(self.path("etc/banger/install.toml"), text).unwrap();
    }

    pub(crate) fn mark(&self, vm: &str) -> Mark {
        Mark::parse(&format!("bg{}-{vm:0>8}", self.installation)).unwrap()
    }

    /// In the test's folders and network: becomes the program, as this child.
    pub(crate) fn command(&self, argument: Option<&str>) -> Command {
        let enter = "mount --bind \"$1/etc\" /etc && mount --bind \"$1/lib\" /var/lib \
                     && export LISTEN_FDS=1 LISTEN_PID=$$ && exec \"$2\" $3";
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/proc/{}/ns/net", self.network.id()))
            .args(["unshare", "--mount", "--propagation", "private", "sh", "-c", enter, "sh"])
            .arg(self.root.path())
            .arg(program())
            .args(argument);
        let passed = self.listener.try_clone().unwrap();
        command.fd_mappings(vec![FdMapping { parent_fd: passed, child_fd: 3 }]).unwrap();
        command
    }

    pub(crate) fn start(&self) -> Helper {
        let child = self.command(None).stderr(Stdio::piped()).spawn().unwrap();
        Helper(child)
    }

    pub(crate) fn release_all(&self) -> Output {
        self.command(Some("release-all")).output().unwrap()
    }

    pub(crate) fn host(&self) -> HelperHost {
        let root = self.root.path();
        let places = Places::new(
            self.installation.clone(),
            &root.join("lib/banger/state"),
            root,
            &root.join("run"),
        );
        let log_writer = ["-c", "cat > \"$0\"; :"].map(str::to_owned).to_vec();
        let local = LocalHost::new(places, ("/bin/sh".into(), log_writer), None);
        HelperHost::new(local, root.join("helper.sock"))
    }

    /// What is left, however the test has ended, is taken away.
    pub(crate) fn run(self, test: impl FnOnce(&Self)) {
        let done = catch_unwind(AssertUnwindSafe(|| test(&self)));
        let released = self.release_all();
        let Self { mut network, root, .. } = self;
        network.kill().unwrap();
        network.wait().unwrap();
        drop(root);
        if let Err(panic) = done {
            resume_unwind(panic);
        }
        assert!(released.status.success(), "{released:?}");
    }
}

/// A helper that is ended with the test.
pub(crate) struct Helper(pub(crate) Child);

impl Helper {
    pub(crate) fn kill(mut self) -> String {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
        let mut said = String::new();
        self.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        said
    }

    pub(crate) fn status(&self, field: &str) -> String {
        let text = fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        line.trim_start_matches(':').trim().to_owned()
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        // Killed already, or by a test that fails.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
