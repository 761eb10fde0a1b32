//! `vm exec`: a command in a guest is as a command here, byte for byte and status for status.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fmt::Write;
use std::time::Duration;

use banger_e2e::{BUSYBOX, Backend, SYSTEMD, World, in_world};
use rustix::process::Signal;
use sha2::{Digest, Sha256};

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// Bytes that no compression or repetition hides an error in.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// One VM, in which each of these is tried by itself.
macro_rules! in_one_vm {
    ($($claim:ident)*) => {
        #[test]
        fn a_command_in_a_guest_is_as_a_command_here() {
            in_world(|world| {
                world.start(BUSYBOX, "one");
                world.each(&[$((stringify!($claim), $claim)),*]);
            });
        }
    };
}

in_one_vm! {
    words_environment_folder_and_user_arrive_as_they_were_given
    every_exit_status_is_exact
    stdout_and_stderr_stay_apart_and_stdin_ends
    a_background_process_does_not_hold_the_session
    signals_reach_the_command
    a_signal_arrives_though_the_command_reads_no_stdin
    a_client_that_dies_takes_its_command_with_it
    many_commands_run_at_once
    a_terminal_is_a_terminal
}

fn words_environment_folder_and_user_arrive_as_they_were_given(world: &World) {
    let words = world.banger([
        "vm",
        "exec",
        "one",
        "--",
        "sh",
        "-c",
        "for w; do echo \"<$w>\"; done",
        "-",
        "a b",
        "",
        "$HOME",
        "*",
        "'\"",
        "ä\n",
    ]);
    words.succeeds().prints_only("<a b>\n<>\n<$HOME>\n<*>\n<'\">\n<ä\n>\n");
    let env = world.banger([
        "vm",
        "exec",
        "-e",
        "A=1 2",
        "-e",
        "B=",
        "one",
        "--",
        "sh",
        "-c",
        "echo \"$A|$B|$HOME\"",
    ]);
    env.succeeds().prints_only("1 2||/root\n");
    world.banger(["vm", "exec", "-w", "/tmp", "one", "--", "pwd"]).succeeds().prints_only("/tmp\n");
    world
        .banger(["vm", "exec", "-w", "/nowhere", "one", "--", "pwd"])
        .exits(125)
        .complains("/nowhere");
    let user = world.banger(["vm", "exec", "-u", "user", "one", "--", "id"]);
    user.succeeds().prints("uid=1000(user)").prints("10(wheel)");
    world
        .banger(["vm", "exec", "-u", "nobody-here", "one", "--", "id"])
        .exits(125)
        .complains("nobody-here");
}

fn every_exit_status_is_exact(world: &World) {
    for status in [0, 1, 2, 42, 124, 125, 126, 127, 128, 200, 255] {
        world
            .banger(["vm", "exec", "one", "--", "sh", "-c", &format!("exit {status}")])
            .exits(status);
    }
    for signal in [1, 2, 9, 15] {
        world
            .banger(["vm", "exec", "one", "--", "sh", "-c", &format!("kill -{signal} $$")])
            .exits(128 + signal);
    }
    world.banger(["vm", "exec", "--timeout", "1s", "one", "--", "sleep", "1000"]).exits(124);
}

fn stdout_and_stderr_stay_apart_and_stdin_ends(world: &World) {
    let both = world.banger(["vm", "exec", "one", "--", "sh", "-c", "echo out; echo err >&2"]);
    both.succeeds().prints_only("out\n").complains("err");
    let counted = world.banger_with(&["vm", "exec", "one", "--", "wc", "-c"], b"12345");
    counted.succeeds().prints_only("5\n");
    let early = world.banger_with(&["vm", "exec", "one", "--", "head", "-c", "3"], &noise(1 << 20));
    early.succeeds();
    assert_eq!(early.stdout, noise(3));
}

fn a_background_process_does_not_hold_the_session(world: &World) {
    world
        .banger(["vm", "exec", "one", "--", "sh", "-c", "sleep 1000 & echo done"])
        .succeeds()
        .prints_only("done\n");
}

#[test]
fn much_data_goes_in_and_out_unchanged() {
    in_world(|world| {
        world.start(SYSTEMD, "one");
        let bytes = noise(Backend::here().much());
        let hash = sha256(&bytes);
        let into = world.banger_with(
            &["vm", "exec", "one", "--", "sh", "-c", "cat > /root/big; sha256sum /root/big"],
            &bytes,
        );
        into.succeeds().prints(&hash);
        let back = world.banger(["vm", "exec", "one", "--", "cat", "/root/big"]);
        back.succeeds();
        assert_eq!(sha256(&back.stdout), hash);
        // Whatever passed through, the daemon kept none of it.
        let pid = world.daemon_pid().as_raw_nonzero();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        let peak_kib: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
        assert!(peak_kib < 100 << 10, "the daemon's memory peaked at {peak_kib} KiB");
    });
}

