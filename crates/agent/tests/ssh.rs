//! ssh into whatever the agent runs in, with OpenSSH's own clients; here that is this machine, so no VM is needed.
#![expect(clippy::unwrap_used, reason = "a test's helpers fail as the test does")]

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Nothing here takes nearly as long; a busy machine may.
const DEADLINE: Duration = Duration::from_secs(60);

#[expect(clippy::disallowed_methods, reason = "the programs under test, and their clients")]
fn program(name: impl AsRef<std::ffi::OsStr>) -> Command {
    Command::new(name)
}

/// An agent that serves ssh on a port of this machine's loopback, and a client's files.
struct Guest {
    agent: Child,
    folder: tempfile::TempDir,
    port: u16,
}

impl Guest {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        for key in ["host", "id", "other"] {
            run(program("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f", &at(key)]));
        }
        let socket = folder.path().join("agent.sock");
        let agent = program(env!("CARGO_BIN_EXE_banger-agent"))
            .args(["serve", "--listen"])
            .arg(&socket)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        eventually("the agent listens", || UnixStream::connect(&socket).is_ok());
        let port = free_port();
        let said = serde_json::json!({
            "host_key": fs::read_to_string(at("host")).unwrap(),
            "authorized_keys": [fs::read_to_string(at("id.pub")).unwrap().trim()],
            "listen": format!("127.0.0.1:{port}"),
        })
        .to_string();
        let mut stream = UnixStream::connect(&socket).unwrap();
        let length = said.len();
        write!(stream, "PUT /v1/ssh HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{said}").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        eventually("the port is open", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        let host = fs::read_to_string(at("host.pub")).unwrap();
        fs::write(at("known_hosts"), format!("guest {host}")).unwrap();
        let user = String::from_utf8(run(program("id").arg("-un")).stdout).unwrap();
        let config = format!(
            "Host guest\n HostName 127.0.0.1\n Port {port}\n User {user} HostKeyAlias guest\n IdentityFile {}\n \
             IdentitiesOnly yes\n UserKnownHostsFile {}\n GlobalKnownHostsFile /dev/null\n StrictHostKeyChecking yes\n \
             BatchMode yes\n LogLevel ERROR\n",
            at("id"),
            at("known_hosts")
        );
        fs::write(at("config"), config).unwrap();
        Self { agent, folder, port }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// One of OpenSSH's clients with this guest's configuration.
    fn client(&self, name: &str, args: &[&str]) -> Command {
        let mut command = program(name);
        command.args(["-F", &self.text("config")]).args(args).stdin(Stdio::null());
        command.env_remove("SSH_AUTH_SOCK");
        command
    }

    fn ssh(&self, args: &[&str]) -> Output {
        self.client("ssh", args).output().unwrap()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.agent.kill().unwrap();
        self.agent.wait().unwrap();
    }
}

fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < end, "{what}: it did not happen");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Bytes that no two places have alike.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    std::iter::repeat_with(next).take(length).collect()
}

#[test]
fn a_line_runs_by_the_users_shell_with_its_status_and_its_streams() {
    let guest = Guest::start();
    let output = guest.ssh(&["guest", "echo \"$((6 * 7))\"; echo no >&2; exit 42"]);
    assert_eq!((output.status.code(), &*out(&output), &*err(&output)), (Some(42), "42\n", "no\n"));
    let output = guest.ssh(&["guest", "kill -TERM $$"]);
    assert_eq!(output.status.code(), Some(255), "a signal is no status");
    let output = guest.ssh(&[
        "-o",
        "SetEnv=GIT_PROTOCOL=version=2",
        "guest",
        "echo $GIT_PROTOCOL $HOME; pwd",
    ]);
    let home = std::env::var("HOME").unwrap();
    assert_eq!(out(&output), format!("version=2 {home}\n{home}\n"), "{}", err(&output));
    let output = guest.ssh(&["-l", "nobody-of-that-name", "guest", "true"]);
    assert_eq!(output.status.code(), Some(125));
    assert!(err(&output).contains("no user \"nobody-of-that-name\""), "{}", err(&output));
}

