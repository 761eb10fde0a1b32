//! Guests under a real, bare Firecracker, with our kernel, initramfs and agent. Where KVM runs guests only: built with the
//! feature `test-host`, and run with the folder of a state in `BANGER_TEST_STATE`, which holds
//!
//! ```text
//! kernels/k/vmlinux, initramfs/k.cpio    as imported and made by banger-image
//! images/busybox.ext4                    without an init, with /bin/sh
//! images/systemd.ext4
//! ```
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use banger_api::VmId;
use banger_api::exec::{FromAgent, Start, ToAgent, Word};
use banger_host::{Claim, Installation, Mark, StateFile, VmSocket};
use banger_storage::{Driver, Overlay, Reflink};
use banger_vmm::channel::Mux;
use banger_vmm::firecracker::{self, InstanceState, Version};
use banger_vmm::{Channel, Firecracker, Machine, Ready, Vmm, pause};
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use rustix::fs::inotify;
use tokio::process::{Child, Command};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

/// A nested, translated guest is slow.
const DEADLINE: Duration = Duration::from_secs(120);

struct Vm {
    vmm: Firecracker,
    machine: Machine,
    run_folder: PathBuf,
    process: Child,
    _runs: tempfile::TempDir,
}

fn state() -> PathBuf {
    std::env::var_os("BANGER_TEST_STATE").expect("BANGER_TEST_STATE names a folder").into()
}

#[expect(clippy::disallowed_methods, reason = "a test may start programs")]
fn program(name: &str) -> Command {
    let mut command = Command::new(name);
    command.kill_on_drop(true);
    command
}

impl Vm {
    /// Firecracker runs and listens; it was told nothing.
    async fn new(driver: &dyn Driver, image: &str, init: &str) -> Self {
        let state = state();
        let mark = Mark::new(Installation::random().unwrap(), VmId::random().unwrap());
        let image = StateFile::parse(&format!("images/{image}.ext4")).unwrap();
        let disk = StateFile::disk(&mark).below(&state);
        std::fs::create_dir_all(disk.parent().unwrap()).unwrap();
        if driver.begins_as_image() {
            std::fs::copy(image.below(&state), &disk).unwrap();
        } else {
            let file = std::fs::File::create(&disk).unwrap();
            file.set_len(256 << 20).unwrap();
            let made = program("mke2fs").args(["-q", "-F", "-t", "ext4"]).arg(&disk).status();
            assert!(made.await.unwrap().success());
        }
        let machine = Machine {
            cpus: 1,
            memory_mib: 256,
            kernel: StateFile::parse("kernels/k/vmlinux").unwrap(),
            initramfs: StateFile::parse("initramfs/k.cpio").unwrap(),
            agent_words: vec![
                format!("banger.root={}", driver.root()),
                format!("banger.init={init}"),
                "banger.name=box".into(),
            ],
            drives: driver.drives(&mark, &image),
            storage: driver.run_claims(&mark, &image, 256 << 20),
            uid: None,
            network: None,
            user_network: None,
            log_limit_bytes: 1 << 20,
            state,
            mark,
        };
        let runs = tempfile::tempdir().unwrap();
        let program = std::env::var_os("BANGER_TEST_FIRECRACKER")
            .unwrap_or_else(|| "/usr/local/bin/firecracker".into());
        let version = Version::parse("1.12.1").unwrap();
        let vmm = Firecracker::bare(version, program.into(), runs.path().to_owned()).unwrap();
        let run_folder = runs.path().join(machine.mark.to_string());
        std::fs::create_dir(&run_folder).unwrap();
        let process = start(&vmm, &machine, &run_folder).await;
        Self { vmm, machine, run_folder, process, _runs: runs }
    }

    fn connect(&self, socket: &VmSocket) -> UnixStream {
        let VmSocket::RunFolder(name) = socket else { panic!("a bare one has no jail") };
        UnixStream::connect(self.run_folder.join(name)).unwrap()
    }

    fn api(&self) -> UnixStream {
        self.connect(&self.vmm.api().unwrap())
    }

    async fn boot(&self) {
        self.vmm.boot(&self.machine, self.api()).await.unwrap();
    }

    /// One connection, made now.
    async fn agent(&self) -> (Channel, Ready) {
        let agent = self.vmm.agent();
        let deadline = tokio::time::Instant::now() + DEADLINE;
        match Mux::connect(self.connect(&agent.socket), agent.carrier, deadline).await {
            Ok((mux, ready)) => (Channel::Mux(mux), ready),
            Err(error) => panic!("{error}\n{}", self.console()),
        }
    }

