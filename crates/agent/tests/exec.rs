//! Every claim about `/v1/exec`, made of the real program through a real WebSocket.
#![expect(clippy::unwrap_used, reason = "a test's helpers fail as the test does")]

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use banger_api::Problem;
use banger_api::client::{Client, ExecSocket};
use banger_api::exec::{
    Exit, FromAgent, Refused, STDIN_WINDOW, Start, TerminalSize, ToAgent, Word,
};
use banger_api::image::{Config, GuestImage};
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;
use tokio_tungstenite::tungstenite::Message;

/// Nothing here takes nearly as long; a busy machine may.
const DEADLINE: Duration = Duration::from_secs(60);

/// The agent, listening in a folder of its own.
struct Agent {
    process: Child,
    folder: tempfile::TempDir,
}

impl Agent {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        #[expect(clippy::disallowed_methods, reason = "the program under test")]
        let process = Command::new(env!("CARGO_BIN_EXE_banger-agent"))
            .args(["serve", "--listen"])
            .arg(folder.path().join("agent.sock"))
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let agent = Self { process, folder };
        let mut watch = tokio::time::interval(Duration::from_millis(5));
        within(async {
            while tokio::net::UnixStream::connect(agent.folder.path().join("agent.sock"))
                .await
                .is_err()
            {
                watch.tick().await;
            }
        })
        .await;
        agent
    }

    async fn exec(&self, start: Start) -> Exec {
        let mut exec = self.socket().await;
        exec.send(ToAgent::Start(Box::new(start))).await;
        exec
    }

    async fn socket(&self) -> Exec {
        let client = Client::new(self.folder.path().join("agent.sock"));
        Exec(within(client.websocket("/v1/exec")).await.unwrap())
    }

    async fn run(&self, start: Start) -> Outcome {
        self.exec(start).await.outcome().await
    }

    fn file(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, work).await.expect("it happens before the deadline")
}

struct Exec(ExecSocket);

/// All that came of an exec.
#[derive(Debug, Default)]
struct Outcome {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    exit: Option<Exit>,
    refused: Option<Refused>,
}

impl Outcome {
    fn status(&self) -> u8 {
        self.exit.unwrap_or_else(|| panic!("no exit: {self:?}")).status
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }

    fn refusal(&self) -> (u8, &str) {
        let refused = self.refused.as_ref().unwrap_or_else(|| panic!("not refused: {self:?}"));
        (refused.status, &refused.message)
    }
}

impl Exec {
    async fn send(&mut self, frame: ToAgent) {
        within(self.0.send(Message::Binary(frame.encode()))).await.unwrap();
    }

    /// The next frame; `None` once the agent has closed.
    async fn next(&mut self) -> Option<FromAgent> {
        loop {
            match within(self.0.next()).await {
                Some(Ok(Message::Binary(bytes))) => {
                    return Some(FromAgent::decode(&bytes).unwrap());
                }
                Some(Ok(Message::Close(_))) | None => return None,
                Some(Ok(_)) => {}
                Some(Err(error)) => panic!("{error}"),
            }
        }
    }

    async fn outcome(mut self) -> Outcome {
        let mut outcome = Outcome::default();
        while let Some(frame) = self.next().await {
            assert!(
                outcome.exit.is_none() && outcome.refused.is_none(),
                "{frame:?} came after the last frame"
            );
            match frame {
                FromAgent::Stdout(bytes) => outcome.stdout.extend(bytes),
                FromAgent::Stderr(bytes) => outcome.stderr.extend(bytes),
                FromAgent::Taken(_) => {}
                FromAgent::Exit(exit) => outcome.exit = Some(exit),
                FromAgent::Refused(refused) => outcome.refused = Some(refused),
            }
        }
        outcome
    }

    /// Reads stdout until it holds `text`.
    async fn until(&mut self, text: &str) -> String {
        let mut seen = String::new();
        while !seen.contains(text) {
            match self.next().await {
                Some(FromAgent::Stdout(bytes)) => seen.push_str(&String::from_utf8_lossy(&bytes)),
                Some(FromAgent::Taken(_)) => {}
                other => panic!("waited for {text:?}, saw {seen:?}, then {other:?}"),
            }
        }
        seen
    }
}

