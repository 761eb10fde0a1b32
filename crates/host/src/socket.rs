//! Listening unix sockets whose paths may be longer than the 108 bytes of `sun_path` (unix(7)): bound through the fd of
//! their folder. Private by the folder's mode (0700) and the process's umask (077).

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use crate::error::{HostError, on};

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
    let short = PathBuf::from(format!("/proc/self/fd/{}/{name}", opened.as_raw_fd()));
    UnixStream::connect(short).map_err(on("connect to", &folder.join(name)))
}

#[cfg(test)]
mod tests {
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
}
