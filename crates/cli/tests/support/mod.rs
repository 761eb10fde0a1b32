//! A daemon that knows three VMs and says what a test wants to see shown, on a real socket; and `banger` beside it.
//!
//! It has no VMs: what a daemon really does is tested with the real one.

#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::BTreeMap;
use std::io::Write;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::{Arc, Condvar, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path as Segment, Request, State};
use axum::http::{Response, StatusCode};
use axum::routing::{any, delete, get, post};
use banger_api::exec::{FromAgent, ToAgent};
use banger_api::image::Config;
use banger_api::operation::Event;
use banger_api::vm::{self, Vm};
use banger_api::{
    Code, Egress, ImageName, KernelName, NetworkName, OperationId, Problem, Size, VERSION_HEADER,
    VmId, VmName, version_line,
};
use futures_util::{SinkExt, StreamExt};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde_json::json;
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

/// The fake guest's side of one exec: gets every frame, and sends what it likes.
pub(crate) type Agent =
    fn(mpsc::UnboundedReceiver<ToAgent>, mpsc::Sender<FromAgent>) -> tokio::task::JoinHandle<()>;

pub(crate) struct World {
    home: tempfile::TempDir,
    /// Where `banger` and perhaps a `bangerd` are, and nothing that a build put beside them.
    programs: tempfile::TempDir,
    requests: Arc<Requests>,
}

/// Every request, as `METHOD path body`.
#[derive(Default)]
pub(crate) struct Requests {
    seen: Mutex<Vec<String>>,
    came: Condvar,
}

#[derive(Clone)]
struct Daemon {
    requests: Arc<Requests>,
    agent: Option<Agent>,
}

impl World {
    /// A home where no daemon runs, and none can be started.
    pub(crate) fn without_daemon() -> Self {
        // On the file system of the build, so that the program need not be copied.
        let programs = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        std::fs::hard_link(env!("CARGO_BIN_EXE_banger"), programs.path().join("banger")).unwrap();
        Self { home: tempfile::tempdir().unwrap(), programs, requests: Arc::default() }
    }

    /// A home where no daemon runs, and a program of `tests/daemons` would be started.
    pub(crate) fn with_program(name: &str) -> Self {
        let world = Self::without_daemon();
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/daemons").join(name);
        std::os::unix::fs::symlink(program, world.programs.path().join("bangerd")).unwrap();
        world
    }

    pub(crate) fn with_daemon() -> Self {
        Self::serve(None)
    }

    pub(crate) fn with_agent(agent: Agent) -> Self {
        Self::serve(Some(agent))
    }

    fn serve(agent: Option<Agent>) -> Self {
        let world = Self::without_daemon();
        std::fs::create_dir_all(world.socket().parent().unwrap()).unwrap();
        let listener = std::os::unix::net::UnixListener::bind(world.socket()).unwrap();
        listener.set_nonblocking(true).unwrap();
        let daemon = Daemon { requests: Arc::clone(&world.requests), agent };
        std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::UnixListener::from_std(listener).unwrap();
                axum::serve(listener, router(daemon)).await.unwrap();
            });
        });
        world
    }

    pub(crate) fn home(&self) -> &Path {
        self.home.path()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.home.path().join("run/banger.sock")
    }

    fn program(&self) -> PathBuf {
        self.programs.path().join("banger")
    }

    /// `banger` with these words, in this home and in no terminal.
    pub(crate) fn banger(&self, words: &[&str]) -> snapbox::cmd::Command {
        snapbox::cmd::Command::new(self.program())
            .args(words)
            .env_clear()
            .env("BANGER_HOME", self.home.path())
            .env("PATH", "/nowhere")
            .timeout(std::time::Duration::from_secs(30))
    }

    /// `banger` with these words, its files ours to hold.
    pub(crate) fn spawn(
        &self,
        words: &[&str],
        stdin: Stdio,
        stdout: Stdio,
        stderr: Stdio,
    ) -> Child {
        #[expect(
            clippy::disallowed_methods,
            reason = "the one place where these tests start programs"
        )]
        let mut command = std::process::Command::new(self.program());
        command
            .args(words)
            .env_clear()
            .env("BANGER_HOME", self.home.path())
            .env("TERM", "xterm-test");
        command.stdin(stdin).stdout(stdout).stderr(stderr).spawn().unwrap()
    }

    /// `banger` with a file that it inherits as descriptor `number`.
    pub(crate) fn spawn_with_file(
        &self,
        words: &[&str],
        file: OwnedFd,
        number: i32,
        stderr: Stdio,
    ) -> Child {
        use command_fds::{CommandFdExt, FdMapping};
        #[expect(
            clippy::disallowed_methods,
            reason = "the one place where these tests give a program a file"
        )]
        let mut command = std::process::Command::new(self.program());
        command
            .args(words)
            .env_clear()
            .env("BANGER_HOME", self.home.path())
            .stdin(Stdio::null())
            .stderr(stderr);
        command.fd_mappings(vec![FdMapping { parent_fd: file, child_fd: number }]).unwrap();
        command.spawn().unwrap()
    }

    /// `banger` on a terminal of its own, as its session's leader; the other end of the terminal.
    pub(crate) fn spawn_on_terminal(&self, words: &[&str]) -> (Child, std::fs::File) {
        use std::os::unix::process::CommandExt;
        let (ours, theirs) = terminal();
        #[expect(
            clippy::disallowed_methods,
            reason = "the one place where these tests start programs on a terminal"
        )]
        let mut command = std::process::Command::new("/usr/bin/setsid");
        command.arg("--ctty").arg("--wait").arg(self.program()).args(words);
        command
            .env_clear()
            .env("BANGER_HOME", self.home.path())
            .env("TERM", "xterm-test")
            .process_group(0);
        let clone = |fd: &OwnedFd| Stdio::from(fd.try_clone().unwrap());
        command.stdin(clone(&theirs)).stdout(clone(&theirs)).stderr(clone(&theirs));
        (command.spawn().unwrap(), std::fs::File::from(ours))
    }

    pub(crate) fn saw(&self, request: &str) -> bool {
        self.requests().iter().any(|seen| seen.starts_with(request))
    }

    pub(crate) fn requests(&self) -> std::sync::MutexGuard<'_, Vec<String>> {
        self.requests.seen.lock().unwrap()
    }

    /// Until the daemon has got a request that begins so.
    pub(crate) fn wait_for(&self, request: &str) {
        let deadline = std::time::Duration::from_secs(30);
        let missing = |seen: &mut Vec<String>| !seen.iter().any(|seen| seen.starts_with(request));
        let (_seen, result) =
            self.requests.came.wait_timeout_while(self.requests(), deadline, missing).unwrap();
        assert!(!result.timed_out(), "no {request} came");
    }
}

