//! Commands in a guest, as their caller sees them: bytes, signals, the terminal, the exit status.
//!
//! The guest's side is played here, frame by frame; the real agent plays it in the end-to-end tests.

#![expect(clippy::unwrap_used, reason = "where a test unwraps, it claims")]

mod support;

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::process::{Child, Stdio};

use banger_api::exec::{Exit, FromAgent, Refused, STDIN_WINDOW, Start, ToAgent};
use bytes::Bytes;
use rustix::process::{Pid, Signal, kill_process};
use rustix::termios::{LocalModes, tcgetattr};
use support::World;
use tokio::sync::mpsc::{Sender, UnboundedReceiver};

type Frames = UnboundedReceiver<ToAgent>;
type Replies = Sender<FromAgent>;

async fn start(frames: &mut Frames) -> Start {
    match frames.recv().await {
        Some(ToAgent::Start(start)) => *start,
        other => panic!("a session begins with start, not {other:?}"),
    }
}

async fn say(replies: &Replies, text: impl AsRef<[u8]>) {
    // A test whose client has left wants no more.
    drop(replies.send(FromAgent::Stdout(Bytes::copy_from_slice(text.as_ref()))).await);
}

async fn exit(replies: &Replies, status: u8) {
    drop(replies.send(FromAgent::Exit(Exit { status, timed_out: false, microseconds: 1 })).await);
}

fn signal(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

fn read_to_end(stream: Option<impl Read>) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

/// `cat`, which exits with 3.
fn cat(mut frames: Frames, replies: Replies) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        start(&mut frames).await;
        while let Some(frame) = frames.recv().await {
            match frame {
                ToAgent::Stdin(bytes) => {
                    let taken = u32::try_from(bytes.len()).unwrap();
                    say(&replies, bytes).await;
                    drop(replies.send(FromAgent::Taken(taken)).await);
                }
                ToAgent::StdinEnd => return exit(&replies, 3).await,
                other => panic!("{other:?}"),
            }
        }
    })
}

#[test]
fn every_byte_of_stdin_goes_out_and_every_byte_of_stdout_comes_back() {
    let world = World::with_agent(cat);
    let bytes: Vec<u8> =
        (0..40_000_003_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut child = world.spawn(
        &["vm", "exec", "web", "--", "cat"],
        Stdio::piped(),
        Stdio::piped(),
        Stdio::inherit(),
    );
    let mut stdin = child.stdin.take().unwrap();
    let sent = bytes.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&sent).unwrap());
    let received = read_to_end(child.stdout.take());
    writer.join().unwrap();
    assert!(received == bytes, "{} of {} bytes came back, or others", received.len(), bytes.len());
    assert_eq!(child.wait().unwrap().code(), Some(3));
}

/// Tells what it was started with.
fn tell(mut frames: Frames, replies: Replies) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        let start = start(&mut frames).await;
        say(&replies, serde_json::to_vec(&start).unwrap()).await;
        exit(&replies, 0).await;
    })
}

#[test]
fn words_variables_and_places_arrive_as_they_were_typed() {
    let world = World::with_agent(tell);
    let output = world
        .banger(&[
            "vm",
            "exec",
            "-n",
            "-e",
            "A=b=c",
            "-e",
            "BANGER_HOME",
            "-w",
            "/srv",
            "-u",
            "7:8",
            "--timeout",
            "1m30s",
        ])
        .args(["web", "--", "sh", "-c", "exit 42", "", "-t", "--", " \n'\""])
        .arg(OsStr::from_bytes(b"\xff\xfe"))
        .output()
        .unwrap();
    let start: Start = serde_json::from_slice(&output.stdout).unwrap();
    let argv: Vec<&[u8]> = start.argv.iter().map(banger_api::exec::Word::as_bytes).collect();
    assert_eq!(argv, [&b"sh"[..], b"-c", b"exit 42", b"", b"-t", b"--", b" \n'\"", b"\xff\xfe"]);
    let env: Vec<(&[u8], &[u8])> =
        start.env.iter().map(|(key, value)| (key.as_bytes(), value.as_bytes())).collect();
    assert_eq!(
        env,
        [(&b"A"[..], &b"b=c"[..]), (b"BANGER_HOME", world.home().as_os_str().as_bytes())]
    );
    assert_eq!(start.cwd.unwrap().as_bytes(), b"/srv");
    assert_eq!(start.user.as_deref(), Some("7:8"));
    assert_eq!(start.timeout_ms, Some(90_000));
    assert!(start.no_stdin);
    assert_eq!(start.tty, None, "pipes are no terminal");
}

