//! ssh into guests by name with the clients that people have, through the daemon and by address. What the server in the
//! agent can do is tested without a VM, in `crates/agent/tests/ssh.rs`.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::path::Path;
use std::time::Duration;

use banger_e2e::{BUSYBOX, Outcome, SYSTEMD, World, in_world, wait_until};

const PATIENCE: Duration = Duration::from_secs(60);

/// One of ssh's clients with the configuration that `ssh-config --install` has led to.
struct Clients<'a> {
    world: &'a World,
    config: String,
}

impl Clients<'_> {
    fn run(&self, program: &str, args: &[&str]) -> Outcome {
        self.world.program(program, &[&["-F", &self.config][..], args].concat())
    }

    fn ssh(&self, args: &[&str]) -> Outcome {
        self.run("ssh", args)
    }
}

fn installed(world: &World) -> Clients<'_> {
    let home = world.home().join("user-home");
    fs::create_dir_all(home.join(".ssh")).unwrap();
    let config = home.join(".ssh/config");
    let before = "Host other\n  User me\n";
    fs::write(&config, before).unwrap();
    let home = format!("HOME={}", home.display());
    let ssh_config = |flag| world.program("env", &[&home, "banger", "ssh-config", flag]);
    let line = format!("Include \"{}/state/ssh/config\"\n", world.home().display());
    ssh_config("--install").succeeds().prints("now begins with");
    assert_eq!(fs::read_to_string(&config).unwrap(), format!("{line}{before}"));
    ssh_config("--install").succeeds().prints("has already");
    ssh_config("--uninstall").succeeds();
    assert_eq!(fs::read_to_string(&config).unwrap(), before);
    ssh_config("--install").succeeds();
    Clients { world, config: config.to_str().unwrap().to_owned() }
}

#[test]
fn a_guest_of_any_image_is_reached_by_its_name_with_every_client_of_ssh() {
    in_world(|world| {
        world.banger(["network", "create", "team", "--allow-peers"]).succeeds();
        for (name, image) in [("web", SYSTEMD), ("two", BUSYBOX)] {
            let run = ["vm", "run", "-d", "--network", "team", "--image", image, "--name", name];
            world.banger(run).succeeds();
        }
        let clients = installed(world);
        commands_and_streams(&clients);
        files(&clients);
        by_address_and_through_another_guest(&clients);
        a_wrong_key_is_refused_by_ssh_itself(&clients);
        a_terminal(world);
        the_images_own_server_has_the_port(&clients);

        // Names go to whoever has them now.
        world.banger(["vm", "delete", "two"]).succeeds();
        clients.ssh(&["two.vm", "true"]).exits(255).complains("there is no VM");
        world.start(BUSYBOX, "two");
        clients.ssh(&["two.vm", "echo again"]).succeeds().prints("again");
    });
}

fn commands_and_streams(clients: &Clients<'_>) {
    let world = clients.world;
    for name in ["web.vm", "two.vm"] {
        clients.ssh(&[name, "echo $HOME; exit 42"]).exits(42).prints("/root");
    }
    world.banger(["vm", "ssh", "web", "--", "exit 7"]).exits(7);
    let content = vec![b'x'; 4 << 20];
    let output = world.banger_with(&["vm", "ssh", "two", "--", "wc", "-c"], &content);
    output.succeeds().prints("4194304");
    world.banger(["vm", "ssh", "none"]).exits(125).complains("there is no VM");
}

fn files(clients: &Clients<'_>) {
    let folder = clients.world.home().join("files");
    let at = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    fs::create_dir_all(folder.join("tree/inner")).unwrap();
    fs::write(folder.join("tree/inner/file"), vec![7; 1 << 20]).unwrap();
    // No scp, no sftp and no ssh are in this image.
    clients.run("scp", &["-rpq", &at("tree"), "two.vm:/tmp/tree"]).succeeds();
    clients.run("scp", &["-rpq", "two.vm:/tmp/tree", &at("back")]).succeeds();
    assert_eq!(fs::read(folder.join("back/inner/file")).unwrap(), vec![7; 1 << 20]);
    // Which scp would follow.
    std::os::unix::fs::symlink("inner", folder.join("tree/link")).unwrap();
    let ssh = format!("ssh -F '{}'", clients.config);
    let rsync =
        |from: &str, to: &str| clients.world.program("rsync", &["-a", "-e", &ssh, from, to]);
    if clients.ssh(&["web.vm", "command -v rsync"]).text().contains("rsync") {
        rsync(&format!("{}/", at("tree")), "web.vm:/root/tree/").succeeds();
        rsync("web.vm:/root/tree/", &at("synced")).succeeds();
        assert_eq!(fs::read_link(folder.join("synced/link")).unwrap(), Path::new("inner"));
    }
    let repository = "git init -q /root/repo && cd /root/repo && git -c user.name=a -c user.email=a@b commit -q \
                      --allow-empty -m first";
    clients.ssh(&["web.vm", repository]).succeeds();
    let with = format!("GIT_SSH_COMMAND={ssh}");
    let clone = ["git", "clone", "-q", "ssh://web.vm/root/repo", &at("repo")];
    clients.world.program("env", &[&[&*with][..], &clone].concat()).succeeds();
    let log = clients.world.program("git", &["-C", &at("repo"), "log", "--format=%s"]);
    log.succeeds().prints("first");
}

fn address(world: &World, name: &str) -> String {
    world.vm(name)["address"].as_str().unwrap().to_owned()
}

fn by_address_and_through_another_guest(clients: &Clients<'_>) {
    let to = format!("HostName={}", address(clients.world, "two"));
    let direct = ["-o", "ProxyCommand=none", "-o", &to, "-o", "HostKeyAlias=two.vm", "two.vm"];
    clients.ssh(&[&direct[..], &["echo here"]].concat()).succeeds().prints("here");
    clients.ssh(&["-J", "web.vm", "two.vm", "echo there"]).succeeds().prints("there");
}

fn a_wrong_key_is_refused_by_ssh_itself(clients: &Clients<'_>) {
    let other = ["-o", "HostKeyAlias=two.vm", "web.vm", "true"];
    clients.ssh(&other).exits(255).complains("REMOTE HOST IDENTIFICATION HAS CHANGED");
}

fn a_terminal(world: &World) {
    let mut terminal = world.terminal(&["vm", "ssh", "web"], 33, 101);
    terminal.types("stty size\r");
    terminal.shows("33 101");
    terminal.resize(44, 99);
    // What is shown here is said by the shell and not typed.
    terminal.types("echo be''gun; sleep 1000\r");
    terminal.shows("begun");
    terminal.types("\u{3}");
    terminal.shows("^C");
    // What is typed before the shell reads again may be dropped.
    terminal.shows(":~# ");
    terminal.types("stty size; exit 5\r");
    terminal.shows("44 99");
    assert_eq!(terminal.ends(), Some(5));
}

/// Which says so by being installed: that it runs is not waited for.
fn the_images_own_server_has_the_port(clients: &Clients<'_>) {
    let world = clients.world;
    world.banger(["vm", "exec", "two", "--", "mkdir", "-p", "/usr/sbin"]).succeeds();
    let at = (address(world, "two"), 22);
    let is_open = || std::net::TcpStream::connect((at.0.as_str(), at.1)).is_ok();
    assert!(is_open());
    world.banger(["vm", "restart", "two"]).succeeds();
    world.banger(["vm", "exec", "two", "--", "touch", "/usr/sbin/sshd"]).succeeds();
    wait_until("the port is left", PATIENCE, || !is_open());
    clients.ssh(&["two.vm", "echo still"]).succeeds().prints("still");
}