/// Both ends of a new pseudo-terminal of 33 rows and 99 columns.
pub(crate) fn terminal() -> (OwnedFd, OwnedFd) {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&ours).unwrap();
    unlockpt(&ours).unwrap();
    let name = ptsname(&ours, Vec::new()).unwrap();
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC;
    let theirs = rustix::fs::open(name, flags, rustix::fs::Mode::empty()).unwrap();
    resize(&ours, 33, 99);
    (ours, theirs)
}

pub(crate) fn resize(terminal: &impl std::os::fd::AsFd, rows: u16, columns: u16) {
    let size =
        rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(terminal, size).unwrap();
}

async fn refused() -> Response<Body> {
    let at = "2026-01-31T12:03:11.25Z";
    let address = "203.0.113.9";
    let refused = json!([
        { "at": at, "what": { "name": "evil.example" } },
        { "at": at, "what": { "tcp": { "address": address, "port": 443 } } },
        { "at": at, "what": { "udp": { "address": address, "port": 53 } } },
    ]);
    json_reply(StatusCode::OK, &refused)
}

fn router(daemon: Daemon) -> Router {
    Router::new()
        .route("/v1/vms", get(list).post(create))
        .route("/v1/vms/prune", post(prune))
        .route("/v1/vms/{vm}", get(show).delete(remove).patch(change))
        .route("/v1/vms/{vm}/ports", get(ports))
        .route("/v1/vms/{vm}/stats", get(stats))
        .route("/v1/vms/{vm}/logs", get(|| async { "one\ntwo\n" }))
        .route("/v1/vms/{vm}/refused", get(refused))
        .route("/v1/vms/{vm}/exec", any(exec))
        .route("/v1/vms/{vm}/{act}", post(act))
        .route("/v1/images", get(|| async { json_reply(StatusCode::OK, &json!([])) }))
        .route("/v1/images/{name}", delete(|Segment(name): Segment<String>| async move {
            problem(StatusCode::CONFLICT, &Problem::new(Code::Conflict, format!("image {name} is used by web")))
        }))
        .route("/v1/doctor", get(|| async {
            json_reply(StatusCode::OK, &json!({"findings": [
                {"check": "kvm", "verdict": "WARN", "text": "no guest runs", "remedy": "use a host with KVM"},
                {"check": "qemu", "verdict": "PASS", "text": "7.2"},
            ]}))
        }))
        .layer(axum::middleware::from_fn_with_state(daemon.clone(), record))
        .with_state(daemon)
}

async fn record(
    State(daemon): State<Daemon>,
    request: Request,
    next: axum::middleware::Next,
) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let bytes = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    let seen = format!("{} {} {}", parts.method, parts.uri, String::from_utf8_lossy(&bytes));
    daemon.requests.seen.lock().unwrap().push(seen);
    daemon.requests.came.notify_all();
    let mut reply = next.run(Request::from_parts(parts, Body::from(bytes))).await;
    reply.headers_mut().insert(VERSION_HEADER, version_line().parse().unwrap());
    reply
}