fn word(text: impl Into<Vec<u8>>) -> Word {
    Word::new(text).unwrap()
}

fn command(argv: &[&str]) -> Start {
    Start { argv: argv.iter().map(|&text| word(text)).collect(), ..Start::default() }
}

fn shell(script: &str) -> Start {
    Start { no_stdin: true, ..command(&["sh", "-c", script]) }
}

fn terminal(start: Start) -> Start {
    Start { tty: Some(TerminalSize { rows: 24, columns: 80 }), ..start }
}

#[tokio::test]
async fn argv_arrives_word_for_word() {
    let agent = Agent::start().await;
    let words: [&[u8]; 8] =
        [b"a b", b"", b"$HOME", b"*", b"'\"\\", b"\xff\xfe", b"line\nbreak", b"--"];
    let mut start = command(&["printf", "%s\\0"]);
    start.argv.extend(words.iter().map(|&bytes| word(bytes)));
    let outcome = agent.run(start).await;
    let expected: Vec<u8> = words.iter().flat_map(|word| [word, &b"\0"[..]].concat()).collect();
    assert_eq!((outcome.stdout, outcome.exit.unwrap().status), (expected, 0));
}

#[tokio::test]
async fn every_exit_status_comes_back_as_it_is() {
    let agent = Agent::start().await;
    let runs = (0..=255_u8).map(|status| {
        let agent = &agent;
        async move { (status, agent.run(shell(&format!("exit {status}"))).await.status()) }
    });
    // Sixteen at a time: many at once is a claim of its own.
    let seen: Vec<(u8, u8)> = futures_util::stream::iter(runs).buffer_unordered(16).collect().await;
    assert_eq!(seen.len(), 256);
    for (status, came_back) in seen {
        assert_eq!(came_back, status);
    }
}

#[tokio::test]
async fn a_signal_is_128_and_its_number() {
    let agent = Agent::start().await;
    for signal in [1_u8, 2, 9, 15, 34] {
        let mut exec = agent.exec(command(&["sh", "-c", "echo up; exec sleep 1000"])).await;
        exec.until("up").await;
        exec.send(ToAgent::Signal(signal)).await;
        assert_eq!(exec.outcome().await.status(), 128 + signal);
    }
}

#[tokio::test]
async fn a_signal_reaches_the_whole_group_of_the_command() {
    let agent = Agent::start().await;
    let mut exec = agent.exec(shell("sleep 1000 & echo $!; wait")).await;
    let child: i32 = exec.until("\n").await.trim().parse().unwrap();
    exec.send(ToAgent::Signal(15)).await;
    assert_eq!(exec.outcome().await.status(), 143);
    gone(child).await;
}

/// Waits for the end of a process that is not ours.
async fn gone(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    match rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) {
        Err(errno) => assert_eq!(errno, rustix::io::Errno::SRCH),
        Ok(process) => {
            let end = rustix::event::Timespec { tv_sec: 30, tv_nsec: 0 };
            let mut fds = [rustix::event::PollFd::new(&process, rustix::event::PollFlags::IN)];
            assert_eq!(rustix::event::poll(&mut fds, Some(&end)), Ok(1), "process {pid} lives on");
        }
    }
}

#[tokio::test]
async fn a_command_that_cannot_run_is_refused_with_the_shells_numbers() {
    let agent = Agent::start().await;
    let plain = agent.file("plain");
    std::fs::write(&plain, "no program").unwrap();
    let script = agent.file("script");
    std::fs::write(&script, "#!/no/such/interpreter\n").unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let (plain, script) = (plain.to_str().unwrap(), script.to_str().unwrap());
    for (start, status, text) in [
        (
            command(&["no-such-program"]),
            127,
            "no program \"no-such-program\" in the guest's PATH (/usr/local/sbin",
        ),
        (command(&["/no/such/program"]), 127, "no \"/no/such/program\" in the guest"),
        (command(&[plain]), 126, "plain in the guest is not executable"),
        (command(&["/"]), 126, "/ in the guest is not executable"),
        (command(&[script]), 126, "lacks its interpreter"),
        (
            Start { cwd: Some(word("/no/such/folder")), ..command(&["true"]) },
            125,
            "no folder \"/no/such/folder\"",
        ),
        (Start { cwd: Some(word(plain)), ..command(&["true"]) }, 125, "is no folder"),
        (
            Start { user: Some("nosuchuser".into()), ..command(&["true"]) },
            125,
            "no user \"nosuchuser\"",
        ),
        (
            Start { user: Some("0:nosuchgroup".into()), ..command(&["true"]) },
            125,
            "no group \"nosuchgroup\"",
        ),
        (
            Start { env: vec![(word("A=B"), word("c"))], ..command(&["true"]) },
            125,
            "environment variable",
        ),
    ] {
        let outcome = agent.run(start).await;
        let (seen, message) = outcome.refusal();
        assert_eq!(seen, status, "{message}");
        assert!(message.contains(text), "{message:?} does not say {text:?}");
    }
}