fn signals_reach_the_command(world: &World) {
    let script = "trap 'echo caught; exit 7' TERM; echo up; while :; do sleep 1; done";
    let mut exec = world.background(&["vm", "exec", "one", "--", "sh", "-c", script]);
    assert_eq!(exec.line(), "up");
    exec.signal(Signal::TERM);
    exec.end().exits(7).prints("caught");
}

fn a_signal_arrives_though_the_command_reads_no_stdin(world: &World) {
    let mut exec =
        world.background(&["vm", "exec", "one", "--", "sh", "-c", "echo up; exec sleep 1000"]);
    assert_eq!(exec.line(), "up");
    let mut stdin = exec.stdin();
    let writer = std::thread::spawn(move || {
        // More than fits anywhere on the way: it blocks until the command has ended.
        drop(std::io::Write::write_all(&mut stdin, &noise(8 << 20)));
    });
    exec.signal(Signal::TERM);
    exec.end().exits(128 + 15);
    writer.join().unwrap();
}

fn a_client_that_dies_takes_its_command_with_it(world: &World) {
    let mut exec =
        world.background(&["vm", "exec", "one", "--", "sh", "-c", "echo up; exec sleep 4242"]);
    assert_eq!(exec.line(), "up");
    exec.signal(Signal::KILL);
    drop(exec.end());
    let gone = "while ps | grep -q '[s]leep 4242'; do sleep 0.1; done";
    world.banger(["vm", "exec", "--timeout", "20s", "one", "--", "sh", "-c", gone]).succeeds();
}

fn many_commands_run_at_once(world: &World) {
    let runs: Vec<_> = (0..20)
        .map(|n| {
            world.background(&[
                "vm",
                "exec",
                "one",
                "--",
                "sh",
                "-c",
                &format!("sleep 1; echo {n}; exit {n}"),
            ])
        })
        .collect();
    for (n, run) in (0..).zip(runs) {
        run.end().exits(n).prints_only(&format!("{n}\n"));
    }
}

fn a_terminal_is_a_terminal(world: &World) {
    let mut shell = world.terminal(&["vm", "exec", "one"], 30, 90);
    shell.shows("#");
    shell.types("tty; stty size\n");
    shell.shows("/dev/pts/");
    shell.shows("30 90");
    shell.resize(41, 123);
    // The new size and what is typed come by different ways.
    shell.types("until [ \"$(stty size)\" = '41 123' ]; do sleep 0.1; done; stty size\n");
    shell.shows("\n41 123");
    // What is typed and not read yet would go with the Ctrl-C, and one that comes before the shell has given its child the
    // terminal is the shell's own: so it is the child that says that it sleeps. The quotes keep the echo of the line from
    // being the answer.
    shell.types("sh -c \"echo as''leep; exec sleep 1000\"\n");
    shell.shows("asleep");
    shell.types("\x03");
    shell.shows("#");
    shell.types("echo status $?\n");
    shell.shows("status 130");
    shell.types("exit 9\n");
    assert_eq!(shell.ends(), Some(9));
}

#[test]
fn run_without_a_command_gives_a_shell_and_says_that_the_vm_stays() {
    in_world(|world| {
        let mut shell = world.terminal(
            &["vm", "run", "--name", "one", "--image", BUSYBOX, "--memory", "256M"],
            24,
            80,
        );
        shell.shows("#");
        shell.types("hostname\n");
        shell.shows("one");
        shell.types("exit\n");
        shell.shows("banger vm delete one");
        assert_eq!(shell.ends(), Some(0));
        world.wait_for_state("one", "running", Duration::from_secs(5));
    });
}

#[test]
fn a_vm_that_goes_away_ends_its_sessions() {
    in_world(|world| {
        world.start(BUSYBOX, "one");
        let mut exec =
            world.background(&["vm", "exec", "one", "--", "sh", "-c", "echo up; exec sleep 1000"]);
        assert_eq!(exec.line(), "up");
        world.banger(["vm", "kill", "one"]).succeeds();
        exec.end().exits(125);
        world.banger(["vm", "exec", "one", "--", "true"]).exits(125).complains("vm start one");
    });
}
