//! What passes between the daemon and root's helper: one request and its reply on a connection (unix(7),
//! `SOCK_SEQPACKET`, which keeps messages apart), each a message of JSON, with open files beside it (`SCM_RIGHTS`).
//!
//! ```text
//! daemon ── {"version":1,"act":{"do":"acquire","claim":{…}}}  [the pipe of a log] ──► helper
//! daemon ◄── {"reply":"done"}  [a connected socket] ────────────────────────────────── helper
//! ```
//! Who reads refuses what it does not know: an unknown field, another version, a message that is cut off, bytes after its
//! end, more open files than belong to it.

use std::collections::BTreeSet;
use std::error::Error;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use banger_api::Zone;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use crate::root::{Firewalls, Routed};
use crate::{Claim, Denied, Held, HostError, Mark, Network, Part};

/// Of what is said here. A daemon and a helper of different versions refuse each other by name.
pub const VERSION: u32 = 1;

/// The longest message, in bytes.
pub const LONGEST: usize = 64 * 1024;

/// How much of what is held goes into one reply; the rest follows in more of them.
const HELD_PER_REPLY: usize = 256;

/// What the daemon asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum Act {
    /// As [`crate::Host::acquire`]. A jailed VMM comes with one open file: the end of a pipe that is written to. It comes
    /// without when it runs already.
    Acquire { claim: Claim },
    /// As [`crate::Host::release`].
    Release { held: Held },
    /// As [`crate::Host::list`], of what needs root. Braces, so that unknown fields are refused here too.
    List {},
    /// As [`crate::Host::firewalls`].
    Firewalls { network: Network },
    /// As [`crate::Host::route_names`].
    RouteNames { number: u8, zone: Zone },
    /// As [`crate::Host::signal`], for a jailed VMM.
    Signal { mark: Mark, signal: VmmSignal },
    /// A connection to a socket in a jail; it is the open file of the reply.
    Connect { mark: Mark, name: String },
    /// As [`crate::Host::open`].
    Open { mark: Mark, addresses: BTreeSet<Ipv4Addr>, seconds: u32 },
    /// As [`crate::Host::denied`].
    Denied { mark: Mark },
}

impl Act {
    /// What is asked for, as the words after "cannot".
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Act::Acquire { claim } => format!("make {}", claim.held()),
            Act::Release { held } => format!("undo {held}"),
            Act::List {} => "list what is held".to_owned(),
            Act::Firewalls { .. } => "look at the host's firewalls".to_owned(),
            Act::RouteNames { .. } => "tell the host's resolver of VMs".to_owned(),
            Act::Signal { mark, .. } => format!("signal the VMM of {mark}"),
            Act::Connect { mark, name } => format!("connect to {name:?} of VM {mark}"),
            Act::Open { mark, addresses, .. } => {
                format!("let VM {mark} reach {} addresses more", addresses.len())
            }
            Act::Denied { mark } => format!("look for what was refused to VM {mark}"),
        }
    }

    /// The VM that it is about, and what of it; `None` for what is not about one.
    #[must_use]
    pub fn whose(&self) -> Option<(Mark, Part)> {
        let of = |held: &Held| held.mark().map(|mark| (mark.clone(), held.part()));
        match self {
            Act::Acquire { claim } => of(&claim.held()),
            Act::Release { held } => of(held),
            Act::List {} | Act::Firewalls { .. } | Act::RouteNames { .. } => None,
            Act::Signal { mark, .. } | Act::Connect { mark, .. } => {
                Some((mark.clone(), Part::Machine))
            }
            Act::Open { mark, .. } | Act::Denied { mark } => Some((mark.clone(), Part::Network)),
        }
    }

    /// How many open files come with it at most.
    #[must_use]
    pub fn most_files(&self) -> usize {
        usize::from(matches!(self, Act::Acquire { claim: Claim::JailedVmm(_) }))
    }
}

/// What a VMM may be sent: the signals that ask it to end, or end it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum VmmSignal {
    Hup,
    Int,
    Quit,
    Kill,
    Term,
}

