//! What a user sees: stdout, stderr and exit status, word for word.

#![expect(clippy::unwrap_used, reason = "where a test unwraps, it claims")]

mod support;

use snapbox::str;
use support::World;

#[test]
fn a_list_is_a_table() {
    World::with_daemon().banger(&["vm", "list"]).assert().code(0).stderr_eq("").stdout_eq(str![[
        r#"
NAME  STATE    ADDRESS     IMAGE            CPU  MEM    DISK   WORKSPACE  AGE
db    stopped  10.213.0.2  debian:bookworm  2    1 GiB  8 GiB  -          2d
old   error    10.213.0.2  debian:bookworm  2    1 GiB  8 GiB  -          2d (1h left)
web   running  10.213.0.2  debian:bookworm  2    1 GiB  8 GiB  -          2d

"#
    ]]);
}

#[test]
fn a_quiet_list_is_names() {
    World::with_daemon().banger(&["vm", "ls", "-q"]).assert().code(0).stdout_eq("db\nold\nweb\n");
}

#[test]
fn a_json_list_is_an_array_on_one_line() {
    let world = World::with_daemon();
    let output = world.banger(&["vm", "list", "--format", "json"]).output().unwrap();
    let vms: Vec<banger_api::vm::Vm> = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(vms.len(), 3);
    assert_eq!(output.stdout.iter().filter(|&&byte| byte == b'\n').count(), 1);
}