/// `web` runs, `db` is stopped, `old` is in error; there are no others.
fn vms() -> BTreeMap<&'static str, Vm> {
    [("web", vm::State::Running), ("db", vm::State::Stopped), ("old", vm::State::Error)]
        .into_iter()
        .map(|(name, state)| (name, vm(name, state)))
        .collect()
}

fn vm(name: &str, state: vm::State) -> Vm {
    Vm {
        id: VmId::parse("0123abcd").unwrap(),
        name: VmName::parse(name).unwrap(),
        state,
        image: ImageName::parse("debian:bookworm").unwrap(),
        init: Some("/sbin/init".to_owned()),
        config: Config::default(),
        entrypoint: false,
        kernel: KernelName::parse("6.1.0-56-cloud-amd64").unwrap(),
        cpus: 2,
        memory_bytes: Size::gib(1),
        disk_bytes: Size::gib(8),
        network: Some(NetworkName::parse("default").unwrap()),
        address: Some(Ipv4Addr::new(10, 213, 0, 2)),
        ipv6: (state == vm::State::Running).then(|| "fd12:3456:789a::ad5:2".parse().unwrap()),
        nat: false,
        published: Vec::new(),
        exposed: [].into(),
        workspace: None,
        egress: Egress::None,
        labels: match name {
            "db" => serde_json::from_value(json!({"ci": "1", "team": "data"})).unwrap(),
            "old" => serde_json::from_value(json!({"ci": "2"})).unwrap(),
            _ => [].into(),
        },
        expires_at: (name == "old")
            .then(|| jiff::Timestamp::now() + jiff::SignedDuration::from_mins(90)),
        auto_stop: Default::default(),
        ephemeral: false,
        created_at: jiff::Timestamp::now() - jiff::SignedDuration::from_hours(50),
        started_at: None,
        boot_id: None,
        vmm: None,
        problem: (state == vm::State::Error).then(|| {
            Problem::new(Code::Leftover, "cannot remove the disk").remedy("delete it again")
        }),
    }
}

fn json_reply(status: StatusCode, value: &impl Serialize) -> Response<Body> {
    Response::builder().status(status).body(Body::from(serde_json::to_vec(value).unwrap())).unwrap()
}

fn problem(status: StatusCode, problem: &Problem) -> Response<Body> {
    json_reply(status, problem)
}

fn no_such(vm: &str) -> Response<Body> {
    problem(
        StatusCode::NOT_FOUND,
        &Problem::new(Code::NotFound, format!("there is no VM {vm}"))
            .remedy("see `banger vm list`"),
    )
}

fn events(events: &[Event]) -> Response<Body> {
    let mut lines = Vec::new();
    for event in events {
        serde_json::to_writer(&mut lines, event).unwrap();
        lines.write_all(b"\n").unwrap();
    }
    Response::builder().body(Body::from(lines)).unwrap()
}

fn operation() -> OperationId {
    OperationId::parse("0p0p0p0p").unwrap()
}

fn work(stage: &str, result: &impl Serialize) -> Response<Body> {
    events(&[
        Event::Started { operation: operation() },
        Event::Stage { name: "work".into(), text: stage.into() },
        Event::Done { result: serde_json::to_value(result).unwrap(), stages: Vec::new() },
    ])
}

async fn list() -> Response<Body> {
    json_reply(StatusCode::OK, &vms().into_values().collect::<Vec<_>>())
}

async fn show(Segment(name): Segment<String>) -> Response<Body> {
    match vms().get(name.as_str()) {
        Some(vm) => json_reply(StatusCode::OK, vm),
        None => no_such(&name),
    }
}

/// A web server, a database, one whose place is taken, and one that nobody serves.
async fn ports() -> Response<Body> {
    let socket = |port: u16, address: &str, process: &str, at: Option<&str>, url: Option<&str>| {
        json!({"protocol": "tcp", "address": address, "port": port, "process": process,
               "speaks": null, "reached_at": at, "url": url})
    };
    let published = |host: u16, guest: u16, problem: Option<Problem>| {
        let port = json!({"address": "127.0.0.1", "host": host, "guest": guest, "protocol": "tcp"});
        json!({"port": port, "problem": problem})
    };
    let taken = Problem::new(Code::Conflict, "port 127.0.0.1:9001 of this host is taken");
    json_reply(
        StatusCode::OK,
        &json!({
            "listening": [
                socket(80, "0.0.0.0", "nginx", Some("web.vm:80"), Some("http://web.vm:80")),
                socket(22, "::", "sshd", Some("web.vm:22"), None),
                socket(5432, "127.0.0.1", "postgres", None, None),
            ],
            "published": [
                published(8080, 80, None),
                published(9000, 90, None),
                published(9001, 91, Some(taken)),
            ],
        }),
    )
}