#[test]
fn stdin_goes_through_unchanged_and_a_reader_that_waits_stops_neither_itself_nor_others() {
    let guest = Guest::start();
    let content = noise(24 << 20);
    fs::write(guest.path("content"), &content).unwrap();
    // More than every buffer on the way, in both directions at once.
    let mut cat = guest.client("ssh", &["guest", "cat"]);
    let output = cat.stdin(fs::File::open(guest.path("content")).unwrap()).output().unwrap();
    assert!(output.status.success() && output.stdout == content, "{}", err(&output));

    let control = guest.text("control");
    let mut master = guest.client("ssh", &["-M", "-S", &control, "-N", "guest"]).spawn().unwrap();
    eventually("the master listens", || Path::new(&control).exists());
    let go = guest.text("go");
    let line = format!("until test -e {go}; do :; done; sha256sum");
    let mut waits = guest.client("ssh", &["-S", &control, "guest", &line]);
    waits.stdin(fs::File::open(guest.path("content")).unwrap()).stdout(Stdio::piped());
    let waits = waits.spawn().unwrap();
    for _ in 0..3 {
        let other = guest
            .client("ssh", &["-S", &control, "guest", "head -c 8000000 /dev/zero | wc -c; cat"]);
        let mut other = other;
        let output = other.stdin(fs::File::open(guest.path("id.pub")).unwrap()).output().unwrap();
        let public = fs::read_to_string(guest.path("id.pub")).unwrap();
        assert_eq!(out(&output), format!("8000000\n{public}"), "{}", err(&output));
    }
    fs::write(&go, "").unwrap();
    let sum = out(&waits.wait_with_output().unwrap());
    assert_eq!(
        sum,
        out(&run(program("sha256sum").stdin(fs::File::open(guest.path("content")).unwrap())))
    );
    run(&mut guest.client("ssh", &["-S", &control, "-O", "exit", "guest"]));
    master.wait().unwrap();
}

#[test]
fn who_has_no_key_of_the_owners_gets_nothing() {
    let guest = Guest::start();
    let config = fs::read_to_string(guest.path("config")).unwrap();
    let (owners, others) = (guest.text("id"), guest.text("other"));
    fs::write(guest.path("config"), config.replace(&owners, &others)).unwrap();
    let output = guest.ssh(&["guest", "true"]);
    fs::write(guest.path("config"), config).unwrap();
    assert_eq!(output.status.code(), Some(255));
    assert!(err(&output).contains("Permission denied (publickey)"), "{}", err(&output));
    // Ten that say nothing are let in, once who came before has gone; one more is closed, and there is room again when they leave.
    let mut silent = Vec::new();
    eventually("ten are let in", || {
        let mut stream = TcpStream::connect(("127.0.0.1", guest.port)).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        if stream.read_exact(&mut [0; 8]).is_ok() {
            silent.push(stream);
        }
        silent.len() == 10
    });
    let mut last = TcpStream::connect(("127.0.0.1", guest.port)).unwrap();
    last.set_read_timeout(Some(DEADLINE)).unwrap();
    assert_eq!(last.read(&mut [0]).unwrap_or(0), 0, "it is closed without a word");
    drop(silent);
    eventually("there is room again", || guest.ssh(&["guest", "true"]).status.success());

    let other = fs::read_to_string(guest.path("other.pub")).unwrap();
    fs::write(guest.path("known_hosts"), format!("guest {other}")).unwrap();
    let output = guest.ssh(&["guest", "true"]);
    assert!(err(&output).contains("HOST IDENTIFICATION HAS CHANGED"), "{}", err(&output));
}