#[tokio::test]
async fn the_environment_is_the_guests_own_and_what_was_asked_for() {
    let agent = Agent::start().await;
    let mut start = command(&["env"]);
    start.env = vec![
        (word("A"), word("b c")),
        (word("HOME"), word("/elsewhere")),
        (word("RAW"), word(b"\xff".to_vec())),
    ];
    let outcome = agent.run(Start { no_stdin: true, ..start }).await;
    let mut lines: Vec<&[u8]> =
        outcome.stdout.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).collect();
    lines.sort_unstable();
    let shell = users_shell();
    let shell = format!("SHELL={shell}");
    let expected: [&[u8]; 7] = [
        b"A=b c",
        b"HOME=/elsewhere",
        b"LOGNAME=root",
        b"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        b"RAW=\xff",
        shell.as_bytes(),
        b"USER=root",
    ];
    assert_eq!(lines, expected);
}

/// What this machine's passwd file says of root.
fn users_shell() -> String {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap();
    passwd
        .lines()
        .find(|line| line.starts_with("root:"))
        .unwrap()
        .rsplit(':')
        .next()
        .unwrap()
        .to_owned()
}

#[tokio::test]
async fn the_path_of_the_request_decides_which_program_runs() {
    let agent = Agent::start().await;
    let tool = agent.file("tool");
    std::fs::write(&tool, "#!/bin/sh\necho found $0\n").unwrap();
    std::fs::set_permissions(&tool, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let path = word(agent.folder.path().as_os_str().as_bytes());
    let outcome = agent.run(Start { env: vec![(word("PATH"), path)], ..command(&["tool"]) }).await;
    assert_eq!(outcome.text(), format!("found {}\n", tool.display()));
}

#[tokio::test]
async fn a_command_runs_in_its_folder_as_its_user() {
    let agent = Agent::start().await;
    let script = "pwd; id -u; id -g; id -G; umask; cat /proc/self/oom_score_adj";
    let outcome = agent
        .run(Start {
            cwd: Some(word("/usr/lib")),
            user: Some("12345:54321".into()),
            ..shell(script)
        })
        .await;
    assert_eq!(outcome.text(), "/usr/lib\n12345\n54321\n54321\n0022\n0\n", "{outcome:?}");
    let outcome = agent.run(shell("pwd; id -un")).await;
    assert_eq!(outcome.text(), "/root\nroot\n");
}

#[tokio::test]
async fn nothing_of_the_agent_is_inherited() {
    let agent = Agent::start().await;
    let script = "ls /proc/self/fd | tr '\\n' ' '; grep -E '^(SigBlk|SigIgn|SigCgt)' /proc/self/status; \
                  ps -o pid=,pgid=,sid= -p $$ | tr -s ' '; echo $$";
    let outcome = agent.run(shell(script)).await;
    let lines: Vec<&str> = outcome.text().lines().collect();
    // What this test itself was started with, an ignored signal or an open file, the agent has too.
    #[expect(clippy::disallowed_methods, reason = "the same command without the agent")]
    let without = Command::new("sh").args(["-c", script]).output().unwrap();
    let without = String::from_utf8(without.stdout).unwrap();
    let without: Vec<&str> = without.lines().collect();
    assert_eq!(lines[..2], without[..2]);
    let pid = lines[4];
    assert_eq!(lines[3].trim(), format!("{pid} {pid} {pid}"));
}

#[tokio::test]
async fn stdin_goes_to_its_end_and_no_further() {
    let agent = Agent::start().await;
    let mut exec = agent.exec(command(&["sh", "-c", "cat; echo done"])).await;
    exec.send(ToAgent::Stdin(Bytes::from_static(b"hello "))).await;
    exec.send(ToAgent::Stdin(Bytes::from_static(b"world\n"))).await;
    exec.send(ToAgent::StdinEnd).await;
    assert_eq!(exec.outcome().await.text(), "hello world\ndone\n");
}

#[tokio::test]
async fn a_command_without_stdin_reads_its_end_at_once() {
    let agent = Agent::start().await;
    let outcome = agent.run(Start { no_stdin: true, ..command(&["cat"]) }).await;
    assert_eq!((outcome.status(), outcome.stdout.len()), (0, 0));
}

#[tokio::test]
async fn a_hundred_megabytes_arrive_whole_both_ways() {
    const SIZE: usize = 100 << 20;
    let agent = Agent::start().await;
    let exec = agent.exec(command(&["sh", "-c", "tee /dev/stderr"])).await;
    let (mut sink, mut frames) = exec.0.split();
    let (taken, mut credit) = tokio::sync::mpsc::unbounded_channel::<usize>();
    let sending = async move {
        let (mut hash, mut under_way, mut sent) = (Sha256::new(), 0, 0);
        let mut block: Vec<u8> =
            (0..32 * 1024_u32).map(|n| n.to_le_bytes()[n as usize % 3]).collect();
        while sent < SIZE {
            while under_way + block.len() > STDIN_WINDOW {
                under_way -= credit.recv().await.unwrap();
            }
            block[0] = block[0].wrapping_add(1);
            hash.update(&block);
            sink.send(Message::Binary(ToAgent::Stdin(Bytes::copy_from_slice(&block)).encode()))
                .await
                .unwrap();
            under_way += block.len();
            sent += block.len();
        }
        sink.send(Message::Binary(ToAgent::StdinEnd.encode())).await.unwrap();
        hash.finalize()
    };
    let receiving = async move {
        let (mut out, mut err, mut sizes) = (Sha256::new(), Sha256::new(), (0, 0));
        loop {
            let Message::Binary(bytes) = frames.next().await.unwrap().unwrap() else { continue };
            match FromAgent::decode(&bytes).unwrap() {
                FromAgent::Stdout(bytes) => (out.update(&bytes), sizes.0 += bytes.len()).0,
                FromAgent::Stderr(bytes) => (err.update(&bytes), sizes.1 += bytes.len()).0,
                FromAgent::Taken(count) => drop(taken.send(count as usize)),
                FromAgent::Exit(exit) => {
                    return (exit.status, sizes, out.finalize(), err.finalize());
                }
                FromAgent::Refused(refused) => panic!("{refused:?}"),
            }
        }
    };
    let (sent, (status, sizes, out, err)) =
        within(async { tokio::join!(sending, receiving) }).await;
    assert_eq!((status, sizes), (0, (SIZE, SIZE)));
    assert!(sent == out && sent == err);
    let memory = std::fs::read_to_string(format!("/proc/{}/status", agent.process.id())).unwrap();
    let peak = memory.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak_kib: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak_kib < 64 * 1024, "the agent grew to {peak_kib} KiB");
}

