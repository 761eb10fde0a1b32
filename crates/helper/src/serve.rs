//! Takes requests from the daemon's socket, one a connection: who asks, what, whether it may be done; then it is done and
//! answered. A thread for each, so that a slow one keeps nobody else waiting.

use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use banger_api::Zone;
use banger_host::helper_wire::{self as wire, Act, Failure, Message, Reply};
use banger_host::root::{Firewalls, Routed};
use banger_host::{Claim, Denied, Held, HostError, Mark, Network, Root};
use rustix::fs::{FileType, OFlags, fcntl_getfl, fstat};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_peercred};
use rustix::net::{RecvFlags, SocketFlags, accept_with, recv};
use rustix::process::Signal;

use crate::judge::judge;
use crate::policy::Policy;
use crate::said;
use crate::turns::{Places, Turns};

/// How long a client may take to ask, and to take its answer.
const CLIENT_DEADLINE: Duration = Duration::from_secs(5);

/// How many requests are worked on at once; more wait in the socket's queue.
const MOST_AT_ONCE: usize = 64;

/// Who does what was judged: [`Root`].
pub trait Hands: Send + Sync + 'static {
    /// As [`Root::acquire`].
    ///
    /// # Errors
    /// As [`Root::acquire`].
    fn acquire(&self, claim: &Claim, console: Option<OwnedFd>) -> Result<(), HostError>;

    /// As [`Root::release`].
    ///
    /// # Errors
    /// As [`Root::release`].
    fn release(&self, held: &Held) -> Result<(), HostError>;

    /// As [`Root::list`].
    ///
    /// # Errors
    /// As [`Root::list`].
    fn list(&self) -> Result<Vec<Held>, HostError>;

    /// As [`Root::firewalls`].
    ///
    /// # Errors
    /// As [`Root::firewalls`].
    fn firewalls(&self, network: &Network) -> Result<Firewalls, HostError>;

    /// As [`Root::route_names`].
    ///
    /// # Errors
    /// As [`Root::route_names`].
    fn route_names(&self, number: u8, zone: &Zone) -> Result<Routed, HostError>;

    /// As [`Root::signal`].
    ///
    /// # Errors
    /// As [`Root::signal`].
    fn signal(&self, mark: &Mark, signal: Signal) -> Result<(), HostError>;

    /// As [`Root::connect`].
    ///
    /// # Errors
    /// As [`Root::connect`].
    fn connect(&self, mark: &Mark, name: &str) -> Result<UnixStream, HostError>;

    /// As [`Root::open`].
    ///
    /// # Errors
    /// As [`Root::open`].
    fn open(
        &self,
        mark: &Mark,
        addresses: &BTreeSet<Ipv4Addr>,
        seconds: u32,
    ) -> Result<(), HostError>;

    /// As [`Root::denied`].
    ///
    /// # Errors
    /// As [`Root::denied`].
    fn denied(&self, mark: &Mark) -> Result<Vec<Denied>, HostError>;
}

impl Hands for Root {
    fn acquire(&self, claim: &Claim, console: Option<OwnedFd>) -> Result<(), HostError> {
        Root::acquire(self, claim, console)
    }

    fn release(&self, held: &Held) -> Result<(), HostError> {
        Root::release(self, held)
    }

    fn list(&self) -> Result<Vec<Held>, HostError> {
        Root::list(self)
    }

    fn firewalls(&self, network: &Network) -> Result<Firewalls, HostError> {
        Root::firewalls(self, network)
    }

    fn route_names(&self, number: u8, zone: &Zone) -> Result<Routed, HostError> {
        Root::route_names(self, number, zone)
    }

    fn signal(&self, mark: &Mark, signal: Signal) -> Result<(), HostError> {
        Root::signal(self, mark, signal)
    }

    fn connect(&self, mark: &Mark, name: &str) -> Result<UnixStream, HostError> {
        Root::connect(self, mark, name)
    }

