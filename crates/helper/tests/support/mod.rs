//! What several tests of the helper need: a policy, a socket with a helper behind it, hands that only note what they are
//! asked, and hold or fail where a test says so.

#![allow(dead_code, reason = "each test program uses its part")]

pub(crate) mod installed;

use std::collections::{BTreeSet, HashMap};
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use banger_api::Zone;
use banger_helper::policy::{Machine, Policy, Uids};
use banger_helper::serve::{Hands, serve};
use banger_host::root::{Firewalls, Routed};
use banger_host::{
    Claim, Denied, Held, HelperHost, HostError, Installation, LocalHost, Mark, Network, Places,
};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};
use rustix::process::Signal;

/// Long enough for anything that works.
pub(crate) const SOON: Duration = Duration::from_secs(20);

pub(crate) const POLICY_MEMORY_BYTES: u64 = 8 << 30;

/// A VM of the installation that the policy is about.
pub(crate) fn mark(vm: &str) -> Mark {
    Mark::parse(&format!("bg0000-{vm:0>8}")).unwrap()
}

pub(crate) fn policy() -> Policy {
    Policy {
        owner_uid: rustix::process::geteuid().as_raw(),
        installation: Installation::parse("0000").unwrap(),
        uids: Uids { first: 1_900_000_000, count: 10_000 },
        machine: Machine { memory_bytes: POLICY_MEMORY_BYTES, cpus: 4 },
    }
}

/// Hands that note what they are asked.
#[derive(Debug, Clone, Default)]
pub(crate) struct Noted(Arc<(Mutex<Notes>, Condvar)>);

#[derive(Debug, Default)]
struct Notes {
    log: Vec<String>,
    /// These are begun and not ended until they are let go.
    slow: BTreeSet<Mark>,
    /// These fail so.
    broken: HashMap<Mark, fn() -> Result<(), HostError>>,
    held: Vec<Held>,
}

impl Noted {
    pub(crate) fn log(&self) -> Vec<String> {
        self.0.0.lock().unwrap().log.clone()
    }

    /// Whatever is asked for this VM is begun and not ended.
    pub(crate) fn hold(&self, mark: &Mark) {
        self.0.0.lock().unwrap().slow.insert(mark.clone());
    }

    pub(crate) fn let_go(&self, mark: &Mark) {
        self.0.0.lock().unwrap().slow.remove(mark);
        self.0.1.notify_all();
    }

    pub(crate) fn fail(&self, mark: &Mark, how: fn() -> Result<(), HostError>) {
        self.0.0.lock().unwrap().broken.insert(mark.clone(), how);
    }

    pub(crate) fn hold_these(&self, held: Vec<Held>) {
        self.0.0.lock().unwrap().held = held;
    }

    /// Waits until this was asked.
    pub(crate) fn wait_for(&self, line: &str) {
        let notes = self.0.0.lock().unwrap();
        let there = |notes: &mut Notes| !notes.log.iter().any(|noted| noted == line);
        let (notes, waited) = self.0.1.wait_timeout_while(notes, SOON, there).unwrap();
        assert!(!waited.timed_out(), "{line} is not in {:?}", notes.log);
    }

    fn note(&self, line: String, mark: Option<&Mark>) -> Result<(), HostError> {
        let mut notes = self.0.0.lock().unwrap();
        notes.log.push(line);
        self.0.1.notify_all();
        let Some(mark) = mark else { return Ok(()) };
        let broken = notes.broken.get(mark).copied();
        drop(self.0.1.wait_while(notes, |notes| notes.slow.contains(mark)).unwrap());
        broken.map_or(Ok(()), |how| how())
    }
}

impl Hands for Noted {
    fn acquire(&self, claim: &Claim, console: Option<OwnedFd>) -> Result<(), HostError> {
        if let Some(console) = console {
            io::PipeWriter::from(console).write_all(b"hello from the VMM\n").unwrap();
        }
        self.note(format!("acquire {}", claim.held()), claim.held().mark())
    }

    fn release(&self, held: &Held) -> Result<(), HostError> {
        self.note(format!("release {held}"), held.mark())?;
        self.0.0.lock().unwrap().held.retain(|there| there != held);
        Ok(())
    }

    fn list(&self) -> Result<Vec<Held>, HostError> {
        self.note("list".to_owned(), None)?;
        Ok(self.0.0.lock().unwrap().held.clone())
    }

    fn firewalls(&self, network: &Network) -> Result<Firewalls, HostError> {
        self.note(format!("firewalls {}", network.subnet()), None)?;
        Ok(Firewalls { obstacles: Vec::new(), legacy: true })
    }

    fn route_names(&self, number: u8, _zone: &Zone) -> Result<Routed, HostError> {
        self.note(format!("route names of network {number}"), None)?;
        Ok(Routed::Yes)
    }

    fn signal(&self, mark: &Mark, signal: Signal) -> Result<(), HostError> {
        self.note(format!("signal {mark} {signal:?}"), Some(mark))
    }

    fn connect(&self, mark: &Mark, name: &str) -> Result<UnixStream, HostError> {
        self.note(format!("connect {mark} {name}"), Some(mark))?;
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"hello from the socket").unwrap();
        Ok(ours)
    }

    fn open(
        &self,
        mark: &Mark,
        addresses: &BTreeSet<Ipv4Addr>,
        seconds: u32,
    ) -> Result<(), HostError> {
        self.note(format!("open {mark} {addresses:?} {seconds}"), Some(mark))
    }

    fn denied(&self, mark: &Mark) -> Result<Vec<Denied>, HostError> {
        self.note(format!("denied {mark}"), Some(mark))?;
        let address = Ipv4Addr::new(203, 0, 113, 7);
        Ok(vec![Denied { ago_s: 7, address, is_udp: false, port: 443 }])
    }
}

/// A folder with a socket in it.
pub(crate) struct World {
    folder: tempfile::TempDir,
    pub(crate) hands: Noted,
}

impl World {
    /// With a helper behind the socket, until the test program ends.
    pub(crate) fn new() -> Self {
        Self::with_policy(policy())
    }

    pub(crate) fn with_policy(policy: Policy) -> Self {
        let world = Self::without_helper();
        let listener = listener(&world.socket());
        let hands = world.hands.clone();
        std::thread::spawn(move || serve(&listener, policy, hands));
        world
    }

    pub(crate) fn without_helper() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), hands: Noted::default() }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("helper.sock")
    }

    /// The daemon's side, with folders of its own. Logs are written by a shell, which keeps the name that
    /// it is found by.
    pub(crate) fn host(&self) -> HelperHost {
        let root = self.folder.path();
        let installation = policy().installation;
        let places = Places::new(installation, root, root, &root.join("run"));
        std::fs::create_dir_all(&places.vms).unwrap();
        std::fs::create_dir_all(&places.runs).unwrap();
        let log_writer = ["-c", "cat > \"$0\"; :"].map(str::to_owned).to_vec();
        let local = LocalHost::new(places, ("/bin/sh".into(), log_writer), None);
        HelperHost::new(local, self.socket())
    }

    pub(crate) fn connect(&self) -> OwnedFd {
        connected(&self.socket())
    }
}

pub(crate) fn listener(path: &Path) -> OwnedFd {
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None).unwrap();
    bind(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
    listen(&socket, 128).unwrap();
    socket
}

pub(crate) fn connected(path: &Path) -> OwnedFd {
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None).unwrap();
    connect(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
    socket
}

/// An error and its causes on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    banger_helper::release_all::chain(error)
}
