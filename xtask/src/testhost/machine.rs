//! A test host that runs: QEMU's process, which we start and talk to, and the way into it.
//!
//! Its folder holds all that is its own: `disk.qcow2` and `cache.qcow2`, written on top of what others share;
//! `console.log`; `pid`, `port`; and links to what it shares, `image` and `programs.raw`.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::qmp::Qmp;
use super::ssh::Ssh;
use crate::failure::Failure;
use crate::programs::Call;

/// What a boot to the last unit may take on a machine that does other things, too: alone it takes some 12 s.
const UP: Duration = Duration::from_secs(240);
/// What a move of the state to or from a file may take: it takes less than 1 s.
const MOVED: Duration = Duration::from_secs(60);
/// The port that says that the host is up.
const READY: &str = "testhost-ready";
const MEMORY: &str = "4096M";

/// Whose machine it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lease {
    /// Ours: it ends with the thread that started it (PR_SET_PDEATHSIG(2const)), and at its reboot, which nobody asked for.
    Ours,
    /// A person's: it stays when we end, and may be rebooted.
    Free,
}

/// What differs from one start to another.
#[derive(Debug, Clone, Copy)]
pub(super) struct Setup<'a> {
    /// The file that is its memory.
    pub(super) ram: &'a Path,
    /// Whether what it writes to its memory is in the file, for others to find.
    pub(super) shared: bool,
    pub(super) khz: u64,
    /// Whether it waits for a state to go on from, instead of booting.
    pub(super) incoming: bool,
    pub(super) lease: Lease,
}

#[derive(Debug)]
pub(super) struct Machine {
    qmp: Qmp,
    ssh: Ssh,
}

/// QEMU's arguments. Files are named from the machine's folder, in which it runs.
pub(super) fn arguments(setup: &Setup<'_>) -> Vec<String> {
    // Ours ends when the emulated host reboots, which nobody asked for: a flaw of the emulation.
    let at_reboot = if setup.lease == Lease::Free { "reset" } else { "shutdown" };
    let kernel = format!(
        "root=/dev/vda rw console=ttyS0 quiet net.ifnames=0 mitigations=off panic=-1 oops=panic nowatchdog \
         audit=0 apparmor=0 tsc=reliable no_timer_check tsc_early_khz={} random.trust_cpu=on",
        setup.khz
    );
    let ram = format!(
        "memory-backend-file,id=ram,size={MEMORY},mem-path={},share={}",
        setup.ram.display().to_string().replace(',', ",,"),
        if setup.shared { "on" } else { "off" },
    );
    let disk = |id: &str, drive: &str| {
        let drive = format!("if=none,id={id},{drive},cache=unsafe,aio=threads,discard=unmap");
        ["-drive".to_owned(), drive, "-device".to_owned(), format!("virtio-blk-pci,drive={id}")]
    };
    let mut arguments: Vec<String> = [
        "-name banger-testhost",
        "-accel tcg,thread=multi,tb-size=512",
        // The emulated processor of AMD's that has its own virtual machines, emulated.
        "-machine q35,memory-backend=ram",
        "-cpu EPYC,+svm,+npt",
        "-smp 2",
        "-nodefaults -no-user-config -display none",
        "-kernel image/vmlinuz -initrd image/initrd.img",
        "-netdev user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:0-:22",
        "-device virtio-net-pci,netdev=net",
        "-device virtio-rng-pci",
        "-device virtio-serial-pci",
        "-chardev null,id=ready",
        "-serial file:console.log",
        "-qmp stdio",
        "-pidfile pid",
    ]
    .iter()
    .flat_map(|words| words.split(' '))
    .map(str::to_owned)
    .collect();
    arguments.extend(["-m".to_owned(), MEMORY.to_owned(), "-object".to_owned(), ram]);
    arguments.extend(["-append".to_owned(), kernel]);
    arguments.extend([
        "-device".to_owned(),
        format!("virtserialport,chardev=ready,id=ready,name={READY}"),
    ]);
    arguments.extend(disk("disk", "file=disk.qcow2,format=qcow2"));
    arguments.extend(disk("programs", "file=programs.raw,format=raw,readonly=on"));
    arguments.extend(disk("cache", "file=cache.qcow2,format=qcow2"));
    arguments.extend(["-action".to_owned(), format!("reboot={at_reboot}")]);
    if setup.incoming {
        arguments.extend(["-incoming", "defer"].map(str::to_owned));
    }
    arguments
}