#[test]
fn every_exit_status_is_passed_on() {
    fn number(mut frames: Frames, replies: Replies) -> tokio::task::JoinHandle<()> {
        tokio::spawn(async move {
            let start = start(&mut frames).await;
            let word = String::from_utf8(start.argv[0].as_bytes().to_vec()).unwrap();
            exit(&replies, word.parse().unwrap()).await;
        })
    }
    let world = World::with_agent(number);
    for status in [0, 1, 2, 124, 125, 126, 127, 128, 137, 143, 254, 255] {
        world
            .banger(&["vm", "exec", "web", "--", &status.to_string()])
            .assert()
            .code(status)
            .stderr_eq("");
    }
}

#[test]
fn a_command_that_cannot_start_is_refused_with_the_agents_words() {
    fn refuse(mut frames: Frames, replies: Replies) -> tokio::task::JoinHandle<()> {
        tokio::spawn(async move {
            start(&mut frames).await;
            let message = "nosuch: not found in PATH".to_owned();
            replies.send(FromAgent::Refused(Refused { status: 127, message })).await.unwrap();
        })
    }
    let world = World::with_agent(refuse);
    world
        .banger(&["vm", "exec", "web", "--", "nosuch"])
        .assert()
        .code(127)
        .stdout_eq("")
        .stderr_eq("banger: nosuch: not found in PATH\n");
}

#[test]
fn a_command_whose_time_is_up_exits_with_124() {
    fn late(mut frames: Frames, replies: Replies) -> tokio::task::JoinHandle<()> {
        tokio::spawn(async move {
            start(&mut frames).await;
            let exit = Exit { status: 143, timed_out: true, microseconds: 1 };
            replies.send(FromAgent::Exit(exit)).await.unwrap();
        })
    }
    World::with_agent(late)
        .banger(&["vm", "exec", "--timeout", "1", "web", "--", "sleep"])
        .assert()
        .code(124);
}

#[test]
fn a_connection_that_breaks_is_bangers_failure_not_the_commands() {
    fn vanish(mut frames: Frames, replies: Replies) -> tokio::task::JoinHandle<()> {
        tokio::spawn(async move {
            start(&mut frames).await;
            say(&replies, "half").await;
        })
    }
    let output =
        World::with_agent(vanish).banger(&["vm", "exec", "web", "--", "x"]).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(
        stderr.starts_with(
            "error: the connection to the command broke before it said how it ended\n"
        ),
        "{stderr}"
    );
}

#[test]
fn a_vm_that_does_not_run_is_bangers_failure() {
    World::with_daemon()
        .banger(&["vm", "exec", "web", "--", "true"])
        .assert()
        .code(125)
        .stderr_eq("error: web does not run\n");
    World::with_daemon()
        .banger(&["vm", "exec", "nobody"])
        .assert()
        .code(125)
        .stderr_eq("error: there is no VM nobody\ntry: see `banger vm list`\n");
}

/// Takes no byte of stdin; says what signal came, and after the first `INT` how much stdin was under way.
fn deaf(mut frames: Frames, replies: Replies) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        start(&mut frames).await;
        say(&replies, "ready\n").await;
        let mut under_way = 0;
        while let Some(frame) = frames.recv().await {
            match frame {
                ToAgent::Stdin(bytes) => {
                    under_way += bytes.len();
                    if under_way == STDIN_WINDOW {
                        say(&replies, "full\n").await;
                    }
                    assert!(under_way <= STDIN_WINDOW, "the window was overrun");
                }
                ToAgent::Signal(number) => {
                    say(&replies, format!("signal {number}\n")).await;
                    if number == 15 {
                        return exit(&replies, 143).await;
                    }
                }
                ToAgent::StdinEnd => {}
                other => panic!("{other:?}"),
            }
        }
    })
}

#[test]
fn signals_pass_a_command_that_reads_no_stdin() {
    let world = World::with_agent(deaf);
    let mut child = world.spawn(
        &["vm", "exec", "web", "--", "x"],
        Stdio::piped(),
        Stdio::piped(),
        Stdio::inherit(),
    );
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || {
        // Ends with EPIPE when the client has ended: it never reads all of this.
        stdin.write_all(&vec![0; 4 * STDIN_WINDOW]).is_err()
    });
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert_eq!(lines.next().unwrap(), "ready");
    assert_eq!(lines.next().unwrap(), "full");
    for (sent, heard) in [(Signal::INT, "signal 2"), (Signal::TERM, "signal 15")] {
        signal(&child, sent);
        assert_eq!(lines.next().unwrap(), heard);
    }
    assert_eq!(child.wait().unwrap().code(), Some(143));
    assert!(writer.join().unwrap(), "all of stdin was read although nobody took it");
}