    fn open(
        &self,
        mark: &Mark,
        addresses: &BTreeSet<Ipv4Addr>,
        seconds: u32,
    ) -> Result<(), HostError> {
        Root::open(self, mark, addresses, seconds)
    }

    fn denied(&self, mark: &Mark) -> Result<Vec<Denied>, HostError> {
        Root::denied(self, mark)
    }
}

/// Serves until the socket fails.
///
/// # Errors
/// That the socket failed, and how.
pub fn serve<H: Hands>(listener: &OwnedFd, policy: Policy, hands: H) -> io::Result<()> {
    let service = Arc::new(Service { policy, hands, turns: Turns::default() });
    let places = Arc::new(Places::new(MOST_AT_ONCE));
    loop {
        let place = places.take();
        let connection = match accept_with(listener, SocketFlags::CLOEXEC) {
            Ok(connection) => connection,
            // The client has gone before it was its turn (accept(2)).
            Err(Errno::INTR | Errno::CONNABORTED) => continue,
            Err(error) => return Err(error.into()),
        };
        let service = Arc::clone(&service);
        let worker = move || {
            service.answer(&connection);
            drop(place);
        };
        if let Err(error) = thread::Builder::new().name("request".into()).spawn(worker) {
            // The connection is closed with the closure: its client hears that nothing was done.
            said::error(&format!("cannot start a thread: {error}"));
        }
    }
}

#[derive(Debug)]
struct Service<H> {
    policy: Policy,
    hands: H,
    turns: Turns,
}

/// What goes back: replies, and the open file of the last one.
struct Answer {
    replies: Vec<Reply>,
    file: Option<OwnedFd>,
}

impl From<Reply> for Answer {
    fn from(reply: Reply) -> Self {
        Self { replies: vec![reply], file: None }
    }
}

impl<H: Hands> Service<H> {
    fn answer(&self, connection: &OwnedFd) {
        if let Err(failure) = self.judge_peer(connection) {
            refuse(connection, failure);
            return drain(connection);
        }
        match self.request(connection) {
            Ok(Some((act, file))) => {
                if let Some(answer) = self.serve_one(connection, &act, file) {
                    send(connection, &answer);
                }
            }
            // It came, said nothing and went.
            Ok(None) => {}
            Err(failure) => refuse(connection, failure),
        }
    }

    /// Whether this one may ask anything. Nothing of what it says has been read.
    fn judge_peer(&self, connection: &OwnedFd) -> Result<(), Failure> {
        let peer = socket_peercred(connection)
            .map_err(|error| not_served(format!("nobody can tell who asks: {error}")))?;
        let uid = peer.uid.as_raw();
        if uid == self.policy.owner_uid || uid == 0 {
            return Ok(());
        }
        Err(not_served(format!(
            "user {uid} is not {}, whom banger was installed for",
            self.policy.owner_uid
        )))
    }