impl Machine {
    /// Boots in this folder, until its last unit has started.
    pub(super) fn boot(folder: &Path, setup: &Setup<'_>) -> Result<Self, Failure> {
        let mut machine = Self::start(folder, setup)?;
        machine.up(folder)?;
        machine.ssh.open()?;
        Ok(machine)
    }

    /// Goes on in this folder from the state in a file.
    pub(super) fn thaw(folder: &Path, setup: &Setup<'_>, state: &str) -> Result<Self, Failure> {
        let mut machine = Self::start(folder, setup)?;
        machine.capabilities()?;
        machine.qmp.execute("migrate-incoming", json!({ "uri": format!("exec:cat {state}") }))?;
        machine.moved()?;
        machine.qmp.execute("cont", json!({}))?;
        machine.ssh.open()?;
        Ok(machine)
    }

    fn start(folder: &Path, setup: &Setup<'_>) -> Result<Self, Failure> {
        // Either ends it with us, however we end, or not with our terminal.
        let words: &[&str] = match setup.lease {
            Lease::Ours => &["setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64"],
            Lease::Free => &["setsid", "qemu-system-x86_64"],
        };
        let call = Call::new(words[0]).args(&words[1..]).args(arguments(setup)).in_folder(folder);
        let errors = folder.join("qemu.err");
        let begun = Qmp::begin(call.talk(&errors)?).and_then(|mut qmp| {
            let shown = json!({ "command-line": "info usernet" });
            let shown = qmp.execute("human-monitor-command", shown)?;
            let port = port(shown.as_str().unwrap_or_default());
            let port =
                port.ok_or_else(|| Failure::new("QEMU forwards no port to the test host"))?;
            let kept = fs::write(folder.join("port"), port.to_string());
            kept.map_err(|error| Failure::new("cannot keep the port").cause(&error))?;
            Ok(Self { qmp, ssh: Ssh::new(folder, port) })
        });
        begun.map_err(|failure| {
            let said = fs::read_to_string(&errors).unwrap_or_default();
            failure.because(format!("QEMU said: {}", said.trim()))
        })
    }

    pub(super) fn ssh(&self) -> &Ssh {
        &self.ssh
    }

    /// Whether QEMU has ended, or does within `most`: the emulated host died or rebooted.
    pub(super) fn is_gone(&mut self, most: Duration) -> bool {
        self.qmp.is_over(most)
    }

