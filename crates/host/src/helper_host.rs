//! A daemon's host where the daemon is not root: what needs no root is done in this process, the rest by root's helper,
//! asked over its socket. Decides nothing else: the helper judges what it is asked.

use std::collections::BTreeSet;
use std::io::{self, ErrorKind};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use banger_api::Zone;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::process::Signal;

use crate::helper_wire::{self as wire, Act, Message, Reply, VmmSignal};
use crate::root::{Firewalls, Routed};
use crate::{
    Claim, Denied, Held, Host, HostError, LocalHost, Mark, Network, VmSocket, Watched, root,
};

/// The helper's own deadlines are shorter (20 s for a large guest's end): after this long it does not answer at all.
const ANSWER_DEADLINE: Duration = Duration::from_secs(60);

/// This machine, changed by this process and by root's helper.
#[derive(Debug)]
pub struct HelperHost {
    local: LocalHost,
    socket: PathBuf,
    deadline: Duration,
}

impl HelperHost {
    /// `local` is for what needs no root; the helper listens on `socket`.
    #[must_use]
    pub fn new(local: LocalHost, socket: PathBuf) -> Self {
        Self { local, socket, deadline: ANSWER_DEADLINE }
    }

    /// Waits so long for the helper instead.
    #[must_use]
    pub fn with_deadline(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    /// Asks for what has no other answer than that it is done.
    fn ask(&self, act: &Act, files: &[BorrowedFd<'_>]) -> Result<Option<OwnedFd>, HostError> {
        let failed = |cause: io::Error| HostError::new(act.describe(), cause);
        let end = Instant::now() + self.deadline;
        let connection = self.request(act, files)?;
        let Message { bytes, mut files } = next(&connection, end).map_err(failed)?;
        match understood(&bytes).map_err(failed)? {
            Reply::Done {} => Ok(files.pop()),
            Reply::Failed(failure) => Err(failure.into()),
            Reply::Held { .. } => Err(failed(nonsense("it lists what is held"))),
            Reply::Denied { .. } => Err(failed(nonsense("it tells what was refused"))),
            Reply::Firewalls { .. } | Reply::Names { .. } => {
                Err(failed(nonsense("it is another answer")))
            }
        }
    }

    /// Asks for what has an answer of its own.
    fn ask_for<T>(&self, act: &Act, answer: fn(Reply) -> Option<T>) -> Result<T, HostError> {
        let failed = |cause: io::Error| HostError::new(act.describe(), cause);
        let end = Instant::now() + self.deadline;
        let connection = self.request(act, &[])?;
        let message = next(&connection, end).map_err(failed)?;
        match understood(&message.bytes).map_err(failed)? {
            Reply::Failed(failure) => Err(failure.into()),
            reply => answer(reply).ok_or_else(|| failed(nonsense("it is another answer"))),
        }
    }

    fn list_helpers(&self) -> Result<Vec<Held>, HostError> {
        let act = Act::List {};
        let failed = |cause: io::Error| HostError::new(act.describe(), cause);
        let end = Instant::now() + self.deadline;
        let connection = self.request(&act, &[])?;
        let mut all = Vec::new();
        loop {
            let message = next(&connection, end).map_err(failed)?;
            match understood(&message.bytes).map_err(failed)? {
                Reply::Held { held, more } => {
                    all.extend(held);
                    if !more {
                        return Ok(all);
                    }
                }
                Reply::Failed(failure) => return Err(failure.into()),
                Reply::Done {}
                | Reply::Denied { .. }
                | Reply::Firewalls { .. }
                | Reply::Names { .. } => {
                    return Err(failed(nonsense("it lists nothing")));
                }
            }
        }
    }

    fn request(&self, act: &Act, files: &[BorrowedFd<'_>]) -> Result<OwnedFd, HostError> {
        let connection = self.connection().map_err(|e| HostError::new(act.describe(), e))?;
        match wire::send(&connection, &wire::request(act), files, self.deadline) {
            Ok(()) => Ok(connection),
            // It may have answered and closed before it was asked: the answer says why.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(connection),
            Err(error) => Err(HostError::new(act.describe(), error)),
        }
    }

    fn connection(&self) -> io::Result<OwnedFd> {
        let absent = |cause: io::Error| {
            let text = format!(
                "root's helper does not answer on {}: {cause}; `systemctl status banger-helper.socket \
                 banger-helper.service` shows why",
                self.socket.display()
            );
            io::Error::new(cause.kind(), text)
        };
        let address = SocketAddrUnix::new(&self.socket)?;
        let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
        let connection = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
        // A full queue of connections is waited for as long as a full buffer (unix(7)).
        set_socket_timeout(&connection, Timeout::Send, Some(self.deadline))?;
        connect(&connection, &address).map_err(|error| absent(error.into()))?;
        Ok(connection)
    }
}

impl Host for HelperHost {
    fn acquire(&self, claim: &Claim) -> Result<(), HostError> {
        if !claim.needs_root() {
            return self.local.acquire(claim);
        }
        let act = Act::Acquire { claim: claim.clone() };
        let Claim::JailedVmm(vmm) = claim else { return self.ask(&act, &[]).map(drop) };
        if root::watch_jailed(&vmm.mark)?.is_some() {
            // It has its log; but whoever started it may have died before it served.
            return self.ask(&act, &[]).map(drop);
        }
        // Our end is closed when this returns: the log ends with the VMM, or at once if there is none.
        let console = self.local.start_jail_log(vmm)?;
        self.ask(&act, &[console.as_fd()]).map(drop)
    }

    fn release(&self, held: &Held) -> Result<(), HostError> {
        if !held.needs_root() {
            return self.local.release(held);
        }
        let released = self.ask(&Act::Release { held: held.clone() }, &[]).map(drop);
        match held {
            // The log of one that still runs is still written.
            Held::JailedVmm { mark } => released.and_then(|()| self.local.release_jail_log(mark)),
            _ => released,
        }
    }

    fn list(&self) -> Result<Vec<Held>, HostError> {
        let mut held = self.local.list()?;
        held.extend(self.list_helpers()?);
        held.sort();
        held.dedup();
        Ok(held)
    }

    fn firewalls(&self, network: &Network) -> Result<Firewalls, HostError> {
        self.ask_for(&Act::Firewalls { network: *network }, |reply| match reply {
            Reply::Firewalls { firewalls } => Some(firewalls),
            _ => None,
        })
    }

    fn route_names(&self, number: u8, zone: &Zone) -> Result<Routed, HostError> {
        self.ask_for(&Act::RouteNames { number, zone: zone.clone() }, |reply| match reply {
            Reply::Names { routed } => Some(routed),
            _ => None,
        })
    }

    fn watch(&self, mark: &Mark) -> Result<Option<Watched>, HostError> {
        self.local.watch(mark)
    }

    fn signal(&self, mark: &Mark, signal: Signal) -> Result<(), HostError> {
        if root::watch_jailed(mark)?.is_none() {
            return self.local.signal(mark, signal);
        }
        let signal = VmmSignal::of(signal).ok_or_else(|| {
            let cause = format!("{signal:?} is not among what VMMs are sent");
            HostError::because(format!("signal the VMM of {mark}"), cause)
        })?;
        self.ask(&Act::Signal { mark: mark.clone(), signal }, &[]).map(drop)
    }

    fn connect(&self, mark: &Mark, socket: &VmSocket) -> Result<UnixStream, HostError> {
        let VmSocket::Jail(name) = socket else { return self.local.connect(mark, socket) };
        let act = Act::Connect { mark: mark.clone(), name: name.clone() };
        let connected = self.ask(&act, &[])?;
        let absent = || HostError::new(act.describe(), nonsense("the connection is missing"));
        connected.map(UnixStream::from).ok_or_else(absent)
    }

    fn open(
        &self,
        mark: &Mark,
        addresses: &BTreeSet<Ipv4Addr>,
        seconds: u32,
    ) -> Result<(), HostError> {
        let act = Act::Open { mark: mark.clone(), addresses: addresses.clone(), seconds };
        self.ask(&act, &[]).map(drop)
    }

    fn denied(&self, mark: &Mark) -> Result<Vec<Denied>, HostError> {
        self.ask_for(&Act::Denied { mark: mark.clone() }, |reply| match reply {
            Reply::Denied { denied } => Some(denied),
            _ => None,
        })
    }
}

/// The next reply on this connection.
fn next(connection: &OwnedFd, end: Instant) -> io::Result<Message> {
    let left = end.saturating_duration_since(Instant::now());
    match wire::receive(connection, left) {
        Ok(Some(message)) => Ok(message),
        Ok(None) => Err(ended(ErrorKind::UnexpectedEof)),
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Err(ended(error.kind())),
        Err(error) if error.kind() == ErrorKind::TimedOut => {
            Err(io::Error::new(ErrorKind::TimedOut, "root's helper does not answer in time"))
        }
        Err(error) => Err(error),
    }
}

fn understood(message: &[u8]) -> io::Result<Reply> {
    wire::parse_reply(message).map_err(|error| nonsense(&error.to_string()))
}

fn ended(kind: ErrorKind) -> io::Error {
    let text = "root's helper ended before it answered; `journalctl -u banger-helper` shows why";
    io::Error::new(kind, text)
}

fn nonsense(what: &str) -> io::Error {
    let text = format!("root's helper answers what was not asked: {what}");
    io::Error::new(ErrorKind::InvalidData, text)
}