impl VmmSignal {
    const ALL: [(VmmSignal, Signal); 5] = [
        (VmmSignal::Hup, Signal::HUP),
        (VmmSignal::Int, Signal::INT),
        (VmmSignal::Quit, Signal::QUIT),
        (VmmSignal::Kill, Signal::KILL),
        (VmmSignal::Term, Signal::TERM),
    ];

    /// `None` for what is not sent to VMMs.
    #[must_use]
    pub fn of(signal: Signal) -> Option<Self> {
        Self::ALL.into_iter().find(|(_, known)| *known == signal).map(|(named, _)| named)
    }
}

impl From<VmmSignal> for Signal {
    fn from(signal: VmmSignal) -> Signal {
        let found = VmmSignal::ALL.into_iter().find(|(named, _)| *named == signal);
        found.expect("all of them are in the table").1
    }
}

/// What the helper says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case", deny_unknown_fields)]
pub enum Reply {
    /// It is as was asked.
    Done {},
    /// A part of what is held.
    Held {
        held: Vec<Held>,
        /// Whether another reply follows.
        more: bool,
    },
    /// What was refused to a VM, the latest first; what fits one reply.
    Denied {
        denied: Vec<Denied>,
    },
    Firewalls {
        firewalls: Firewalls,
    },
    Names {
        routed: Routed,
    },
    Failed(Failure),
}

impl Reply {
    /// What is held, in as many replies as it takes.
    #[must_use]
    pub fn held(held: &[Held]) -> Vec<Self> {
        let mut parts: Vec<&[Held]> = held.chunks(HELD_PER_REPLY).collect();
        let last = parts.pop().unwrap_or_default();
        let before = parts.into_iter().map(|part| (part, true));
        before
            .chain([(last, false)])
            .map(|(part, more)| Reply::Held { held: part.to_vec(), more })
            .collect()
    }
}

/// A [`HostError`] as it crosses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    /// The words after "cannot".
    pub act: String,
    /// Each the cause of the one before.
    pub causes: Vec<String>,
    pub kind: FailureKind,
    /// Whether the helper has judged that it must not be done, and has touched nothing.
    pub refused: bool,
}

impl Failure {
    /// What the helper does not do for anybody, and why.
    #[must_use]
    pub fn refusal(act: String, reason: String) -> Self {
        let causes = vec![format!("root's helper refuses it: {reason}")];
        Self { act, causes, kind: FailureKind::Refused, refused: true }
    }
}

impl From<&HostError> for Failure {
    fn from(error: &HostError) -> Self {
        let text = error.to_string();
        let act = text.strip_prefix("cannot ").unwrap_or(&text).to_owned();
        let mut causes = Vec::new();
        let mut next = error.source();
        while let Some(cause) = next {
            causes.push(cause.to_string());
            next = cause.source();
        }
        Self { act, causes, kind: FailureKind::of(error.kind()), refused: false }
    }
}

impl From<Failure> for HostError {
    fn from(failure: Failure) -> Self {
        let chain = failure
            .causes
            .into_iter()
            .rev()
            .fold(None, |cause, text| Some(Box::new(Said { text, cause })))
            .unwrap_or_else(|| {
                Box::new(Said { text: "no cause was given".to_owned(), cause: None })
            });
        HostError::new(failure.act, io::Error::new(failure.kind.into(), chain))
    }
}

/// A cause that another process has put into words.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
struct Said {
    text: String,
    #[source]
    cause: Option<Box<Said>>,
}

/// The kinds of trouble that somebody tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    NotFound,
    NoListener,
    TimedOut,
    Busy,
    Full,
    /// The helper refuses it.
    Refused,
    Other,
}

impl FailureKind {
    const ALL: [(FailureKind, io::ErrorKind); 7] = [
        (FailureKind::NotFound, io::ErrorKind::NotFound),
        (FailureKind::NoListener, io::ErrorKind::ConnectionRefused),
        (FailureKind::TimedOut, io::ErrorKind::TimedOut),
        (FailureKind::Busy, io::ErrorKind::ResourceBusy),
        (FailureKind::Full, io::ErrorKind::StorageFull),
        (FailureKind::Refused, io::ErrorKind::PermissionDenied),
        (FailureKind::Other, io::ErrorKind::Other),
    ];