    fn console(&self) -> String {
        let text = std::fs::read(self.run_folder.join("console")).unwrap();
        String::from_utf8_lossy(&text).into_owned()
    }

    async fn ends(mut self) -> String {
        match tokio::time::timeout(DEADLINE, self.process.wait()).await {
            Ok(status) => assert_eq!(status.unwrap().code(), Some(0), "{}", self.console()),
            Err(_) => panic!("Firecracker still runs\n{}", self.console()),
        }
        let disk = StateFile::disk(&self.machine.mark).below(&self.machine.state);
        let checked = program("e2fsck").args(["-f", "-n"]).arg(&disk).output().await.unwrap();
        let said = String::from_utf8_lossy(&checked.stdout);
        assert!(checked.status.success(), "the disk is not clean: {said}\n{}", self.console());
        assert!(!said.contains("recovering journal"), "{said}\n{}", self.console());
        std::fs::remove_dir_all(disk.parent().unwrap()).unwrap();
        self.console()
    }
}

/// Starts what the VMM's claim says, and returns when it has made its socket.
async fn start(vmm: &Firecracker, machine: &Machine, run_folder: &Path) -> Child {
    let claims = vmm.claims(machine);
    let claim = claims.iter().find_map(|claim| match claim {
        Claim::Vmm(vmm) => Some(vmm),
        _ => None,
    });
    let claim = claim.unwrap();
    let created = inotify::init(inotify::CreateFlags::CLOEXEC).unwrap();
    inotify::add_watch(&created, run_folder, inotify::WatchFlags::CREATE).unwrap();
    let console = std::fs::File::create(run_folder.join("console")).unwrap();
    let process = program(claim.program.to_str().unwrap())
        .args(&claim.args)
        .current_dir("/")
        .stdin(std::process::Stdio::null())
        .stdout(console.try_clone().unwrap())
        .stderr(console)
        .spawn()
        .unwrap();
    let socket = run_folder.join(claim.makes.as_ref().unwrap());
    let appears = tokio::task::spawn_blocking(move || {
        while !socket.exists() {
            rustix::io::read(&created, &mut [0; 4096]).unwrap();
        }
    });
    tokio::time::timeout(DEADLINE, appears).await.unwrap().unwrap();
    process
}