#[test]
fn show_tells_what_went_wrong_last_and_what_to_do() {
    World::with_daemon().banger(&["vm", "show", "old"]).assert().code(0).stdout_eq(str![[r#"
name     old
id       0123abcd
state    error
image    debian:bookworm
init     /sbin/init
kernel   6.1.0-56-cloud-amd64
cpus     2
memory   1 GiB
disk     8 GiB
network  default
address  10.213.0.2
egress   none
labels   ci=2
ttl      deleted with its disk at [..], 1h left
created  [..] (2d ago)
problem  cannot remove the disk
try      delete it again

"#]]);
}

#[test]
fn ports_tell_where_each_service_is_reached_and_how_one_that_is_not_can_be() {
    World::with_daemon().banger(&["vm", "ports", "web"]).assert().code(0).stdout_eq(str![[r#"
PROTO  ADDRESS    PORT  PROCESS   URL
tcp    0.0.0.0    80    nginx     http://web.vm:80
tcp    ::         22    sshd      web.vm:22
tcp    127.0.0.1  5432  postgres  `banger vm forward web 5432`
tcp    -          90    -         127.0.0.1:9000, but nothing listens
tcp    -          91    -         not published at 127.0.0.1:9001: port 127.0.0.1:9001 of this host is taken

"#]]);
}

#[test]
fn a_port_that_is_none_is_refused_with_the_rule_and_a_forward_needs_a_running_vm() {
    let world = World::with_daemon();
    for (words, rule) in [
        (&["vm", "run", "-p", "80:http"][..], "a port is a number from 1 to 65535"),
        (&["vm", "create", "-p", "localhost:80:80"], "127.0.0.1, 0.0.0.0, [::1]"),
        (&["vm", "forward", "web", "80/sctp"], "the protocol is tcp or udp"),
        (
            &["vm", "set", "web"],
            "<--nat <NAT>|--egress <POLICY>|--publish <PORT>|--unpublish <PORT>|",
        ),
    ] {
        let refused = world.banger(words).output().unwrap();
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(said.contains(rule), "{said}");
        assert!(world.requests().is_empty());
    }
    world.banger(&["vm", "forward", "db", "0:80"]).assert().code(1).stderr_eq(str![[r#"
error: VM db is stopped
try: `banger vm start db`

"#]]);
}

#[test]
fn what_is_no_repository_is_refused_before_anything_is_asked_or_made() {
    let world = World::with_daemon();
    let nowhere = world.home().to_str().unwrap();
    for words in [
        &["vm", "run", nowhere, "--", "true"][..],
        &["vm", "run", nowhere, "--dry-run"],
        &["vm", "run", "--include-untracked", "--", "true"],
    ] {
        let refused = world.banger(words).output().unwrap();
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(125), "{said}");
        assert!(said.contains("repository"), "{said}");
        assert!(world.requests().is_empty());
    }
}

#[test]
fn what_a_vm_was_refused_is_a_line_each() {
    World::with_daemon().banger(&["vm", "logs", "--network", "web"]).assert().code(0).stdout_eq(
        str![[r#"
2026-01-31T12:03:11Z  refused  name  evil.example
2026-01-31T12:03:11Z  refused  tcp   203.0.113.9:443
2026-01-31T12:03:11Z  refused  udp   203.0.113.9:53

"#]],
    );
}

#[test]
fn what_is_no_policy_is_refused_before_anything_is_asked() {
    let world = World::with_daemon();
    let refused = world.banger(&["vm", "create", "--egress", "allow:GitHub.com"]).assert().code(2);
    refused.stderr_eq(str![[r#"
error: invalid value 'allow:GitHub.com' for '--egress <POLICY>': "GitHub.com" is no domain (lower-case letters, digits, `-` and `_` between dots, `*.` before it for all names below), no address and no subnet

For more information, try '--help'.

"#]]);
}

#[test]
fn good_targets_go_on_when_others_are_wrong_and_every_line_names_its_vm() {
    let world = World::with_daemon();
    let output =
        world.banger(&["vm", "stop", "web", "nobody", "No_Name", "db", "web"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let sorted = |bytes: &[u8]| {
        let mut lines: Vec<String> =
            String::from_utf8_lossy(bytes).lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(&output.stdout), ["db: stopped", "web: running"]);
    assert_eq!(
        sorted(&output.stderr),
        [
            "  both are made of a-z, 0-9 and -, at most 63 of them",
            "db: working…",
            "error: \"No_Name\" is no VM's name or id",
            "error: there is no VM nobody",
            "try: see `banger vm list`",
            "try: see `banger vm list`",
            "web: working…",
        ]
    );
}

#[test]
fn json_errors_are_problems_that_name_their_target() {
    let world = World::with_daemon();
    world
        .banger(&["--format", "json", "vm", "delete", "nobody", "web"])
        .assert()
        .code(1)
        .stdout_eq("{\"deleted\":\"web\"}\n")
        .stderr_eq(str![[r#"
{"target":"nobody","code":"not_found","message":"there is no VM nobody","causes":[],"remedy":"see `banger vm list`"}

"#]]);
}

#[test]
fn an_image_in_use_is_not_deleted_and_its_slash_is_no_path() {
    let world = World::with_daemon();
    world.banger(&["image", "rm", "example/a:1"]).assert().code(1).stderr_eq(str![[r#"
error: image example/a:1 is used by web

"#]]);
    assert!(world.saw("DELETE /v1/images/example%2Fa:1"));
}

#[test]
fn prune_without_a_terminal_needs_force() {
    let world = World::with_daemon();
    world.banger(&["vm", "prune"]).assert().code(1).stdout_eq("").stderr_eq(str![[r#"
error: prune deletes disks, and there is no terminal to ask on
try: `banger vm prune -f` asks no question

"#]]);
    assert!(!world.saw("POST /v1/vms/prune"));
    world
        .banger(&["vm", "prune", "-f", "--quiet"])
        .assert()
        .code(0)
        .stdout_eq("db\nold\n")
        .stderr_eq("");
    world.banger(&["vm", "prune", "-f"]).assert().code(0).stdout_eq(str![[r#"
db: deleted
old: deleted
3 GiB freed

"#]]);
}

#[test]
fn logs_are_printed_as_they_are() {
    World::with_daemon()
        .banger(&["vm", "logs", "web"])
        .assert()
        .code(0)
        .stdout_eq("one\ntwo\n")
        .stderr_eq("");
}

#[test]
fn doctor_shows_verdicts_and_remedies_and_a_warning_is_no_failure() {
    World::with_daemon().banger(&["doctor"]).assert().code(0).stdout_eq(str![[r#"
WARN  kvm   no guest runs
            try: use a host with KVM
PASS  qemu  7.2

"#]]);
}

#[test]
fn doctor_reports_a_daemon_that_cannot_start() {
    World::without_daemon().banger(&["doctor"]).assert().code(1).stdout_eq(str![[r#"
FAIL  daemon  cannot start the daemon: no program `bangerd` beside `banger` or in PATH
              try: install `bangerd` beside `banger`

"#]]);
}

#[test]
fn a_missing_daemon_program_is_a_problem_with_a_remedy() {
    World::without_daemon().banger(&["vm", "list"]).assert().code(1).stdout_eq("").stderr_eq(str![
        [r#"
error: cannot start the daemon: no program `bangerd` beside `banger` or in PATH
try: install `bangerd` beside `banger`

"#]
    ]);
}

#[test]
fn daemon_status_starts_nothing_and_says_so() {
    let world = World::without_daemon();
    world.banger(&["daemon", "status"]).assert().code(1).stdout_eq(str![[r#"
not running (nobody listens at [..]/run/banger.sock)

"#]]);
    world.banger(&["daemon", "status", "--format", "json"]).assert().code(1).stdout_eq("null\n");
    world.banger(&["daemon", "stop"]).assert().code(0).stdout_eq("not running\n");
    assert_eq!(std::fs::read_dir(world.home()).unwrap().count(), 0, "nothing was made");
}

#[test]
fn a_relative_banger_home_is_refused_by_name() {
    let world = World::without_daemon();
    world.banger(&["vm", "list"]).env("BANGER_HOME", "here").assert().code(1).stderr_eq(str![[
        r#"
error: BANGER_HOME is "here", which is not an absolute path

"#
    ]]);
}

#[test]
fn run_refuses_what_does_not_go_together_before_anything_is_made() {
    let world = World::with_daemon();
    world.banger(&["vm", "run", "-d", "--rm"]).assert().code(125).stderr_eq(str![[r#"
error: the argument '--detach' cannot be used with '--rm'

Usage: banger vm run --detach [PATH] [-- <CMD>...]

For more information, try '--help'.

"#]]);
    world.banger(&["vm", "run", "-d", "--", "true"]).assert().code(125).stderr_eq(str![[r#"
error: the argument '--detach' cannot be used with '[CMD]...'

Usage: banger vm run --detach [PATH] [-- <CMD>...]

For more information, try '--help'.

"#]]);
    assert!(world.requests().is_empty());
}

#[test]
fn what_is_no_positive_size_or_number_is_refused_by_the_flags_name() {
    let world = World::with_daemon();
    for (flag, value, rule) in [
        ("--cpus", "0", "0 is not in 1.."),
        ("--cpus", "-1", "-1 is not in 1.."),
        ("--memory", "0", "it must be more than zero"),
        ("--memory", "-2G", "write a whole number and a unit"),
        ("--disk", "8GB", "the units are K, M, G, T"),
        ("--name", "Web", "only a-z, 0-9 and - are allowed (a DNS label)"),
    ] {
        for verb in ["run", "create"] {
            let output = world.banger(&["vm", verb, flag, value]).output().unwrap();
            let stderr = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(if verb == "run" { 125 } else { 2 }), "{stderr}");
            assert!(stderr.contains(flag) && stderr.contains(rule), "{flag} {value}: {stderr}");
        }
    }
    assert!(world.requests().is_empty());
}

#[test]
fn an_unknown_flag_is_claps_to_explain() {
    World::without_daemon()
        .banger(&["vm", "list", "--colour"])
        .assert()
        .code(2)
        .stdout_eq("")
        .stderr_eq(str![[r#"
error: unexpected argument '--colour' found

Usage: banger vm list [OPTIONS]

For more information, try '--help'.

"#]]);
}

#[test]
fn a_start_that_fails_shows_its_problem_and_the_operation() {
    World::with_daemon().banger(&["vm", "run", "--name", "doomed"]).assert().code(125).stderr_eq(
        str![[r#"
error: cannot start doomed
  the guest's kernel did not boot
try: see `banger vm logs doomed`
operation 0p0p0p0p

"#]],
    );
}

#[test]
fn a_daemon_that_dies_in_the_middle_is_no_success() {
    World::with_daemon().banger(&["vm", "create", "--name", "cut-off"]).assert().code(1).stderr_eq(
        str![[r#"
error: the daemon ended before it said how the work went
try: see `banger daemon status` and `banger vm list`
operation 0p0p0p0p

"#]],
    );
}

#[test]
fn a_detached_run_prints_the_vms_name() {
    let world = World::with_daemon();
    world.banger(&["vm", "run", "-dq"]).assert().code(0).stdout_eq("brave-otter\n").stderr_eq("");
    world
        .banger(&["vm", "run", "-d", "--name", "x", "--cpus", "2", "--memory", "2G"])
        .assert()
        .code(0)
        .stdout_eq("x: running\n");
    assert!(world.saw(
        r#"POST /v1/vms {"name":"x","image":null,"kernel":null,"cpus":2,"memory_bytes":2147483648,"disk_bytes":null,"init":"auto","entrypoint":true,"network":null,"nat":false,"egress":null,"published":[],"exposed":[],"labels":{},"ttl":0,"auto_stop":null,"start":true,"ephemeral":false}"#
    ));
    let output = world.banger(&["vm", "run", "-d", "--format", "json"]).output().unwrap();
    let vm: banger_api::vm::Vm = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(vm.name.as_str(), "brave-otter");
    assert!(output.stderr.is_empty(), "JSON has no progress");
}

#[test]
fn a_daemon_of_another_version_is_named_with_the_way_out() {
    let world = World::without_daemon();
    std::fs::create_dir_all(world.socket().parent().unwrap()).unwrap();
    let listener = std::os::unix::net::UnixListener::bind(world.socket()).unwrap();
    std::thread::spawn(move || {
        use std::io::{Read, Write};
        for connection in listener.incoming() {
            let mut connection = connection.unwrap();
            let mut request = [0; 4096];
            // The first connection only looks whether somebody listens.
            if connection.read(&mut request).unwrap() > 0 {
                connection
                    .write_all(b"HTTP/1.1 200 OK\r\nbanger-version: 99 9.9.9\r\ncontent-length: 2\r\n\r\n[]")
                    .unwrap();
            }
        }
    });
    world.banger(&["vm", "list"]).assert().code(1).stderr_eq(str![[r#"
error: the daemon is of another version: it is 99 9.9.9, this is 1 [..]
try: run `banger daemon stop` (of an installation: `sudo banger system install`) and repeat the command; running VMs live on

"#]]);
}

#[test]
fn a_shell_that_completes_gets_live_names_and_never_starts_a_daemon() {
    let ask = |world: &World| {
        world
            .banger(&["--", "banger", "vm", "stop", "d"])
            .env("COMPLETE", "bash")
            .env("_CLAP_COMPLETE_INDEX", "3")
            .env("_CLAP_COMPLETE_COMP_TYPE", "9")
            .env("_CLAP_COMPLETE_SPACE", "true")
            .env("_CLAP_IFS", "\n")
    };
    ask(&World::with_daemon()).assert().code(0).stdout_eq("db").stderr_eq("");
    let without = World::without_daemon();
    ask(&without).assert().code(0).stdout_eq("").stderr_eq("");
    assert_eq!(std::fs::read_dir(without.home()).unwrap().count(), 0);
}

#[test]
fn there_is_a_script_for_each_common_shell() {
    let world = World::without_daemon();
    for shell in ["bash", "zsh", "fish"] {
        let output = world.banger(&["completion", shell]).output().unwrap();
        assert!(output.status.success());
        assert!(String::from_utf8(output.stdout).unwrap().contains("COMPLETE"), "{shell}");
    }
}

#[test]
fn help_is_one_screen_for_a_newcomer() {
    let world = World::without_daemon();
    let help =
        |words: &[&str]| world.banger(words).env("COLUMNS", "100").assert().code(0).stderr_eq("");
    help(&["--help"]).stdout_eq(str![[r#"
Development sandboxes on microVMs: disposable Linux machines with their own kernel

Usage: banger [OPTIONS] <COMMAND>

Commands:
  vm          Make VMs, run commands in them, look at them, delete them
  image       Root filesystems that VMs boot from
  kernel      Kernels that VMs boot
  network     What connects VMs with the host
  cache       What is kept only to be quicker
  daemon      The daemon that works for you in the background
  system      The daemon as a service of this host, with root's helper and jailed VMs
  ssh-config  Show or install what ssh, scp, rsync and git need to reach VMs by name
  doctor      Look whether this host is fit for VMs, and say what to do where it is not
  bench       Measure this host, against the VMM alone
  completion  Print a script that makes a shell complete banger's words, and live names of VMs
  man         Print banger's manual page, or write one of every verb into a folder
  help        Print this message or the help of the given subcommand(s)

Options:
      --format <FORMAT>  How results and errors are written; json: one document a line [possible
                         values: human, json]
  -q, --quiet            No progress and no hints; lists show names only
  -h, --help             Print help
  -V, --version          Print version

Results go to stdout, everything else to stderr. The first command that needs the daemon starts it.

Examples:
  banger vm run                      a new VM and a shell in it
  banger vm run --rm -- uname -a     one command in a VM that is gone afterwards
  banger vm list                     what there is
  banger doctor                      whether this host is fit, and what to do if not

"#]]);
    help(&["vm", "--help"]).stdout_eq(str![[r#"
Make VMs, run commands in them, look at them, delete them

Usage: banger vm [OPTIONS] <COMMAND>

Commands:
  run        Make a VM, start it, and run a command or a shell in it
  exec       Run a command or a shell in a running VM
  jobs       Show a VM's jobs: the commands that `vm exec -d` has left in it
  attach     Be there for a job: see what it wrote and writes, and type for it
  cp         Copy files and folders to and from a running VM
  list       List the VMs there are [alias: ls]
  show       Show everything there is to know of a VM, and what went wrong with it last
  set        Change VMs, at once if they run
  rename     Give a VM another name, running or not
  create     Make a VM without starting it
  start      Start VMs that do not run
  stop       Shut VMs down; their disks stay
  restart    Stop VMs and start them again
  pause      Let VMs stand still: their processors stop, their memory stays
  resume     Let paused VMs go on where they stood still
  kill       End VMs at once, as pulling the plug would; writes that were not synced are lost
  delete     Delete VMs with their disks, running or not [alias: rm]
  prune      Delete every VM that does not run, after a question
  logs       Print what a VM's kernel, init and agent wrote to its console
  ports      Show what a running VM listens on, and where this host reaches it
  forward    Lead ports of this host to ports of a running VM, until Ctrl-C
  stats      Show what VMs that run use of this host [alias: top]
  workspace  Git repositories in VMs: bring them there, and what was done there back
  ssh        Log in to a running VM by ssh
  proxy      Carry an ssh connection to a running VM over stdin and stdout
  help       Print this message or the help of the given subcommand(s)

Options:
      --format <FORMAT>  How results and errors are written; json: one document a line [possible
                         values: human, json]
  -q, --quiet            No progress and no hints; lists show names only
  -h, --help             Print help

"#]]);
    help(&["vm", "workspace", "--help"]).stdout_eq(str![[r#"
Git repositories in VMs: bring them there, and what was done there back

Usage: banger vm workspace [OPTIONS] <COMMAND>

Commands:
  prepare  Bring a git repository into a running VM, or bring the one that is there up to date
  status   Tell what has changed in a VM's repository, and what of it nobody has exported
  diff     Show as a patch what has changed in a VM's repository since the commit that it began at
  export   Bring what was done in a VM's repository back: as a patch, or its commits as a branch
  help     Print this message or the help of the given subcommand(s)

Options:
      --format <FORMAT>  How results and errors are written; json: one document a line [possible
                         values: human, json]
  -q, --quiet            No progress and no hints; lists show names only
  -h, --help             Print help

"#]]);
    help(&["vm", "workspace", "prepare", "--help"]).stdout_eq(str![[r#"
Bring a git repository into a running VM, or bring the one that is there up to date

Usage: banger vm workspace prepare [OPTIONS] <VM> [PATH]

Arguments:
  <VM>    Its name or id, or the beginning of one
  [PATH]  The repository's folder; the one that was brought before if not given

Options:
      --format <FORMAT>  How results and errors are written; json: one document a line [possible
                         values: human, json]
  -q, --quiet            No progress and no hints; lists show names only
  -h, --help             Print help

The repository:
      --branch <NAME>      Begin a new branch there
      --from <REF>         Where the new branch begins; the guest gets this commit, without what is
                           not committed here
      --include-untracked  Take files along that git does not know; ignored ones never go
      --at <FOLDER>        Where it is in the guest; /root/repo if not given
      --dry-run            Only list what would go along; makes nothing
  -f, --force              Drop what was done in the VM and not exported

The guest gets the last ten generations of commits with their real ids, the branch, the index, and
the tracked files as they are in the working tree; nothing that git ignores. Where a repository was
brought before, it takes its place, but for what git ignores there; work that nobody has exported is
in the way.

Examples:
  banger vm workspace prepare web .                    the repository that this folder is in
  banger vm workspace prepare web                      again, from where it came
  banger vm workspace prepare web . --branch topic     on a new branch there

"#]]);
    help(&["vm", "workspace", "export", "--help"]).stdout_eq(str![[r#"
Bring what was done in a VM's repository back: as a patch, or its commits as a branch

Usage: banger vm workspace export [OPTIONS] <VM>

Arguments:
  <VM>  Its name or id, or the beginning of one

Options:
      --format <FORMAT>   How results and errors are written; json: one document a line [possible
                          values: human, json]
  -o, --output <FILE>     Write the patch into this file; to stdout if neither it nor a branch is
                          given
      --branch <NAME>     Make this branch of the commit that is checked out there
  -q, --quiet             No progress and no hints; lists show names only
      --submodule <PATH>  The submodule that is meant, by its path
  -f, --force             Move the branch if there is one of that name
  -h, --help              Print help

The patch is against the commit that the guest began at. It holds commits, changes that are not
committed, and files that git does not know and does not ignore; `git apply --index --binary` takes
it. With --branch the commits become a branch of the repository that they came from, whose working
tree, index and other refs stay as they are.

Examples:
  banger vm workspace export web -o web.patch
  banger vm workspace export web --branch from-web
  banger vm workspace export web | git apply --index --binary

"#]]);
    help(&["vm", "run", "--help"]).stdout_eq(str![[r#"
Make a VM, start it, and run a command or a shell in it

Usage: banger vm run [OPTIONS] [PATH] [-- <CMD>...]

Arguments:
  [PATH]  A git repository to work in

Options:
      --format <FORMAT>  How results and errors are written; json: one document a line [possible
                         values: human, json]
      --rm               Delete the VM and its disk when the command ends, whatever its status
  -d, --detach           Return when the VM is ready, and print its name
  -q, --quiet            No progress and no hints; lists show names only
      --wait <WHAT>      Wait before the command starts until the guest's init has started
                         everything it wants to [possible values: init]
  -h, --help             Print help

The VM:
      --name <NAME>       Its name; made up if not given
      --image <IMAGE>     The image it boots; fetched or built if missing
      --init <INIT>       What boots it: auto (the image's init if it has one), none (banger's
                          agent), or the path of a program in the image
      --kernel <KERNEL>   The kernel it boots, if not the image's own
      --cpus <N>          How many CPUs it has
      --memory <SIZE>     Memory, such as 512M or 2G; a bare number is MiB
      --disk <SIZE>       Size of its disk, such as 8G; a bare number is MiB
      --network <NAME>    The network that it is in, as `banger network list` shows them; `default`
                          if not given
      --nat               Let it reach the internet, and what else the host reaches, under the
                          host's address; without root, passt must be installed
  -p, --publish <PORT>    Lead a port of this host to one of its own while it runs:
                          [ADDRESS:]HOST:GUEST[/udp]; 127.0.0.1 if no address is given, the same
                          port for one number, a free one that it keeps for HOST 0
      --expose <PORT>     Let it reach a service of this host that listens on 127.0.0.1 or ::1 at
                          this TCP port, as host.banger.internal:PORT; may be given up to 64 times:
                          --expose 5432 --expose 11434
      --egress <POLICY>   What it may reach beyond the host: none, all (the same as --nat), or
                          allow: and domains, addresses and subnets, such as
                          allow:github.com,*.debian.org,203.0.113.0/24
      --label <LABEL>     Write something on it, KEY=VALUE, to find it by: `banger vm list --label
                          KEY`
      --ttl <TIME>        Delete it, with its disk, running or not, when this time is over: 90m, 2h,
                          7d
      --auto-stop <TIME>  Stop it when nothing went on in it for this time, or `never`: commands,
                          and connections by its ports, count; `auto_stop_after` of config.toml if
                          not given

The repository:
      --branch <NAME>      Begin a new branch there
      --from <REF>         Where the new branch begins; the guest gets this commit, without what is
                           not committed here
      --include-untracked  Take files along that git does not know; ignored ones never go
      --at <FOLDER>        Where it is in the guest; /root/repo if not given
      --dry-run            Only list what would go along; makes nothing

The command:
  -t, --tty                Give it a terminal, even if stdin or stdout is none
  -T, --no-tty             Give it no terminal, even if stdin and stdout are one
  -n, --no-stdin           Let it read an empty stdin instead of ours, as loops over lines need it
  -e, --env <KEY[=VALUE]>  A variable of its environment; KEY alone takes the value from ours
  -w, --workdir <FOLDER>   The folder it starts in; the image's if it names one, else the user's
                           home
  -u, --user <USER>        The user it runs as: NAME, UID, NAME:GROUP or UID:GID; the image's if it
                           names one, else root
  [CMD]...                 The command and its arguments, passed on word for word

Image and kernel are fetched or made first where they are missing. Without a command: a login shell,
or the image's own program (its entrypoint) if the image has one and no init. The VM stays when the
command ends, unless --rm was given. With -d the image's program runs from each start on, and the VM
stops when that ends. Exits with the command's own status, 128+n if signal n ended it; 125 if banger
failed, 126 if the command cannot be executed, 127 if there is none of that name.

With PATH the git repository that it is in is brought to /root/repo there, where the command or a
shell begins: the last ten generations of commits, the branch, and the tracked files as they are in
the working tree. Nothing that git ignores goes along. `banger vm workspace export` brings back what
was done there; --rm drops it.

Examples:
  banger vm run                                         a shell in a new VM
  banger vm run --rm -- sh -c 'uname -r; exit 3'        one command, nothing left, status 3
  banger vm run --rm --image alpine:3.20 -- ls /         an image of a registry
  banger vm run . -- make test                          in this git repository, brought to
  /root/repo
  banger vm run -d --name web --memory 2G               start it and come back
  banger vm run -p 8080:80                              127.0.0.1:8080 leads to its port 80
  banger vm run --egress allow:github.com,*.debian.org   it reaches these names and nothing else
  tar c . | banger vm run --rm -w /tmp -- tar x         stdin goes to the command

"#]]);
    help(&["network", "create", "--help"]).stdout_eq(str![[r#"
Make a network for VMs, apart from those of other networks

Usage: banger network create [OPTIONS] <NAME>

Arguments:
  <NAME>  Its name

Options:
      --format <FORMAT>  How results and errors are written; json: one document a line [possible
                         values: human, json]
      --subnet <CIDR>    A private subnet of 16 to 29 bits, such as 192.168.77.0/24; one that the
                         host does not use if not given
      --mtu <N>          The longest packet in bytes, 576 to 65521; as config.toml has it if not
                         given
  -q, --quiet            No progress and no hints; lists show names only
      --allow-peers      Let its VMs reach each other, on every port
  -h, --help             Print help

VMs are put in it by `banger vm run --network NAME`. Its bridge is on the host while one of them
runs.

Examples:
  banger network create lab
  banger network create team --allow-peers                its VMs reach each other
  banger network create vpn --subnet 192.168.77.0/24 --mtu 1400

"#]]);
    help(&["network", "delete", "--help"]).stdout_eq(str![[r#"
Delete networks; refused while a VM is in one, running or not

Usage: banger network delete [OPTIONS] <NAME>...

Arguments:
  <NAME>...  

Options:
      --format <FORMAT>  How results and errors are written; json: one document a line [possible
                         values: human, json]
  -q, --quiet            No progress and no hints; lists show names only
  -h, --help             Print help

The network `default` stays.

Examples:
  banger network delete team

"#]]);
    help(&["vm", "forward", "--help"]).stdout_eq(str![[r#"
Lead ports of this host to ports of a running VM, until Ctrl-C

Usage: banger vm forward [OPTIONS] <VM> <PORT>...

Arguments:
  <VM>       Its name or id, or the beginning of one
  <PORT>...  Ports, each [ADDRESS:]HOST:GUEST[/udp]; one number is both, HOST 0 a free one

Options:
      --format <FORMAT>  How results and errors are written; json: one document a line [possible
                         values: human, json]
  -q, --quiet            No progress and no hints; lists show names only
  -h, --help             Print help

Services that listen only within the guest are reached too, and VMs without a network. `banger vm
run -p` does the same for as long as the VM runs.

Examples:
  banger vm forward web 8080:80               127.0.0.1:8080 leads to port 80
  banger vm forward db 5432                   the same port on both sides
  banger vm forward web 0:80 5353:53/udp      a free port, and one for datagrams
  banger vm forward web 0.0.0.0:8080:80       for other hosts too

"#]]);
    help(&["vm", "exec", "--help"]).stdout_eq(str![[r#"
Run a command or a shell in a running VM

Usage: banger vm exec [OPTIONS] <VM> [-- <CMD>...]

Arguments:
  <VM>  Its name or id, or the beginning of one

Options:
      --format <FORMAT>  How results and errors are written; json: one document a line [possible
                         values: human, json]
  -q, --quiet            No progress and no hints; lists show names only
  -h, --help             Print help

The command:
  -t, --tty                Give it a terminal, even if stdin or stdout is none
  -T, --no-tty             Give it no terminal, even if stdin and stdout are one
  -n, --no-stdin           Let it read an empty stdin instead of ours, as loops over lines need it
  -e, --env <KEY[=VALUE]>  A variable of its environment; KEY alone takes the value from ours
  -w, --workdir <FOLDER>   The folder it starts in; the image's if it names one, else the user's
                           home
  -u, --user <USER>        The user it runs as: NAME, UID, NAME:GROUP or UID:GID; the image's if it
                           names one, else root
  -d, --detach             Let it go on by itself in the guest, as a job, and print the job's
                           number; -t gives it a terminal, -i a stdin for who attaches
      --timeout <TIME>     End the command after this time, such as 30s or 5m
      --auto-prepare       Bring the VM's repository up to date first, if this host's has moved on
  [CMD]...                 The command and its arguments, passed on word for word

Words after -- are passed on as they are; no shell looks at them. Exits with the command's own
status, 128+n if signal n ended it; 124 if its time was up, 125 if banger failed, 126 if the command
cannot be executed, 127 if there is none of that name. The third Ctrl-C leaves a command that
ignores the first two.

Examples:
  banger vm exec web                                 a shell
  banger vm exec web -- journalctl -f                one command
  banger vm exec -u nobody -w / web -- id
  banger vm exec -d web -- make -j8 world            goes on by itself: `banger vm jobs web`
  banger vm exec --timeout 30s web -- make test      ended after 30 seconds, with status 124
  banger vm exec web -- cat /etc/motd > motd         stdout, stderr and stdin are the command's
  banger vm exec --auto-prepare web -- make test     in its repository, brought up to date before

"#]]);
}