#[test]
fn files_and_trees_are_copied_with_their_modes_and_times_and_copies_go_on() {
    let guest = Guest::start();
    let from = guest.path("from");
    fs::create_dir_all(from.join("inner folder")).unwrap();
    let content = noise(3 << 20);
    fs::write(from.join("inner folder/ünïcode"), &content).unwrap();
    fs::write(from.join("run"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(from.join("run"), fs::Permissions::from_mode(0o750)).unwrap();
    let old = std::time::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    fs::File::options().append(true).open(from.join("run")).unwrap().set_modified(old).unwrap();
    for (source, target) in [
        (guest.text("from"), format!("guest:{}", guest.text("there"))),
        (format!("guest:{}", guest.text("there")), guest.text("back")),
    ] {
        run(&mut guest.client("scp", &["-rpq", &source, &target]));
    }
    let back = guest.path("back");
    assert_eq!(fs::read(back.join("inner folder/ünïcode")).unwrap(), content);
    let copied = fs::metadata(back.join("run")).unwrap();
    assert_eq!((copied.permissions().mode() & 0o7777, copied.modified().unwrap()), (0o750, old));

    // Half of it is there already, of other bytes: whoever goes on leaves them.
    let half = vec![b'x'; 1 << 20];
    fs::write(guest.path("half"), &half).unwrap();
    fs::write(guest.path("part"), &half).unwrap();
    symlink("content", guest.path("link")).unwrap();
    let there = guest.text("from/inner folder/ünïcode");
    let batch = format!(
        "reget \"{there}\" {0}/half\nreput \"{there}\" {0}/part\nmkdir {0}/made\nchmod 700 {0}/made\nln -s made {0}/soft\n\
         rename {0}/soft {0}/renamed\nln {0}/half {0}/hard\nls -l {0}/made\ndf {0}\nrm {0}/hard\ncd {0}\npwd\n",
        guest.folder.path().display()
    );
    fs::write(guest.path("batch"), batch).unwrap();
    let output = run(&mut guest.client("sftp", &["-b", &guest.text("batch"), "guest"]));
    let joined = [&half[..], &content[1 << 20..]].concat();
    for name in ["half", "part"] {
        assert!(fs::read(guest.path(name)).unwrap() == joined, "{name}");
    }
    assert_eq!(fs::metadata(guest.path("made")).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(fs::read_link(guest.path("renamed")).unwrap(), Path::new("made"));
    assert!(!guest.path("hard").exists());
    assert!(out(&output).contains("%Capacity"), "{}", out(&output));
    let missing = guest.client("scp", &["guest:/no/such/file", &guest.text("x")]).output().unwrap();
    assert!(err(&missing).contains("No such file"), "{}", err(&missing));
}

#[test]
fn ports_and_sockets_lead_both_ways() {
    let guest = Guest::start();
    let service = TcpListener::bind("127.0.0.1:0").unwrap();
    let service_port = service.local_addr().unwrap().port();
    let unix = UnixListener::bind(guest.path("service.sock")).unwrap();
    // Each says what it was asked, after the asker's end.
    std::thread::spawn(move || {
        for stream in service.incoming() {
            answer(stream.unwrap());
        }
    });
    std::thread::spawn(move || {
        for stream in unix.incoming() {
            answer(stream.unwrap());
        }
    });
    let (local, remote) = (free_port(), free_port());
    let sockets = format!("{}:{}", guest.text("near.sock"), guest.text("service.sock"));
    let back = format!("{}:{}", guest.text("far.sock"), guest.text("service.sock"));
    let args = [
        "-N",
        "-L",
        &format!("{local}:localhost:{service_port}"),
        "-R",
        &format!("{remote}:127.0.0.1:{service_port}"),
        "-L",
        &sockets,
        "-R",
        &back,
        "guest",
    ];
    let mut client = guest.client("ssh", &args).spawn().unwrap();
    eventually("all are there", || {
        guest.path("near.sock").exists()
            && guest.path("far.sock").exists()
            && TcpStream::connect(("127.0.0.1", remote)).is_ok()
    });
    for port in [local, remote] {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        assert_eq!(
            ask(&stream, &stream, || stream.shutdown(std::net::Shutdown::Write).unwrap()),
            5 << 20
        );
    }
    for socket in ["near.sock", "far.sock"] {
        let stream = UnixStream::connect(guest.path(socket)).unwrap();
        assert_eq!(
            ask(&stream, &stream, || stream.shutdown(std::net::Shutdown::Write).unwrap()),
            5 << 20
        );
    }
    client.kill().unwrap();
    client.wait().unwrap();
    eventually("the socket is removed", || !guest.path("far.sock").exists());

    let output = guest.ssh(&["-o", "LogLevel=INFO", "-W", "127.0.0.1:1", "guest"]);
    assert!(err(&output).contains("Connection refused"), "{}", err(&output));
    let through = format!("-F {} -W %h:%p guest", guest.text("config"));
    let jump = format!("ProxyCommand=ssh {through}");
    let output = guest.ssh(&["-o", &jump, "guest", "echo twice"]);
    assert_eq!(out(&output), "twice\n", "{}", err(&output));
}

/// The number of bytes that came, after the end.
fn answer(mut stream: impl Read + Write) {
    let mut all = Vec::new();
    if stream.read_to_end(&mut all).is_ok() {
        drop(stream.write_all(&all));
    }
}

fn ask(mut to: impl Write + Send, mut from: impl Read, end: impl FnOnce() + Send) -> usize {
    let content = noise(5 << 20);
    let mut answer = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            to.write_all(&content).unwrap();
            end();
        });
        from.read_to_end(&mut answer).unwrap();
    });
    assert!(answer == content);
    answer.len()
}

#[test]
fn an_agent_of_keys_is_lent_only_when_the_client_asks() {
    let guest = Guest::start();
    let output = guest.ssh(&["guest", "echo [$SSH_AUTH_SOCK]"]);
    assert_eq!(out(&output), "[]\n");
    let socket = guest.text("keys.sock");
    let mut keys =
        program("ssh-agent").args(["-D", "-a", &socket]).stdout(Stdio::null()).spawn().unwrap();
    eventually("the agent of keys listens", || UnixStream::connect(&socket).is_ok());
    run(program("ssh-add").arg("-q").arg(guest.path("other")).env("SSH_AUTH_SOCK", &socket));
    let mut asks = guest.client("ssh", &["-A", "guest", "ssh-add -L; echo $SSH_AUTH_SOCK"]);
    let output = asks.env("SSH_AUTH_SOCK", &socket).output().unwrap();
    let public = fs::read_to_string(guest.path("other.pub")).unwrap();
    let (listed, lent) = (out(&output), out(&output).lines().last().unwrap().to_owned());
    assert!(listed.starts_with(&public), "{listed} {}", err(&output));
    eventually("it is taken back", || !Path::new(&lent).parent().unwrap().exists());
    keys.kill().unwrap();
    keys.wait().unwrap();
}