#[tokio::test]
async fn a_client_that_does_not_read_does_not_grow_the_agent() {
    let agent = Agent::start().await;
    let mut exec =
        agent.exec(command(&["sh", "-c", "yes & yes >&2 & sleep 1; echo waited >&2; wait"])).await;
    // The first frame shows that it runs; then nothing is read for as long as the command's own second.
    exec.next().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let memory = std::fs::read_to_string(format!("/proc/{}/status", agent.process.id())).unwrap();
    let rss = memory.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let rss_kib: u64 = rss.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(rss_kib < 64 * 1024, "the agent grew to {rss_kib} KiB");
}

#[tokio::test]
async fn stdin_that_is_not_read_does_not_hold_up_a_signal() {
    let agent = Agent::start().await;
    let mut exec = agent.exec(command(&["sh", "-c", "echo up; exec sleep 1000"])).await;
    exec.until("up").await;
    for _ in 0..8 {
        exec.send(ToAgent::Stdin(Bytes::from(vec![0; STDIN_WINDOW / 8]))).await;
    }
    exec.send(ToAgent::Signal(10)).await;
    assert_eq!(exec.outcome().await.status(), 138);
}

#[tokio::test]
async fn a_client_that_overruns_the_window_is_cut_off() {
    let agent = Agent::start().await;
    let mut exec = agent.exec(command(&["sleep", "1000"])).await;
    for _ in 0..3 {
        exec.send(ToAgent::Stdin(Bytes::from(vec![0; STDIN_WINDOW / 2]))).await;
    }
    let cut_off = within(async {
        while let Some(Ok(message)) = exec.0.next().await {
            assert!(
                !matches!(message, Message::Binary(bytes) if bytes[0] == 0x14),
                "it ended instead"
            );
        }
    });
    cut_off.await;
}