    fn of(kind: io::ErrorKind) -> Self {
        let found = Self::ALL.into_iter().find(|(_, known)| *known == kind);
        found.map_or(FailureKind::Other, |(named, _)| named)
    }
}

impl From<FailureKind> for io::ErrorKind {
    fn from(kind: FailureKind) -> io::ErrorKind {
        let found = FailureKind::ALL.into_iter().find(|(named, _)| *named == kind);
        found.expect("all of them are in the table").1
    }
}

/// Why a message is not understood.
#[derive(Debug, thiserror::Error)]
pub enum Malformed {
    #[error("it is not what this version understands: {0}")]
    Text(#[from] serde_json::Error),
    #[error(
        "it is of version {0}, and this is version {VERSION}: `banger system restart` runs one"
    )]
    Version(u32),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    version: u32,
    act: Act,
}

/// The message that asks for this.
#[must_use]
pub fn request(act: &Act) -> Vec<u8> {
    let request = Request { version: VERSION, act: act.clone() };
    serde_json::to_vec(&request).expect("a request is plain data")
}

/// What a message asks for.
///
/// # Errors
/// When it is of another version, or not a whole request and nothing else.
pub fn parse_request(message: &[u8]) -> Result<Act, Malformed> {
    /// What every version says, whatever else it may say.
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let Versioned { version } = serde_json::from_slice(message)?;
    if version != VERSION {
        return Err(Malformed::Version(version));
    }
    let request: Request = serde_json::from_slice(message)?;
    Ok(request.act)
}

/// The message that says this.
#[must_use]
pub fn reply(reply: &Reply) -> Vec<u8> {
    serde_json::to_vec(reply).expect("a reply is plain data")
}

/// What a message says.
///
/// # Errors
/// When it is not a whole reply and nothing else.
pub fn parse_reply(message: &[u8]) -> Result<Reply, Malformed> {
    Ok(serde_json::from_slice(message)?)
}

/// A message as it came.
#[derive(Debug)]
pub struct Message {
    pub bytes: Vec<u8>,
    /// Closed on exec.
    pub files: Vec<OwnedFd>,
}

/// Sends one message.
///
/// # Errors
/// `TimedOut` when the other side does not take it, `BrokenPipe` when it has gone, `InvalidInput` when it is longer than
/// [`LONGEST`].
pub fn send(
    socket: impl AsFd,
    bytes: &[u8],
    files: &[BorrowedFd<'_>],
    most: Duration,
) -> io::Result<()> {
    if bytes.len() > LONGEST {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("a message of {} bytes is longer than {LONGEST}", bytes.len()),
        ));
    }
    let end = Instant::now() + most;
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    loop {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !files.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(files)) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "more open files than one"));
        }
        match sendmsg(&socket, &[IoSlice::new(bytes)], &mut ancillary, flags) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait_for(&socket, PollFlags::OUT, end)?,
            Err(error) => return Err(error.into()),
        }
    }
}

/// The next message; `None` when the other side has ended.
///
/// # Errors
/// `TimedOut` when there is none by then; `InvalidData` for a message that is longer than [`LONGEST`] or has more open
/// files than any should.
pub fn receive(socket: impl AsFd, most: Duration) -> io::Result<Option<Message>> {
    let end = Instant::now() + most;
    let mut bytes = vec![0; LONGEST];
    loop {
        wait_for(&socket, PollFlags::IN, end)?;
        // Room for one more than any message has, so that too many are seen; the kernel drops what does not fit.
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let got = match recvmsg(&socket, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, flags)
        {
            Ok(got) => got,
            Err(Errno::INTR | Errno::AGAIN) => continue,
            Err(error) => return Err(error.into()),
        };
        let mut files = Vec::new();
        for part in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(passed) = part {
                files.extend(passed);
            }
        }
        let refuse = |why: String| Err(io::Error::new(io::ErrorKind::InvalidData, why));
        if got.flags.contains(ReturnFlags::TRUNC) {
            return refuse(format!("the message is longer than {LONGEST} bytes"));
        }
        if got.flags.contains(ReturnFlags::CTRUNC) {
            return refuse("more open files came with the message than any has".to_owned());
        }
        if got.bytes == 0 {
            return Ok(None);
        }
        bytes.truncate(got.bytes);
        return Ok(Some(Message { bytes, files }));
    }
}