    /// What a host that has just booted or gone on needs: the time, the disks, and the programs where tests look for them.
    pub(super) fn prepare(&self, target: &Path) -> Result<(), Failure> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let script = format!(
            "set -e; date --set=@{}.{:09} > /dev/null; mount /banger; mount /cache; mkdir -p /cache/tmp {target}; \
             ln -sfn /banger/bin {target}/debug; ln -sfn /banger/firecracker {target}/firecracker",
            now.as_secs(),
            now.subsec_nanos(),
            target = super::ssh::quoted(&target.display().to_string()),
        );
        self.ssh.ask(&script).map(drop)
    }

    /// Takes its power away and gives it back, and waits until it is up.
    pub(super) fn reset(&mut self, folder: &Path) -> Result<(), Failure> {
        self.qmp.execute("set-action", json!({ "reboot": "reset" }))?;
        self.qmp.execute("system_reset", json!({}))?;
        self.up(folder)?;
        self.qmp.execute("set-action", json!({ "reboot": "shutdown" }))?;
        self.ssh.open()
    }

    /// Stops it and moves its state, all but its memory, to a file. QEMU then has nothing left to do.
    pub(super) fn freeze(mut self, state: &str) -> Result<(), Failure> {
        self.qmp.execute("stop", json!({}))?;
        self.capabilities()?;
        self.qmp.execute("migrate", json!({ "uri": format!("exec:cat > {state}") }))?;
        self.moved()?;
        self.qmp.execute("quit", json!({}))?;
        if self.qmp.is_over(MOVED) {
            self.qmp.end();
            return Ok(());
        }
        Err(Failure::new("QEMU did not end after the test host's state was saved"))
    }

    /// Its end.
    pub(super) fn end(self) {
        self.qmp.end();
    }

    /// Lets it live on without us.
    pub(super) fn leave(self) {}

    fn up(&mut self, folder: &Path) -> Result<(), Failure> {
        let ready = |event: &Value| {
            let (is_open, id) = (&event["data"]["open"], &event["data"]["id"]);
            event["event"] == "VSERPORT_CHANGE" && *id == "ready" && *is_open == true
        };
        self.qmp.wait("the test host is up", UP, ready).map(drop).map_err(|failure| {
            let console = fs::read(folder.join("console.log")).unwrap_or_default();
            let tail = &console[console.len().saturating_sub(2000)..];
            failure.because(format!("its console: {}", String::from_utf8_lossy(tail).trim()))
        })
    }

    fn capabilities(&mut self) -> Result<(), Failure> {
        // The memory is a file already, which both ends have.
        let on =
            ["x-ignore-shared", "events"].map(|name| json!({ "capability": name, "state": true }));
        self.qmp.execute("migrate-set-capabilities", json!({ "capabilities": on })).map(drop)
    }

    fn moved(&mut self) -> Result<(), Failure> {
        let end = self.qmp.wait("the state is moved", MOVED, |event| {
            let status = &event["data"]["status"];
            event["event"] == "MIGRATION" && (*status == "completed" || *status == "failed")
        })?;
        if end["data"]["status"] == "completed" {
            return Ok(());
        }
        let told = self.qmp.execute("query-migrate", json!({}))?;
        Err(Failure::new("QEMU cannot move the test host's state").because(told.to_string()))
    }
}

/// The port of ours that leads to the host's sshd, of what QEMU's `info usernet` shows:
/// `TCP[HOST_FORWARD]  12  127.0.0.1 40123  10.0.2.15  22  0  0`.
fn port(shown: &str) -> Option<u16> {
    let line = shown.lines().find(|line| line.trim_start().starts_with("TCP[HOST_FORWARD]"))?;
    line.split_whitespace().nth(3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(lease: Lease, incoming: bool) -> String {
        let ram = Path::new("/a,b/ram");
        arguments(&Setup { ram, shared: false, khz: 2_596_120, incoming, lease }).join(" ")
    }

    #[test]
    fn the_port_is_the_one_on_our_side() {
        let shown = "Hub -1 (net):\n  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\n\
                     \x20 TCP[HOST_FORWARD]  14       127.0.0.1 40123       10.0.2.15    22     0     0\n";
        assert_eq!(port(shown), Some(40123));
        assert_eq!(port("  Protocol[State]    FD\n"), None);
    }

    #[test]
    fn ours_ends_at_a_reboot_and_a_persons_does_not() {
        assert!(line(Lease::Ours, false).ends_with("-action reboot=shutdown"));
        assert!(line(Lease::Free, true).ends_with("-action reboot=reset -incoming defer"));
    }

    #[test]
    fn a_comma_in_a_path_is_no_separator() {
        assert!(line(Lease::Ours, false).contains("mem-path=/a,,b/ram,share=off"));
    }
}