#[tokio::test]
async fn stdin_of_a_command_that_closed_it_is_taken_and_thrown_away() {
    let agent = Agent::start().await;
    let mut exec = agent.exec(command(&["sh", "-c", "exec 0<&-; echo closed; sleep 0.3"])).await;
    exec.until("closed").await;
    exec.send(ToAgent::Stdin(Bytes::from(vec![0; STDIN_WINDOW / 2]))).await;
    let mut taken = 0;
    while let Some(frame) = exec.next().await {
        match frame {
            FromAgent::Taken(count) => taken += count as usize,
            FromAgent::Exit(exit) => assert_eq!(exit.status, 0),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(taken, STDIN_WINDOW / 2);
}

#[tokio::test]
async fn output_ends_with_the_command_though_a_child_of_it_holds_the_pipe() {
    let agent = Agent::start().await;
    let outcome = agent.run(shell("sleep 1000 & echo $!; head -c 50000 /dev/zero; exit 3")).await;
    assert_eq!(outcome.status(), 3);
    let line = outcome.stdout.iter().position(|&byte| byte == b'\n').unwrap();
    assert_eq!(outcome.stdout.len() - line - 1, 50000);
    // What a command leaves behind on purpose lives on.
    let child: i32 = std::str::from_utf8(&outcome.stdout[..line]).unwrap().parse().unwrap();
    let child = rustix::process::Pid::from_raw(child).unwrap();
    rustix::process::kill_process(child, rustix::process::Signal::KILL).unwrap();
}

#[tokio::test]
async fn a_child_that_never_stops_writing_does_not_keep_the_exec_open() {
    let agent = Agent::start().await;
    let outcome = agent.run(shell("yes & echo $! >&2; exit 0")).await;
    assert_eq!(outcome.status(), 0);
    let child: i32 = String::from_utf8(outcome.stderr).unwrap().trim().parse().unwrap();
    // Its pipe has lost its reader.
    gone(child).await;
}

#[tokio::test]
async fn a_client_that_leaves_takes_the_command_along() {
    let agent = Agent::start().await;
    for start in
        [shell("sleep 1000 & echo $$ $!; wait"), terminal(shell("sleep 1000 & echo $$ $!; wait"))]
    {
        let mut exec = agent.exec(start).await;
        let pids: Vec<i32> =
            exec.until("\n").await.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
        drop(exec);
        for pid in pids {
            gone(pid).await;
        }
    }
}

#[tokio::test]
async fn a_command_that_ignores_the_hang_up_is_killed() {
    let agent = Agent::start().await;
    let mut exec =
        agent.exec(shell("trap '' HUP PIPE; echo $$; while :; do sleep 0.1; done")).await;
    let pid: i32 = exec.until("\n").await.trim().parse().unwrap();
    drop(exec);
    gone(pid).await;
}

#[tokio::test]
async fn a_command_that_takes_too_long_is_ended() {
    let agent = Agent::start().await;
    let outcome = agent.run(Start { timeout_ms: Some(100), ..shell("sleep 1000") }).await;
    let exit = outcome.exit.unwrap();
    assert_eq!((exit.status, exit.timed_out), (143, true));
    let outcome = agent.run(Start { timeout_ms: Some(60_000), ..shell("exit 4") }).await;
    let exit = outcome.exit.unwrap();
    assert_eq!((exit.status, exit.timed_out), (4, false));
}

#[tokio::test]
async fn the_time_is_the_commands_own() {
    let agent = Agent::start().await;
    let exit = agent.run(shell("sleep 0.2")).await.exit.unwrap();
    assert!((200_000..10_000_000).contains(&exit.microseconds), "{exit:?}");
}

#[tokio::test]
async fn a_terminal_is_one_and_takes_sizes() {
    let agent = Agent::start().await;
    let script = "tty >/dev/null && echo $TERM; stty size; trap 'stty size; exit 0' WINCH; echo ready; while :; do sleep 0.05; done";
    let mut exec = agent.exec(terminal(command(&["sh", "-c", script]))).await;
    let seen = exec.until("ready").await;
    assert!(seen.starts_with("xterm-256color\r\n24 80\r\n"), "{seen:?}");
    exec.send(ToAgent::Resize(TerminalSize { rows: 50, columns: 132 })).await;
    exec.until("50 132").await;
    assert_eq!(exec.outcome().await.status(), 0);
}

#[tokio::test]
async fn control_c_at_a_terminal_interrupts() {
    let agent = Agent::start().await;
    let mut exec = agent.exec(terminal(command(&["sh", "-c", "echo up; exec sleep 1000"]))).await;
    exec.until("up").await;
    exec.send(ToAgent::Stdin(Bytes::from_static(b"\x03"))).await;
    assert_eq!(exec.outcome().await.status(), 130);
}

#[tokio::test]
async fn the_end_of_stdin_at_a_terminal_is_control_d() {
    let agent = Agent::start().await;
    for (text, expected) in [("a line\n", "a line"), ("no line", "no line")] {
        let mut exec = agent
            .exec(terminal(command(&["sh", "-c", "stty -echo; echo ready; cat; echo done"])))
            .await;
        exec.until("ready").await;
        exec.send(ToAgent::Stdin(Bytes::copy_from_slice(text.as_bytes()))).await;
        exec.send(ToAgent::StdinEnd).await;
        let outcome = exec.outcome().await;
        assert!(
            outcome.text().contains(expected) && outcome.text().contains("done"),
            "{outcome:?}"
        );
    }
}

#[tokio::test]
async fn a_terminal_loses_no_output_at_the_end() {
    let agent = Agent::start().await;
    for _ in 0..20 {
        let outcome = agent.run(terminal(command(&["seq", "1", "20000"]))).await;
        assert_eq!(outcome.text().lines().count(), 20000);
        assert!(outcome.text().ends_with("20000\r\n"));
    }
}

#[tokio::test]
async fn no_command_is_the_login_shell() {
    let agent = Agent::start().await;
    let mut exec = agent.exec(Start::default()).await;
    exec.send(ToAgent::Stdin(Bytes::from_static(b"echo name $0\nexit 7\n"))).await;
    let outcome = exec.outcome().await;
    let shell = users_shell();
    let name = Path::new(&shell).file_name().unwrap().to_str().unwrap();
    assert!(outcome.text().contains(&format!("name -{name}")), "{outcome:?}");
    assert_eq!(outcome.status(), 7);
}

#[tokio::test]
async fn fifty_commands_run_at_once() {
    let agent = Agent::start().await;
    let runs = (0..50).map(|n| {
        let agent = &agent;
        async move {
            (n, agent.run(shell(&format!("sleep 0.1; head -c 100000 /dev/zero; exit {n}"))).await)
        }
    });
    for (n, outcome) in futures_util::future::join_all(runs).await {
        assert_eq!((outcome.status(), outcome.stdout.len()), (n, 100_000));
    }
}

#[tokio::test]
async fn what_is_no_exec_frame_ends_the_exec() {
    let agent = Agent::start().await;
    for frame in [
        ToAgent::Stdin(Bytes::new()).encode(),
        Bytes::from_static(b"\xee"),
        Bytes::from_static(b"\0{]"),
    ] {
        let mut exec = agent.socket().await;
        within(exec.0.send(Message::Binary(frame))).await.unwrap();
        let end = within(exec.0.next()).await;
        assert!(matches!(end, None | Some(Err(_) | Ok(Message::Close(_)))), "{end:?}");
    }
    assert_eq!(agent.run(shell("exit 5")).await.status(), 5);
}

#[tokio::test]
async fn a_request_that_is_no_websocket_is_refused() {
    let agent = Agent::start().await;
    for (request, status) in [
        ("GET /v1/exec HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", "HTTP/1.1 400 "),
        ("GET /v1/health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", "HTTP/1.1 200 "),
        ("GET /v2 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", "HTTP/1.1 404 "),
        // It is not the agent of a guest here: there is nothing to shut down.
        ("POST /v1/shutdown HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", "HTTP/1.1 409 "),
    ] {
        let mut stream = tokio::net::UnixStream::connect(agent.file("agent.sock")).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stream, request.as_bytes()).await.unwrap();
        let mut reply = String::new();
        within(stream.read_to_string(&mut reply)).await.unwrap();
        assert!(reply.starts_with(status), "{request:?}: {reply:?}");
    }
}

impl Agent {
    /// Tells it what the guest's image says; what it answers if it refuses.
    async fn put_image(&self, image: &GuestImage) -> Result<(), Problem> {
        let stream = tokio::net::UnixStream::connect(self.file("agent.sock")).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        drop(tokio::spawn(connection));
        let body = Full::new(Bytes::from(serde_json::to_vec(image).unwrap()));
        let request = Request::put("/v1/image").header("host", "agent").body(body).unwrap();
        let reply = within(sender.send_request(request)).await.unwrap();
        let status = reply.status();
        let said = within(reply.into_body().collect()).await.unwrap().to_bytes();
        if status.is_success() { Ok(()) } else { Err(serde_json::from_slice(&said).unwrap()) }
    }
}

#[tokio::test]
async fn what_the_image_says_holds_where_the_request_says_nothing() {
    let agent = Agent::start().await;
    let made = agent.file("srv/app");
    let config = Config {
        env: vec!["COLOUR=blue".into(), "PATH=/usr/bin:/bin".into(), "=odd".into()],
        working_dir: Some(made.to_str().unwrap().into()),
        user: Some("65534:65534".into()),
        ..Config::default()
    };
    agent.put_image(&GuestImage { config, run: false }).await.unwrap();
    std::fs::set_permissions(agent.folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let ask = "echo $COLOUR $PATH; pwd; id -u";
    let outcome = agent.run(shell(ask)).await;
    assert_eq!(outcome.text(), format!("blue /usr/bin:/bin\n{}\n65534\n", made.display()));

    let own = Start {
        env: vec![(word("COLOUR"), word("red"))],
        cwd: Some(word("/")),
        user: Some("0".into()),
        ..shell(ask)
    };
    assert_eq!(agent.run(own).await.text(), "red /usr/bin:/bin\n/\n0\n");
}

#[tokio::test]
async fn the_images_program_runs_once_as_the_image_says() {
    let agent = Agent::start().await;
    let log = agent.file("log");
    rustix::fs::mkfifoat(rustix::fs::CWD, &log, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)
        .unwrap();
    let config = Config {
        entrypoint: vec!["sh".into(), "-c".into(), "echo $0 $WHAT >log".into()],
        cmd: vec!["arguments".into()],
        env: vec!["WHAT=follow".into()],
        working_dir: Some(agent.folder.path().to_str().unwrap().into()),
        user: Some("root".into()),
        ..Config::default()
    };
    let image = GuestImage { config, run: true };
    agent.put_image(&image).await.unwrap();
    // A second time would block the writer of the pipe, and the reader find two lines.
    agent.put_image(&image).await.unwrap();
    let said = within(tokio::fs::read_to_string(&log)).await.unwrap();
    assert_eq!(said, "arguments follow\n");
}

#[tokio::test]
async fn a_program_that_the_image_lacks_is_refused_by_name() {
    let agent = Agent::start().await;
    let config = Config { cmd: vec!["no-such-program".into()], ..Config::default() };
    let refused = agent.put_image(&GuestImage { config, run: true }).await.unwrap_err();
    assert!(refused.message.contains("no-such-program"), "{refused:?}");
    let config = Config {
        cmd: vec!["true".into()],
        stop_signal: Some("SIGNAL".into()),
        ..Config::default()
    };
    let refused = agent.put_image(&GuestImage { config, run: true }).await.unwrap_err();
    assert!(refused.message.contains("SIGNAL"), "{refused:?}");
}