async fn call(channel: &Channel, method: Method, path: &str) -> (StatusCode, Bytes) {
    let stream = channel.open().await.unwrap();
    let (mut requests, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    drop(tokio::spawn(connection));
    let request = Request::builder().method(method).uri(path).header("host", "agent");
    let reply = requests.send_request(request.body(Empty::<Bytes>::new()).unwrap()).await.unwrap();
    let (head, body) = reply.into_parts();
    (head.status, body.collect().await.unwrap().to_bytes())
}

/// What the script wrote to stdout, and its status.
async fn exec(channel: &Channel, script: &str) -> (String, u8) {
    let request = "ws://agent/v1/exec".into_client_request().unwrap();
    let stream = channel.open().await.unwrap();
    let (mut socket, _) = tokio_tungstenite::client_async(request, stream).await.unwrap();
    let argv = ["/bin/sh", "-c", script].map(|text| Word::new(text).unwrap()).to_vec();
    let start = ToAgent::Start(Box::new(Start { argv, no_stdin: true, ..Start::default() }));
    socket.send(Message::Binary(start.encode())).await.unwrap();
    let mut stdout = Vec::new();
    loop {
        let Some(Ok(Message::Binary(bytes))) = socket.next().await else { panic!("no frame") };
        match FromAgent::decode(&bytes).unwrap() {
            FromAgent::Stdout(bytes) => stdout.extend(bytes),
            FromAgent::Exit(exit) => return (String::from_utf8(stdout).unwrap(), exit.status),
            // A program may say something, as systemctl does where it may not look.
            FromAgent::Stderr(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn one_connection_made_after_the_start_becomes_ready_with_the_guest() {
    let vm = Vm::new(&Overlay, "busybox", "agent").await;
    assert_eq!(firecracker::state(vm.api()).await.unwrap(), InstanceState::NotStarted);
    vm.boot().await;
    let started = Instant::now();
    assert_eq!(firecracker::state(vm.api()).await.unwrap(), InstanceState::Running);
    let (channel, ready) = vm.agent().await;
    println!(
        "overlay: READY {} ms after InstanceStart was answered",
        started.elapsed().as_millis()
    );
    assert_eq!(ready.version, banger_api::VERSION);
    assert_eq!(exec(&channel, "hostname; exit 3").await, ("box\n".into(), 3));
    for paused in [true, false] {
        pause::set_paused(&vm.vmm.name(), vm.api(), paused).await.unwrap();
        assert_eq!(pause::is_paused(&vm.vmm.name(), vm.api()).await.unwrap(), paused);
    }
    let (boot_id, _) = exec(&channel, "cat /proc/sys/kernel/random/boot_id").await;
    assert_eq!(boot_id.trim(), ready.boot_id);
    let (status, health) = call(&channel, Method::GET, "/v1/health").await;
    assert_eq!(status, StatusCode::OK, "{health:?}");
    let (text, status) =
        exec(&channel, "head -c 8000000 /dev/zero | wc -c; head -c 8000000 /dev/zero").await;
    assert_eq!((text.len(), status), (8_000_008, 0));
    call(&channel, Method::POST, "/v1/shutdown").await;
    let console = vm.ends().await;
    assert!(!console.contains("banger-agent:"), "{console}");
}

#[tokio::test]
async fn a_daemon_that_comes_back_is_answered_at_once_and_the_connection_before_it_ends() {
    let vm = Vm::new(&Overlay, "busybox", "agent").await;
    vm.boot().await;
    let (first, ready) = vm.agent().await;
    // A daemon that died without a word: its end is closed by its kernel.
    drop(first);
    let (second, again) = vm.agent().await;
    assert_eq!(ready, again);
    assert_eq!(exec(&second, "exit 4").await.1, 4);
    // One that lives on while another comes, and one that only looks.
    drop(vm.connect(&vm.vmm.agent().socket));
    let (third, _) = vm.agent().await;
    tokio::time::timeout(DEADLINE, second.closed()).await.unwrap();
    assert_eq!(exec(&third, "exit 5").await.1, 5);
    call(&third, Method::POST, "/v1/shutdown").await;
    vm.ends().await;
}

#[tokio::test]
async fn a_disk_that_is_the_root_is_found_and_a_poweroff_inside_ends_the_vmm() {
    let vm = Vm::new(&Reflink, "busybox", "agent").await;
    vm.boot().await;
    let (channel, _) = vm.agent().await;
    let (mounts, _) = exec(&channel, "cat /proc/mounts").await;
    assert!(mounts.contains("/dev/vda / ext4 rw"), "{mounts}");
    let _ends = exec(&channel, "echo kept > /kept; sync; poweroff").await;
    vm.ends().await;
}

#[tokio::test]
async fn systemd_comes_up_and_its_poweroff_ends_the_vmm() {
    let vm = Vm::new(&Overlay, "systemd", "/sbin/init").await;
    vm.boot().await;
    let started = Instant::now();
    let (channel, _) = vm.agent().await;
    println!(
        "systemd: READY {} ms after InstanceStart was answered",
        started.elapsed().as_millis()
    );
    let (status, init) = call(&channel, Method::GET, "/v1/init").await;
    assert_eq!(status, StatusCode::OK);
    println!(
        "systemd: {} after {} ms",
        String::from_utf8_lossy(&init),
        started.elapsed().as_millis()
    );
    let _ends = exec(&channel, "systemctl poweroff").await;
    vm.ends().await;
}

#[tokio::test]
async fn systemd_is_asked_to_end_and_does() {
    let vm = Vm::new(&Reflink, "systemd", "/sbin/init").await;
    vm.boot().await;
    let (channel, _) = vm.agent().await;
    call(&channel, Method::POST, "/v1/shutdown").await;
    vm.ends().await;
}

#[tokio::test]
async fn a_vmm_that_runs_its_guest_takes_no_second_machine() {
    let vm = Vm::new(&Overlay, "busybox", "agent").await;
    vm.boot().await;
    let error = vm.vmm.boot(&vm.machine, vm.api()).await.unwrap_err().to_string();
    assert!(
        error.starts_with("Firecracker refuses PUT /machine-config with status 400"),
        "{error}"
    );
    let (channel, _) = vm.agent().await;
    call(&channel, Method::POST, "/v1/shutdown").await;
    vm.ends().await;
}