#[test]
fn the_third_ctrl_c_leaves_a_command_that_ignores_them() {
    let world = World::with_agent(deaf);
    let mut child = world.spawn(
        &["vm", "exec", "web", "--", "x"],
        Stdio::null(),
        Stdio::piped(),
        Stdio::piped(),
    );
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert_eq!(lines.next().unwrap(), "ready");
    for _ in 0..2 {
        signal(&child, Signal::INT);
        assert_eq!(lines.next().unwrap(), "signal 2");
    }
    signal(&child, Signal::INT);
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

/// Never stops talking, until it is told to.
fn yes(mut frames: Frames, replies: Replies) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        start(&mut frames).await;
        let chatter = vec![b'y'; 32 * 1024];
        loop {
            tokio::select! {
                frame = frames.recv() => match frame {
                    Some(ToAgent::Signal(_)) => return exit(&replies, 0).await,
                    // The client has gone.
                    None => return,
                    Some(_) => {}
                },
                () = say(&replies, &chatter) => tokio::task::yield_now().await,
            }
        }
    })
}

#[test]
fn nobody_reading_stdout_ends_the_session_as_sigpipe_would() {
    let world = World::with_agent(yes);
    let mut child = world.spawn(
        &["vm", "exec", "web", "--", "yes"],
        Stdio::null(),
        Stdio::piped(),
        Stdio::piped(),
    );
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 100]).unwrap();
    drop(stdout);
    assert_eq!(child.wait().unwrap().code(), Some(141));
    assert_eq!(read_to_end(child.stderr.take()), b"", "nobody complains about a closed pipe");
}

#[test]
fn a_full_stdout_stops_neither_signals_nor_loses_a_byte() {
    let world = World::with_agent(yes);
    let mut child = world.spawn(
        &["vm", "exec", "web", "--", "yes"],
        Stdio::null(),
        Stdio::piped(),
        Stdio::piped(),
    );
    let mut stdout = child.stdout.take().unwrap();
    let mut first = [0; 100];
    stdout.read_exact(&mut first).unwrap();
    // From here on the pipe fills and the client's writer blocks in write(2), while the signal passes.
    signal(&child, Signal::TERM);
    let rest = read_to_end(Some(stdout));
    assert_eq!((first.len() + rest.len()) % (32 * 1024), 0, "a piece was cut");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_full_disk_is_a_problem() {
    let world = World::with_agent(yes);
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut child = world.spawn(
        &["vm", "exec", "web", "--", "yes"],
        Stdio::null(),
        Stdio::from(full),
        Stdio::piped(),
    );
    let stderr = String::from_utf8(read_to_end(child.stderr.take())).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(125));
    assert!(
        stderr.starts_with("error: cannot write the command's output\n  No space left"),
        "{stderr}"
    );
}

#[test]
fn inherited_files_stay_blocking() {
    let world = World::with_agent(cat);
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let seen = theirs.try_clone().unwrap();
    let stdio = || Stdio::from(std::os::fd::OwnedFd::from(theirs.try_clone().unwrap()));
    let mut child =
        world.spawn(&["vm", "exec", "web", "--", "cat"], stdio(), stdio(), Stdio::inherit());
    (&ours).write_all(b"hello").unwrap();
    let mut answer = [0; 5];
    (&ours).read_exact(&mut answer).unwrap();
    let flags = rustix::fs::fcntl_getfl(&seen).unwrap();
    assert!(!flags.contains(rustix::fs::OFlags::NONBLOCK), "a shared file was made non-blocking");
    ours.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(3));
}

/// Says its terminal's size, each key as a number, each new size; ends at `q`.
fn keys(mut frames: Frames, replies: Replies) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        let start = start(&mut frames).await;
        let size = start.tty.unwrap();
        let env: Vec<String> = start
            .env
            .iter()
            .map(|(key, value)| format!("{key:?}={value:?}").replace('"', ""))
            .collect();
        say(&replies, format!("{}x{} {}\n", size.rows, size.columns, env.join(" "))).await;
        while let Some(frame) = frames.recv().await {
            match frame {
                ToAgent::Stdin(bytes) => {
                    for byte in &bytes {
                        say(&replies, format!("key {byte}\n")).await;
                        if *byte == b'q' {
                            return exit(&replies, 7).await;
                        }
                    }
                }
                ToAgent::Resize(size) => {
                    say(&replies, format!("{}x{}\n", size.rows, size.columns)).await
                }
                other => panic!("{other:?}"),
            }
        }
    })
}

