//! How the daemon and a guest's agent begin to talk over the one byte stream between them, whatever carries it: a
//! virtio-serial port, or a vsock connection to [`VSOCK_PORT`].
//!
//! A virtio-serial port keeps bytes of a connection that is gone, on either side. So each connection begins with three
//! lines, and both sides throw away everything before the line that they wait for:
//!
//! ```text
//! daemon: BANGER/1 HELLO <nonce>
//! agent:  BANGER/1 READY <nonce> <boot id> <agent's version>
//! daemon: BANGER/1 GO <nonce>
//! ```
//!
//! Until it has READY the daemon says HELLO again once a second (a guest may throw one away while it notices that its
//! last peer is gone); until it has GO the agent answers every HELLO and throws the rest away. After GO the stream is
//! yamux (daemon = client, it opens the streams), and every yamux stream is one HTTP/1.1 connection to the agent.
//! A vsock connection remembers nobody, but begins in the same way: READY is how the daemon learns that the guest is.
//! Over a unix socket each connection is an HTTP/1.1 connection of its own, and none of this is needed.

/// The vsock port at which the agent listens for the host. It takes it before any other program of the guest runs.
pub const VSOCK_PORT: u32 = 1024;

/// Name of the virtio-serial port that the agent looks for in `/sys/class/virtio-ports/*/name`.
pub const PORT_NAME: &str = "banger.agent";

/// No line of the handshake is longer.
pub const MAX_LINE: usize = 256;

const MAGIC: &str = "BANGER/1 ";

/// A line of the handshake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    Hello { nonce: String },
    Ready { nonce: String, boot_id: String, version: String },
    Go { nonce: String },
}

impl Line {
    /// The line with its newline before and after: the one before ends whatever a lost peer left unfinished.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Line::Hello { nonce } => format!("\n{MAGIC}HELLO {nonce}\n"),
            Line::Ready { nonce, boot_id, version } => {
                format!("\n{MAGIC}READY {nonce} {boot_id} {version}\n")
            }
            Line::Go { nonce } => format!("\n{MAGIC}GO {nonce}\n"),
        }
        .into_bytes()
    }

    /// `None` for anything that is not a whole line of the handshake; `line` comes without its newline.
    #[must_use]
    pub fn parse(line: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(line).ok()?.strip_prefix(MAGIC)?;
        let words: Vec<&str> = text.split(' ').collect();
        match words[..] {
            ["HELLO", nonce] => Some(Line::Hello { nonce: nonce.to_owned() }),
            ["READY", nonce, boot_id, version] => Some(Line::Ready {
                nonce: nonce.to_owned(),
                boot_id: boot_id.to_owned(),
                version: version.to_owned(),
            }),
            ["GO", nonce] => Some(Line::Go { nonce: nonce.to_owned() }),
            _ => None,
        }
    }
}

/// Finds lines in bytes that may hold anything. Keeps at most [`MAX_LINE`] bytes.
#[derive(Debug, Default)]
pub struct LineFinder {
    line: Vec<u8>,
    overlong: bool,
}

impl LineFinder {
    /// Takes one byte; gives the handshake line that it ends, if it ends one.
    pub fn push(&mut self, byte: u8) -> Option<Line> {
        if byte != b'\n' {
            if self.line.len() < MAX_LINE {
                self.line.push(byte);
            } else {
                self.overlong = true;
            }
            return None;
        }
        let found = if self.overlong { None } else { Line::parse(&self.line) };
        self.line.clear();
        self.overlong = false;
        found
    }
}

/// GET /v1/init of the agent: what runs the guest as PID 1, and how far it is.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct InitState {
    /// `systemd`, `agent`, or the name of the program.
    pub init: String,
    /// What `systemctl is-system-running --wait` says; `running` for others.
    pub state: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_survive_the_wire() {
        for line in [
            Line::Hello { nonce: "abc".into() },
            Line::Ready { nonce: "abc".into(), boot_id: "1-2-3".into(), version: "0.1.0".into() },
            Line::Go { nonce: "abc".into() },
        ] {
            let mut finder = LineFinder::default();
            let found: Vec<Line> =
                line.encode().into_iter().filter_map(|byte| finder.push(byte)).collect();
            assert_eq!(found, [line]);
        }
    }

    #[test]
    fn a_line_is_found_after_any_rubbish() {
        let mut bytes = vec![0_u8, 255, b'\n', b'B'];
        bytes.extend(vec![b'x'; 10 * MAX_LINE]);
        bytes.extend(Line::Go { nonce: "n".into() }.encode());
        let mut finder = LineFinder::default();
        let found: Vec<Line> = bytes.into_iter().filter_map(|byte| finder.push(byte)).collect();
        assert_eq!(found, [Line::Go { nonce: "n".into() }]);
    }

    #[test]
    fn what_is_almost_a_line_is_not_one() {
        for text in [
            "",
            "BANGER/1 HELLO",
            "BANGER/1 HELLO a b",
            "BANGER/2 HELLO a",
            "banger/1 HELLO a",
            "BANGER/1 READY a b",
        ] {
            assert_eq!(Line::parse(text.as_bytes()), None, "{text}");
        }
    }
}
