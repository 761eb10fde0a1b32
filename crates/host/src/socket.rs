//! Listening unix sockets whose paths may be longer than the 108 bytes of `sun_path` (unix(7)): bound through the fd of
//! their folder. Private by the folder's mode (0700) and the process's umask (077).

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, openat2};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect as connect_to, socket_with,
};

use crate::error::{HostError, on};

/// How long a listener may have its queue full.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// Binds and listens; a file of that name from before is replaced.
///
/// # Errors
/// When the folder is not there or the socket cannot be bound.
pub fn listen(folder: &Path, name: &str) -> Result<OwnedFd, HostError> {
    let path = folder.join(name);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(on("replace the socket", &path)(error));
        }
        _ => {}
    }
    let opened = File::open(folder).map_err(on("open", folder))?;
    let short = PathBuf::from(format!("/proc/self/fd/{}/{name}", opened.as_raw_fd()));
    let listener = UnixListener::bind(short).map_err(on("listen on", &path))?;
    Ok(listener.into())
}

/// Connects to the socket of that name, however deep its folder.
///
/// # Errors
/// When nobody listens there.
pub fn connect(folder: &Path, name: &str) -> Result<UnixStream, HostError> {
    let opened = File::open(folder).map_err(on("open", folder))?;
    connect_in(&opened, name).map_err(on("connect to", &folder.join(name)))
}

/// As [`connect`], in an opened folder whose owner nobody vouches for: what has that name must be a socket and no link, is
/// opened once and used by its fd; and a listener that accepts nobody is waited for no longer than [`CONNECT_DEADLINE`].
pub(crate) fn connect_in(folder: impl AsFd, name: &str) -> io::Result<UnixStream> {
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let found = openat2(folder, name, flags, Mode::empty(), beneath)?;
    if FileType::from_raw_mode(fstat(&found)?.st_mode) != FileType::Socket {
        return Err(io::Error::other("it is no socket"));
    }
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    let address = SocketAddrUnix::new(format!("/proc/self/fd/{}", found.as_raw_fd()))?;
    // connect(2) waits for room in the listener's queue as long as a send would (socket(7), SO_SNDTIMEO).
    set_socket_timeout(&socket, Timeout::Send, Some(CONNECT_DEADLINE))?;
    connect_to(&socket, &address)?;
    set_socket_timeout(&socket, Timeout::Send, None)?;
    Ok(socket.into())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn a_socket_deeper_than_108_bytes_can_be_listened_on() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("x".repeat(120));
        fs::create_dir(&folder).unwrap();
        let listener = UnixListener::from(listen(&folder, "a.sock").unwrap());
        let opened = File::open(&folder).unwrap();
        let short = format!("/proc/self/fd/{}/a.sock", opened.as_raw_fd());
        std::os::unix::net::UnixStream::connect(short).unwrap().write_all(b"hello").unwrap();
        let mut text = String::new();
        listener.accept().unwrap().0.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
    }

    #[test]
    fn what_is_no_socket_or_only_leads_to_one_is_not_connected_to() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("folder");
        fs::create_dir(&folder).unwrap();
        let _outside = listen(root.path(), "outside.sock").unwrap();
        std::os::unix::fs::symlink(root.path().join("outside.sock"), folder.join("link.sock"))
            .unwrap();
        std::os::unix::fs::symlink(root.path(), folder.join("up")).unwrap();
        fs::write(folder.join("file"), b"").unwrap();
        for name in ["link.sock", "up/outside.sock", "../outside.sock", "file", "absent", "."] {
            assert!(connect(&folder, name).is_err(), "{name}");
        }
        connect(root.path(), "outside.sock").unwrap();
    }

    #[test]
    fn nobody_listening_is_an_error_at_once() {
        let root = tempfile::tempdir().unwrap();
        let _deaf = bind_only(&root.path().join("a.sock"));
        let error = connect(root.path(), "a.sock").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    }

    /// A socket that nobody listens on, whichever child of another test still holds a copy of its fd.
    pub(crate) fn bind_only(path: &Path) -> OwnedFd {
        let socket =
            socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None);
        let socket = socket.unwrap();
        rustix::net::bind(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
        socket
    }
}