/// Whether the other side has closed its end: nobody waits for an answer any more.
///
/// # Errors
/// When the socket cannot be looked at.
pub fn is_deserted(socket: impl AsFd) -> io::Result<bool> {
    let mut polled = [PollFd::new(&socket, PollFlags::empty())];
    match poll(&mut polled, Some(&Timespec::default())) {
        Ok(_) => Ok(polled[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)),
        Err(Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Waits until the socket is ready for this, or has failed, which the next call on it tells.
fn wait_for(socket: impl AsFd, event: PollFlags, end: Instant) -> io::Result<()> {
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&socket, event)], Some(&timeout)) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use banger_api::Cidr;

    use super::*;
    use crate::{Guard, Installation, LoopRole, Mac, Nat, Tap};

    const SOON: Duration = Duration::from_secs(5);

    fn mark() -> Mark {
        Mark::parse("bg0000-00000000").unwrap()
    }

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
    }

    fn acts() -> Vec<Act> {
        let network = Network {
            number: 0,
            gateway: [10, 0, 0, 1].into(),
            prefix: 22,
            mtu: 1500,
            peers: false,
            ipv6: None,
        };
        let (address, mac) = ([10, 0, 0, 2].into(), Mac::of(&mark()));
        let installation = mark().installation().clone();
        vec![
            Act::Acquire { claim: Claim::Bridge { installation, network } },
            Act::Acquire {
                claim: Claim::Guard(Guard {
                    mark: mark(),
                    network,
                    address,
                    mac,
                    exposed: [].into(),
                }),
            },
            Act::Acquire { claim: Claim::Tap(Tap { mark: mark(), uid: 7, network }) },
            Act::Acquire { claim: Claim::Nat(Nat { mark: mark(), network, address, only: None }) },
            Act::Acquire {
                claim: Claim::Nat(Nat {
                    mark: mark(),
                    network,
                    address,
                    only: Some(vec![Cidr::parse("203.0.113.0/24").unwrap()]),
                }),
            },
            Act::Open { mark: mark(), addresses: [[203, 0, 113, 7].into()].into(), seconds: 60 },
            Act::Denied { mark: mark() },
            Act::Release { held: Held::Loop { mark: mark(), role: LoopRole::Disk } },
            Act::List {},
            Act::Firewalls { network },
            Act::RouteNames { number: 0, zone: Zone::default() },
            Act::Signal { mark: mark(), signal: VmmSignal::Term },
            Act::Connect { mark: mark(), name: "api.sock".to_owned() },
        ]
    }

    #[test]
    fn a_request_is_understood_as_it_was_meant() {
        for act in acts() {
            assert_eq!(parse_request(&request(&act)).unwrap(), act);
        }
    }

    #[test]
    fn what_a_request_does_not_have_is_refused_at_every_depth() {
        for act in acts() {
            let text = String::from_utf8(request(&act)).unwrap();
            for (at, _) in text.match_indices('{') {
                let mut longer = text.clone();
                longer.insert_str(
                    at + 1,
                    if text[at + 1..].starts_with('}') { "\"x\":1" } else { "\"x\":1," },
                );
                let error = parse_request(longer.as_bytes()).expect_err(&longer).to_string();
                assert!(error.contains("unknown field `x`"), "{longer}: {error}");
            }
        }
    }

    #[test]
    fn bytes_after_a_request_and_requests_cut_off_are_refused() {
        let whole = request(&Act::List {});
        assert!(parse_request(&[whole.as_slice(), b"{}"].concat()).is_err());
        for length in 0..whole.len() {
            assert!(parse_request(&whole[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn another_version_is_refused_by_name_whatever_it_says() {
        let error = parse_request(br#"{"version":2,"act":{"do":"fly"},"colour":"red"}"#);
        let text = error.unwrap_err().to_string();
        assert!(text.starts_with("it is of version 2, and this is version 1"), "{text}");
    }

    #[test]
    fn a_field_that_comes_twice_is_refused() {
        for text in [
            r#"{"version":1,"version":1,"act":{"do":"list"}}"#,
            r#"{"version":1,"act":{"do":"list"},"act":{"do":"list"}}"#,
            r#"{"version":1,"act":{"do":"list","do":"list"}}"#,
            r#"{"version":1,"act":{"do":"connect","mark":"bg0000-00000000","name":"a","name":"b"}}"#,
        ] {
            assert!(parse_request(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn an_error_arrives_with_its_kind_and_all_its_causes() {
        let cause = io::Error::new(
            io::ErrorKind::TimedOut,
            Said {
                text: "it is busy".to_owned(),
                cause: Some(Box::new(Said { text: "udev holds it".to_owned(), cause: None })),
            },
        );
        let sent = HostError::new("remove the device", cause);
        let message = reply(&Reply::Failed(Failure::from(&sent)));
        let Reply::Failed(failure) = parse_reply(&message).unwrap() else { panic!() };
        let arrived = HostError::from(failure);
        assert_eq!(arrived.to_string(), "cannot remove the device");
        assert_eq!(arrived.kind(), io::ErrorKind::TimedOut);
        let first = arrived.source().unwrap();
        assert_eq!(first.to_string(), "it is busy");
        assert_eq!(first.source().unwrap().to_string(), "udev holds it");
        assert!(first.source().unwrap().source().is_none());
    }

    #[test]
    fn more_than_fits_a_reply_comes_in_several() {
        let installation = Installation::parse("0000").unwrap();
        let held: Vec<Held> = std::iter::repeat_with(|| {
            let vm = banger_api::VmId::random().unwrap();
            Held::JailedVmm { mark: Mark::new(installation.clone(), vm) }
        })
        .take(1000)
        .collect();
        let mut arrived = Vec::new();
        let replies = Reply::held(&held);
        for (index, part) in replies.iter().enumerate() {
            assert!(reply(part).len() < LONGEST);
            let Reply::Held { held, more } = part else { panic!() };
            assert_eq!(*more, index + 1 < replies.len());
            arrived.extend(held.clone());
        }
        assert_eq!(arrived, held);
        assert_eq!(Reply::held(&[]), [Reply::Held { held: Vec::new(), more: false }]);
    }

    #[test]
    fn a_message_and_its_open_file_arrive_together() {
        let (ours, theirs) = pair();
        let (read_end, write_end) = io::pipe().unwrap();
        send(&ours, b"hello", &[write_end.as_fd()], SOON).unwrap();
        drop((ours, write_end));
        let message = receive(&theirs, SOON).unwrap().unwrap();
        assert_eq!(message.bytes, b"hello");
        let [file] = <[OwnedFd; 1]>::try_from(message.files).unwrap();
        rustix::io::write(&file, b"x").unwrap();
        let mut got = [0; 1];
        rustix::io::read(&read_end, &mut got).unwrap();
        assert_eq!(&got, b"x");
        assert!(receive(&theirs, SOON).unwrap().is_none(), "the other side has ended");
    }

    #[test]
    fn a_message_that_is_too_long_is_refused_on_both_sides() {
        let (ours, theirs) = pair();
        let long = vec![b' '; LONGEST + 1];
        let error = send(&ours, &long, &[], SOON).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        rustix::net::send(&ours, &long, SendFlags::empty()).unwrap();
        let error = receive(&theirs, SOON).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn who_says_nothing_is_not_waited_for() {
        let (ours, theirs) = pair();
        let error = receive(&theirs, Duration::from_millis(20)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(!is_deserted(&theirs).unwrap());
        drop(ours);
        // A child that another test starts just now has a copy until it executes its program.
        let most = Timespec { tv_sec: 10, tv_nsec: 0 };
        poll(&mut [PollFd::new(&theirs, PollFlags::empty())], Some(&most)).unwrap();
        assert!(is_deserted(&theirs).unwrap());
    }
}
