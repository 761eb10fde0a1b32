//! A VM's network without privilege: passt (passt(1)) makes sockets of what the guest sends, as this user, and packets of what
//! they receive; before it stands a [`fence`]. No device, address or rule is on the host, and every VM has the same addresses:
//! each is alone in its network.
//!
//! ```text
//! banger-vmm:MARK ──network.sock──► banger-fence:MARK ──► banger-passt:MARK ──► sockets of this user's
//! ```
//! Both outlive the daemon, and are found by their `argv[0]`. The fence waits for the VMM; then all three end when one does, but
//! for the VMM, whose guest is then without a network.

use std::io;
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{getegid, geteuid};

use crate::command::{self, Detached};
use crate::error::HostError;
use crate::mark::Mark;
use crate::process::{self, Children};
use crate::vmm_process::{end, named};
use crate::{Places, fence, socket};

/// The guest's address.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 212, 255, 2);
/// Who passes on what it sends, and its questions for names.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 212, 255, 1);
/// Of the subnet that both are in and nobody else, in bits.
pub const PREFIX: u8 = 30;
/// The longest packet, in bytes: passt's own default. The longer, the fewer packets there are to copy.
pub const MTU: u16 = 65520;

/// The program's name, which is also its package's.
pub const PROGRAM: &str = "passt";
/// The socket in the VM's run folder on which the fence accepts its VMM.
pub const SOCKET: &str = "network.sock";

/// passt takes its own name for a sign of what it is to do, so `passt` must be in it.
const PASST: &str = "banger-passt:";
const FENCE: &str = "banger-fence:";

/// The gateway's hardware address, locally administered: without it passt wants that of a device of the host's.
const GATEWAY_MAC: &str = "02:62:67:00:00:01";
/// Where passt finds its connection.
const PASST_FD: i32 = 3;

/// How long passt may take until it serves. It looks at the host's routes and makes namespaces.
const READY_DEADLINE: Duration = Duration::from_secs(10);
/// How long both have to be gone after SIGKILL.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// `own`: the program that is the fence when it gets [`fence::ARGUMENT`].
pub(crate) fn acquire(
    mark: &Mark,
    places: &Places,
    own: &Path,
    children: &Children,
) -> Result<(), HostError> {
    let lives = |prefix: &str| process::find(&format!("{prefix}{mark}")).map(|all| !all.is_empty());
    let failed =
        |cause: io::Error| HostError::new(format!("start the network of VM {mark}"), cause);
    if lives(FENCE).map_err(failed)? && lives(PASST).map_err(failed)? {
        return Ok(());
    }
    release(mark, children)?;
    let listener = socket::listen(&places.run_folder(mark), SOCKET)?;
    let (inside, outside) = UnixStream::pair().map_err(failed)?;
    start_passt(mark, outside)?;
    let fence = Detached {
        program: own,
        argv0: &format!("{FENCE}{mark}"),
        args: &[fence::ARGUMENT.to_owned()],
        stdin: listener.into(),
        stdout: Stdio::from(std::os::fd::OwnedFd::from(inside)),
        stderr: Stdio::null(),
        fds: Vec::new(),
        first_fd: PASST_FD,
        confined: None,
    };
    children.add(&fence.spawn().map_err(failed)?).map_err(failed)
}

pub(crate) fn release(mark: &Mark, children: &Children) -> Result<(), HostError> {
    let fence = end(mark, FENCE, KILL_DEADLINE, true);
    let passt = end(mark, PASST, KILL_DEADLINE, true);
    children.reap();
    fence.and(passt)
}

/// The marks of all that is there of such networks.
pub(crate) fn marked() -> Result<Vec<Mark>, HostError> {
    let mut marks = named(PASST)?;
    marks.extend(named(FENCE)?);
    Ok(marks)
}

/// Returns when it serves: then the program that was started ends, and another of its name goes on, which ends when the other end
/// of its connection is closed (`--fd` implies `--one-off`).
pub(crate) fn start_passt(mark: &Mark, connection: UnixStream) -> Result<(), HostError> {
    let failed = |cause: io::Error| HostError::new(format!("start {PROGRAM} for VM {mark}"), cause);
    let program = command::find(PROGRAM)
        .ok_or_else(|| failed(io::Error::new(io::ErrorKind::NotFound, "it is not installed")))?;
    let starting = Detached {
        program: &program,
        argv0: &format!("{PASST}{mark}"),
        args: &arguments(),
        stdin: Stdio::null(),
        stdout: Stdio::null(),
        stderr: Stdio::piped(),
        fds: vec![connection.into()],
        first_fd: PASST_FD,
        confined: None,
    };
    starting.run(READY_DEADLINE).map_err(failed)
}

fn arguments() -> Vec<String> {
    let (address, gateway) = (ADDRESS.to_string(), GATEWAY.to_string());
    // Root's daemon has taps; where root runs this nevertheless, passt stays its, and is found.
    let user = format!("{}:{}", geteuid().as_raw(), getegid().as_raw());
    let prefix = PREFIX.to_string();
    let fd = PASST_FD.to_string();
    [
        "--quiet",
        "--ipv4-only",
        // Addresses and routes are given; a host whose uplink comes later, or changes, is no matter.
        "--interface",
        "lo",
        "--mac-addr",
        GATEWAY_MAC,
        "--address",
        &address,
        "--netmask",
        &prefix,
        "--gateway",
        &gateway,
        // Of all that the gateway could be, it is the host's resolver (the first of /etc/resolv.conf) and nothing else.
        "--no-map-gw",
        "--dns-forward",
        &gateway,
        "--no-dhcp",
        "--runas",
        &user,
        "--fd",
        &fd,
    ]
    .map(ToOwned::to_owned)
    .into()
}