async fn create(body: Bytes) -> Response<Body> {
    let request: vm::CreateVm = serde_json::from_slice(&body).unwrap();
    let name = request.name.map_or_else(|| "brave-otter".to_owned(), String::from);
    match name.as_str() {
        "doomed" => events(&[
            Event::Started { operation: operation() },
            Event::Failed {
                problem: Problem::new(Code::Guest, "cannot start doomed")
                    .because("the guest's kernel did not boot")
                    .remedy("see `banger vm logs doomed`"),
            },
        ]),
        // Begins, and is never heard of again.
        "endless" => {
            let mut line = serde_json::to_vec(&Event::Started { operation: operation() }).unwrap();
            line.push(b'\n');
            let first =
                futures_util::stream::once(async { Ok::<_, std::io::Error>(Bytes::from(line)) });
            let body = first.chain(futures_util::stream::pending());
            Response::builder().body(Body::from_stream(body)).unwrap()
        }
        "cut-off" => events(&[Event::Started { operation: operation() }]),
        _ => work("booting the guest", &vm(&name, vm::State::Running)),
    }
}

async fn remove(Segment(name): Segment<String>) -> Response<Body> {
    match name.as_str() {
        "web" | "db" | "old" | "0123abcd" => work("deleting", &json!({})),
        _ => no_such(&name),
    }
}

async fn stats(Segment(name): Segment<String>) -> Response<Body> {
    if name != "web" && name != "0123abcd" {
        let text = format!("VM {name} is stopped, and uses nothing but its disk");
        return problem(StatusCode::CONFLICT, &Problem::new(Code::WrongState, text));
    }
    json_reply(
        StatusCode::OK,
        &json!({
            "name": "web", "state": "running", "at": "2026-01-31T12:00:00Z", "cpus": 2, "cpu_percent": 130,
            "cpu_time_us": 5_000_000, "memory_bytes": 1_u64 << 30, "memory_host_bytes": 700_u64 << 20,
            "disk_bytes": 8_u64 << 30, "disk_host_bytes": 300_u64 << 20,
            "network": {"received_bytes": 5 << 20, "sent_bytes": 2048},
            "guest": {"memory_total_bytes": 1000_u64 << 20, "memory_available_bytes": 600_u64 << 20,
                      "disk_total_bytes": 8_u64 << 30, "disk_used_bytes": 1_u64 << 30},
        }),
    )
}

async fn change(Segment(name): Segment<String>) -> Response<Body> {
    act(Segment((name, "set".to_owned()))).await
}

async fn act(Segment((name, _)): Segment<(String, String)>) -> Response<Body> {
    match vms().get(name.as_str()) {
        Some(vm) => work("working", vm),
        None => no_such(&name),
    }
}

async fn prune() -> Response<Body> {
    let deleted = ["db", "old"].map(|name| VmName::parse(name).unwrap()).to_vec();
    work("deleting", &vm::Pruned { deleted, freed_bytes: 3 << 30 })
}

/// The WebSocket's server side, as the daemon splices it from the guest's agent.
async fn exec(
    State(daemon): State<Daemon>,
    Segment(name): Segment<String>,
    request: Request,
) -> Response<Body> {
    if name != "web" && name != "0123abcd" {
        return no_such(&name);
    }
    let Some(agent) = daemon.agent else {
        return problem(
            StatusCode::CONFLICT,
            &Problem::new(Code::WrongState, format!("{name} does not run")),
        );
    };
    let key = request.headers()["sec-websocket-key"].clone();
    tokio::spawn(async move {
        let stream = hyper::upgrade::on(request).await.unwrap();
        let socket =
            WebSocketStream::from_raw_socket(TokioIo::new(stream), Role::Server, None).await;
        let (mut sink, mut stream) = socket.split();
        let (frames, to_agent) = mpsc::unbounded_channel();
        let (from_agent, mut replies) = mpsc::channel(1);
        let agent = agent(to_agent, from_agent);
        let reader = tokio::spawn(async move {
            while let Some(Ok(message)) = stream.next().await {
                if let Message::Binary(bytes) = message {
                    // The agent may have ended before the client learnt of it.
                    drop(frames.send(ToAgent::decode(&bytes).unwrap()));
                }
            }
        });
        while let Some(frame) = replies.recv().await {
            if sink.send(Message::Binary(frame.encode())).await.is_err() {
                break;
            }
        }
        // Without a word of farewell, as when a guest dies.
        reader.abort();
        agent.await.unwrap();
    });
    Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header("connection", "upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-accept", derive_accept_key(key.as_bytes()))
        .body(Body::empty())
        .unwrap()
}