#[test]
fn a_terminal_is_raw_while_the_command_runs_and_as_before_afterwards() {
    let world = World::with_agent(keys);
    let (mut child, terminal) = world.spawn_on_terminal(&["vm", "exec", "web"]);
    let before = tcgetattr(&terminal).unwrap();
    assert!(before.local_modes.contains(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG));
    let mut lines = BufReader::new(terminal.try_clone().unwrap()).lines().map(Result::unwrap);
    assert_eq!(lines.next().unwrap(), "33x99 TERM=xterm-test");
    assert!(
        !tcgetattr(&terminal)
            .unwrap()
            .local_modes
            .intersects(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG)
    );
    (&terminal).write_all(b"\x03").unwrap();
    assert_eq!(lines.next().unwrap(), "key 3", "Ctrl-C is the guest's");
    support::resize(&terminal, 20, 40);
    assert_eq!(lines.next().unwrap(), "20x40");
    (&terminal).write_all(b"q").unwrap();
    assert_eq!(lines.next().unwrap(), "key 113");
    assert_eq!(child.wait().unwrap().code(), Some(7));
    assert_eq!(tcgetattr(&terminal).unwrap().local_modes, before.local_modes);
}

#[test]
fn a_signal_leaves_a_raw_terminal_as_it_was() {
    let world = World::with_agent(keys);
    let (mut child, terminal) = world.spawn_on_terminal(&["vm", "exec", "web"]);
    let before = tcgetattr(&terminal).unwrap();
    let mut lines = BufReader::new(terminal.try_clone().unwrap()).lines().map(Result::unwrap);
    lines.next().unwrap();
    let leader = rustix::termios::tcgetpgrp(&terminal).unwrap();
    kill_process(leader, Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(143));
    assert_eq!(tcgetattr(&terminal).unwrap().local_modes, before.local_modes);
}

#[test]
fn a_run_exits_as_its_command_and_deletes_only_with_rm() {
    let world = World::with_agent(cat);
    world
        .banger(&["vm", "run", "--quiet", "--", "cat"])
        .stdin("hello")
        .assert()
        .code(3)
        .stdout_eq("hello")
        .stderr_eq("");
    assert!(!world.saw("DELETE"));
    world
        .banger(&["vm", "run", "--rm", "-q", "--", "cat"])
        .stdin("hello")
        .assert()
        .code(3)
        .stdout_eq("hello")
        .stderr_eq("");
    assert!(world.saw("DELETE /v1/vms/0123abcd"));
}

#[test]
fn leaving_a_shell_says_that_the_vm_stays_and_how_to_go_on() {
    let world = World::with_agent(cat);
    world.banger(&["vm", "run"]).stdin("x").assert().code(3).stdout_eq("x").stderr_eq(
        "booting the guest…
brave-otter still runs: `banger vm exec brave-otter` goes back in, `banger vm delete brave-otter` deletes it
",
    );
}

#[test]
fn ctrl_c_during_the_boot_leaves_at_once_and_says_what_happens_next() {
    let world = World::with_daemon();
    for (flags, said) in [
        (&["--rm"][..], "interrupted; the daemon deletes what it has made so far\n"),
        (
            &[],
            "interrupted; the VM goes on starting: find it with `banger vm list`, stop it with `banger vm delete`\n",
        ),
    ] {
        let words = [&["vm", "run", "--name", "endless"], flags].concat();
        world.requests().clear();
        let mut child = world.spawn(&words, Stdio::null(), Stdio::piped(), Stdio::piped());
        world.wait_for("POST /v1/vms ");
        signal(&child, Signal::INT);
        assert_eq!(child.wait().unwrap().code(), Some(130));
        assert_eq!(String::from_utf8(read_to_end(child.stderr.take())).unwrap(), said);
    }
}

#[test]
fn prune_asks_on_a_terminal_and_takes_silence_for_no() {
    for (answer, status, deleted) in [("y\n", 0, true), ("\n", 1, false), ("no\n", 1, false)] {
        let world = World::with_daemon();
        let (mut child, terminal) = world.spawn_on_terminal(&["vm", "prune"]);
        let mut lines = BufReader::new(terminal.try_clone().unwrap()).lines().map(Result::unwrap);
        assert_eq!(lines.next().unwrap(), "this deletes 2 VMs with what is on their disks: db old");
        (&terminal).write_all(answer.as_bytes()).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(status), "{answer:?}");
        assert_eq!(world.saw("POST /v1/vms/prune"), deleted, "{answer:?}");
    }
}