    /// What is asked, if it may be done. Nothing has been touched yet.
    fn request(&self, connection: &OwnedFd) -> Result<Option<(Act, Option<OwnedFd>)>, Failure> {
        let Message { bytes, files } = match wire::receive(connection, CLIENT_DEADLINE) {
            Ok(Some(message)) => message,
            Ok(None) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                return Err(not_served(format!(
                    "nothing was asked within {} s",
                    CLIENT_DEADLINE.as_secs()
                )));
            }
            Err(error) => return Err(not_served(error.to_string())),
        };
        let act = wire::parse_request(&bytes).map_err(|error| not_served(error.to_string()))?;
        let refuse = |reason: String| Failure::refusal(act.describe(), reason);
        judge(&act, &self.policy).map_err(|refusal| refuse(refusal.to_string()))?;
        let file = judge_files(&act, files).map_err(refuse)?;
        Ok(Some((act, file)))
    }

    /// Does it when it is its turn. Nothing to be said when nobody waits for it any more: whoever has asked and gone may
    /// have asked for the opposite since, and been served.
    fn serve_one(&self, connection: &OwnedFd, act: &Act, file: Option<OwnedFd>) -> Option<Answer> {
        let work = || {
            let deserted = wire::is_deserted(connection).unwrap_or(true);
            (!deserted).then(|| self.act(act, file))
        };
        let done = match act.whose() {
            Some(whose) => self.turns.alone(&whose, work),
            None => work(),
        };
        done.map(|result| {
            result.unwrap_or_else(|error| {
                let failure = Failure::from(&error);
                said::warning(&format!("cannot {}: {}", failure.act, failure.causes.join(": ")));
                Reply::Failed(failure).into()
            })
        })
    }

    fn act(&self, act: &Act, file: Option<OwnedFd>) -> Result<Answer, HostError> {
        let done = |()| Answer::from(Reply::Done {});
        match act {
            Act::Acquire { claim } => self.hands.acquire(claim, file).map(done),
            Act::Release { held } => self.hands.release(held).map(done),
            Act::Signal { mark, signal } => self.hands.signal(mark, (*signal).into()).map(done),
            Act::Open { mark, addresses, seconds } => {
                self.hands.open(mark, addresses, *seconds).map(done)
            }
            Act::Denied { mark } => Ok(Reply::Denied { denied: self.hands.denied(mark)? }.into()),
            Act::List {} => {
                let replies = Reply::held(&self.hands.list()?);
                Ok(Answer { replies, file: None })
            }
            Act::Firewalls { network } => {
                let firewalls = self.hands.firewalls(network)?;
                Ok(Reply::Firewalls { firewalls }.into())
            }
            Act::RouteNames { number, zone } => {
                let routed = self.hands.route_names(*number, zone)?;
                Ok(Reply::Names { routed }.into())
            }
            Act::Connect { mark, name } => {
                let connected = self.hands.connect(mark, name)?;
                Ok(Answer { replies: vec![Reply::Done {}], file: Some(connected.into()) })
            }
        }
    }
}

fn not_served(reason: String) -> Failure {
    Failure::refusal("serve this request".to_owned(), reason)
}

fn refuse(connection: &OwnedFd, failure: Failure) {
    said::warning(&format!("refused to {}: {}", failure.act, failure.causes.join(": ")));
    send(connection, &Reply::Failed(failure).into());
}

/// The one open file that belongs to this request, if one does.
fn judge_files(act: &Act, files: Vec<OwnedFd>) -> Result<Option<OwnedFd>, String> {
    if files.len() > act.most_files() {
        return Err(format!(
            "{} open files came with it, which has {} at most",
            files.len(),
            act.most_files()
        ));
    }
    let Some(file) = files.into_iter().next() else { return Ok(None) };
    let failed = |error: Errno| format!("the open file cannot be looked at: {error}");
    let kind = FileType::from_raw_mode(fstat(&file).map_err(failed)?.st_mode);
    if kind != FileType::Fifo {
        return Err("the open file is no pipe".to_owned());
    }
    if fcntl_getfl(&file).map_err(failed)? & OFlags::RWMODE != OFlags::WRONLY {
        return Err("the open file is not the end of a pipe that is written to".to_owned());
    }
    Ok(Some(file))
}

fn send(connection: &OwnedFd, Answer { replies, file }: &Answer) {
    let files: Vec<_> = file.iter().map(AsFd::as_fd).collect();
    for reply in replies {
        // Whoever does not take the answer does not get one.
        if wire::send(connection, &wire::reply(reply), &files, CLIENT_DEADLINE).is_err() {
            return;
        }
    }
}

/// Takes the request of one who was refused before it was read, and waits until it has gone, but not long: closing a
/// socket with something unread in it makes the other side see a reset and not the answer (`unix_release_sock` in
/// net/unix/af_unix.c).
fn drain(connection: &OwnedFd) {
    let mut byte = [0; 1];
    for _request_and_end in 0..2 {
        let limited = set_socket_timeout(connection, Timeout::Recv, Some(CLIENT_DEADLINE));
        let ended = matches!(recv(connection, &mut byte, RecvFlags::empty()), Ok((0, _)) | Err(_));
        if limited.is_err() || ended {
            return;
        }
    }
}
