//! A banger of a test's own, and what can be done and seen in it.

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::backend::{Backend, cgroups};
use crate::network;
use crate::outcome::Outcome;
use crate::processes::{processes_marked, wait_until};
use crate::programs::{built, new, run};
use crate::template;
use crate::terminal::Terminal;

/// Something that holds in a world, and its name.
pub type Claim = (&'static str, fn(&World));

/// A banger of its own. Made by [`in_world`].
#[derive(Debug)]
pub struct World {
    home: PathBuf,
    bin: PathBuf,
    installation: String,
    /// What its network was before there was a daemon in it.
    network: Option<String>,
}

/// Runs a test's body in a new world, then takes the world down and asserts that nothing of it is left on the host.
pub fn in_world(body: impl FnOnce(&World)) {
    let folder = tempfile::Builder::new().prefix("banger-e2e-").tempdir().unwrap();
    in_world_at(folder.path(), body);
}

/// As [`in_world`], in the host's own network, from which the distribution's archive is reached.
pub fn in_world_with_archive(body: impl FnOnce(&World)) {
    let folder = tempfile::Builder::new().prefix("banger-e2e-").tempdir().unwrap();
    live(World::copy_template(folder.path()), body);
}

/// As [`in_world`], in a folder of the caller's, which is on the filesystem that the test is about.
pub fn in_world_at(folder: &Path, body: impl FnOnce(&World)) {
    let mut world = World::copy_template(folder);
    if rustix::process::geteuid().is_root() {
        network::enter_own();
        world.network = Some(network::state());
    }
    live(world, body);
}

fn live(world: World, body: impl FnOnce(&World)) {
    match catch_unwind(AssertUnwindSafe(|| {
        body(&world);
        world.delete_all();
        world.nothing_is_left();
    })) {
        Ok(()) => world.take_down(),
        Err(panic) => {
            world.show_logs();
            world.take_down();
            resume_unwind(panic);
        }
    }
}

impl World {
    /// Hard links to the template's artifacts, a copy of its database, and an installation id of its own.
    fn copy_template(folder: &Path) -> Self {
        // The template may have to be fetched.
        network::leave();
        let template = template::home();
        let home = folder.join("home");
        for part in ["state/images", "state/kernels", "state/initramfs", "cache"] {
            fs::create_dir_all(home.join(part)).unwrap();
            link_tree(&template.join(part), &home.join(part));
        }
        fs::create_dir_all(home.join("config")).unwrap();
        fs::write(home.join("config/config.toml"), Backend::here().config()).unwrap();
        for file in ["banger.db", "banger.db-wal"] {
            // Without a write-ahead log all is in the database itself.
            if template.join("state").join(file).exists() {
                fs::copy(template.join("state").join(file), home.join("state").join(file)).unwrap();
            }
        }
        let installation = banger_api::ids::random_text(4).unwrap();
        let database = rusqlite::Connection::open(home.join("state/banger.db")).unwrap();
        database.execute("UPDATE installation SET id = ?1", [&installation]).unwrap();
        Self { home, bin: built(), installation, network: None }
    }

    /// `banger ARGS…`, to its end.
    #[must_use]
    pub fn banger<const N: usize>(&self, args: [&str; N]) -> Outcome {
        self.banger_with(&args, b"")
    }

    /// `banger ARGS…` with this stdin, to its end.
    #[must_use]
    pub fn banger_with(&self, args: &[&str], stdin: &[u8]) -> Outcome {
        let mut child = self.spawn(args);
        let mut input = child.stdin.take().unwrap();
        let stdin = stdin.to_vec();
        // It may end without reading all: then the rest is not its concern.
        let writer = std::thread::spawn(move || drop(input.write_all(&stdin)));
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        Outcome::new(format!("banger {}", args.join(" ")), output)
    }

    /// `banger ARGS…` that goes on while the test does.
    #[must_use]
    pub fn background(&self, args: &[&str]) -> Background {
        Background { child: self.spawn(args), command: format!("banger {}", args.join(" ")) }
    }

    fn spawn(&self, args: &[&str]) -> Child {
        let mut command = new(self.bin.join("banger"));
        command.args(args).env("BANGER_HOME", &self.home).env_remove("NO_COLOR");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// `banger ARGS…` at a terminal of this size.
    #[must_use]
    pub fn terminal(&self, args: &[&str], rows: u16, columns: u16) -> Terminal {
        let mut command = new("setsid");
        command.args(["--ctty", "--wait"]).arg(self.bin.join("banger")).args(args);
        command.env("BANGER_HOME", &self.home).env("TERM", "xterm").env("NO_COLOR", "1");
        Terminal::open(command, rows, columns)
    }

    /// Any program in this world's environment, `banger` first in its PATH, to its end.
    #[must_use]
    pub fn program(&self, program: &str, args: &[&str]) -> Outcome {
        let path = format!("{}:{}", self.bin.display(), std::env::var("PATH").unwrap());
        let output = new(program)
            .args(args)
            .env("BANGER_HOME", &self.home)
            .env("PATH", path)
            .output()
            .unwrap();
        Outcome::new(format!("{program} {}", args.join(" ")), output)
    }

    /// A home of this user's with this world's images, kernels and configuration, and no VMs.
    pub fn give_artifacts(&self, home: &Path, uid: u32) {
        let from = |part: &str| self.home.join(part).to_str().unwrap().to_owned();
        fs::create_dir_all(home.join("state")).unwrap();
        let state = home.join("state").to_str().unwrap().to_owned();
        for part in ["state/images", "state/kernels", "state/banger.db"] {
            run("cp", &["--archive", "--sparse=always", &from(part), &state]);
        }
        let home = home.to_str().unwrap();
        run("cp", &["--archive", &from("config"), home]);
        run("chown", &["--recursive", &format!("{uid}:{uid}"), home]);
    }

    /// Its id: the first part of every mark.
    #[must_use]
    pub fn installation(&self) -> &str {
        &self.installation
    }

    #[must_use]
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// Tries each by its name, then fails if one has failed.
    pub fn each(&self, claims: &[Claim]) {
        let fails = |claim: fn(&World)| catch_unwind(AssertUnwindSafe(|| claim(self))).is_err();
        let mut failed = Vec::new();
        for (name, claim) in claims {
            println!("{name}");
            if fails(*claim) {
                failed.push(*name);
            }
        }
        assert!(failed.is_empty(), "failed: {}", failed.join(", "));
    }

    /// A running VM of this image and name.
    #[track_caller]
    pub fn start(&self, image: &str, name: &str) {
        self.banger(["vm", "run", "-d", "--image", image, "--memory", "512M", "--name", name])
            .succeeds();
    }

    /// `vm run --rm` whose command has begun and does not end by itself.
    #[must_use]
    #[track_caller]
    pub fn ephemeral_session(&self) -> Background {
        let command = ["sh", "-c", "echo up; sleep 1000"];
        let run = ["vm", "run", "--rm", "--image", crate::BUSYBOX, "--"];
        let mut session = self.background(&[&run[..], &command[..]].concat());
        assert_eq!(session.line(), "up");
        session
    }

    /// What `vm show` says of it.
    #[must_use]
    #[track_caller]
    pub fn vm(&self, name: &str) -> serde_json::Value {
        self.banger(["vm", "show", name, "--format", "json"]).succeeds().json()
    }

    /// Every VM there is.
    #[must_use]
    #[track_caller]
    pub fn vms(&self) -> Vec<serde_json::Value> {
        let listed = self.banger(["vm", "list", "--format", "json"]).succeeds().json();
        listed.as_array().unwrap().clone()
    }

    #[must_use]
    #[track_caller]
    pub fn state(&self, name: &str) -> String {
        self.vm(name)["state"].as_str().unwrap().to_owned()
    }

    /// Waits until the VM is in this state.
    #[track_caller]
    pub fn wait_for_state(&self, name: &str, state: &str, most: Duration) {
        wait_until(&format!("{name} is {state}"), most, || self.state(name) == state);
    }

    /// The folder of a VM: its disk and its logs.
    #[must_use]
    pub fn vm_folder(&self, name: &str) -> PathBuf {
        let id = self.vm(name)["id"].as_str().unwrap().to_owned();
        self.home.join("state/vms").join(format!("bg{}-{id}", self.installation))
    }

    #[must_use]
    #[track_caller]
    pub fn daemon_pid(&self) -> Pid {
        let status = self.banger(["daemon", "status", "--format", "json"]).succeeds().json();
        Pid::from_raw(i32::try_from(status["pid"].as_i64().unwrap()).unwrap()).unwrap()
    }

    /// The daemon dies without a chance to do anything.
    #[track_caller]
    pub fn kill_daemon(&self) {
        let pid = self.daemon_pid();
        kill_process(pid, Signal::KILL).unwrap();
        // Its memory goes first and its socket last: what connects in between is accepted by nobody, and reset.
        let socket = self.home.join("run/banger.sock");
        wait_until("the daemon's socket refuses", Duration::from_secs(20), || {
            UnixStream::connect(&socket).is_err()
        });
    }

    /// Pids of this world's VMMs.
    #[must_use]
    pub fn vmm_pids(&self) -> Vec<Pid> {
        Backend::here().vmm_pids(&self.installation)
    }

    /// What runs for this world: VMMs, jailed or not, and the writers of their logs.
    #[must_use]
    pub fn processes(&self) -> Vec<String> {
        processes_marked(&self.installation)
    }

    /// The filesystem on the disk of a stopped VM needs no repair and no recovery.
    #[track_caller]
    pub fn disk_is_clean(&self, name: &str) {
        let disk = self.vm_folder(name).join("disk.ext4");
        let checked = match Backend::here().disk_driver() {
            "overlay" => self.program("e2fsck", &["-f", "-n", disk.to_str().unwrap()]),
            _ => self.check_snapshot(name, &disk),
        };
        checked.succeeds();
        assert!(!checked.text().contains("recover"), "{checked}");
    }

    /// Puts image and written blocks together as banger does, by other programs than banger's.
    fn check_snapshot(&self, name: &str, written: &Path) -> Outcome {
        let vm = self.vm(name);
        let sectors = vm["disk_bytes"].as_u64().unwrap() / 512;
        let image =
            self.banger(["image", "show", vm["image"].as_str().unwrap(), "--format", "json"]);
        let digest = image.succeeds().json()["digest"].as_str().unwrap().to_owned();
        let image = self.home.join(format!("state/images/{digest}.ext4"));
        let script = "set -e; image=$(losetup -f -r --show \"$1\"); written=$(losetup -f --show \"$2\"); \
                      size=$(blockdev --getsz $image); \
                      printf '0 %s linear %s 0\n%s %s zero\n' $size $image $size $(($3 - size)) | dmsetup create check-origin; \
                      dmsetup create check --table \"0 $3 snapshot /dev/mapper/check-origin $written P 8\"; \
                      e2fsck -f -n /dev/mapper/check && status=0 || status=$?; \
                      dmsetup remove --retry check; dmsetup remove --retry check-origin; losetup -d $image $written; exit $status";
        let (image, written) = (image.to_str().unwrap(), written.to_str().unwrap());
        self.program("sh", &["-c", script, "-", image, written, &sectors.to_string()])
    }

    /// Programs that work for this world's daemon, such as mmdebstrap and what it has started.
    #[must_use]
    pub fn working_programs(&self) -> Vec<String> {
        let mark = format!("BANGER_MAKING=bg{}", self.installation);
        let marked = |path: &Path| {
            let environment = fs::read(path.join("environ")).unwrap_or_default();
            environment.split(|&byte| byte == 0).any(|word| word == mark.as_bytes())
        };
        let processes = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
        let found = processes.filter(|path| marked(path));
        found.map(|path| fs::read_to_string(path.join("comm")).unwrap_or_default()).collect()
    }

    #[track_caller]
    pub fn delete_all(&self) {
        let names: Vec<String> =
            self.vms().iter().map(|vm| vm["name"].as_str().unwrap().to_owned()).collect();
        if names.is_empty() {
            return;
        }
        let args: Vec<&str> =
            ["vm", "delete"].into_iter().chain(names.iter().map(String::as_str)).collect();
        self.banger_with(&args, b"").succeeds();
    }

    /// Whatever is on the host is in the ledger.
    #[track_caller]
    pub fn no_strays(&self) {
        let strays = self.banger(["doctor", "--format", "json"]).json();
        let finding = strays["findings"]
            .as_array()
            .unwrap()
            .iter()
            .find(|finding| finding["check"] == "strays")
            .unwrap();
        assert_eq!(finding["verdict"], "PASS", "{finding}");
    }

    /// No process, folder, socket or stray of this world's, and its network is as it was.
    #[track_caller]
    pub fn nothing_is_left(&self) {
        assert_eq!(self.vms(), Vec::<serde_json::Value>::new());
        self.no_strays();
        assert_eq!(self.processes(), Vec::<String>::new());
        assert_eq!(cgroups(&self.installation), Vec::<PathBuf>::new());
        if let Some(before) = &self.network {
            assert_eq!(&network::state(), before);
        }
        for folder in ["state/vms", "run/vms", "state/jails/firecracker"] {
            if !self.home.join(folder).exists() {
                continue;
            }
            let left: Vec<_> =
                fs::read_dir(self.home.join(folder)).unwrap().flatten().map(|e| e.path()).collect();
            assert_eq!(left, Vec::<PathBuf>::new());
        }
    }

    fn show_logs(&self) {
        for (title, path) in [("the daemon's log", self.home.join("state/bangerd.log"))]
            .into_iter()
            .chain(self.consoles())
        {
            let text = fs::read(&path).unwrap_or_default();
            let tail = &text[text.len().saturating_sub(6000)..];
            println!("=== {title}: {}\n{}", path.display(), String::from_utf8_lossy(tail));
        }
    }

    fn consoles(&self) -> Vec<(&'static str, PathBuf)> {
        let folders = fs::read_dir(self.home.join("state/vms")).into_iter().flatten().flatten();
        folders.map(|folder| ("a console", folder.path().join("console.log"))).collect()
    }

    /// Ends whatever is left of this world.
    fn take_down(&self) {
        drop(self.banger(["daemon", "stop"]));
        for mount in fs::read_to_string("/proc/mounts")
            .unwrap()
            .lines()
            .filter_map(|line| line.split(' ').nth(1))
        {
            if Path::new(mount).starts_with(&self.home) {
                drop(self.program("umount", &["--lazy", mount]));
            }
        }
        for pid in self.vmm_pids() {
            let _gone = kill_process(pid, Signal::KILL);
        }
    }
}

fn link_tree(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            fs::create_dir_all(&target).unwrap();
            link_tree(&entry.path(), &target);
        } else {
            // A test's folder may be on another filesystem than the cache.
            if fs::hard_link(entry.path(), &target).is_err() {
                let (from, to) = (entry.path(), target);
                run("cp", &["--sparse=always", from.to_str().unwrap(), to.to_str().unwrap()]);
            }
        }
    }
}

/// A program that runs beside the test.
#[derive(Debug)]
pub struct Background {
    child: Child,
    command: String,
}

impl Background {
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Its stdin, to write to or to close.
    pub fn stdin(&mut self) -> std::process::ChildStdin {
        self.child.stdin.take().unwrap()
    }

    /// Reads one line of its stdout: the event that a test waits for.
    #[track_caller]
    pub fn line(&mut self) -> String {
        use std::io::Read;
        let out = self.child.stdout.as_mut().unwrap();
        let mut line = Vec::new();
        let mut byte = [0];
        while out.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
            line.push(byte[0]);
        }
        String::from_utf8_lossy(&line).into_owned()
    }

    /// Waits for its end.
    #[must_use]
    pub fn end(self) -> Outcome {
        Outcome::new(self.command, self.child.wait_with_output().unwrap())
    }
}
